# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Tells roles which system a host has, from a facts document: without a look at the host."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import (
    catalogue,
    check,
    facts_schema,
    problems,
    read_yaml,
)
from ansible_collections.dsprov.appliance.plugins.plugin_utils.controller_action import ControllerAction

# Name in a facts document that stands for every host of the play.
ANY = "any"


class ActionModule(ControllerAction):
    """Options: `facts`, the host's row of a facts document, or `file`, a whole document on the controller.

    Returns the row as `facts`, and Ansible's facts distribution, distribution_major_version and
    distribution_release.
    """

    def decide(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        host = variables["inventory_hostname"]
        row = self._task.args.get("facts")
        if not row:
            file = Path(self._task.args["file"])
            document = read_yaml(file)
            check(document, facts_schema(), None, file)
            row = document["hosts"].get(host) or document["hosts"].get(ANY)
            if not row:
                raise problems().error("facts-host-missing", file=file)
        system = row["os"]
        known = catalogue()["systems"]["systems"].get(system["id"], {})
        version = str(system["version_id"])
        named = {
            "distribution": known.get("title", system["id"]),
            "distribution_major_version": version.partition(".")[0],
            "distribution_version": version,
            "distribution_release": known.get("codenames", {}).get(version, ""),
        }
        return {"facts": row, "ansible_facts": named}
