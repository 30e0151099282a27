"""Reading documents of people: everything that can be wrong with a file ends in one line that names it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.dsprov.appliance.plugins.module_utils.problems import ProblemError
from ansible_collections.dsprov.appliance.plugins.plugin_utils import catalogue

Write = Callable[[str, Any], Path]

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)
BROKEN = [
    ("not YAML", "hosts: [", "line "),
    ("tab", "hosts:\n\tx: 1", "line 2"),
    ("binary", bytes(range(256)), "utf-8"),
    ("two documents", "a: 1\n---\nb: 2\n", "line 2"),
    ("python object", "!!python/object/apply:os.system ['true']", "line 1"),
    ("deep", "[" * 20_000, "deep"),
    ("deep enough for a stack of C", "a: " + "[" * 100_000, "deep"),
    ("deep by dashes", "- " * 100_000, "deep"),
    ("a key twice", "a:\n  b: 1\n  c: 2\n  b: 3\n", "line 4, column 3: key 'b' is given twice"),
    ("long hexadecimal number", "x: 0x" + "f" * 4_000, "16000 bits"),
    ("no number", "x: [1.0, .nan]", "nan"),
    ("control character", 'x: "a\\e[2Jb"', "control character"),
    ("control character in a key", '"a\\rb": 1', "control character"),
    ("a text without end", "x: " + "y" * 100_000, "100000 characters"),
    ("aliases of aliases", LAUGHS, "aliases"),
    ("holds itself", "&a [*a]", "aliases"),
    ("long number", "x: " + "9" * 10_000, ""),
    ("no such day", "x: 2026-13-45", ""),
    ("large", "x: " + "y" * (17 * 1024 * 1024), "16 MiB"),
    ("unknown alias", "x: *nobody", "line 1"),
    ("list as key", "? [a]\n: b", "line 1"),
]


@pytest.mark.parametrize(("content", "says"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
def test_a_broken_file_is_named(write: Write, content: Any, says: str) -> None:
    path = write("facts.yml", content)
    with pytest.raises(ProblemError) as caught:
        catalogue.read_yaml(path)
    assert caught.value.exit_code == 2
    message = caught.value.problem["message"]["en"]
    assert str(path) in message
    assert says in message
    assert "\n" not in message


def test_a_missing_file_a_folder_and_a_device(tmp_path: Path) -> None:
    for path, says in (
        (tmp_path / "no", "no such file"),
        (tmp_path, "directory"),
        (Path("/dev/zero"), "MiB"),
    ):
        with pytest.raises(ProblemError) as caught:
            catalogue.read_yaml(path)
        assert str(path) in caught.value.problem["message"]["en"]
        assert says in caught.value.problem["message"]["en"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(write: Write) -> None:
    path = write("facts.yml", "a: 1")
    path.chmod(0)
    with pytest.raises(ProblemError, match="Permission denied"):
        catalogue.read_yaml(path)


EXPLAINED = [
    ({"schema": 1, "hots": {}}, "/: unknown key 'hots'", "did you mean 'hosts'"),
    ({"schema": 1}, "/: key 'hosts' is missing", "add 'hosts'"),
    ({"schema": 2, "hosts": {}}, "schema: 2 is not allowed", "use one of: 1"),
    (None, "/: None is not of type object", "give object"),
    ({"schema": 1, "hosts": []}, "hosts: [] is not of type object", "give object"),
    (
        {"schema": 1, "hosts": {"a": {"os": {}, "cpu": {"cores": 1}, "memory_byte": 1}}},
        "hosts.a: ",
        "memory_bytes",
    ),
]


@pytest.mark.parametrize(("document", "says", "hint"), EXPLAINED)
def test_what_does_not_fit_the_schema_is_explained(document: Any, says: str, hint: str) -> None:
    with pytest.raises(ProblemError) as caught:
        catalogue.check(document, catalogue.facts_schema(), None, "f.yml")
    assert caught.value.problem["message"]["en"].startswith(f"f.yml: {says}")
    assert hint in caught.value.problem["remedy"]["en"]


def test_8_0_is_no_whole_number() -> None:
    document = {"schema": 1, "hosts": {"a": {"os": {}, "cpu": {"cores": 8.0}, "memory_bytes": 1}}}
    with pytest.raises(ProblemError):
        catalogue.check(document, catalogue.facts_schema(), None, "f.yml")


@pytest.mark.parametrize("name", catalogue.tier_names())
def test_tier_variables(name: str) -> None:
    variables = catalogue.tier_variables(name)
    assert variables["dsprov_tier"] == name
    assert catalogue.tier_title(name) == variables["dsprov_tier_title"]
    assert variables["dsprov_model"] in catalogue.catalogue()["models"]


@pytest.mark.parametrize(
    "title",
    ["{en: a, zh: b}", "\n      en: 'a'\n      zh: b # b", "\n      zh: b\n      en: a", "&t {en: a, zh: b}"],
)
def test_a_title_may_be_written_in_any_yaml(
    title: str, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"all:\n  vars:\n    dsprov_tier: x\n    dsprov_tier_title: {title}\n    dsprov_model: m\n"
    monkeypatch.setattr(catalogue, "TIERS", write("x.yml", text).parent)
    assert catalogue.tier_title("x") == {"en": "a", "zh": "b"}


@pytest.mark.parametrize("name", ["demoo", "", "../tiers/demo", "Demo", "demo\n"])
def test_unknown_tier(name: str) -> None:
    with pytest.raises(ProblemError) as caught:
        catalogue.tier_variables(name)
    assert caught.value.problem["code"] == "tier-unknown"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[]", "no variables"),
        ("all: {}", "no variables"),
        ("all: {vars: {dsprov_tier: x}}", "dsprov_tier_title is missing"),
        ("all: {vars: {dsprov_tier: x, dsprov_tier_title: y, dsprov_model: z}}", "dsprov_tier_title.en"),
        ("all: {vars: [1]}", "missing"),
    ],
)
def test_a_broken_tier_is_named(
    write: Write, monkeypatch: pytest.MonkeyPatch, content: str, says: str
) -> None:
    path = write("x.yml", content)
    monkeypatch.setattr(catalogue, "TIERS", path.parent)
    with pytest.raises(ProblemError) as caught:
        catalogue.tier_variables("x")
    assert str(path) in caught.value.problem["message"]["en"]
    assert says in caught.value.problem["message"]["en"]
