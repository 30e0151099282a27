"""A baked driver seen from outside: built for the kernel, whole, and nobody moves it."""

from __future__ import annotations

import json
from typing import Any


def receipt(host: Any) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(host.file("/var/lib/dsprov/nvidia/driver.json").content_string)
    return made


def test_modules_are_built_for_the_kernel_of_the_headers(host: Any) -> None:
    made = receipt(host)
    assert made["state"] == "installed"
    with host.sudo():
        status = host.check_output("dkms status")
        built = host.check_output("find /lib/modules -name 'nvidia*.ko*'").split()
    assert f"nvidia-current/{made['version']}" in status
    assert status.rstrip().endswith("installed")
    assert len(built) >= 4
    info = host.check_output("/sbin/modinfo %s", next(path for path in built if "uvm" not in path))
    assert made["version"] in info


def test_every_part_is_of_one_version(host: Any) -> None:
    """A driver whose kernel modules and libraries differ does not answer."""
    made = receipt(host)
    versions = {host.package(name).version.partition("-")[0] for name in made["held"]}
    assert versions == {made["version"]}


def test_dpkg_is_clean(host: Any) -> None:
    assert host.check_output("dpkg --audit") == ""
    assert not host.file("/etc/dkms/no-autoinstall").exists


def test_an_upgrade_leaves_the_driver_alone(host: Any) -> None:
    made = receipt(host)
    with host.sudo():
        offered = host.check_output("apt-cache policy nvidia-smi")
        plan = host.check_output("apt-get --simulate --quiet dist-upgrade")
    assert f"Candidate: {made['version']}" in offered
    assert not [line for line in plan.splitlines() if line.startswith("Inst") and "nvidia" in line]
    assert set(host.check_output("apt-mark showhold").split()) >= set(made["held"])


def test_the_kernel_s_own_driver_stays_off(host: Any) -> None:
    assert "blacklist nouveau" in host.file("/etc/modprobe.d/dsprov-nvidia.conf").content_string
    assert host.service("nvidia-persistenced").is_enabled
