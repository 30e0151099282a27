"""Hardware that a lab host does not have, imitated at its lowest interface: the PCI bus and NVIDIA's library.

`nvml.c` answers as libnvidia-ml.so.1; a tree of files lies over /sys/bus/pci/devices. Nothing above these two
knows that there is no card. The cards' nodes in /dev have nothing behind them: whoever may open one gets
ENXIO, whoever may not EPERM.
"""

from __future__ import annotations

import base64
import io
import re
import tarfile
from dataclasses import dataclass
from functools import cache as once
from pathlib import Path
from typing import Any

import yaml

from ..artifacts.common import Artifact, BuildError, Log, cached, need_tools, run, sha256_of
from ..engine import docker
from ..hosts import Host

HERE = Path(__file__).parent
LIBRARY = "libnvidia-ml.so.1"
SMI = "nvidia-smi"
DRIVER = "580.95.05"
# The newest CUDA that each driver branch serves. Source: NVIDIA's CUDA release notes, table of drivers.
CUDA = {470: (11, 4), 525: (12, 0), 535: (12, 2), 550: (12, 4), 570: (12, 8), 580: (13, 0)}
DRIVER_NOT_LOADED = 9
LIB_RM_VERSION_MISMATCH = 18
NVIDIA = "10de"
MAJOR = 195  # of the nodes in /dev, as the kernel's list of devices has it

# The mount is a unit, so that a host that boots again has its cards.
_SETUP = r"""
set -eu
systemctl stop lab-hardware.service 2>/dev/null || true
rm -rf /etc/dsprov-lab /usr/local/lib/libnvidia-ml.so.*
rm -f /dev/nvidia[0-9]* /dev/nvidiactl
dpkg --search /usr/bin/nvidia-smi >/dev/null 2>&1 || rm -f /usr/bin/nvidia-smi
printf '%s' '@FILES@' | base64 -d | tar -xz --no-same-owner -C /
ldconfig
cat > /etc/systemd/system/lab-hardware.service <<'EOF'
[Unit]
Description=Lab: an imitated PCI bus
DefaultDependencies=no
Before=sysinit.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/mount --bind /etc/dsprov-lab/pci /sys/bus/pci/devices
ExecStart=/bin/sh /etc/dsprov-lab/nodes
ExecStop=/bin/umount /sys/bus/pci/devices
[Install]
WantedBy=sysinit.target
EOF
systemctl daemon-reload
systemctl enable lab-hardware.service 2>/dev/null
systemctl start lab-hardware.service
"""


@dataclass(frozen=True)
class Machine:
    """Some cards of one kind; `card` is its row of machines.yml."""

    count: int
    card: dict[str, Any]

    def addresses(self) -> list[str]:
        """One card behind each root port, far enough apart for 16."""
        return [f"0000:{16 + 8 * index:02x}:00.0" for index in range(self.count)]


@once
def table() -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load((HERE / "machines.yml").read_text(encoding="utf-8"))
    return data


def parse(text: str) -> Machine:
    """ "8 x H20", or "none"."""
    if text == "none":
        return Machine(0, {})
    found = re.fullmatch(r"(\d{1,2})\s*x\s*(\S+)", text)
    known = {name.lower(): card for name, card in table()["cards"].items()}
    if not found or not 1 <= int(found[1]) <= 16 or found[2].lower() not in known:
        names = ", ".join(table()["cards"])
        raise BuildError(f"machine {text!r}: 'none', or 1 to 16 cards such as '8 x H20' (there are {names})")
    return Machine(int(found[1]), known[found[2].lower()])


def branch(version: str) -> int:
    """The branch of a driver's version, one whose CUDA is known."""
    found = re.fullmatch(r"(\d{3})(\.\d{1,3}){1,2}", version)
    if not found or int(found[1]) not in CUDA:
        known = ", ".join(map(str, CUDA))
        raise BuildError(f"driver {version!r}: 'none', or a version such as {DRIVER} of the branches {known}")
    return int(found[1])


