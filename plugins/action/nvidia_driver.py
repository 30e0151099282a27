# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Decides by the catalogue what becomes of a host's NVIDIA driver; the module on the host only looks."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.dsprov.appliance.plugins.module_utils import nvidia_driver as rules
from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import catalogue, problems
from ansible_collections.dsprov.appliance.plugins.plugin_utils.controller_action import refusal

MODULE = "dsprov.appliance.nvidia_driver"


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible has no types
    """Options are the module's; adds `lists`, what apt must be told of, and fills the others."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        host = (task_vars or {}).get("inventory_hostname")
        facts: dict[str, Any] = self._task.args["facts"]
        wishes = rules.Wishes(**self._task.args["wishes"])
        rows = catalogue()
        kernel = str(facts["os"].get("kernel", ""))
        seen = self._look(kernel, [], task_vars)
        if seen.get("failed"):
            return {**result, **seen}
        look = seen["look"]
        decision = rules.decide(facts, look, wishes, rows["nvidia"], rows["gpus"], problems())
        found = [{**problems().at_install(problem), "host": host} for problem in decision.problems]
        stopped = any(problem["severity"] == "error" for problem in found)
        resolution = rules.Resolution()
        lists: dict[str, Any] = {}
        if not stopped and decision.action == "install":
            row = rows["nvidia"]["rows"][decision.row]
            resolution = rules.settled(decision, look, wishes, rows["nvidia"])
            lists = rules.lists(row, facts["os"], look["targets"])
            if not resolution.version and self._task.args.get("resolve"):
                names = rules.asked(decision, rows["nvidia"], look["kernel"])
                seen = self._look(kernel, names, task_vars)
                if seen.get("failed"):
                    return {**result, **seen}
                look = seen["look"]
                headers = any(one["headers"] for one in look["kernels"] if one["release"] == look["kernel"])
                resolution = rules.resolve(
                    decision, look["available"], look["kernel"], headers, wishes, rows["nvidia"], problems()
                )
                found += [{**problem, "host": host} for problem in resolution.problems]
        return {
            **result,
            "changed": False,
            "look": look,
            "decision": {**decision.as_dict(), "problems": []},
            "resolution": {**resolution.as_dict(), "problems": []},
            "lists": lists,
            **refusal(found),
        }

    def _look(self, kernel: str, names: list[str], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        seen: dict[str, Any] = self._execute_module(
            module_name=MODULE, module_args={"names": names, "kernel": kernel}, task_vars=task_vars
        )
        return seen
