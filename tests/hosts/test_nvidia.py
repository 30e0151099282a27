"""NVIDIA's driver on real hosts without a card: sources, keys, versions, pins and holds.

The packages are empty ones under the real names (tests/lab/nvidia.py); real modules are built by the Molecule
scenario nvidia_driver.
"""

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
import yaml

from tests.lab.nvidia import PARTLY, WHOLE

from .conftest import LAB, PROJECT

NAME = f"{LAB}-nvidia"
PLAY = """
- hosts: "{{ target }}"
  gather_facts: false
  become: true
  tasks:
    - ansible.builtin.include_role: {name: dsprov.appliance.common}
    - ansible.builtin.include_role: {name: dsprov.appliance.nvidia_driver}
"""
UBUNTU = 'ID=ubuntu\\nVERSION_ID="22.04"\\nVERSION_CODENAME=jammy\\nNAME=Ubuntu\\n'


@dataclass(frozen=True)
class Hosts:
    """The hosts deb (Debian 12) and ubu (one that says it is Ubuntu 22.04, with Ubuntu's names)."""

    folder: Path
    play: Path

    def sh(self, host: str, script: str) -> str:
        words = ["docker", "exec", "-i", f"dsprov-lab-{NAME}-{host}", "sh", "-c", script]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{script}: {done.stderr}"
        return done.stdout

    def run(self, host: str, **variables: Any) -> tuple[int, str]:
        """The role on one host: its exit status and what it said."""
        words = [
            Path(sys.executable).with_name("ansible-playbook"),
            "-i",
            self.folder / "hosts.ini",
            self.play,
        ]
        words += ["-e", json.dumps({"target": host, **variables})]
        environment = {**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "LC_ALL": "C.UTF-8"}
        environment["ANSIBLE_COLLECTIONS_PATH"] = str(PROJECT / "cli")
        done = subprocess.run(
            list(map(str, words)), capture_output=True, text=True, check=False, env=environment
        )
        print(done.stdout, done.stderr)
        return done.returncode, done.stdout

    def versions(self, host: str) -> dict[str, str]:
        rows = self.sh(
            host, "dpkg-query -W -f '${Package} ${Version}\\n' '*nvidia*' libcuda1 2>/dev/null || true"
        )
        return dict(row.split() for row in rows.splitlines() if len(row.split()) == 2)

    def unchanged(self, host: str, **variables: Any) -> None:
        code, said = self.run(host, **variables)
        assert code == 0
        assert " changed=0 " in said


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    command = [sys.executable, "-m", "tests.lab"]
    words = ["up", "--fresh", "--project", NAME, "--host", "deb=debian-12", "--host", "ubu=debian-12"]
    subprocess.run([*command, *words, "--artifacts", "nvidia_drivers"], cwd=PROJECT, check=True, timeout=1200)
    play = tmp_path_factory.mktemp("play") / "play.yml"
    play.write_text(PLAY, encoding="utf-8")
    made = Hosts(PROJECT / ".lab" / NAME, play)
    variables = yaml.safe_load((made.folder / "group_vars" / "all.yml").read_text(encoding="utf-8"))
    base = variables["nvidia_driver_apt_url"].removesuffix("/cuda")
    made.sh(
        "ubu",
        f"rm /etc/os-release; printf '{UBUNTU}' > /etc/os-release; mkdir -p /etc/apt/keyrings; "
        "/usr/lib/apt/apt-helper -o Acquire::http::Proxy=DIRECT download-file "
        f"{base}/cuda/ubuntu2204/x86_64/3bf863cc.pub /etc/apt/keyrings/ubuntu.asc; "
        f"echo 'deb [signed-by=/etc/apt/keyrings/ubuntu.asc] {base}/ubuntu jammy main' "
        "> /etc/apt/sources.list.d/ubuntu.list; apt-get -qq update",
    )
    yield made
    subprocess.run([*command, "down", "--project", NAME], cwd=PROJECT, check=True)


def test_a_repository_of_somebody_else_s_key_is_not_listed(hosts: Hosts) -> None:
    code, said = hosts.run("deb", nvidia_driver_bake=True, nvidia_driver_fingerprints=["0" * 40])
    assert code != 0
    assert "holds the key" in said
    assert hosts.sh("deb", "ls /etc/apt/keyrings") == ""
    assert "nvidia" not in hosts.sh("deb", "ls /etc/apt/sources.list.d /etc/apt/preferences.d")


def test_headers_that_nobody_has_are_named_and_nothing_is_installed(hosts: Hosts) -> None:
    """A container runs its host's kernel, of which no repository of its own knows."""
    words = [
        sys.executable,
        "-m",
        "tests.lab",
        "hardware",
        "--project",
        NAME,
        "deb",
        "1 x 4090",
        "--driver",
        "none",
    ]
    subprocess.run(words, cwd=PROJECT, check=True)
    kernel = hosts.sh("deb", "uname -r").strip()
    code, said = hosts.run("deb")
    assert code != 0
    assert f"the headers of the running kernel {kernel} are missing" in said
    assert hosts.versions("deb") == {}


