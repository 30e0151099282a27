# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Notes what a role takes from outside, beside what roles before it noted: what a bundle has to hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.dsprov.appliance.plugins.plugin_utils.controller_action import ControllerAction

KINDS = ("packages", "repositories", "drivers", "files", "images", "wheels")


class ActionModule(ControllerAction):
    """Options, each a list and empty by default.

    * packages: names of apt packages
    * repositories: apt repositories beside the distribution's: url, suite, components, and key, which is
      name, fingerprints and sources
    * drivers: NVIDIA drivers whose version is chosen by what the repositories have, as the action
      nvidia_driver gives them: decision, wishes, kernel, components, repositories
    * files: name, sha256, sources, and bytes, member and member_sha256 as the module artifact has them
    * images: registry, repository, digest, and image, the place where this channel has it
    * wheels: requirements (a requirements file with hashes, on the controller), python (version), index

    Returns `needs`: all that was noted for this host so far, which is also the fact `dsprov_needs`.
    """

    def decide(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        before = variables.get("ansible_facts", {}).get("dsprov_needs") or {}
        unknown = sorted(set(self._task.args) - set(KINDS))
        if unknown:
            return {"failed": True, "msg": f"needs: unknown kind {unknown[0]}; known: {', '.join(KINDS)}"}
        noted: dict[str, list[Any]] = {}
        for kind in KINDS:
            rows = [*before.get(kind, []), *self._task.args.get(kind, [])]
            noted[kind] = [row for index, row in enumerate(rows) if row not in rows[:index]]
        return {"needs": noted, "ansible_facts": {"dsprov_needs": noted}}
