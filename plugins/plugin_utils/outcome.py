# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""How action plugins hand problems over: words for plain Ansible, rows for the command line."""

from __future__ import annotations

from typing import Any

from ansible_collections.dsprov.appliance.plugins.module_utils.problems import Problem


def refusal(found: list[Problem]) -> dict[str, Any]:
    """A task's result: failed when any problem is an error, with all problems as `dsprov_problems`."""
    errors = [problem for problem in found if problem["severity"] == "error"]
    words = "; ".join(f"{problem['message']['en']} ({problem['remedy']['en']})" for problem in errors)
    outcome: dict[str, Any] = {"dsprov_problems": found}
    if errors:
        outcome.update(failed=True, msg=words)
    return outcome
