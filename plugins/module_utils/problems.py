# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Problems: one shape for everything that can be wrong, in words for people and codes for tools.

The rows are data (catalog/problems.yml); this module fills their words in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

Problem = dict[str, Any]


class ProblemError(Exception):
    """A problem that ends what is being done.

    Attributes:
        problem: the filled-in row: code, severity, host, message, remedy.
        exit_code: what the command line ends with.
    """

    def __init__(self, problem: Problem, exit_code: int) -> None:
        super().__init__(f"{problem['message']['en']}; {problem['remedy']['en']}")
        self.problem = problem
        self.exit_code = exit_code


class Problems:
    """The table of problems, filled in on demand.

    Args:
        rows: `problems` of catalog/problems.yml, code to row.
    """

    def __init__(self, rows: Mapping[str, Mapping[str, Any]]) -> None:
        self.rows = rows
        self._matches = [(code, re.compile(row["match"])) for code, row in rows.items() if "match" in row]

    def make(self, code: str, host: str | None = None, **words: Any) -> Problem:
        """One problem as the plan and the command line show it."""
        row = self.rows.get(code) or {**_UNWORDED, "en": "{lost}: {words}", "zh": "{lost}: {words}"}
        fill = _Words(words if code in self.rows else {"lost": code, "words": words})
        return {
            "code": code,
            "severity": row.get("severity", "warning" if row.get("stage") else "error"),
            "host": host,
            "message": {"en": row["en"].format_map(fill), "zh": row["zh"].format_map(fill)},
            "remedy": {"en": row["remedy_en"].format_map(fill), "zh": row["remedy_zh"].format_map(fill)},
        }

    def error(self, code: str, host: str | None = None, **words: Any) -> ProblemError:
        """The same as an exception with its exit code."""
        return ProblemError(self.make(code, host, **words), self.exit_code(code))

    def at_install(self, problem: Problem) -> Problem:
        """The same problem as an install sees it: what a plan only warns of may stop it."""
        stops = self.rows.get(problem["code"], {}).get("stage") == "install"
        return {**problem, "severity": "error"} if stops else problem

    def exit_code(self, code: str) -> int:
        """Exit code of a problem's code; an unknown code counts as a failed host (1)."""
        return int(self.rows.get(code, {}).get("exit", 1))

    def recognise(self, text: str) -> str | None:
        """The code whose `match` is found in a message of Ansible's, or None."""
        return next((code for code, pattern in self._matches if pattern.search(text)), None)


# For a code that the table lost: a problem is named, however badly, rather than hidden by a traceback.
_UNWORDED = {
    "remedy_en": "restore catalog/problems.yml",
    "remedy_zh": "请恢复 catalog/problems.yml",
}


class _Words(dict[str, Any]):
    def __missing__(self, key: str) -> str:
        return "?"


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word most like the given one, for "did you mean"; the first known one if none is alike."""
    import difflib  # Only who mistyped waits for it.

    choices = sorted(known)
    return (difflib.get_close_matches(word, choices, n=1, cutoff=0.4) or choices or [""])[0]


def human_bytes(count: float) -> str:
    """Bytes in words for people, decimal units: 98362432 is '98.4 MB'."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} TB"
