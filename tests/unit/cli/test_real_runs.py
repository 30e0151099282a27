"""The real Ansible on this very machine, reading only: what recorded events of other tests stand for."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import check, facts_schema
from tests.conftest import Dsprov
from tests.fixtures import ggufs

Write = Callable[[str, Any], Path]
LOCAL = f"here ansible_connection=local ansible_become=false ansible_python_interpreter={sys.executable}\n"


def closed_port() -> int:
    """A port of ours that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_one_host_answers_and_one_does_not(dsprov: Dsprov, write: Write) -> None:
    away = f"away ansible_host=127.0.0.1 ansible_port={closed_port()} ansible_ssh_retries=0\n"
    said = dsprov("probe", "-i", write("hosts.ini", LOCAL + away), "--json")
    assert said.code == 4, said.err
    check(said.document, facts_schema(), None, "probe")
    assert list(said.document["hosts"]) == ["here"]
    assert "away: unreachable: ssh: connect to host 127.0.0.1 port" in said.err


def test_one_host_is_refused_and_the_other_is_not(dsprov: Dsprov, write: Write) -> None:
    other = LOCAL.replace("here", "there").replace("\n", " dsprov_context_length=99999\n")
    said = dsprov("check", "--tier", "demo", "-i", write("hosts.ini", LOCAL + other), "--json")
    assert said.code == 3, said.err
    states = {name: host["state"] for name, host in said.document["hosts"].items()}
    assert states == {"here": "ok", "there": "failed"}
    # Warnings tell of the network that this machine happens to have.
    errors = [p for p in said.document["problems"] if p["severity"] == "error"]
    assert [(p["code"], p["host"]) for p in errors] == [("context-too-long", "there")]


@pytest.mark.parametrize(
    ("content", "more", "code", "says"),
    [
        ("[gpus]\n", [], 2, "hosts.ini: the inventory names no hosts"),
        ("[gpus\nx\n", [], 2, "hosts.ini: "),
        (LOCAL, ["--limit", "nobody"], 2, "--limit nobody: no host of the inventory matches"),
        (
            LOCAL + "[all:vars]\ndsprov_contextlength=4\n",
            [],
            2,
            "hosts.ini:3: dsprov_contextlength: there is no such variable; did you mean dsprov_context_length",  # noqa: E501  one line of output
        ),
        (
            LOCAL + "[all:vars]\ndsprov_parallel=many\n",
            [],
            2,
            "dsprov_parallel: 'many' is not a whole number",
        ),
        (LOCAL + "[all:vars]\nollama_models={{ nowhere }}\n", [], 2, "nowhere"),
        (LOCAL + "[all:vars]\ndsprov_context_length=99999\n", [], 3, "8192 tokens"),
    ],
)
def test_what_people_wrote_is_checked_before_anything_is_touched(
    content: str, more: list[str], code: int, says: str, dsprov: Dsprov, write: Write
) -> None:
    said = dsprov("check", "--tier", "demo", "-i", write("hosts.ini", content), *more, "--json")
    assert said.code == code, said.err
    assert says in said.err
    assert "Traceback" not in said.err
    assert said.document["exit"] == code
    assert said.document["problems"]


def test_a_models_own_file_is_planned_on_a_host_that_is_there(
    dsprov: Dsprov, write: Write, tmp_path: Path
) -> None:
    shape = {"layers": 3, "hidden": 512, "heads": 8, "kv_heads": 4, "head_dim": 64, "feed": 1536}
    ggufs.write(tmp_path / "my own.gguf", *ggufs.dense("llama", **shape, words=400))
    hosts = write("hosts.ini", LOCAL)
    said = dsprov("plan", "-i", hosts, "--gguf", tmp_path / "my own.gguf", "--json")
    assert said.code == 0, said.err
    (row,) = said.document["hosts"]
    assert (row["name"], row["model"], row["placement"]["total_layers"]) == ("here", "my own", 3)
    none = dsprov("plan", "-i", hosts, "--gguf", hosts)
    assert none.code == 2
    assert "does not begin as a GGUF file does" in none.one_line()
