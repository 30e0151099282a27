"""What will be run is composed and checked before Ansible is there at all."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.dsprov.appliance.plugins.module_utils.problems import ProblemError
from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import tier_path
from dsprov import runner, verb
from dsprov.invocation import Invocation, ansible_environment, check_inventory, check_override, compose
from dsprov.paths import COLLECTION
from dsprov.runner import Outcome
from tests.conftest import Dsprov

Write = Callable[[str, Any], Path]
HOSTS = "gpu01 ansible_host=192.0.2.10\n"


@pytest.fixture
def hosts(write: Write) -> Path:
    return write("hosts.ini", HOSTS)


def test_the_tiers_inventory_comes_first(hosts: Path) -> None:
    made = compose(
        "install", [hosts], tier="demo", overrides=["dsprov_parallel=4"], channel="cn", limit="gpu01"
    )
    assert made.command() == [
        "ansible-playbook",
        "dsprov.appliance.install",
        "-i",
        str(tier_path("demo")),
        "-i",
        str(hosts),
        "-e",
        "dsprov_parallel=4",
        "-e",
        "dsprov_channel=cn",
        "--limit",
        "gpu01",
    ]


def test_dry_run_verbosity_and_arguments_for_ansible(hosts: Path) -> None:
    made = compose("install", [hosts], dry_run=True, verbosity=3, arguments=["--forks", "5"])
    assert made.command()[4:] == ["--check", "--diff", "-vvv", "--forks", "5"]


def test_ansible_gets_our_settings_unless_the_caller_has_own(
    hosts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = compose("probe", [hosts])
    assert ours.environment["ANSIBLE_CONFIG"] == str(COLLECTION / "ansible.cfg")
    assert "ANSIBLE_CONFIG=" in ours.shell_line()
    monkeypatch.setenv("ANSIBLE_CONFIG", "/etc/ansible/own.cfg")
    assert "ANSIBLE_CONFIG" not in compose("probe", [hosts]).environment


def test_ansible_runs_under_any_environment(hosts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    for name in ("HOME", "PATH"):
        monkeypatch.delenv(name)
    found = ansible_environment(compose("probe", [hosts]))
    assert found["LC_ALL"] == "C.UTF-8"
    assert found["HOME"]
    first = found["PATH"].split(os.pathsep)[0]
    assert (Path(first) / "ansible-playbook").exists()


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("empty.ini", "", "inventory-empty"),
        ("blank.ini", " \n\n", "inventory-empty"),
        ("comments.ini", "# nothing\n; here\n", "inventory-empty"),
        ("start.yml", "---\n# nothing\n", "inventory-empty"),
    ],
)
def test_an_inventory_that_says_nothing(write: Write, name: str, content: str, code: str) -> None:
    path = write(name, content)
    with pytest.raises(ProblemError) as caught:
        check_inventory(path)
    assert caught.value.problem["code"] == code
    assert str(path) in caught.value.problem["message"]["en"]


def test_an_inventory_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "no.ini", Path("x" * 5000)):
        with pytest.raises(ProblemError) as caught:
            check_inventory(path)
        assert caught.value.exit_code == 2


def test_inventories_that_ansible_must_judge(write: Write, tmp_path: Path) -> None:
    assert check_inventory(Path("gpu01,")) == "gpu01,"
    assert check_inventory(Path("gpu01,gpu02")) == "gpu01,gpu02"
    assert check_inventory(tmp_path) == str(tmp_path)
    assert check_inventory(write("binary.ini", b"\xff\xfe\x00host")) == str(tmp_path / "binary.ini")


def test_an_inventory_is_named_in_full(hosts: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert compose("probe", [Path("hosts.ini")]).inventories == (str(hosts.resolve()),)


@pytest.mark.parametrize("text", ["", "dsprov_model", "=x", "a b=c", "1a=2", '{"a": 1}', "@file.yml", "-x=1"])
def test_an_override_that_is_none(text: str) -> None:
    with pytest.raises(ProblemError) as caught:
        check_override(text)
    assert caught.value.problem["code"] == "override-invalid"


@pytest.mark.parametrize(
    "key", ["ansible_password", "ansible_become_password", "my_secret", "HF_TOKEN", "api_key", "vault_passwd"]
)
def test_a_secret_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(ProblemError) as caught:
        check_override(f"{key}=hunter2")
    assert caught.value.problem["code"] == "override-secret"
    assert "hunter2" not in str(caught.value.problem)


@pytest.mark.parametrize(
    "text", ["dsprov_model=a=b", "x=", "open_webui_password_file=/a/b", "dsprov_context_length=8192"]
)
def test_an_override_that_is_good(text: str) -> None:
    assert check_override(text) == text


LINES = [
    ["install", "--tier", "demo"],
    ["install", "--tier", "basic", "--dry-run", "-e", "dsprov_parallel=4", "--limit", "gpu01"],
    ["install", "--tier", "demo", "--channel", "cn", "-vv", "--", "--forks", "3"],
    ["check", "--tier", "demo"],
    ["probe"],
    ["plan", "--tier", "basic"],
    ["status"],
]


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_print_command_shows_what_the_runner_gets(
    line: list[str], hosts: Path, dsprov: Dsprov, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Invocation] = []

    def fake(invocation: Invocation, _watch: object) -> Outcome:
        given.append(invocation)
        return Outcome(exit_code=0, seconds=0.0, log=Path("/dev/null"))

    monkeypatch.setattr(verb.runner, "run", fake)
    assert runner.run is fake
    own, dashes, rest = " ".join(line).partition(" -- ")
    arguments = [own.split()[0], "-i", str(hosts), *own.split()[1:]]
    tail = ["--", *rest.split()] if dashes else []
    shown = dsprov(*arguments, "--print-command", *tail)
    assert shown.code == 0
    assert given == []
    dsprov(*arguments, *tail)
    (invocation,) = given
    assert shown.out.strip() == invocation.shell_line()
    words = [word for word in shlex.split(shown.out) if not word.startswith("ANSIBLE_")]
    assert words == invocation.command()
    assert words[1] == f"dsprov.appliance.{line[0]}"
