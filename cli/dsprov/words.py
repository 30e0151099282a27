"""Words for people, in English and Chinese."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

LANGUAGES = ("en", "zh")
_chosen: list[str] = []


def choose(language: str | None) -> None:
    """Sets the language for the rest of the process; None goes by the locale."""
    _chosen[:] = [language or _by_locale()]


def language() -> str:
    """ "en" or "zh"."""
    if not _chosen:
        choose(None)
    return _chosen[0]


def _by_locale() -> str:
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        if os.environ.get(name):
            return "zh" if os.environ[name].lower().startswith("zh") else "en"
    return "en"


def t(en: str, zh: str) -> str:
    """The one of two texts that the reader wants."""
    return zh if language() == "zh" else en


def pick(texts: Mapping[str, str]) -> str:
    """The same for a mapping of both."""
    return texts[language()]


def problem_line(problem: Mapping[str, Any]) -> str:
    """One line for a problem: where, what, and how to mend it."""
    kind = t("warning", "警告") if problem["severity"] == "warning" else t("error", "错误")
    host = f"{problem['host']}: " if problem.get("host") else ""
    line = f"{kind}: {host}{pick(problem['message'])}{t('; ', ';')}{pick(problem['remedy'])}"
    return " ".join(line.split())


def say_problems(problems: Iterable[Mapping[str, Any]]) -> None:
    """A line a problem; one that several hosts share is said once, with all their names."""
    hosts: dict[tuple[str, str], list[str]] = {}
    first: dict[tuple[str, str], Mapping[str, Any]] = {}
    for problem in problems:
        key = (problem["code"], problem["message"]["en"])
        first.setdefault(key, problem)
        hosts.setdefault(key, []).extend([problem["host"]] if problem.get("host") else [])
    for key, problem in first.items():
        say(problem_line({**problem, "host": ", ".join(hosts[key])}))


def say(text: str = "") -> None:
    """A line for people, on stderr: stdout belongs to the document."""
    if sys.stderr is not None:  # None where the caller closed it; print would turn to stdout then.
        print(text, file=sys.stderr, flush=True)
