"""A baked driver seen from outside: built for the kernel, whole, and nobody moves it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

# By host: DKMS's name of the modules, and the licence that they name themselves.
BUILT = {"deb12": ("nvidia-current", "NVIDIA"), "open12": ("nvidia-current-open", "Dual MIT/GPL")}
PREFERENCES, UPGRADES = "/etc/apt/preferences.d/dsprov-nvidia", "/etc/apt/apt.conf.d/51dsprov-nvidia"


@pytest.fixture
def baked(host: Any) -> Any:
    """A host whose driver builds."""
    if name(host) not in BUILT:
        # Its tests are those with `tried`.
        pytest.skip("here its modules do not build")
    return host


@pytest.fixture
def updated(host: Any) -> Any:
    """The host whose driver is older than what the archive offers of its parts."""
    if name(host) != "open12":
        # Without anything newer on offer nobody has to be kept from taking it.
        pytest.skip("here the archive has nothing newer")
    return host


@pytest.fixture
def tried(host: Any) -> Any:
    """A host whose driver does not build."""
    if name(host) in BUILT:
        # Its tests are those with `baked`.
        pytest.skip("here its modules build")
    return host


def name(host: Any) -> str:
    return str(host.check_output("hostname"))


def receipt(host: Any) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(host.file("/var/lib/dsprov/nvidia/driver.json").content_string)
    return made


def test_modules_are_built_for_the_kernel_of_the_image(baked: Any) -> None:
    """Real ones: of the version, for the one kernel, under the licence of their kind."""
    made, (module, licence) = receipt(baked), BUILT[name(baked)]
    assert made["state"] == "installed"
    with baked.sudo():
        status = baked.check_output("dkms status").splitlines()
        built = baked.check_output("find /lib/modules -name 'nvidia*.ko*'").split()
    (line,) = [row for row in status if row.startswith(f"{module}/{made['version']}, ")]
    assert line.endswith(": installed")
    kernel = line.split(", ")[1]
    assert len(built) >= 4
    assert all(path.startswith(f"/lib/modules/{kernel}/") for path in built)
    (main,) = [path for path in built if re.search(r"/nvidia-current(-open)?\.ko", path)]
    info = dict(row.split(":", 1) for row in baked.check_output("/sbin/modinfo %s", main).splitlines())
    assert info["version"].strip() == made["version"]
    assert info["license"].strip() == licence
    assert info["vermagic"].split()[0] == kernel


def test_the_image_boots_the_kernel_that_they_are_for(updated: Any) -> None:
    """Its own, although the archive has the headers of a newer one; the initial file system was made anew."""
    (image,) = updated.check_output("ls /boot").split("vmlinuz-")[1:]
    kernel = image.split()[0]
    with updated.sudo():
        assert updated.check_output("find /lib/modules -name 'nvidia*.ko*'").count(kernel) >= 4
        listed = updated.check_output("lsinitramfs /boot/initrd.img-%s", kernel)
    assert "etc/modprobe.d/dsprov-nvidia.conf" in listed


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
    """The real program, every origin allowed: it reads our list and takes no part of the driver.

    That the list alone suffices is shown where a newer part comes by itself (tests/hosts/test_nvidia.py).
    """
    with baked.sudo():
        baked.check_output(
            "apt-get -qq --yes --no-install-recommends install unattended-upgrades >/dev/null 2>&1; "
            "echo 'Unattended-Upgrade::Origins-Pattern { \"origin=*\"; };' > /etc/apt/apt.conf.d/52lab"
        )
        said = baked.run("unattended-upgrade --dry-run --debug")
        baked.check_output("rm /etc/apt/apt.conf.d/52lab")
    assert said.rc == 0, said.stderr
    words = said.stdout + said.stderr
    for name in ("nvidia-", "libnvidia-", "libcuda"):
        assert f"PkgPin(pkg='/^{name}/', priority=-32768)" in words, words[-2000:]
    upgraded = " ".join(re.findall(r"Packages that will be upgraded:(.*)", words)).split()
    assert not [one for one in upgraded if "nvidia" in one or "libcuda" in one]


def test_something_newer_is_on_offer_for_what_stays(updated: Any) -> None:
    """Else nothing would be held back: the archive has a security update of half the driver's parts."""
    made = receipt(updated)
    with updated.sudo():
        known = updated.check_output("apt-cache madison libcuda1")
    newest = known.splitlines()[0].split("|")[1].strip()
    assert not newest.startswith(made["version"])


def test_what_does_not_build_leaves_nothing_behind(tried: Any) -> None:
    """Refused, then tried all the same by the side effect."""
    # dpkg-query fails where no package of that name was ever known, which is the best that can be.
    listed = tried.check_output("dpkg-query --show --showformat='${Package} ${Status}\\n' '*nvidia*' || true")
    assert not [line for line in listed.splitlines() if "not-installed" not in line and line.strip()]
    for path in (
        "/var/lib/dsprov/nvidia/driver.json",
        PREFERENCES,
        "/etc/modprobe.d/dsprov-nvidia.conf",
        UPGRADES,
    ):
        assert not tried.file(path).exists, path
    with tried.sudo():
        # Without dkms on the host nothing is built by it.
        assert "nvidia" not in tried.check_output("dkms status 2>/dev/null || true")
        # find fails where one of the folders is not there, which is as good as empty.
        left = tried.check_output(
            "find /usr/src /var/lib/dkms -maxdepth 1 -name '*nvidia*' 2>/dev/null || true"
        )
    assert left == ""
