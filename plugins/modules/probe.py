#!/usr/bin/python
# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Reads what a host is, in one round trip, and changes nothing."""

from __future__ import annotations

DOCUMENTATION = r"""
module: probe
short_description: Read a host's hardware and system as dsprov facts
version_added: 0.1.0
description:
  - Returns one host's row of a facts document (schema 1), in one round trip.
  - Reads only; works on a minimal install with Python alone.
  - What root alone may see (the process behind a port, a container's name) is left out for other users.
options:
  data_path:
    description: Folder that will hold models and software; the disk it lies on is always among the disks.
    type: path
    default: /var/lib/dsprov
  endpoints:
    description:
      - Kind of place to address to the URL that proves it; each is asked once, and the times are returned as
        C(places).
      - The filter P(dsprov.appliance.endpoints#filter) makes it from the catalogue.
    type: dict
    default: {}
  controller_time:
    description: Seconds since the epoch on the controller, to compare the clock with. 0 leaves it out.
    type: float
    default: 0
author:
  - The dsprov authors (@dsprov)
attributes:
  check_mode:
    description: Reads only, so check mode makes no difference.
    support: full
"""

EXAMPLES = r"""
- name: Read the host
  dsprov.appliance.probe:
  register: probed
"""

RETURN = r"""
facts:
  description: One host's row of a facts document, schema 1.
  returned: always
  type: dict
  sample: {"os": {"id": "debian", "version_id": "12", "arch": "x86_64"}, "memory_bytes": 25280675840}
ansible_facts:
  description: The few facts of ansible.builtin.setup that roles use, so that nobody gathers them again.
  returned: always
  type: dict
  sample: {"distribution": "Debian", "distribution_release": "bookworm"}
"""

import concurrent.futures
import contextlib
import glob
import http.client
import json
import os
import platform
import socket
import time
import urllib.request
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.dsprov.appliance.plugins.module_utils import devices, nvml
from ansible_collections.dsprov.appliance.plugins.module_utils.host import read, run
from ansible_collections.dsprov.appliance.plugins.module_utils.nvidia_driver import RECEIPT, key_enrolled

