# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Makes the plan of all hosts of a play from what was probed. Runs once, on the controller."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.dsprov.appliance.plugins.module_utils.planner import Request, digest, plan
from ansible_collections.dsprov.appliance.plugins.module_utils.problems import ProblemError
from ansible_collections.dsprov.appliance.plugins.module_utils.variables import INTERNAL, PREFIX
from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import catalogue
from ansible_collections.dsprov.appliance.plugins.plugin_utils.outcome import refusal
from ansible_collections.dsprov.appliance.plugins.plugin_utils.requests import PORT_VARIABLES, request_from


class ActionModule(ActionBase):
    """Returns `plan`, `digest` and `facts` (the facts document the plan was made from)."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        hostvars = variables["hostvars"]
        facts: dict[str, Any] = {"schema": 1, "hosts": {}}
        requests: dict[str, Request] = {}
        try:
            for host in variables["ansible_play_hosts"]:
                known = hostvars[host]
                facts["hosts"][host] = known["dsprov_probed"]["facts"]
                ours = {
                    key: known[key]
                    for key in known
                    if (key.startswith(PREFIX) and key not in INTERNAL) or key in PORT_VARIABLES
                }
                request, found = request_from(ours)
                if request is None:
                    return {**result, **refusal(found)}
                requests[host] = request
            made = plan(facts, next(iter(requests.values())), catalogue(), requests)
        except ProblemError as error:
            return {**result, **refusal([error.problem])}
        return {**result, "changed": False, "plan": made, "digest": digest(made), "facts": facts}
