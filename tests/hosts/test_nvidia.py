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

from tests.lab import apt
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
# Hosts that say they are Ubuntu, with Ubuntu's names: version, suite, running kernel.
UBUNTU = {"u22": ("22.04", "jammy", "5.15.0-130-generic"), "u24": ("24.04", "noble", "6.8.0-60-generic")}


@dataclass(frozen=True)
class Hosts:
    """The hosts deb (Debian 12), and u22 and u24, which say they are Ubuntu 22.04 and 24.04."""

    folder: Path
    play: Path

    def sh(self, host: str, script: str) -> str:
        words = ["docker", "exec", "-i", f"dsprov-lab-{NAME}-{host}", "sh", "-c", script]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{script}: {done.stderr}"
        return done.stdout

    def ansible(self, program: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Ansible as this checkout has it."""
        command = [Path(sys.executable).with_name(program), "-i", self.folder / "hosts.ini", *words]
        environment = {**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "LC_ALL": "C.UTF-8"}
        environment["ANSIBLE_COLLECTIONS_PATH"] = str(PROJECT / "cli")
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, check=False, env=environment
        )
        print(done.stdout, done.stderr)
        return done

    def run(self, host: str, **variables: Any) -> tuple[int, str]:
        """The role on one host: its exit status and what it said."""
        done = self.ansible("ansible-playbook", self.play, "-e", json.dumps({"target": host, **variables}))
        return done.returncode, done.stdout

    def module(self, host: str, name: str, **arguments: Any) -> tuple[int, dict[str, Any]]:
        """One of the collection's modules on one host: Ansible's exit status and the module's result."""
        wish = ["-m", f"dsprov.appliance.{name}", "-a", json.dumps(arguments), "--one-line"]
        done = self.ansible("ansible", "--become", host, *wish)
        return done.returncode, json.loads(done.stdout.partition("=>")[2])

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
    words = ["up", "--fresh", "--project", NAME, "--host", "deb=debian-12"]
    words += [word for name in UBUNTU for word in ("--host", f"{name}=debian-12")]
    subprocess.run([*command, *words, "--artifacts", "nvidia_drivers"], cwd=PROJECT, check=True, timeout=1200)
    play = tmp_path_factory.mktemp("play") / "play.yml"
    play.write_text(PLAY, encoding="utf-8")
    made = Hosts(PROJECT / ".lab" / NAME, play)
    variables = yaml.safe_load((made.folder / "group_vars" / "all.yml").read_text(encoding="utf-8"))
    base = variables["nvidia_driver_apt_url"].removesuffix("/cuda")
    for name, (version, suite, _kernel) in UBUNTU.items():
        release = f'ID=ubuntu\\nVERSION_ID="{version}"\\nVERSION_CODENAME={suite}\\nNAME=Ubuntu\\n'
        listed = f"deb [signed-by=/etc/apt/keyrings/ubuntu.asc] {base}/ubuntu/{suite} {suite} main"
        if suite == "noble":
            # As Ubuntu itself writes it from 24.04 on.
            listed = f"Types: deb\\nURIs: {base}/ubuntu/{suite}\\nSuites: {suite}\\nComponents: main\\n"
            listed += "Signed-By: /etc/apt/keyrings/ubuntu.asc\\n"
        file = "ubuntu.sources" if suite == "noble" else "ubuntu.list"
        made.sh(
            name,
            f"rm /etc/os-release; printf '{release}' > /etc/os-release; mkdir -p /etc/apt/keyrings; "
            "/usr/lib/apt/apt-helper -o Acquire::http::Proxy=DIRECT download-file "
            f"{base}/cuda/ubuntu2204/x86_64/3bf863cc.pub /etc/apt/keyrings/ubuntu.asc; "
            f"printf '{listed}\\n' > /etc/apt/sources.list.d/{file}; apt-get -qq update",
        )
    yield made
    subprocess.run([*command, "down", "--project", NAME], cwd=PROJECT, check=True)


def test_a_repository_of_somebody_else_s_key_is_not_listed(hosts: Hosts) -> None:
    code, said = hosts.run("deb", nvidia_driver_bake=True, nvidia_driver_fingerprints=["0" * 40])
    assert code != 0
    assert "holds the key" in said
    assert hosts.sh("deb", "ls /etc/apt/keyrings") == ""
    assert "nvidia" not in hosts.sh("deb", "ls /etc/apt/sources.list.d /etc/apt/preferences.d")


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


# A kernel module of a few lines. What it calls may be in no kernel, as with a driver that is too old for one.
SOURCE = """
#include <linux/module.h>
static int __init lab_init(void) { @CALL@ return 0; }
static void __exit lab_exit(void) {}
module_init(lab_init); module_exit(lab_exit);
MODULE_LICENSE("GPL"); MODULE_VERSION("@VERSION@");
"""
CONF = """PACKAGE_NAME="lab-module"
PACKAGE_VERSION="@VERSION@"
BUILT_MODULE_NAME[0]="lab_module"
DEST_MODULE_LOCATION[0]="/updates/dkms"
MAKE[0]="make -C ${kernel_source_dir} M=${dkms_tree}/lab-module/@VERSION@/build modules"
CLEAN="true"
"""


def module(folder: Path, version: str, call: str) -> Path:
    """A package with that module's sources."""
    texts = {"lab_module.c": SOURCE, "dkms.conf": CONF, "Makefile": "obj-m := lab_module.o\n"}
    files = {
        f"/usr/src/lab-module-{version}/{name}": text.replace("@VERSION@", version)
        .replace("@CALL@", call)
        .encode()
        for name, text in texts.items()
    }
    return apt.build(apt.Package("lab-module", version, files), folder)


def test_modules_are_built_by_dkms_and_one_that_does_not_build_is_named(hosts: Hosts, tmp_path: Path) -> None:
    """Real headers, compiler and DKMS; the driver's own modules take minutes (scenario nvidia_driver)."""

    def build(version: str, call: str) -> tuple[int, dict[str, Any]]:
        deb = module(tmp_path, version, call)
        copied = ["docker", "cp", str(deb), f"dsprov-lab-{NAME}-deb:/root/module.deb"]
        subprocess.run(copied, check=True, capture_output=True)
        hosts.sh("deb", "dpkg --install /root/module.deb")
        return hosts.module("deb", "dkms", packages=["lab-module"])

    (kernel,) = hosts.sh("deb", "ls /lib/modules | grep -- -amd64").split()
    code, said = build("1.0", "")
    assert (code, said["built"]) == (0, [f"lab-module/1.0 {kernel}"])
    (path,) = hosts.sh("deb", "find /lib/modules -name 'lab_module.ko*'").split()
    assert hosts.sh("deb", f"/sbin/modinfo -F vermagic {path}").split()[0] == kernel
    assert hosts.sh("deb", f"/sbin/modinfo -F version {path}").strip() == "1.0"
    code, said = build("1.0", "")
    assert (code, said["changed"]) == (0, False)
    code, said = build("2.0", "no_kernel_has_this();")
    assert code != 0
    assert said["kernel"] == kernel
    assert "no_kernel_has_this" in said["error"]
    assert f"lab-module/2.0 does not build for kernel {kernel}" in said["msg"]


@pytest.mark.parametrize("name", list(UBUNTU))
def test_ubuntu(hosts: Hosts, name: str) -> None:
    """Ubuntu's server packages, from components that its sources lack, by the key that its sources name."""
    version, suite, _kernel = UBUNTU[name]
    wish = {"nvidia_driver_bake": True, "nvidia_driver_facts": {}}
    code, _said = hosts.run(name, **wish)
    assert code == 0
    versions = hosts.versions(name)
    names = ("nvidia-headless-580-server-open", "nvidia-utils-580-server", "libnvidia-compute-580-server")
    assert {versions[one] for one in names} == {f"{PARTLY}-0ubuntu0.{version}.1"}
    text = hosts.sh(name, "cat /etc/apt/sources.list.d/dsprov-nvidia-distribution.sources")
    components = "Components: restricted universe multiverse"
    assert f"Suites: {suite}\n{components}\nSigned-By: /etc/apt/keyrings/ubuntu.asc" in text
    assert set(names) <= set(hosts.sh(name, "apt-mark showhold").split())
    assert '"nvidia-";' in hosts.sh(name, "cat /etc/apt/apt.conf.d/51dsprov-nvidia")
    hosts.unchanged(name, **wish)


@pytest.mark.parametrize("name", list(UBUNTU))
def test_fabric_manager_comes_in_the_driver_s_version(hosts: Hosts, name: str) -> None:
    """What is there has none of its version, so all parts change to one that has."""
    wish = {"nvidia_driver_bake": True, "nvidia_driver_fabric_manager": "true", "nvidia_driver_facts": {}}
    code, _said = hosts.run(name, **wish)
    assert code == 0
    versions = hosts.versions(name)
    wanted = f"{WHOLE}-0ubuntu0.{UBUNTU[name][0]}.1"
    assert versions["nvidia-fabricmanager-580"] == versions["nvidia-utils-580-server"] == wanted


@pytest.mark.parametrize("name", list(UBUNTU))
def test_secure_boot_gets_the_signed_modules_of_the_running_kernel(hosts: Hosts, name: str) -> None:
    """The distribution's own, which the firmware trusts, in place of the ones that DKMS builds."""
    version, suite, kernel = UBUNTU[name]
    card = {"vendor": "nvidia", "name": "NVIDIA H20", "memory_bytes": 102625181696, "driver_version": None}
    facts = {
        "os": {"id": "ubuntu", "version_id": version, "codename": suite, "arch": "x86_64", "kernel": kernel},
        "gpus": [{**card, "compute_capability": "9.0"}],
        "secure_boot": True,
    }
    code, said = hosts.run(name, nvidia_driver_facts=facts)
    # Without a card nothing answers in the end; what was installed is what counts here.
    assert code != 0
    assert "reboot" in said
    versions = hosts.versions(name)
    assert "nvidia-headless-no-dkms-580-server-open" in versions
    assert f"linux-modules-nvidia-580-server-open-{kernel}" in versions
    assert not [one for one in versions if one.startswith("nvidia-dkms-")]
    receipt = json.loads(hosts.sh(name, "cat /var/lib/dsprov/nvidia/driver.json"))
    assert receipt["signed"] is True
    assert "nvidia-headless-no-dkms-580-server-open" in hosts.sh(name, "apt-mark showhold").split()