MAKERS = {"nvidia": "NVIDIA", "amd": "AMD", "huawei": "Huawei", "hygon": "Hygon"}
# The flags that engines choose their code by.
CPU_FLAGS = {
    "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16",
    "avx512vbmi", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
}  # fmt: skip
# File systems that hold files of people; the rest is the kernel's or a container's own.
REAL_FILESYSTEMS = {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "nfs", "nfs4", "bcachefs"}
TCP_LISTEN = "0A"
# How long one place has to give its proof, and how much of it is enough to know how fast it is.
ASK_SECONDS = 6
ASK_BYTES = 256 * 1024
# Units and containers of ours, as named in docs/architecture.
OUR_UNITS = ("dsprov-", "ollama.service")
STATE = "/etc/dsprov/state.json"
UNIT_ROOTS = ("/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
MODELS = "/var/lib/dsprov/models"
DROP_IN = "/etc/systemd/system/ollama.service.d/dsprov.conf"


def operating_system() -> dict[str, Any]:
    release = dict(line.split("=", 1) for line in read("/etc/os-release").splitlines() if "=" in line)
    value = {key: text.strip().strip('"') for key, text in release.items()}
    return {
        "id": value.get("ID", "unknown"),
        "version_id": value.get("VERSION_ID", "unknown"),
        "codename": value.get("VERSION_CODENAME", ""),
        "arch": platform.machine(),
        "kernel": platform.release(),
    }


def cpu() -> dict[str, Any]:
    """Sockets, physical cores, threads and NUMA nodes from sysfs; vendor, model and flags from cpuinfo."""
    info: dict[str, str] = {}
    for line in read("/proc/cpuinfo").splitlines():
        key, _colon, value = line.partition(":")
        if not key.strip():
            if info:
                break
            continue
        info.setdefault(key.strip(), value.strip())
    sockets, cores = set(), set()
    for topology in glob.glob("/sys/devices/system/cpu/cpu[0-9]*/topology"):
        package = read(f"{topology}/physical_package_id").strip()
        sockets.add(package)
        cores.add((package, read(f"{topology}/core_id").strip()))
    threads = os.cpu_count() or 1
    vendors = {"GenuineIntel": "intel", "AuthenticAMD": "amd", "HygonGenuine": "hygon"}
    vendor = info.get("vendor_id", "unknown")
    return {
        "vendor": vendors.get(vendor, vendor),
        "model": info.get("model name", "unknown"),
        "sockets": max(1, len(sockets)),
        "cores": min(threads, len(cores)) or threads,
        "threads": threads,
        "numa_nodes": max(1, len(glob.glob("/sys/devices/system/node/node[0-9]*"))),
        "flags": sorted(CPU_FLAGS & set(info.get("flags", "").split())),
    }


def memory_bytes() -> int:
    for line in read("/proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 1


def disks(data_path: str) -> list[dict[str, Any]]:
    """File systems of people, and always the one under `data_path`."""
    mounts: dict[str, str] = {}
    for line in read("/proc/mounts").splitlines():
        _device, mount, kind = line.split()[:3]
        mount = mount.encode().decode("unicode_escape")
        if kind in REAL_FILESYSTEMS and os.path.isdir(mount):
            mounts[mount] = kind
    below = os.path.realpath(data_path)
    while not os.path.ismount(below) and below != "/":
        below = os.path.dirname(below)
    mounts.setdefault(below, "unknown")
    rows: list[dict[str, Any]] = []
    seen: set[int] = set()
    # One row a device: bind mounts show the same one again. The folder's own mount comes first.
    for mount in sorted(mounts, key=lambda path: (path != below, path != "/", path)):
        try:
            device, stat = os.stat(mount).st_dev, os.statvfs(mount)
        except OSError:
            continue
        if device in seen and mount != "/":
            continue
        seen.add(device)
        rows.append(
            {
                "mount": mount,
                "free_bytes": stat.f_bavail * stat.f_frsize,
                "total_bytes": stat.f_blocks * stat.f_frsize,
                "filesystem": mounts[mount],
            }
        )
    return rows


def gpus(functions: list[devices.Function], reading: nvml.Reading) -> list[dict[str, Any]]:
    """One row a card: as the driver knows it, and from PCI what no driver answers for."""
    rows: list[dict[str, Any]] = []
    driven = set()
    for card in reading.devices:
        driven.add(card.address)
        row = {
            "vendor": "nvidia",
            "name": card.name,
            "pci_id": card.pci_id,
            "memory_bytes": card.memory_bytes,
            "compute_capability": card.compute_capability,
            "nvlinks": card.nvlinks,
        }
        rows.append({key: value for key, value in row.items() if value is not None})
        rows[-1]["driver_version"] = reading.driver_version
    for function, vendor in devices.cards(functions):
        if function.address not in driven:
            rows.append(
                {
                    "vendor": vendor,
                    "name": f"{MAKERS[vendor]} device 0x{function.device}",
                    "pci_id": f"{function.vendor}:{function.device}",
                    "driver_version": None,
                }
            )
    return rows


def nvidia(reading: nvml.Reading) -> dict[str, Any]:
    """The driver as a whole: what is loaded, why it does not answer where it does not, whose it is."""
    managed = os.path.exists(RECEIPT)
    return {
        # The kernel knows the module's version even where the library beside it is another one's.
        "driver_version": reading.driver_version or read("/sys/module/nvidia/version").strip() or None,
        "library_version": reading.library_version,
        "cuda_version": reading.cuda_version,
        "nvml_error": reading.error,
        "managed": managed,
        "key_enrolled": secure_boot() is True and key_enrolled(),
    }


def docker_version() -> str | None:
    """Version of the installed Docker engine, from its binary: the daemon may be stopped."""
    words = run("dockerd", "--version").replace(",", " ").split()
    return words[2] if len(words) > 2 else None


def secure_boot() -> bool | None:
    """Whether the firmware enforces signatures; None where there is no EFI."""
    for path in glob.glob("/sys/firmware/efi/efivars/SecureBoot-*"):
        try:
            with open(path, "rb") as file:
                return file.read()[-1:] == b"\x01"
        except OSError:
            return None
    return None


def listeners() -> list[dict[str, Any]]:
    """TCP ports that somebody listens on, with the process behind each where we may see it."""
    sockets: dict[str, tuple[int, str]] = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in read(table).splitlines()[1:]:
            cells = line.split()
            if cells[3] == TCP_LISTEN:
                address, port = cells[1].split(":")
                sockets[cells[9]] = (int(port, 16), _address(address))
    owners: dict[str, int] = {}
    for link in glob.iglob("/proc/[0-9]*/fd/*"):
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target.startswith("socket:[") and target[8:-1] in sockets:
            owners.setdefault(target[8:-1], int(link.split("/")[2]))
    rows: dict[tuple[int, str], dict[str, Any]] = {}
    for inode, (port, address) in sockets.items():
        pid = owners.get(inode)
        rows[port, address] = {
            "port": port,
            "address": address,
            "process": read(f"/proc/{pid}/comm").strip() if pid else "?",
            "pid": pid,
            "owner": "dsprov" if pid and is_ours(pid) else None,
        }
    return [rows[key] for key in sorted(rows)]


def _address(hexadecimal: str) -> str:
    raw = bytes.fromhex(hexadecimal)
    # The kernel prints each 32-bit word in the machine's byte order.
    words = b"".join(raw[i : i + 4][::-1] for i in range(0, len(raw), 4))
    return socket.inet_ntop(socket.AF_INET if len(words) == 4 else socket.AF_INET6, words)


def is_ours(pid: int) -> bool:
    """Whether a process runs in a unit or a container that dsprov made."""
    groups = read(f"/proc/{pid}/cgroup")
    unit = next(
        (part for line in groups.splitlines() for part in line.split("/") if part.endswith(".service")), ""
    )
    if unit == "ollama.service":
        return os.path.exists(DROP_IN)
    if unit.startswith(OUR_UNITS):
        return True
    for word in groups.replace("/", " ").replace("-", " ").replace(".scope", "").split():
        if len(word) == 64:
            config = read(f"/var/lib/docker/containers/{word}/config.v2.json")
            if config:
                return str(json.loads(config).get("Name", "")).startswith("/dsprov-")
    return False


def stands(row: dict[str, Any]) -> bool:
    """Whether an engine of the record is still there: who removed it did not write that down."""
    service = row.get("service")
    unit = service.get("unit") if isinstance(service, dict) else None
    return not isinstance(unit, str) or any(os.path.exists(f"{root}/{unit}") for root in UNIT_ROOTS)


def recorded() -> dict[str, Any]:
    """What earlier runs left here: bytes on the disk, engines that serve, the last one's model and group."""
    try:
        record = json.loads(read(STATE) or "{}")
        finished, model = int(record.get("disk_bytes", 0)), record.get("model")
        # Earlier releases wrote down the engine's name alone.
        engines = record.get("engines") or ({str(record["engine"]): {}} if "engine" in record else {})
        engines = {name: row for name, row in engines.items() if isinstance(row, dict) and stands(row)}
        group = [str(name) for name in record.get("group") or []]
    except (ValueError, TypeError, AttributeError):
        finished, model, engines, group = 0, None, {}, []
    weights = 0
    for folder, _folders, names in os.walk(MODELS):
        for name in names:
            # A part has its full size from the beginning: what it takes on the disk is what has come.
            with contextlib.suppress(OSError):
                weights += os.lstat(os.path.join(folder, name)).st_blocks * 512
    found: dict[str, Any] = {"delivered_bytes": max(finished, weights)}
    if engines:
        found["installed_engines"] = engines
    if isinstance(model, str):
        found["installed_model"] = model
    return {**found, "installed_group": group} if group else found


def answer_times(endpoints: dict[str, dict[str, str]]) -> dict[str, dict[str, float | None]]:
    """Milliseconds until the first bytes of each proof are here, or None; same keys as `endpoints`.

    A registry that asks for a login (401) works; any other refusal is none. All are asked at once, so the
    slowest decides how long it takes: at most about ASK_SECONDS.
    """

    def ask(url: str) -> float | None:
        start = time.monotonic()
        try:
            request = urllib.request.Request(url, headers={"User-Agent": "dsprov"})
            with urllib.request.urlopen(request, timeout=ASK_SECONDS) as answer:
                had = 0
                while had < ASK_BYTES and (block := answer.read1(ASK_BYTES - had)):
                    had += len(block)
                    if time.monotonic() - start > ASK_SECONDS:
                        return None
        except urllib.error.HTTPError as error:
            error.close()
            if error.code != 401:
                return None
        except (OSError, ValueError, http.client.HTTPException):
            return None
        return round((time.monotonic() - start) * 1000, 1)

    rows = [(kind, address, url) for kind, urls in endpoints.items() for address, url in urls.items()]
    found: dict[str, dict[str, float | None]] = {kind: {} for kind in endpoints}
    with concurrent.futures.ThreadPoolExecutor(max_workers=max(1, len(rows))) as pool:
        for (kind, address, _), took in zip(rows, pool.map(ask, (row[2] for row in rows)), strict=True):
            found[kind][address] = took
    return found


def probe(data_path: str, endpoints: dict[str, dict[str, str]], controller_time: float) -> dict[str, Any]:
    """One host's row of a facts document, schema 1."""
    # First, while there is one thread: it asks in a child.
    reading = nvml.read_apart()
    functions = devices.pci()
    facts: dict[str, Any] = {
        "os": operating_system(),
        "cpu": cpu(),
        "memory_bytes": memory_bytes(),
        "disks": disks(data_path),
        "gpus": gpus(functions, reading),
        "nvidia": nvidia(reading),
        "nvswitch": devices.nvswitch(functions),
        "nics": devices.nics(),
        "docker": {"version": docker_version()},
        "python": platform.python_version(),
        "secure_boot": secure_boot(),
        "nouveau": os.path.isdir("/sys/module/nouveau"),
        "listeners": listeners(),
        **recorded(),
    }
    if controller_time:
        facts["clock_skew_seconds"] = round(time.time() - controller_time, 1)
    if endpoints:
        facts["places"] = answer_times(endpoints)
    return facts


def setup_facts(system: dict[str, Any]) -> dict[str, Any]:
    """What ansible.builtin.setup would call the same things."""
    return {
        "architecture": system["arch"],
        "distribution": system["id"].capitalize(),
        "distribution_major_version": system["version_id"].split(".")[0],
        "distribution_release": system["codename"],
        "distribution_version": system["version_id"],
        "kernel": system["kernel"],
        "os_family": "Debian",
        "pkg_mgr": "apt",
        "service_mgr": "systemd" if os.path.isdir("/run/systemd/system") else "other",
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "data_path": {"type": "path", "default": "/var/lib/dsprov"},
            "endpoints": {"type": "dict", "default": {}},
            "controller_time": {"type": "float", "default": 0},
        },
        supports_check_mode=True,
    )
    parameters = module.params
    facts = probe(parameters["data_path"], parameters["endpoints"], parameters["controller_time"])
    module.exit_json(changed=False, facts=facts, ansible_facts=setup_facts(facts["os"]))


if __name__ == "__main__":
    main()
