"""Tier flagship on two hosts that imitate 8 x H20-3e: the whole run, and what befalls one host then."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.dsprov.appliance.plugins.module_utils.units import exec_line
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

PROJECT = os.environ.get("DSPROV_TEST_PROJECT", "tests") + "-group"
INVENTORY = ROOT / ".lab" / PROJECT / "hosts.ini"
DSPROV = Path(sys.executable).with_name("dsprov")
UNIT = "dsprov-vllm.service"
WATCH = "dsprov-vllm-watch.service"
CARDS = "8 x H20-141"
BIN = "/opt/dsprov/vllm/current/bin"
# The CPU build cannot hand layers from host to host, but it can share each of them.
WISHES = (
    *("-e", "dsprov_model=tiny-v3", "-e", "dsprov_engine=vllm", "-e", "dsprov_vllm_build=cpu"),
    *("-e", "dsprov_nodes=2", "-e", "dsprov_placement=tensor", "-e", "dsprov_web_ui=false"),
)
# A start takes a minute on two idle cores.
PATIENCE = 1500
ASK = (
    "import json,urllib.request as r;"
    "k=open('/etc/dsprov/secrets/vllm-api-key').read().strip();"
    "h={'Content-Type':'application/json','Authorization':'Bearer '+k};"
    "b=json.dumps({'model':'tiny-v3','messages':[{'role':'user','content':'Hi'}],'max_tokens':8}).encode();"
    "print(r.urlopen(r.Request('http://127.0.0.1:11436/v1/chat/completions',b,h),timeout=60).read().decode())"
)

# How many processes have a value with this digest in their environment.
KNOW = (
    "import glob,hashlib,sys;"
    "said=[open(p,'rb').read().split(b'\\0') for p in glob.glob('/proc/[0-9]*/environ')];"
    "h=lambda w: hashlib.sha256(w.partition(b'=')[2]).hexdigest();"
    "print(sum(any(h(w)==sys.argv[1] for w in ws) for ws in said))"
)


def run(*words: str) -> str:
    """A command of this machine."""
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr, sep="\n")
    assert done.returncode == 0, f"{words}: {done.stderr[-2000:]}"
    return done.stdout


def sh(host: str, *words: str, check: bool = True) -> str:
    """A command as root on a host."""
    argv = ["docker", "exec", f"dsprov-lab-{PROJECT}-{host}", *words]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


def answers() -> bool:
    said = sh("head", "python3", "-c", ASK, check=False)
    return bool(said) and json.loads(said)["usage"]["completion_tokens"] > 0


def comes_back() -> bool:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if answers():
            return True
        time.sleep(5)
    return False


def start_of(host: str) -> str:
    """systemd's name for this start of the service."""
    return sh(host, "systemctl", "show", UNIT, "--property=InvocationID", "--value").strip()


def starts_anew(host: str, before: str) -> bool:
    until = time.monotonic() + 180
    while time.monotonic() < until:
        if start_of(host) not in ("", before):
            return True
        time.sleep(2)
    return False


def imitate(cards: str) -> None:
    """Both hosts show such cards from now on."""
    for host in ("head", "worker"):
        run(sys.executable, "-m", "tests.lab", "hardware", "--project", PROJECT, host, cards)


@pytest.fixture(scope="module")
def plan() -> Iterator[dict[str, Any]]:
    """The group, installed; the plan that the command line showed before."""
    lab = (sys.executable, "-m", "tests.lab")
    hosts = ("--host", "head=debian-12", "--host", "worker=debian-12")
    run(*lab, "up", "--fresh", "--project", PROJECT, *hosts, "--artifacts", "tiny")
    try:
        imitate(CARDS)
        tier = ("--tier", "flagship", "-i", str(INVENTORY), *WISHES)
        shown: dict[str, Any] = json.loads(run(str(DSPROV), "plan", "--json", *tier))
        run(str(DSPROV), "install", *tier)
        yield shown
    finally:
        run(*lab, "down", "--project", PROJECT)


def units_are_those_of(plan: dict[str, Any]) -> None:
    """Each host's unit runs what the plan shows for it."""
    assert [row["role"] for row in plan["hosts"]] == ["head", "worker"]
    for row in plan["hosts"]:
        text = sh(row["name"], "cat", f"/etc/systemd/system/{UNIT}")
        words = [f"{BIN}/{row['command'][0]}", *row["command"][1:]]
        assert f"\nExecStart={exec_line(words)}\n" in text
        for name, value in row["environment"].items():
            assert f'\nEnvironment="{name}={value}"\n' in text
        assert "VLLM_API_KEY=" not in text


