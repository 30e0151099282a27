"""What an install must survive: a dead host beside a living one, and being killed at any moment."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from .conftest import DSPROV, Lab, dsprov

PASSWORD = "/etc/dsprov/secrets/open-webui-admin-password"
STATE = "cat /etc/dsprov/state.json"
KILLS = 5
# Seconds that an install takes here; kills are spread over them.
LENGTH = 70


def test_a_dry_run_on_a_bare_host_only_says(lab: Lab, tmp_path: Path) -> None:
    before = lab.fingerprint("t13")
    run = dsprov(
        "install", "--tier", "demo", "-i", lab.variant(tmp_path, hosts=("t13",)), "--dry-run", "--json"
    )
    assert run.code == 0, run.err
    assert run.document["hosts"]["t13"]["changed"] > 5
    assert lab.fingerprint("t13") == before


@pytest.mark.slow
@pytest.mark.parametrize(("number", "host"), [(signal.SIGINT, "t12"), (signal.SIGKILL, "t13")])
def test_killed_at_any_moment_the_same_command_goes_on(
    lab: Lab, tmp_path: Path, number: signal.Signals, host: str
) -> None:
    """Five moments over the length of an install, each further on than the one before."""
    inventory = lab.variant(tmp_path, hosts=(host,))
    command = [str(DSPROV), "install", "--tier", "demo", "-i", str(inventory)]
    dice = random.Random(number.value)
    moments = [(part + dice.random()) * LENGTH / KILLS for part in range(KILLS)]
    print("killed after", [round(moment) for moment in moments], "s")
    for moment in moments:
        started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            _out, said = started.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            started.send_signal(number)
            _out, said = started.communicate(timeout=60)
            assert started.returncode == (130 if number == signal.SIGINT else -number)
            if number == signal.SIGINT:
                assert "run the same command again" in said
        time.sleep(1.5)
        assert not ansible_runs_on(inventory), "a run outlived the one who started it"
    assert dsprov("install", "--tier", "demo", "-i", inventory).code == 0
    again = dsprov("install", "--tier", "demo", "-i", inventory, "--json")
    assert again.document["hosts"][host]["changed"] == 0, again.document["hosts"][host]["changed_tasks"]
    left = lab.sh(
        host,
        "find /opt/dsprov /var/lib/dsprov /etc/dsprov -name '*.part' -o -name '*.tmp' -o -name '.part*'",
    )
    assert left == ""


def ansible_runs_on(inventory: Path) -> bool:
    done = subprocess.run(
        ["pgrep", "-f", f"ansible-playbook.*{inventory}"], capture_output=True, text=True, check=False
    )
    return bool(done.stdout.strip())


def test_two_runs_at_once(lab: Lab, tmp_path: Path) -> None:
    inventory = lab.variant(tmp_path, hosts=("t12",))
    first = subprocess.Popen(
        [str(DSPROV), "install", "--tier", "demo", "-i", str(inventory)], stderr=subprocess.DEVNULL
    )
    try:
        time.sleep(2)
        second = dsprov("install", "--tier", "demo", "-i", inventory)
        assert second.code == 2
        assert f"pid {first.pid}" in second.errors[0]
    finally:
        first.wait(timeout=600)
    assert first.returncode == 0


def test_one_of_two_hosts_is_unreachable(lab: Lab, tmp_path: Path) -> None:
    inventory = lab.variant(
        tmp_path, "[appliances]\naway ansible_host=127.0.0.1 ansible_port=9", hosts=("t13",)
    )
    run = dsprov("install", "--tier", "demo", "-i", inventory, "--json")
    assert run.code == 4
    assert run.document["hosts"]["away"]["state"] == "unreachable"
    assert run.document["hosts"]["t13"]["state"] == "ok"
    assert run.errors[0].startswith("error: away: unreachable")
    healthy = dsprov("status", "-i", inventory, "--limit", "t13", "--json")
    assert healthy.code == 0
    services = healthy.document["hosts"]["t13"]["services"]
    assert {row["name"]: row["healthy"] for row in services} == {
        "docker": True,
        "ollama": True,
        "open_webui": True,
    }
    assert all(row["version"] for row in services)


def test_the_password_is_nowhere(lab: Lab, tmp_path: Path) -> None:
    """Not in logs, states or process lists of the controller, even of the most talkative run."""
    inventory = lab.variant(tmp_path, hosts=("t13",))
    state = tmp_path / "state"
    run = dsprov("install", "--tier", "demo", "-i", inventory, "-vvv", env={"XDG_STATE_HOME": str(state)})
    assert run.code == 0
    secrets = lab.sh("t13", "cat /etc/dsprov/secrets/*").split()
    values = {word.partition("=")[2] or word for word in secrets}
    values = {value.strip("'\"") for value in values if len(value) >= 12}
    assert len(values) >= 2
    said = run.out + run.err
    kept = "".join(path.read_text(encoding="utf-8") for path in state.rglob("*") if path.is_file())
    assert len(kept) > 10000, "the log should hold the whole run"
    on_host = lab.sh(
        "t13", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '; cat /etc/dsprov/state.json; journalctl -q -o cat"
    )
    for value in values:
        assert value not in said
        assert value not in kept
        assert value not in on_host
    log = next(state.rglob("*.log"))
    assert log.stat().st_mode & 0o077 == 0
