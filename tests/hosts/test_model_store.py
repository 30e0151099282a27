"""Weights on real hosts: what a disk can refuse, and ten deaths of downloader, controller and host."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.lab.engine import ensure_network
from tests.lab.origin import Origin

from .conftest import LAB, PROJECT, Lab

PLAY = """
- hosts: all
  gather_facts: false
  become: true
  roles: [dsprov.appliance.model_store]
"""
FOLDER = "/var/lib/dsprov/models/test/Q4"
UNITS = "systemctl list-units 'dsprov-fetch-*' --plain --no-legend"
# What a journal may not have noted yet when all dies, by the clock: it is written each two seconds.
UNNOTED_SECONDS = 4.0


@dataclass
class Weights:
    """A file of weights at a source on this machine, and plays that bring it to hosts."""

    lab: Lab
    root: Path
    origin: Origin
    rows: list[dict[str, Any]] = field(default_factory=list)

    def put(self, name: str, size: int) -> dict[str, Any]:
        data = os.urandom(size)
        (self.origin.folder / name).write_bytes(data)
        row = {"name": name, "bytes": size, "sha256": hashlib.sha256(data).hexdigest()}
        row["sources"] = [{"url": f"{self.origin.url}/{name}"}]
        self.rows.append(row)
        return row

    def start(self, *hosts: str, **more: Any) -> subprocess.Popen[str]:
        variables = {"model_store_folder": FOLDER, "model_store_files": self.rows, **more}
        (self.root / "vars.json").write_text(json.dumps(variables), encoding="utf-8")
        (self.root / "play.yml").write_text(PLAY, encoding="utf-8")
        return subprocess.Popen(
            [
                *(str(Path(sys.executable).with_name("ansible-playbook")), str(self.root / "play.yml")),
                *("-i", str(self.lab.variant(self.root, hosts=hosts)), "-e", f"@{self.root / 'vars.json'}"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={
                **os.environ,
                "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"),
                "ANSIBLE_COLLECTIONS_PATH": str(PROJECT / "cli"),
                "LC_ALL": "C.UTF-8",
            },
        )

    def play(self, *hosts: str, **more: Any) -> tuple[int, str]:
        process = self.start(*hosts, **more)
        said, _ = process.communicate(timeout=600)
        print(said)
        return process.returncode, said

    def whole(self, host: str, folder: str = FOLDER) -> bool:
        found = self.lab.sh(host, f"cd {folder} && sha256sum *").split()
        return found == [word for row in self.rows for word in (row["sha256"], row["name"])]

    @property
    def sent(self) -> int:
        return sum(self.origin.sent.values())


@pytest.fixture
def weights(lab: Lab, tmp_path: Path) -> Iterator[Weights]:
    (tmp_path / "www").mkdir()
    origin = Origin(str(ensure_network(print)[1]), 0, tmp_path / "www")
    origin.start()
    yield Weights(lab, tmp_path, origin)
    origin.shutdown()
    for host in ("t12", "t13"):
        lab.sh(
            host,
            "systemctl stop 'dsprov-fetch-*'; umount /mnt/small 2>/dev/null; "
            f"rm -rf {FOLDER} /run/dsprov/fetch/* /mnt/small; true",
        )


def until(look: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def test_a_disk_that_is_too_small_is_refused_before_anything_comes(weights: Weights) -> None:
    weights.put("a.gguf", 30_000_000)
    weights.lab.sh("t12", "mkdir -p /mnt/small && mount -t tmpfs -o size=20m tmpfs /mnt/small")
    code, said = weights.play("t12", model_store_folder="/mnt/small/m")
    assert code == 2
    assert "the rest of small/m needs 33000000 bytes (10 % to spare)" in said.replace("\\n", " ")
    assert weights.sent == 0
    assert weights.lab.sh("t12", UNITS + "; ls -A /mnt/small") == ""


def test_a_disk_that_fills_up_meanwhile_keeps_what_came(weights: Weights) -> None:
    weights.put("a.gguf", 30_000_000)
    weights.origin.rate = 5_000_000
    weights.lab.sh("t12", "mkdir -p /mnt/small && mount -t tmpfs -o size=40m tmpfs /mnt/small")
    process = weights.start("t12", model_store_folder="/mnt/small/m")
    until(lambda: weights.sent > 8_000_000)
    weights.lab.sh("t12", "dd if=/dev/zero of=/mnt/small/fill bs=1M 2>/dev/null; true")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 2, said
    assert "No space left on device" in said or "free some" in said, said
    assert weights.lab.sh("t12", "ls /mnt/small/m").split() == ["a.gguf.part", "a.gguf.part.journal"]
    weights.lab.sh("t12", "rm /mnt/small/fill")
    before = weights.sent
    weights.origin.rate = 0
    assert weights.play("t12", model_store_folder="/mnt/small/m")[0] == 0
    assert weights.whole("t12", "/mnt/small/m")
    assert weights.sent - before < 30_000_000 - 5_000_000, "what came was not kept"


def test_a_target_that_cannot_be_written_to_is_named(weights: Weights) -> None:
    weights.put("a.gguf", 1000)
    weights.lab.sh("t12", "mkdir -p /mnt/small && mount -t tmpfs -o ro tmpfs /mnt/small")
    code, said = weights.play("t12", model_store_folder="/mnt/small/m")
    assert code == 2
    assert "/mnt/small/m: cannot be written to (Read-only file system); mount it writable" in said
    assert weights.sent == 0


def test_a_wrong_digest_names_both_and_leaves_nothing(weights: Weights) -> None:
    row = weights.put("a.gguf", 5_000_000)
    right = row["sha256"]
    row["sha256"] = "0" * 64
    code, said = weights.play("t13")
    assert code == 2
    assert right in said
    assert row["sha256"] in said
    assert weights.lab.sh("t13", f"ls -A {FOLDER}") == ""


def test_two_controllers_share_one_download(weights: Weights) -> None:
    weights.put("a.gguf", 40_000_000)
    weights.origin.rate = 4_000_000
    both = [weights.start("t12"), weights.start("t12")]
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert all("changed=1" in words for words in said), "both were there while it came"
    assert weights.whole("t12")
    assert weights.sent == 40_000_000


@pytest.mark.slow
def test_ten_deaths_and_nothing_that_is_on_disk_comes_twice(weights: Weights) -> None:
    """The downloader, the controller and the host die by turns; the same command finishes."""
    rate, size = 8_000_000, 400_000_000
    weights.put("a.gguf", size)
    weights.origin.rate = rate
    dice = random.Random(10)
    lab, container = weights.lab, f"dsprov-lab-{LAB}-t12"
    there, sent = 0, 0
    process = weights.start("t12")
    for death in range(10):
        wanted = weights.sent + int(dice.uniform(2.0, 6.0) * rate)
        until(lambda wanted=wanted: weights.sent >= wanted or weights.sent >= size)
        victim = ("downloader", "controller", "host")[death % 3]
        if victim == "downloader":
            lab.sh("t12", "systemctl kill --signal=SIGKILL 'dsprov-fetch-*'")
        elif victim == "controller":
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        else:  # Its controller lives on, and goes on when the host is back.
            subprocess.run(["docker", "kill", container], check=True, capture_output=True)
        durable = on_disk(lab)
        # After that look, which takes its time: what it has seen on the disk is not to be sent from now on.
        now = weights.sent
        print(f"death {death}: {victim}, {now} bytes sent, {durable} on disk")
        assert durable >= there, "what was on disk is gone"
        there, sent = durable, now
        if victim == "host":
            subprocess.run(["docker", "start", container], check=True, capture_output=True)
            until(
                lambda: (
                    lab.sh("t12", "systemctl is-system-running", check=False).strip()
                    in ("running", "degraded")
                )
            )
        if process.poll() is not None:
            process = weights.start("t12")
    weights.origin.rate = 0
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert weights.whole("t12")
    again, lost = weights.sent - sent - (size - there), weights.sent - size
    print(f"after the last: {again} bytes came twice; {lost} of {size} were lost by ten deaths")
    assert again <= 0.02 * size
    assert lost <= 10 * UNNOTED_SECONDS * rate
    before = weights.sent
    code, said = weights.play("t12")
    assert code == 0
    assert "changed=0" in said
    assert weights.sent == before
    assert lab.sh("t12", UNITS) == ""
    assert lab.sh("t12", f"ls -A {FOLDER}").split() == ["a.gguf"]


def on_disk(lab: Lab) -> int:
    """Bytes that the part's journal has noted; the host need not run."""
    with_tools = (
        "import sys; sys.path.insert(0, __import__('glob').glob('/opt/dsprov/fetch/*')[0]);"
        "from ansible_collections.dsprov.appliance.plugins.module_utils.pieces import Journal, Coverage;"
        f"print(Coverage(Journal('{FOLDER}/a.gguf.part.journal').read().there).bytes)"
    )
    container = f"dsprov-lab-{LAB}-t12"
    running = subprocess.run(
        ["docker", "inspect", "--format", "{{.State.Running}}", container],
        capture_output=True,
        text=True,
        check=True,
    )
    if running.stdout.strip() != "true":
        subprocess.run(["docker", "start", container], check=True, capture_output=True)
    return int(lab.sh("t12", f'python3 -c "{with_tools}"'))
