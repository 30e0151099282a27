"""Real hosts for these tests: brought up once a session, the command line run as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[2]
DSPROV = Path(sys.executable).with_name("dsprov")
# Another name lets two checkouts test beside each other.
LAB = os.environ.get("DSPROV_TEST_PROJECT", "tests")
BOTH = {"t12": "debian-12", "t13": "debian-13"}
# What an install may change; a refusal must leave all of it as it was.
FINGERPRINT = (
    "{ dpkg-query -W; ls /etc/systemd/system; cat /etc/passwd; "
    "find /etc /opt /var/lib/dsprov -type f -printf '%p %s %T@\\n' 2>/dev/null; } | sort | sha256sum"
)


@dataclass(frozen=True)
class Run:
    """What one call of the command line came to."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error: ")]

    @property
    def document(self) -> Any:
        return json.loads(self.out)


def dsprov(*words: str | Path, timeout: float = 1200, env: dict[str, str] | None = None) -> Run:
    """Runs the command line; what it prints is shown when a test fails."""
    done = subprocess.run(
        [str(DSPROV), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, "LC_ALL": "C.UTF-8", **(env or {})},
    )
    print(done.stdout, done.stderr, sep="\n")
    assert "Traceback" not in done.stderr
    return Run(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True)
class Lab:
    """The hosts t12 (Debian 12) and t13 (Debian 13)."""

    inventory: Path
    project: str = LAB

    def sh(self, host: str, script: str, check: bool = True) -> str:
        """A script as root on a host, past ssh and sudo, so that these may be broken."""
        container = f"dsprov-lab-{self.project}-{host}"
        done = subprocess.run(
            ["docker", "exec", "-i", container, "sh", "-c", script],
            capture_output=True,
            text=True,
            check=False,
        )
        if check:
            assert done.returncode == 0, f"{script}: {done.stderr}"
        return done.stdout

    def fingerprint(self, host: str) -> str:
        return self.sh(host, FINGERPRINT)

    def variant(self, folder: Path, extra: str = "", hosts: tuple[str, ...] = ("t12",)) -> Path:
        """An inventory of some of the hosts with more lines, beside the lab's group_vars."""
        text = self.inventory.read_text(encoding="utf-8").splitlines()
        kept = [line for line in text if not line.startswith(("t12 ", "t13 ")) or line.split()[0] in hosts]
        path = folder / "hosts.ini"
        path.write_text("\n".join([*kept, extra, ""]), encoding="utf-8")
        variables = folder / "group_vars"
        if not variables.exists():
            variables.symlink_to(self.inventory.parent / "group_vars")
        return path


def hosts_of(project: str, *options: str, **releases: str) -> Iterator[Lab]:
    """Fresh hosts; DSPROV_KEEP_HOSTS keeps them for a look afterwards and takes them again."""
    keep = os.environ.get("DSPROV_KEEP_HOSTS")
    command = [sys.executable, "-m", "tests.lab", "up", "--project", project, *options]
    command += [word for name, release in releases.items() for word in ("--host", f"{name}={release}")]
    subprocess.run([*command, *([] if keep else ["--fresh"])], cwd=PROJECT, check=True, timeout=3000)
    yield Lab(PROJECT / ".lab" / project / "hosts.ini", project)
    if not keep:
        subprocess.run(
            [sys.executable, "-m", "tests.lab", "down", "--project", project], cwd=PROJECT, check=True
        )


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Hosts that reach the lab's mirror."""
    yield from hosts_of(LAB, **BOTH)


@pytest.fixture(scope="session")
def cut() -> Iterator[Lab]:
    """Hosts that reach nothing but this machine; their inventory still says where the mirror would be."""
    yield from hosts_of(f"{LAB}-cut", "--cut", **BOTH)
