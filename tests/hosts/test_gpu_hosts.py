"""GPU hosts that something is wrong with: its name, the exit code, and what comes once it is mended.

Cards are imitated (tests/lab/hardware), and so is what a kernel loads when a host boots. The packages
are empty ones under the real names (tests/lab/nvidia.py); apt, dpkg, systemd and the reboot are real.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.nvidia import PARTLY

from .conftest import DSPROV, LAB, PROJECT, Lab, Run, dsprov, hosts_of

RELEASES = {"g12": "debian-12", "g13": "debian-13"}
# Where the headers of the running kernel are looked for; the packages here bring no sources that need more.
HEADERS = "dir=/lib/modules/$(uname --kernel-release)/build; mkdir -p $dir && touch $dir/Makefile"
# What a kernel does at boot: its nouveau takes a card that nobody keeps from it, and NVIDIA's module answers
# once it is installed. In a container the boot's id is the machine's own, so that each boot is given one.
BOOT = r"""
set -eu
mkdir -p /root/driver
mv /usr/local/lib/libnvidia-ml.so.@VERSION@ /usr/bin/nvidia-smi /etc/dsprov-lab/nodes /root/driver/
: > /etc/dsprov-lab/nodes
rm -f /usr/local/lib/libnvidia-ml.so.1 /dev/nvidia*
ldconfig
cat > /usr/local/sbin/lab-modules <<'END'
#!/bin/sh
set -eu
cat /proc/sys/kernel/random/uuid > /run/lab-boot-id
mount --bind /run/lab-boot-id /proc/sys/kernel/random/boot_id
if ! grep -qs '^blacklist nouveau' /etc/modprobe.d/*.conf; then
  mount -t tmpfs lab /sys/module
  mkdir /sys/module/nouveau
elif dpkg-query -W -f '${db:Status-Status}' nvidia-kernel-open-dkms 2>/dev/null | grep -qx installed; then
  cp /root/driver/libnvidia-ml.so.* /usr/local/lib/
  cp /root/driver/nvidia-smi /usr/bin/
  ldconfig
  sh /root/driver/nodes
fi
END
chmod 0755 /usr/local/sbin/lab-modules
cat > /etc/systemd/system/lab-modules.service <<'END'
[Unit]
Description=Lab: what a kernel loads when it boots
DefaultDependencies=no
After=lab-proc-sys.service lab-hardware.service
Before=sysinit.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/lab-modules
[Install]
WantedBy=sysinit.target
END
systemctl enable --quiet lab-modules.service
"""
SECURE_BOOT = r"""
mount -t tmpfs lab /sys/firmware && mkdir -p /sys/firmware/efi/efivars &&
printf '\006\000\000\000\001' > /sys/firmware/efi/efivars/SecureBoot-8be4df61
"""
# A package of somebody else's that dpkg cannot configure: so that its install fails is the point.
HALF = r"""
mkdir -p /root/half/DEBIAN && cd /root/half/DEBIAN &&
printf 'Package: nvidia-kernel-dkms\nVersion: 535.1-1\nArchitecture: amd64\n' > control &&
printf 'Maintainer: lab\nDescription: lab\n' >> control &&
printf '#!/bin/sh\nexit 1\n' > postinst && chmod 755 postinst && cd /root &&
dpkg-deb --build half >/dev/null && { dpkg --install half.deb >/dev/null 2>&1 || true; }
"""
# dpkg waits here until somebody cuts the power.
STOP = r"""
printf 'pre-invoke=[ "$DPKG_HOOK_ACTION" != configure ] || { touch /root/stopped; sleep 3600; }\n' \
  > /etc/dpkg/dpkg.cfg.d/lab
"""
REBOOT = ("-e", "nvidia_driver_reboot=true")


def container(host: str) -> str:
    return f"dsprov-lab-{LAB}-gpu-{host}"


def restarts(host: str) -> int:
    """How often the host has begun again by itself."""
    words = ["docker", "inspect", "--format", "{{.RestartCount}}", container(host)]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def settle(lab: Lab, host: str) -> None:
    """Wait until a host that begins again is up."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        # It fails for every state but running, "degraded" among them: the word is what counts.
        state = lab.sh(host, "systemctl is-system-running 2>/dev/null || true", check=False)
        if state.strip() in ("running", "degraded"):
            return
        time.sleep(1)
    raise AssertionError(f"{host} does not come up")


def packages(lab: Lab, host: str) -> dict[str, str]:
    """The driver's packages and dpkg's word for their state."""
    query = "dpkg-query -W -f '${Package} ${db:Status-Status}\\n' '*nvidia*' libcuda1 2>/dev/null || true"
    rows = dict(row.split() for row in lab.sh(host, query).splitlines())
    return {name: status for name, status in rows.items() if status != "not-installed"}


@pytest.fixture(scope="module")
def gpu() -> Iterator[Lab]:
    """Hosts with one card and no driver, on which nouveau holds the card, as after a first boot."""
    for lab in hosts_of(f"{LAB}-gpu", "--artifacts", "nvidia_drivers,ollama,model", **RELEASES):
        for host in RELEASES:
            card = ["hardware", "--project", lab.project, host, "1 x 4090", "--driver", PARTLY]
            subprocess.run([sys.executable, "-m", "tests.lab", *card], cwd=PROJECT, check=True)
            lab.sh(host, BOOT.replace("@VERSION@", PARTLY))
            # `shutdown -r` ends a container; this has it begin again, as a machine does.
            subprocess.run(["docker", "update", "--restart", "always", container(host)], check=True)
            lab.sh(host, "systemctl reboot", check=False)
        for host in RELEASES:
            while not restarts(host):
                time.sleep(0.5)
            settle(lab, host)
        yield lab


def words(lab: Lab, verb: str, host: str, *more: str) -> list[str]:
    basis = [verb, "--tier", "demo", "-i", str(lab.inventory), "--limit", host]
    return [*basis, "-e", "dsprov_web_ui=false", *more]


def install(lab: Lab, host: str, *more: str) -> Run:
    return dsprov(*words(lab, "install", host, *more))


def changes_nothing(lab: Lab, host: str) -> None:
    run = install(lab, host, *REBOOT, "--json")
    assert run.code == 0
    assert run.document["hosts"][host]["changed"] == 0, run.document["hosts"][host]["changed_tasks"]


def facts(lab: Lab, host: str) -> dict[str, Any]:
    run = dsprov("probe", "-i", lab.inventory, "--limit", host, "--json")
    assert run.code == 0
    row: dict[str, Any] = run.document["hosts"][host]
    return row


def test_secure_boot_without_an_enrolled_key_stops_before_anything_changes(gpu: Lab) -> None:
    """Firmware that a container has not, laid over the kernel's own place. Once it is off, nothing stops."""
    gpu.sh("g12", SECURE_BOOT)
    try:
        seen = facts(gpu, "g12")
        assert (seen["secure_boot"], seen["nouveau"]) == (True, True)
        before = gpu.fingerprint("g12")
        run = install(gpu, "g12")
        assert run.code == 3
        assert "Secure Boot is on and does not know the key" in run.errors[0]
        assert gpu.fingerprint("g12") == before
    finally:
        gpu.sh("g12", "umount /sys/firmware")
    run = dsprov(*words(gpu, "check", "g12"))
    assert run.code == 0
    assert "nouveau holds the GPUs" in run.err


def test_headers_that_nobody_has_are_named_before_anything_changes(gpu: Lab) -> None:
    """A container runs its host's kernel, of which no repository of its own knows."""
    kernel = gpu.sh("g12", "uname -r").strip()
    before = gpu.fingerprint("g12")
    run = install(gpu, "g12")
    assert run.code == 2
    assert f"the headers of kernel {kernel} are missing" in run.errors[0]
    assert gpu.fingerprint("g12") == before


@pytest.mark.slow
def test_half_of_somebody_s_driver_is_left_alone_until_told(gpu: Lab) -> None:
    """The remedy that is named works: half a driver gives way to a whole one, which then waits for a boot."""
    gpu.sh("g12", HEADERS)
    gpu.sh("g12", HALF)
    before = gpu.fingerprint("g12")
    run = install(gpu, "g12")
    assert run.code == 2
    assert "half installed: nvidia-kernel-dkms" in run.errors[0]
    assert gpu.fingerprint("g12") == before
    run = install(gpu, "g12", "-e", "nvidia_driver_existing=replace")
    assert run.code == 1
    assert "takes over with a reboot" in run.errors[0]
    there = packages(gpu, "g12")
    assert set(there.values()) == {"installed"}
    assert "nvidia-kernel-open-dkms" in there
    assert "nvidia-kernel-dkms" not in there


@pytest.mark.slow
def test_nouveau_goes_with_a_reboot_that_is_allowed_and_the_run_goes_on(gpu: Lab) -> None:
    """The host boots once, in the middle of the run, which ends with an engine that answers."""
    gpu.sh("g12", HEADERS)
    for _ in range(2):
        run = install(gpu, "g12")
        assert run.code == 1
        assert "takes over with a reboot (nouveau holds the cards)" in run.errors[0]
        assert "nvidia_driver_reboot=true" in run.errors[0]
    assert restarts("g12") == 1, "the fixture's alone: nobody allowed one"
    boot = gpu.sh("g12", "cat /proc/sys/kernel/random/boot_id")
    run = install(gpu, "g12", *REBOOT)
    assert run.code == 0
    assert restarts("g12") == 2
    assert gpu.sh("g12", "cat /proc/sys/kernel/random/boot_id") != boot
    seen = facts(gpu, "g12")
    assert (seen["nouveau"], seen["nvidia"]["driver_version"]) == (False, PARTLY)
    assert dsprov("status", "-i", gpu.inventory, "--limit", "g12").code == 0
    changes_nothing(gpu, "g12")
    assert restarts("g12") == 2


@pytest.mark.slow
def test_power_that_is_lost_in_the_middle_of_dpkg_is_made_good_by_the_next_run(gpu: Lab) -> None:
    """Unpacked and not configured; the receipt says whose it is, so nobody asks about half a driver."""
    gpu.sh("g13", HEADERS)
    # Once DKMS and its compilers are there, the next packages to be configured are the driver's.
    gpu.sh("g13", "apt-get -qq update && apt-get -qq -y --no-install-recommends install dkms >/dev/null 2>&1")
    gpu.sh("g13", STOP)
    with subprocess.Popen([str(DSPROV), *words(gpu, "install", "g13")]) as started:
        end = time.monotonic() + 900
        while "stopped" not in gpu.sh("g13", "ls /root") and started.poll() is None:
            assert time.monotonic() < end, "dpkg was not reached"
            time.sleep(0.5)
        assert started.poll() is None
        receipt = json.loads(gpu.sh("g13", "cat /var/lib/dsprov/nvidia/driver.json"))
        assert receipt["state"] == "installing"
        assert "unpacked" in packages(gpu, "g13").values()
        subprocess.run(["docker", "restart", "--time", "0", container("g13")], check=True)
        assert started.wait(timeout=900) in (1, 4)
    settle(gpu, "g13")
    gpu.sh("g13", "rm /etc/dpkg/dpkg.cfg.d/lab")
    run = install(gpu, "g13", *REBOOT)
    assert run.code == 0
    assert set(packages(gpu, "g13").values()) == {"installed"}
    assert gpu.sh("g13", "dpkg --audit; ls /etc/dkms | grep no-autoinstall || true") == ""
    assert json.loads(gpu.sh("g13", "cat /var/lib/dsprov/nvidia/driver.json"))["state"] == "installed"
    changes_nothing(gpu, "g13")
