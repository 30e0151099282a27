"""KTransformers by the command line, on a host that imitates a GPU: how far it comes, and what it says.

Slow: its packages are ten gigabytes. It serves from a real GPU alone, so here each start falls over.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab import chat

from .conftest import LAB, PROJECT, Lab, Run, dsprov, hosts_of

pytestmark = pytest.mark.slow

NAME = f"{LAB}-kt"
OLLAMA, KT = "ollama.service", "dsprov-ktransformers.service"
PREFIX = "/opt/dsprov/ktransformers"
OWN = f"/etc/systemd/system/{KT}.d"
# The smallest model of its kind, whole, by the method that reads a checkpoint as it is.
TINY = {
    "dsprov_model": "tiny-v3",
    "dsprov_variant": "BF16",
    "dsprov_ktransformers_method": "BF16",
    "dsprov_context_length": 2048,
    "dsprov_parallel": 1,
}


def engine(lab: Lab, verb: str, *, tier: str = "flagship", **wishes: Any) -> Run:
    """A verb with KTransformers as the engine, on a loaded machine too."""
    given = [
        word
        for name, value in {"dsprov_web_ui": "false", **wishes}.items()
        for word in ("-e", f"{name}={value}")
    ]
    return dsprov(verb, "--tier", tier, "-i", lab.inventory, "--json", *given, timeout=10800)


def kt(lab: Lab, verb: str, **wishes: Any) -> Run:
    return engine(lab, verb, dsprov_engine="ktransformers", **wishes)


def unit(lab: Lab, name: str) -> dict[str, str]:
    rows = lab.sh("t12", f"systemctl show {name} --property=ActiveState,UnitFileState,InvocationID")
    return dict(row.split("=", 1) for row in rows.splitlines())


@pytest.fixture(scope="module")
def serving() -> Iterator[Lab]:
    """Ollama serves from the CPU; since then the host has got a card, as far as PCI and NVML can tell."""
    for lab in hosts_of(NAME, "--artifacts", "ollama,model,tiny", t12="debian-12"):
        run = engine(lab, "install", tier="demo")
        assert run.code == 0, run.err
        words = [sys.executable, "-m", "tests.lab", "hardware", "--project", NAME, "t12", "1 x 4090"]
        subprocess.run(words, cwd=PROJECT, check=True)
        yield lab


def assert_ollama_serves(lab: Lab) -> None:
    host = chat.target(lab.inventory, "t12")
    port, key = chat.engine_of(host)
    assert port == 11434
    body = {"model": "smollm2:135m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    with chat.tunnel(host, port) as (base,):
        assert chat.call("smollm2", f"{base}/v1/chat/completions", body, key)["choices"]


@pytest.fixture
def large_disk(serving: Lab) -> Iterator[None]:
    """A disk, as far as it tells, on which every model has room: then memory alone is in the way."""
    serving.sh("t12", "mount -t tmpfs -o size=4t tmpfs /var/lib/dsprov")
    yield
    serving.sh("t12", "umount -l /var/lib/dsprov")


@pytest.mark.usefixtures("large_disk")
def test_a_model_that_memory_does_not_hold_is_refused_and_nothing_changes(serving: Lab) -> None:
    before = serving.fingerprint("t12")
    for verb in ("check", "install"):
        run = kt(serving, verb, dsprov_kv_cache_type="f16")
        assert run.code == 3
        assert len(run.errors) == 1
        assert re.search(r"t12: deepseek-r1:671b \S+ needs \S+ GB of memory beside the GPUs", run.errors[0])
    assert serving.fingerprint("t12") == before


def test_what_can_be_installed_passes_the_check(serving: Lab) -> None:
    before = serving.fingerprint("t12")
    run = kt(serving, "check", **TINY)
    assert run.code == 0, run.err
    assert serving.fingerprint("t12") == before


def test_without_a_real_gpu_it_says_so_and_the_engine_before_serves(serving: Lab) -> None:
    """Twice: what the first run has brought is there, and the second goes on from it to the same end."""
    # A start takes a minute of processor time, and each ends alike: once is enough.
    serving.sh("t12", f"mkdir -p {OWN}; printf '[Service]\\nRestart=no\\n' > {OWN}/once.conf")
    before, record = unit(serving, OLLAMA), json.loads(serving.sh("t12", "cat /etc/dsprov/state.json"))
    assert before["UnitFileState"] == "enabled"
    releases = []
    for _ in range(2):
        run = kt(serving, "install", **TINY)
        assert run.code == 1
        assert len(run.errors) == 1
        for words in (f"{KT} starts and falls over", "No accelerator", "ollama serves as before"):
            assert words in run.errors[0]
        assert unit(serving, KT)["ActiveState"] == "failed"
        assert unit(serving, KT)["UnitFileState"] == "disabled"
        assert serving.sh("t12", f"ls {OWN}").split() == ["once.conf"]
        assert unit(serving, OLLAMA)["ActiveState"] == "active"
        assert unit(serving, OLLAMA)["UnitFileState"] == "enabled"
        assert json.loads(serving.sh("t12", "cat /etc/dsprov/state.json")) == record
        assert_ollama_serves(serving)
        whole = serving.sh("t12", f"stat -c '%n %i %Y' {PREFIX}/[0-9]*/.dsprov-stamp").splitlines()
        assert len(whole) == 1
        releases += whole
    assert releases[0] == releases[1]
    assert serving.sh("t12", "ls /var/lib/dsprov/models/tiny-v3/BF16/model.safetensors")


def test_the_unit_runs_what_the_plan_says(serving: Lab) -> None:
    words = [f"{name}={value}" for name, value in TINY.items()]
    given = [word for one in ("dsprov_engine=ktransformers", *words) for word in ("-e", one)]
    run = dsprov("plan", "--tier", "flagship", "-i", serving.inventory, "--json", *given)
    (row,) = run.document["hosts"]
    text = serving.sh("t12", f"cat /etc/systemd/system/{KT}")
    assert f"\nExecStart={PREFIX}/current/bin/{' '.join(row['command'])}\n" in text
    for name, value in row["environment"].items():
        assert f'\nEnvironment="{name}={value}"\n' in text
