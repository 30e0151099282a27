# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Stops a host that the plan refuses, with the plan's own problems; other hosts go on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import problems
from ansible_collections.dsprov.appliance.plugins.plugin_utils.controller_action import (
    ControllerAction,
    refusal,
)

# What people read of a plan; roles are told what to do, not what else was thought of.
FOR_PEOPLE = ("considered", "capacity")


class ActionModule(ControllerAction):
    """Options: `plan`, and `install`: also stop at what can be planned, but not installed by this release.

    Returns this host's row as `row`, as roles need it.
    """

    def decide(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        host = variables["inventory_hostname"]
        plan = self._task.args["plan"]
        mine = [problem for problem in plan["problems"] if problem["host"] in (None, host)]
        if self._task.args.get("install", True):
            mine = [problems().at_install(problem) for problem in mine]
        rows = [row for row in plan["hosts"] if row["name"] == host]
        row = {key: value for key, value in rows[0].items() if key not in FOR_PEOPLE} if rows else None
        return {"row": row, **refusal(mine)}
