# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""What hangs on a host's PCI bus and network, read from sysfs: needs no driver and no tool."""

from __future__ import annotations

import fcntl
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

    Each as name, address, speed_mbps where known, and rdma: whether RDMA works over it.
    """
    folder = f"{root}/class/net"
    routed = _default_routes(proc)
    remote = {
        os.path.realpath(f"{root}/class/infiniband/{name}/device")
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
        address = _ipv4(name) or _ipv6(name, proc)
        if address:
            row["address"] = address
        speed = _read(own, "speed")
        # -1, its unsigned twin, or an error, where the link is down or has no speed of its own.
        if speed.isdigit() and int(speed) < 1 << 29:
            row["speed_mbps"] = int(speed)
        row["rdma"] = any(
            os.path.realpath(f"{folder}/{member}/device") in remote
            for member in (name, *slaves)
            if os.path.exists(f"{folder}/{member}/device")
        )
        rows.append(row)
    return rows


def _default_routes(proc: str) -> set[str]:
    """Links that a default route leaves by."""
    rows = [line.split() for line in _read(proc, "net/route").splitlines()[1:]]
    found = {row[0] for row in rows if len(row) > 7 and row[1] == row[7] == "00000000"}
    rows = [line.split() for line in _read(proc, "net/ipv6_route").splitlines()]
    # The kernel's own entry for what nobody routes is a default route over lo.
    return found | {row[9] for row in rows if len(row) > 9 and row[:2] == ["0" * 32, "00"] and row[9] != "lo"}


def _ipv4(name: str) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        try:
            answer = fcntl.ioctl(link, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])


def _ipv6(name: str, proc: str) -> str | None:
    """The first global address of a link."""
    for line in _read(proc, "net/if_inet6").splitlines():
        digits, _index, _prefix, scope, _flags, link = line.split()
        if link == name and scope == "00":
            return socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))
    return None
