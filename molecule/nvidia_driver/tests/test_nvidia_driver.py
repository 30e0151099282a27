"""A baked driver seen from outside: built for the kernel, whole, and nobody moves it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

BUILT, TRIED = "deb12", ("open12", "deb13")


@pytest.fixture
def baked(host: Any) -> Any:
    """The host whose driver builds."""
    if name(host) != BUILT:
        # The driver of one host builds; the tests of the others are those with `tried`.
        pytest.skip("here its modules do not build")
    return host


@pytest.fixture
def tried(host: Any) -> Any:
    """A host whose driver does not build."""
    if name(host) not in TRIED:
        # Its tests are those with `baked`.
        pytest.skip("here its modules build")
    return host


def name(host: Any) -> str:
    return str(host.check_output("hostname"))


def receipt(host: Any) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(host.file("/var/lib/dsprov/nvidia/driver.json").content_string)
    return made


def test_modules_are_built_for_the_kernel_of_the_headers(baked: Any) -> None:
    made = receipt(baked)
    assert made["state"] == "installed"
    with baked.sudo():
        status = baked.check_output("dkms status")
        built = baked.check_output("find /lib/modules -name 'nvidia*.ko*'").split()
    assert f"nvidia-current/{made['version']}" in status
    assert status.rstrip().endswith("installed")
    assert len(built) >= 4
    info = baked.check_output("/sbin/modinfo %s", next(path for path in built if "uvm" not in path))
    assert made["version"] in info


def test_every_part_is_of_one_version(baked: Any) -> None:
    """A driver whose kernel modules and libraries differ does not answer."""
    made = receipt(baked)
    versions = {baked.package(name).version.partition("-")[0] for name in made["held"]}
    assert versions == {made["version"]}


def test_dpkg_is_clean(host: Any) -> None:
    assert host.check_output("dpkg --audit") == ""
    assert not host.file("/etc/dkms/no-autoinstall").exists


def test_an_upgrade_leaves_the_driver_alone(baked: Any) -> None:
    made = receipt(baked)
    with baked.sudo():
        offered = baked.check_output("apt-cache policy nvidia-smi")
        plan = baked.check_output("apt-get --simulate --quiet dist-upgrade")
    assert f"Candidate: {made['version']}" in offered
    assert not [line for line in plan.splitlines() if line.startswith("Inst") and "nvidia" in line]
    assert set(baked.check_output("apt-mark showhold").split()) >= set(made["held"])


def test_the_kernel_s_own_driver_stays_off(baked: Any) -> None:
    assert "blacklist nouveau" in baked.file("/etc/modprobe.d/dsprov-nvidia.conf").content_string
    assert baked.service("nvidia-persistenced").is_enabled


def test_unattended_upgrades_refuse_to_touch_it(baked: Any) -> None:
    """The tool itself, with every origin allowed: our list is what it reads, beside the hold."""
    with baked.sudo():
        baked.check_output(
            "apt-get -qq --yes --no-install-recommends install unattended-upgrades >/dev/null 2>&1; "
            "echo 'Unattended-Upgrade::Origins-Pattern { \"origin=*\"; };' > /etc/apt/apt.conf.d/52lab"
        )
        said = baked.run("unattended-upgrade --dry-run --debug")
    assert said.rc == 0, said.stderr
    words = said.stdout + said.stderr
    assert re.search(r"blacklist: .*\bnvidia-", words), words[-2000:]
    upgraded = [line for line in words.splitlines() if line.startswith("Packages that will be upgraded:")]
    assert not [line for line in upgraded if "nvidia" in line or "libcuda" in line]


def test_what_does_not_build_leaves_nothing_behind(tried: Any) -> None:
    """Refused, then tried all the same by the side effect."""
    # dpkg-query fails where no package of that name was ever known, which is the best that can be.
    listed = tried.check_output("dpkg-query --show --showformat='${Package} ${Status}\\n' '*nvidia*' || true")
    assert not [line for line in listed.splitlines() if "not-installed" not in line and line.strip()]
    for path in (
        "/var/lib/dsprov/nvidia/driver.json",
        "/etc/apt/preferences.d/dsprov-nvidia",
        "/etc/modprobe.d/dsprov-nvidia.conf",
        "/etc/apt/apt.conf.d/51dsprov-nvidia",
    ):
        assert not tried.file(path).exists, path
    with tried.sudo():
        # Without dkms on the host nothing is built by it.
        assert "nvidia" not in tried.check_output("dkms status 2>/dev/null || true")