def library(cache: Path, log: Log) -> Artifact:
    """The stub and nvidia-smi beside it, by this machine's compiler; they need a C library of 2007."""
    source, smi = HERE / "nvml.c", HERE / "smi.c"
    common = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-Wl,--build-id=none"]
    flags = [*common, "-fPIC", "-fvisibility=hidden", "-shared", f"-Wl,-soname,{LIBRARY}"]
    digest = sha256_of(source)

    def make(out: Path) -> Artifact:
        need_tools({"gcc": "build-essential"}, log)
        path = out / LIBRARY
        run(["gcc", *flags, "-o", path, source])
        run(["gcc", *common, "-o", out / SMI, smi, "-ldl"])
        return Artifact(path, sha256_of(path), path.stat().st_size, digest[:8])

    return cached(cache, "nvml", {"source": digest, "smi": sha256_of(smi), "flags": flags}, make, log)


def nvml_conf(machine: Machine, driver: str, loaded: str | None = None) -> str:
    """What the stub is told. `loaded` is the version in the kernel, where it is not the library's."""
    major, minor = CUDA[branch(driver)]
    rows: dict[str, Any] = {
        "driver_version": loaded or driver,
        "nvml_version": f"{major}.{driver}",
        "cuda_version": major * 1000 + minor * 10,
        "count": machine.count,
    }
    if loaded and loaded != driver:
        rows["init_error"] = LIB_RM_VERSION_MISMATCH
    elif not machine.count or branch(driver) < machine.card["driver_floor"]:
        # The module finds no card that it knows, and does not stay.
        rows["init_error"] = DRIVER_NOT_LOADED
    if machine.count:
        rows["device_id"] = f"0x{machine.card['device']}{NVIDIA}"
        keys = ("name", "memory_bytes", "compute_capability", "ecc", "nvlinks")
        rows.update({key: machine.card[key] for key in keys if key in machine.card})
    rows.update({f"bus.{index}": address for index, address in enumerate(machine.addresses())})
    return "".join(f"{key} = {value}\n" for key, value in rows.items())


def pci_tree(machine: Machine) -> dict[str, str]:
    """Files of /sys/bus/pci/devices by path: the cards, their switches, and one network card."""
    functions = {"0000:02:00.0": ("0x8086", "0x1521", "0x020000")}
    for address in machine.addresses():
        functions[address] = (f"0x{NVIDIA}", f"0x{machine.card['device']}", f"0x{machine.card['class']}00")
    if machine.count > 1:
        for index in range(machine.card.get("switches", 0)):
            device = table()["switches"][machine.card["compute_capability"]]
            functions[f"0000:{0xC0 + index:02x}:00.0"] = (f"0x{NVIDIA}", f"0x{device}", "0x068000")
    return {
        f"{address}/{name}": f"{value}\n"
        for address, values in functions.items()
        for name, value in zip(("vendor", "device", "class"), values, strict=True)
    }


def nodes(machine: Machine) -> str:
    """A script that makes the cards' nodes, and the trace of a kernel module that NVIDIA's units look for."""
    made = [(f"nvidia{index}", index) for index in range(machine.count)] + [("nvidiactl", 255)]
    text = "".join(
        f"[ -e /dev/{name} ] || mknod --mode=0666 /dev/{name} c {MAJOR} {minor}\n" for name, minor in made
    )
    return text + (
        'modules=/lib/modules/$(uname --kernel-release)\n[ -e "$modules/modules.dep" ] || '
        '{ mkdir -p "$modules"; echo "updates/dkms/nvidia.ko:" > "$modules/modules.dep"; }\n'
    )


def apply(
    host: Host, machine: Machine, driver: str | None, loaded: str | None, cache: Path, log: Log
) -> None:
    """Give a running host this machine's cards, with a driver's library or without."""
    files = {f"etc/dsprov-lab/pci/{path}": text.encode() for path, text in pci_tree(machine).items()}
    if driver:
        files["etc/dsprov-lab/nvml.conf"] = nvml_conf(machine, driver, loaded).encode()
        stub = library(cache, log).path
        # As a driver has it: ldconfig makes the name that programs load.
        files[f"usr/local/lib/{LIBRARY.removesuffix('1')}{driver}"] = stub.read_bytes()
        files[f"usr/bin/{SMI}"] = stub.with_name(SMI).read_bytes()
    files["etc/dsprov-lab/nodes"] = nodes(machine).encode() if driver else b""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for path, data in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(data)
            entry.mode = 0o755 if "/bin/" in path else 0o644
            archive.addfile(entry, io.BytesIO(data))
    script = _SETUP.replace("@FILES@", base64.b64encode(packed.getvalue()).decode())
    docker("exec", "-i", host.container, "sh", stdin=script)
