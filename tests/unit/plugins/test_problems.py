"""The table of problems, and the code that uses it, agree."""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Iterator
from typing import Any

import pytest

from ansible_collections.dsprov.appliance.plugins.module_utils.problems import (
    ProblemError,
    Problems,
    human_bytes,
    nearest,
)
from ansible_collections.dsprov.appliance.plugins.plugin_utils import catalogue
from tests.conftest import ROOT

ROWS: dict[str, Any] = catalogue.problems().rows
TEXTS = ("en", "zh", "remedy_en", "remedy_zh")
# Codes that a variable holds at the place where they are used.
BY_VARIABLE = {code for code, row in ROWS.items() if "match" in row} | {
    "task-failed",
    "interrupted",
    "system-error",
}


def fields(row: dict[str, Any], *keys: str) -> set[str]:
    return {name for key in keys for _t, name, _f, _c in string.Formatter().parse(row[key]) if name}


def uses() -> Iterator[tuple[str, str, set[str] | None]]:
    """Each make("code", word=...) and error("code", word=...): place, code, words; None for **words."""
    for path in sorted([*(ROOT / "cli" / "dsprov").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("make", "error")
                and node.args
                and isinstance(node.args[0], ast.Constant)
            ):
                names = [keyword.arg for keyword in node.keywords]
                words = None if None in names else {name for name in names if name and name != "host"}
                yield f"{path.relative_to(ROOT)}:{node.lineno}", str(node.args[0].value), words


def uses_in_roles() -> Iterator[tuple[str, str, set[str] | None]]:
    """The same of each task that calls the action `problem`."""

    def tasks(rows: Any) -> Iterator[dict[str, Any]]:
        for row in rows or []:
            yield row
            for key in ("block", "rescue", "always"):
                yield from tasks(row.get(key))

    for path in sorted((ROOT / "roles").glob("*/tasks/*.yml")):
        for task in tasks(catalogue.read_yaml(path)):
            given = task.get("dsprov.appliance.problem")
            if given:
                yield f"{path.relative_to(ROOT)}: {task['name']}", given["code"], set(given.get("words", {}))


USES = [*uses(), *uses_in_roles()]


def test_the_search_finds_uses() -> None:
    assert len(USES) > 30


@pytest.mark.parametrize(("place", "code", "words"), USES, ids=[f"{p}-{c}" for p, c, _w in USES])
def test_used_code_exists_and_gets_its_words(place: str, code: str, words: set[str] | None) -> None:
    assert code in ROWS, f"{place}: {code} is not in catalog/problems.yml"
    if words is not None:
        wanted = fields(ROWS[code], *TEXTS)
        assert wanted <= words, f"{place}: {code} wants {sorted(wanted - words)}"


@pytest.mark.parametrize("code", ROWS)
def test_every_code_is_used(code: str) -> None:
    assert code in BY_VARIABLE or any(code == used for _place, used, _words in USES)


@pytest.mark.parametrize("code", ROWS)
def test_both_languages_say_the_same(code: str) -> None:
    row = ROWS[code]
    assert fields(row, "en") == fields(row, "zh")
    assert fields(row, "remedy_en") == fields(row, "remedy_zh")
    for key in TEXTS:
        assert row[key].strip() == row[key] != ""
        assert "\n" not in row[key]
    chinese = re.compile("[\u4e00-\u9fff]")
    assert not any(chinese.search(row[key]) for key in ("en", "remedy_en"))
    # A text that is nothing but places has no language.
    for key in ("zh", "remedy_zh"):
        bare = re.sub(r"\{\w+\}|\W", "", row[key])
        assert not bare or chinese.search(row[key]), row[key]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Missing sudo password", "sudo-missing"),
        ("x.service starts and falls over; torch.OutOfMemoryError: CUDA out of memory.", "engine-memory"),
        ("x.service starts and falls over; out of memory: the kernel ended it", "engine-memory"),
        ("x.service starts and falls over; ValueError: no such file", None),
        ("integrator is not in the sudoers file.", "sudo-missing"),
        ("sudo: a password is required", "sudo-missing"),
        ("/bin/sh: 1: sudo: not found", "sudo-missing"),
        ("/bin/sh: 1: /usr/bin/python3: not found", "python-missing"),
        ("The module interpreter '/usr/bin/python3' was not found.", "python-missing"),
        ("ansible-core requires a minimum of Python version 3.8. Current version: 3.6", "python-too-old"),
        ("[Errno 28] No space left on device", "disk-full"),
        ("E: Could not get lock /var/lib/dpkg/lock-frontend", "apt-lock"),
        ("'foo' is undefined", "template-undefined"),
        ("non-zero return code", None),
        ("", None),
    ],
)
def test_ansibles_own_words_are_recognised(text: str, code: str | None) -> None:
    assert catalogue.problems().recognise(text) == code


def test_a_word_that_is_missing_shows_as_such() -> None:
    problem = Problems(
        {"x": {"exit": 3, "en": "{a} {b}", "zh": "{a}", "remedy_en": "", "remedy_zh": ""}}
    ).make("x", "h", a="{braces}")
    assert problem["message"] == {"en": "{braces} ?", "zh": "{braces}"}
    assert (problem["host"], problem["severity"]) == ("h", "error")


def test_a_code_the_table_lost_is_named_all_the_same() -> None:
    error = Problems({}).error("gone", detail="why")
    assert isinstance(error, ProblemError)
    assert "gone" in str(error)
    assert "why" in str(error)
    assert error.exit_code == 1


@pytest.mark.parametrize(
    ("word", "known", "expected"),
    [
        ("demoo", ["basic", "demo"], "demo"),
        ("zzz", ["basic", "demo"], "basic"),
        ("x", [], ""),
        ("dsprov_contxt_length", ["dsprov_model", "dsprov_context_length"], "dsprov_context_length"),
    ],
)
def test_nearest(word: str, known: list[str], expected: str) -> None:
    assert nearest(word, known) == expected


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (98_362_432, "98.4 MB"),
        (4_683_073_504, "4.7 GB"),
        (404 * 10**12, "404.00 TB"),
    ],
)
def test_human_bytes(count: int, words: str) -> None:
    assert human_bytes(count) == words