def test_units_are_what_the_plan_said(plan: dict[str, Any]) -> None:
    units_are_those_of(plan)
    assert answers()


def test_strangers_are_kept_away(plan: dict[str, Any]) -> None:
    head = plan["hosts"][0]["environment"]["VLLM_HOST_IP"]
    probe = f"import socket; socket.create_connection(('{head}', 29500), 3)"
    assert subprocess.run([sys.executable, "-c", probe], check=False, capture_output=True).returncode != 0
    sh("worker", "python3", "-c", probe)


@pytest.mark.parametrize("signal", ["KILL", "TERM"])
def test_a_killed_worker_brings_the_group_back(plan: dict[str, Any], signal: str) -> None:
    before = start_of("head")
    sh("worker", "systemctl", "kill", f"--signal={signal}", UNIT)
    assert starts_anew("head", before)
    assert comes_back()


def test_a_stopped_worker_brings_the_group_back_when_it_starts(plan: dict[str, Any]) -> None:
    before = start_of("head")
    sh("worker", "systemctl", "stop", UNIT)
    assert starts_anew("head", before)
    assert not answers()
    sh("worker", "systemctl", "start", UNIT)
    assert comes_back()


def test_a_worker_cut_off_the_network_brings_the_group_back(plan: dict[str, Any]) -> None:
    before = {host: start_of(host) for host in ("head", "worker")}
    rule = "add table ip cut; add chain ip cut in { type filter hook input priority -300; policy drop; }"
    sh("worker", "nft", rule)
    try:
        assert all(starts_anew(host, one) for host, one in before.items())
    finally:
        sh("worker", "nft", "delete table ip cut")
    assert comes_back()


