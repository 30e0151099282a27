# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Stops a host that the plan refuses, with the plan's own problems; other hosts go on."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import problems
from ansible_collections.dsprov.appliance.plugins.plugin_utils.outcome import refusal


class ActionModule(ActionBase):
    """Options: `plan`, and `install`: also stop at what can be planned, but not installed by this release.

    Returns this host's row as `row`.
    """

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        host = (task_vars or {})["inventory_hostname"]
        plan = self._task.args["plan"]
        mine = [problem for problem in plan["problems"] if problem["host"] in (None, host)]
        if self._task.args.get("install", True):
            mine = [problems().at_install(problem) for problem in mine]
        row = next((row for row in plan["hosts"] if row["name"] == host), None)
        return {**result, "changed": False, "row": row, **refusal(mine)}
