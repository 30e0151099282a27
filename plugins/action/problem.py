# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Ends a host, or warns of it, with a row of catalog/problems.yml and the row's own exit code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import problems
from ansible_collections.dsprov.appliance.plugins.plugin_utils.controller_action import (
    ControllerAction,
    refusal,
)


class ActionModule(ControllerAction):
    """Options: `code`, and `words` that fill the row's text in."""

    def decide(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        words = {str(key): value for key, value in (self._task.args.get("words") or {}).items()}
        return refusal([problems().make(self._task.args["code"], variables["inventory_hostname"], **words)])