def failed(*words: str, code: int = 1) -> str:
    """What an install says that does not get through."""
    done = subprocess.run(
        [DSPROV, "install", "--tier", "flagship", "-i", INVENTORY, *WISHES, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stderr)
    assert done.returncode == code
    return done.stderr


def test_nothing_to_do_restarts_nothing(plan: dict[str, Any]) -> None:
    hosts = ("head", "worker")
    before = [start_of(host) for host in hosts]
    summary = json.loads(
        run(str(DSPROV), "install", "--json", "--tier", "flagship", "-i", str(INVENTORY), *WISHES)
    )
    assert [row["changed"] for row in summary["hosts"].values()] == [0, 0]
    assert [start_of(host) for host in hosts] == before


@pytest.mark.parametrize("words", [[], ["-e", "dsprov_nodes=0"]])
def test_a_worker_out_of_reach_leaves_the_group_as_it_is(plan: dict[str, Any], words: list[str]) -> None:
    hosts = ("head", "worker")
    before = [start_of(host) for host in hosts]
    # A connection that stands already would serve the next run too.
    sh("worker", "sh", "-c", "systemctl stop ssh.service; pkill -KILL sshd", check=False)
    try:
        said = failed(*words, code=4)
        assert "worker: unreachable" in said
        assert "worker fell out" in said
    finally:
        sh("worker", "systemctl", "start", "ssh.service")
    # Nor does a run for one of them part them unasked.
    said = failed("-e", "dsprov_nodes=0", "--limit", "head", code=2)
    assert "head: it shares its model with worker" in said
    assert [start_of(host) for host in hosts] == before
    assert answers()


def test_a_watch_that_was_stopped_comes_back_alone(plan: dict[str, Any]) -> None:
    before = start_of("head")
    sh("head", "systemctl", "disable", "--now", WATCH)
    run(str(DSPROV), "install", "--tier", "flagship", "-i", str(INVENTORY), *WISHES)
    assert sh("head", "systemctl", "is-active", WATCH).strip() == "active"
    assert start_of("head") == before


def test_a_worker_without_memory_is_named_and_the_next_run_goes_on(plan: dict[str, Any]) -> None:
    # Less than vLLM takes before it reads a byte of the model: the kernel ends the largest process.
    sh("worker", "systemctl", "stop", UNIT)
    run("docker", "update", "--memory=900m", "--memory-swap=900m", f"dsprov-lab-{PROJECT}-worker")
    try:
        # Another length makes both start anew.
        said = failed("-e", "dsprov_context_length=4096")
        assert "worker: " in said
        assert "out of memory" in said
    finally:
        run("docker", "update", "--memory=16g", "--memory-swap=16g", f"dsprov-lab-{PROJECT}-worker")
    run(str(DSPROV), "install", "--tier", "flagship", "-i", str(INVENTORY), *WISHES)
    assert answers()


def test_the_group_parts_and_meets_again(plan: dict[str, Any]) -> None:
    install = (str(DSPROV), "install", "--tier", "flagship", "-i", str(INVENTORY), *WISHES)
    # The CPU build wants a NUMA node for each share of one host, and the lab has one.
    imitate("1 x H20-141")
    run(*install, "-e", "dsprov_nodes=1")
    assert answers()
    for host in ("head", "worker"):
        assert "--nnodes" not in sh(host, "cat", f"/etc/systemd/system/{UNIT}")
        assert sh(host, "systemctl", "is-active", WATCH, check=False).strip() != "active"
        assert "dsprov" not in sh(host, "nft", "list", "tables")
        # Nobody else's business any more: loopback alone.
        assert ":29500" not in sh(host, "ss", "-Hltn")
    imitate(CARDS)
    run(*install)
    units_are_those_of(plan)
    assert answers()


# -- the same group over Ray -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def over_ray(plan: dict[str, Any]) -> dict[str, Any]:
    """The plan of the living group's change to Ray, which is installed."""
    assert plan["hosts"][0]["command"][0] == "vllm"
    wishes = ("--tier", "flagship", "-i", str(INVENTORY), *WISHES, "-e", "dsprov_vllm_executor=ray")
    shown: dict[str, Any] = json.loads(run(str(DSPROV), "plan", "--json", *wishes))
    run(str(DSPROV), "install", *wishes)
    return shown


def test_ray_runs_the_group_as_planned(over_ray: dict[str, Any]) -> None:
    units_are_those_of(over_ray)
    assert answers()
    for host in ("head", "worker"):
        assert "ray::RayWorkerProc" in sh(host, "ps", "-u", "dsprov-vllm", "-o", "args")


def test_ray_speaks_with_nobody_else(over_ray: dict[str, Any]) -> None:
    head = over_ray["hosts"][0]["environment"]["VLLM_HOST_IP"]

    def reached(port: int, host: str = "", user: str = "", address: str = head) -> bool:
        probe = f"import socket; socket.create_connection(('{address}', {port}), 3)"
        on_host = ("docker", "exec", f"dsprov-lab-{PROJECT}-{host}", "runuser", "-u", user, "--")
        words = [*(on_host if host else ()), "python3", "-c", probe]
        return subprocess.run(words, check=False, capture_output=True).returncode == 0

    rows = [line.split()[3] for line in sh("head", "ss", "-Hltn").splitlines()]
    ports = {int(row.rpartition(":")[2]) for row in rows if not row.startswith(("127.", "[::1]"))}
    rays = {port for port in ports if 29500 <= port <= 29599}
    assert rays >= {29500, 29501, 29502, 29503}
    # Neither a dashboard nor a server for clients elsewhere.
    assert not ports & {8265, 10001}
    for port in rays:
        assert not reached(port)
        assert not reached(port, "worker", "nobody")
        for user in ("root", "nobody"):
            assert not reached(port, "head", user)
            assert not reached(port, "head", user, "127.0.0.1")
        assert reached(port, "head", "dsprov-vllm")
        assert reached(port, "worker", "dsprov-vllm")
    # What else its account listens on is heard by the group alone; that these can call at all, ssh shows.
    for port in ports - {22}:
        assert not reached(port)
    assert reached(22)
    assert reached(22, "worker", "nobody")


def test_ray_keeps_the_key_to_the_head(over_ray: dict[str, Any]) -> None:
    assert over_ray["hosts"][0]["role"] == "head"
    key = sh("head", "cat", "/etc/dsprov/secrets/vllm-api-key").strip()
    digest = hashlib.sha256(key.encode()).hexdigest()
    assert int(sh("head", "python3", "-c", KNOW, digest)) > 0
    assert int(sh("worker", "python3", "-c", KNOW, digest)) == 0


def test_a_killed_worker_brings_the_group_over_ray_back(over_ray: dict[str, Any]) -> None:
    before = start_of("head")
    sh("worker", "systemctl", "kill", "--signal=KILL", UNIT)
    assert starts_anew("head", before)
    assert comes_back()


def test_the_group_goes_back_to_vllms_own_processes(over_ray: dict[str, Any], plan: dict[str, Any]) -> None:
    run(str(DSPROV), "install", "--tier", "flagship", "-i", str(INVENTORY), *WISHES)
    units_are_those_of(plan)
    assert answers()
    assert "ray" not in sh("head", "ps", "-u", "dsprov-vllm", "-o", "args")
