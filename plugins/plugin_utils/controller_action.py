# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Actions that decide on the controller and ask nothing of the host, and how they hand problems over."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.dsprov.appliance.plugins.module_utils.problems import Problem, ProblemError


class ControllerAction(ActionBase):  # type: ignore[misc]  # ansible has no types
    """An action plugin whose work is one decision; a ProblemError on the way is its refusal."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """What Ansible calls; not for subclasses."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        try:
            decided = self.decide(task_vars or {})
        except ProblemError as error:
            decided = refusal([error.problem])
        return {**result, "changed": False, **decided}

    @abstractmethod
    def decide(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The task's result, from the variables of the task."""


def refusal(found: list[Problem]) -> dict[str, Any]:
    """A task's result: failed when any problem is an error, with all problems as `dsprov_problems`."""
    errors = [problem for problem in found if problem["severity"] == "error"]
    words = "; ".join(f"{problem['message']['en']} ({problem['remedy']['en']})" for problem in errors)
    outcome: dict[str, Any] = {"dsprov_problems": found}
    if errors:
        outcome.update(failed=True, msg=words)
    return outcome
