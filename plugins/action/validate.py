# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Checks what people wrote, on the controller, before any host is touched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ansible_collections.dsprov.appliance.plugins.module_utils.problems import Problem, ProblemError
from ansible_collections.dsprov.appliance.plugins.module_utils.variables import PREFIX
from ansible_collections.dsprov.appliance.plugins.plugin_utils import catalogue
from ansible_collections.dsprov.appliance.plugins.plugin_utils.controller_action import (
    ControllerAction,
    refusal,
)
from ansible_collections.dsprov.appliance.plugins.plugin_utils.requests import is_asked, request_from

try:  # Where a value was written; an internal of ansible-core 2.19, so it may go.
    from ansible._internal._datatag._tags import Origin
except ImportError:
    Origin = None


class ActionModule(ControllerAction):
    """Options: `roles`, whose argument specs are checked beside the collection-wide variables.

    Returns `asked`: what the planner reads of this host's variables, those of plays and roles among them,
    which `hostvars` leaves out.
    """

    def decide(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        asked: dict[str, Any] = {}
        try:
            asked, found = self._asked(variables)
            for role in self._task.args.get("roles", []):
                found += self._role_problems(role, variables)
        except ProblemError as error:
            found = [error.problem]
        host = variables.get("inventory_hostname")
        return {"asked": asked, **refusal([{**problem, "host": host} for problem in found])}

    def _asked(self, variables: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
        given = {key: raw for key, raw in variables.items() if is_asked(key)}
        found: list[Problem] = []
        asked: dict[str, Any] = {}
        for key, raw in given.items():
            try:
                asked[key] = self._templar.template(raw)
            except AnsibleError as error:
                # What a role takes is checked by the role's own specification.
                if key.startswith(PREFIX):
                    found.append(self._invalid(key, raw, error))
        origins = {key: origin for key, raw in given.items() if (origin := _origin(raw))}
        ours = {key: value for key, value in asked.items() if key.startswith(PREFIX)}
        _request, more = request_from(ours, origins)
        return asked, found + more

    def _role_problems(self, role: str, variables: Mapping[str, Any]) -> list[Problem]:
        """Values given to a role that its argument spec refuses. What is not given is the role's default."""
        path = catalogue.ROOT / "roles" / role / "meta" / "argument_specs.yml"
        options = catalogue.read_yaml(path)["argument_specs"]["main"]["options"]
        found: list[Problem] = []
        for key in sorted(options.keys() & variables.keys()):
            try:
                value = self._templar.template(variables[key])
            except AnsibleError as error:
                found.append(self._invalid(key, variables[key], error))
                continue
            spec = {
                key: {
                    k: v
                    for k, v in options[key].items()
                    if k not in ("description", "default", "version_added")
                }
            }
            for message in ArgumentSpecValidator(_plain(spec)).validate({key: value}).error_messages:
                found.append(self._invalid(key, variables[key], message))
        return found

    def _invalid(self, key: str, raw: Any, error: object) -> Problem:
        where = _origin(raw)
        detail = " ".join(str(error).split())
        return catalogue.problems().make(
            "variable-invalid", key=f"{where}: {key}" if where else key, detail=detail
        )


def _plain(spec: Any) -> Any:
    """An argument spec without what only documentation reads."""
    if isinstance(spec, Mapping):
        return {
            key: _plain(value) for key, value in spec.items() if key not in ("description", "version_added")
        }
    return spec


def _origin(value: Any) -> str:
    """FILE:LINE where a value was written, or nothing."""
    tag = Origin.get_tag(value) if Origin else None
    if tag is None or not getattr(tag, "path", None):
        return ""
    return f"{tag.path}:{tag.line_num}" if tag.line_num else str(tag.path)
