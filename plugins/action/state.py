# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Adds to the record of an install what only the controller knows: a digest of each role's inputs."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.dsprov.appliance.plugins.plugin_utils import catalogue


class ActionModule(ActionBase):
    """Option of its own: `roles`, whose inputs are digested; all else is the module's."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        roles = arguments.pop("roles", [])
        version = catalogue.read_yaml(catalogue.ROOT / "galaxy.yml")["version"]
        arguments["document"] = {
            "dsprov": version,
            "roles": {
                role: {"version": version, "inputs": self._inputs(role, task_vars or {})} for role in roles
            },
            **arguments["document"],
        }
        module: dict[str, Any] = self._execute_module(
            module_name="dsprov.appliance.state", module_args=arguments, task_vars=task_vars
        )
        return {**result, **module}

    def _inputs(self, role: str, variables: dict[str, Any]) -> str:
        """sha256 of a role's inputs as they are on this host."""
        path = catalogue.ROOT / "roles" / role / "meta" / "argument_specs.yml"
        options = catalogue.read_yaml(path)["argument_specs"]["main"].get("options", {})
        values = {key: self._templar.template(variables[key]) for key in sorted(options) if key in variables}
        return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