def test_nvidia_s_repository(hosts: Hosts) -> None:
    """The newest version that has all parts, from a repository known by its key; all else from Debian."""
    wish = {"nvidia_driver_bake": True, "nvidia_driver_fabric_manager": "true", "nvidia_driver_facts": {}}
    code, _said = hosts.run("deb", **wish)
    assert code == 0
    versions = hosts.versions("deb")
    for name in ("nvidia-kernel-open-dkms", "nvidia-driver-cuda", "libcuda1", "nvidia-fabricmanager"):
        assert versions[name] == f"{WHOLE}-1", "580.126.20 has no fabric manager yet"
    held = hosts.sh("deb", "apt-mark showhold").split()
    assert {"nvidia-kernel-open-dkms", "nvidia-fabricmanager", "libcuda1"} <= set(held)
    assert f"Candidate: {WHOLE}" in hosts.sh("deb", "apt-cache policy libcuda1")
    assert hosts.sh("deb", "apt-get -s dist-upgrade | grep -c '^Inst.*nvidia' || true").strip() == "0"
    assert "enabled" in hosts.sh("deb", "systemctl is-enabled nvidia-fabricmanager nvidia-persistenced")
    assert hosts.sh("deb", "dpkg --audit; ls /etc/dkms | grep no-autoinstall || true") == ""
    hosts.unchanged("deb", **wish)


def test_what_somebody_undoes_is_mended(hosts: Hosts) -> None:
    wish = {"nvidia_driver_bake": True, "nvidia_driver_fabric_manager": "true", "nvidia_driver_facts": {}}
    hosts.sh("deb", "apt-mark unhold libcuda1; rm /etc/apt/preferences.d/dsprov-nvidia")
    code, _said = hosts.run("deb", **wish)
    assert code == 0
    assert "libcuda1" in hosts.sh("deb", "apt-mark showhold").split()
    assert WHOLE in hosts.sh("deb", "cat /etc/apt/preferences.d/dsprov-nvidia")


def test_unattended_upgrades_refuse_to_touch_it(hosts: Hosts) -> None:
    """Without hold and pin a newer library is on offer, so that our list alone keeps it away."""
    hosts.sh(
        "deb",
        "apt-get -qq --yes --no-install-recommends install unattended-upgrades >/dev/null 2>&1; "
        "apt-mark unhold $(apt-mark showhold); mv /etc/apt/preferences.d/dsprov-nvidia /root/; "
        "echo 'Unattended-Upgrade::Origins-Pattern { \"origin=*\"; };' > /etc/apt/apt.conf.d/52lab",
    )
    look = "unattended-upgrade --dry-run --debug 2>&1 | grep '^Packages that will be upgraded:' || true"
    assert "libcuda1" not in hosts.sh("deb", look)
    hosts.sh("deb", "mv /etc/apt/apt.conf.d/51dsprov-nvidia /root/")
    assert "libcuda1" in hosts.sh("deb", look), "what the list keeps away"


def test_ubuntu(hosts: Hosts) -> None:
    """Ubuntu's server packages, from components that its sources lack, by the key that its sources name."""
    wish = {"nvidia_driver_bake": True, "nvidia_driver_facts": {}}
    code, _said = hosts.run("ubu", **wish)
    assert code == 0
    versions = hosts.versions("ubu")
    names = ("nvidia-headless-580-server-open", "nvidia-utils-580-server", "libnvidia-compute-580-server")
    assert {versions[name] for name in names} == {f"{PARTLY}-0ubuntu0.22.04.1"}
    text = hosts.sh("ubu", "cat /etc/apt/sources.list.d/dsprov-nvidia-distribution.sources")
    assert (
        "Suites: jammy\nComponents: restricted universe multiverse\nSigned-By: /etc/apt/keyrings/ubuntu.asc"
        in text
    )
    assert set(names) <= set(hosts.sh("ubu", "apt-mark showhold").split())
    assert '"nvidia-";' in hosts.sh("ubu", "cat /etc/apt/apt.conf.d/51dsprov-nvidia")
    hosts.unchanged("ubu", **wish)


def test_fabric_manager_comes_in_the_driver_s_version(hosts: Hosts) -> None:
    """What is there has none of its version, so all parts change to one that has."""
    wish = {"nvidia_driver_bake": True, "nvidia_driver_fabric_manager": "true", "nvidia_driver_facts": {}}
    code, _said = hosts.run("ubu", **wish)
    assert code == 0
    versions = hosts.versions("ubu")
    assert (
        versions["nvidia-fabricmanager-580"]
        == versions["nvidia-utils-580-server"]
        == f"{WHOLE}-0ubuntu0.22.04.1"
    )
