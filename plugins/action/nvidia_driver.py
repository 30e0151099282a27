# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Decides by the catalogue what becomes of a host's NVIDIA driver; the module on the host only looks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.dsprov.appliance.plugins.module_utils import nvidia_driver as rules
from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import catalogue, problems
from ansible_collections.dsprov.appliance.plugins.plugin_utils.controller_action import refusal

MODULE = "dsprov.appliance.nvidia_driver"


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible has no types
    """Options are the module's; adds `lists`, what apt must be told of, and fills the others.

    With `needs`, the place and the fingerprints of NVIDIA's repository, no host is asked: `drivers` are
    rows for the action needs.
    """

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        host = (task_vars or {}).get("inventory_hostname")
        facts: dict[str, Any] = self._task.args["facts"]
        wishes = rules.Wishes(**self._task.args["wishes"])
        rows = catalogue()
        kernel = str(facts["os"].get("kernel", ""))
        if "needs" in self._task.args:
            # Of an image nobody knows yet which kernel it will have.
            known = "" if wishes.bake else kernel
            return {**result, "changed": False, "drivers": self._needs(facts, wishes, rows, known)}
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
            target = rules.kernel_to_build_for(look, wishes)
            names: list[str] = []
            if self._task.args.get("headers"):
                names = rules.headers_asked(decision, look, target, row)
            elif self._task.args.get("resolve") and not resolution.version:
                names = rules.asked(decision, rows["nvidia"], target)
            if names:
                seen = self._look(kernel, names, task_vars)
                if seen.get("failed"):
                    return {**result, **seen}
                look = seen["look"]
            if names and self._task.args.get("headers"):
                missing = rules.missing_headers(target, names, look["available"], problems())
                found += [{**problem, "host": host} for problem in missing]
            elif names:
                headers = any(one["headers"] for one in look["kernels"] if one["release"] == target)
                resolution = rules.resolve(
                    decision, look["available"], target, headers, wishes, rows["nvidia"], problems()
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

    def _needs(
        self, facts: dict[str, Any], wishes: rules.Wishes, rows: Mapping[str, Any], kernel: str
    ) -> list[dict[str, Any]]:
        """The driver that a bundle has to hold; none where the host keeps its own or has no card."""
        table = rows["nvidia"]
        decision = rules.decide(facts, rules.seen_by_probe(facts), wishes, table, rows["gpus"], problems())
        if decision.action != "install" or not decision.ok:
            return []
        row = table["rows"][decision.row]
        where = self._task.args["needs"]
        repositories = []
        if source := rules.lists(row, facts["os"], [])["repository"]:
            url = f"{where['url']}/{source['path']}"
            key = {
                "name": "the key of NVIDIA's apt repository",
                "fingerprints": where["fingerprints"] or [source["fingerprint"]],
                "sources": [f"{url}/{source['key']}"],
            }
            repositories = [{"url": url, "suite": "/", "components": [], "key": key}]
        return [
            {
                "decision": {**decision.as_dict(), "problems": [], "found": {}},
                "wishes": asdict(wishes),
                "kernel": kernel,
                "components": row.get("components", []),
                "repositories": repositories,
            }
        ]

    def _look(self, kernel: str, names: list[str], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        seen: dict[str, Any] = self._execute_module(
            module_name=MODULE, module_args={"names": names, "kernel": kernel}, task_vars=task_vars
        )
        return seen
