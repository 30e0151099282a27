# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""What hangs on a host's PCI bus and network, read from sysfs: needs no driver and no tool."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import re
import socket
import struct
from dataclasses import dataclass
from typing import Any

SYS = "/sys"
PROC = "/proc"
NVIDIA = "10de"
# Source: Linux include/linux/pci_ids.h. Graphics of other makers count as accelerators only in classes that
# no office machine's graphics has.
_DISPLAY = ("0300", "0302")
_ACCELERATORS = ("0302", "0380", "0b40", "1200")
_BRIDGE = "0680"
_MAKERS = {"1002": "amd", "19e5": "huawei", "1d94": "hygon"}
_ADDRESS = re.compile(r"([0-9a-f]{4,8}):([0-9a-f]{2}):([0-9a-f]{2})\.[0-7]")
# What may stand in a command of ours; the kernel lets nearly anything be a name.
_NAME = re.compile(r"[A-Za-z0-9_.:@-]{1,32}")
# ARPHRD_ETHER and ARPHRD_INFINIBAND of Linux include/uapi/linux/if_arp.h.
_LINKS = ("1", "32")
_SIOCGIFADDR = 0x8915
_SIOCGIFNETMASK = 0x891B


@dataclass(frozen=True)
class Function:
    """One function on the PCI bus; numbers as four hexadecimal digits, `kind` is class and subclass."""

    address: tuple[int, int, int]
    vendor: str
    device: str
    kind: str


def _read(*path: str) -> str:
    try:
        with open(os.path.join(*path), encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def _list(*path: str) -> list[str]:
    try:
        return sorted(os.listdir(os.path.join(*path)))
    except OSError:
        return []


def pci(root: str = SYS) -> list[Function]:
    """The functions on the PCI bus, in the order of their addresses."""
    folder = f"{root}/bus/pci/devices"
    rows = []
    for name in _list(folder):
        found = _ADDRESS.fullmatch(name)
        if found:
            vendor, device, kind = (_read(folder, name, file)[2:] for file in ("vendor", "device", "class"))
            domain, bus, slot = (int(digits, 16) for digits in found.groups())
            rows.append(Function((domain, bus, slot), vendor, device, kind[:4]))
    return rows


def cards(functions: list[Function]) -> list[tuple[Function, str]]:
    """Accelerators with their makers' names."""
    rows = []
    for one in functions:
        if one.vendor == NVIDIA and one.kind in _DISPLAY:
            rows.append((one, "nvidia"))
        elif one.vendor in _MAKERS and one.kind in _ACCELERATORS:
            rows.append((one, _MAKERS[one.vendor]))
    return rows


def nvswitch(functions: list[Function]) -> bool:
    """Whether NVIDIA's switches join the cards; they show as bridges."""
    return any(one.vendor == NVIDIA and one.kind == _BRIDGE for one in functions)


def nics(root: str = SYS, proc: str = PROC) -> list[dict[str, Any]]:
    """Network cards, bonds, and what the default route uses.

    Each as name, address and its network, speed_mbps where known, rdma: whether RDMA works over it, and
    where it has RDMA that does not, rdma_fault: why.
    """
    folder = f"{root}/class/net"
    routed = _default_routes(proc)
    remote = {
        os.path.realpath(f"{root}/class/infiniband/{name}/device"): _rdma_fault(root, name)
        for name in _list(root, "class", "infiniband")
    }
    rows: list[dict[str, Any]] = []
    for name in _list(folder):
        own = f"{folder}/{name}"
        slaves = _read(own, "bonding", "slaves").split()
        if not _NAME.fullmatch(name) or _read(own, "type") not in _LINKS:
            continue
        if not (os.path.exists(f"{own}/device") or os.path.isdir(f"{own}/bonding") or name in routed):
            continue
        row: dict[str, Any] = {"name": name}
        own_address = _ipv4(name) or _ipv6(name, proc)
        if own_address:
            row |= {"address": str(own_address.ip), "network": str(own_address.network)}
        speed = _read(own, "speed")
        # -1, its unsigned twin, or an error, where the link is down or has no speed of its own.
        if speed.isdigit() and int(speed) < 1 << 29:
            row["speed_mbps"] = int(speed)
        behind = [
            os.path.realpath(f"{folder}/{member}/device")
            for member in (name, *slaves)
            if os.path.exists(f"{folder}/{member}/device")
        ]
        faults = [remote[device] for device in behind if device in remote]
        row["rdma"] = "" in faults
        if any(faults):
            row["rdma_fault"] = "; ".join(filter(None, faults))
        rows.append(row)
    return rows


def _rdma_fault(root: str, name: str) -> str:
    """Why programs cannot use an RDMA device; empty where they can. Paths: Linux Documentation/ABI."""
    states = {
        port: _read(root, "class", "infiniband", name, "ports", port, "state").rpartition(":")[2].strip()
        for port in _list(root, "class", "infiniband", name, "ports")
    }
    down = [
        f"{name} port {port} is {state or 'unknown'}" for port, state in states.items() if state != "ACTIVE"
    ]
    if len(down) == len(states):
        return ", ".join(down) or f"{name} has no ports"
    verbs = _list(root, "class", "infiniband_verbs")
    if name not in {_read(root, "class", "infiniband_verbs", one, "ibdev") for one in verbs}:
        return f"{name} is closed to programs: module ib_uverbs is not loaded"
    return ""


def _default_routes(proc: str) -> set[str]:
    """Links that a default route leaves by."""
    rows = [line.split() for line in _read(proc, "net/route").splitlines()[1:]]
    found = {row[0] for row in rows if len(row) > 7 and row[1] == row[7] == "00000000"}
    rows = [line.split() for line in _read(proc, "net/ipv6_route").splitlines()]
    # The kernel's own entry for what nobody routes is a default route over lo.
    return found | {row[9] for row in rows if len(row) > 9 and row[:2] == ["0" * 32, "00"] and row[9] != "lo"}


def _ipv4(name: str) -> ipaddress.IPv4Interface | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        asked = struct.pack("256s", name.encode()[:15])
        try:
            address, mask = (
                socket.inet_ntoa(fcntl.ioctl(link, what, asked)[20:24])
                for what in (_SIOCGIFADDR, _SIOCGIFNETMASK)
            )
        except OSError:
            return None
    return ipaddress.IPv4Interface(f"{address}/{mask}")


def _ipv6(name: str, proc: str) -> ipaddress.IPv6Interface | None:
    """The first global address of a link."""
    for line in _read(proc, "net/if_inet6").splitlines():
        digits, _index, prefix, scope, _flags, link = line.split()
        if link == name and scope == "00":
            return ipaddress.IPv6Interface((bytes.fromhex(digits), int(prefix, 16)))
    return None
