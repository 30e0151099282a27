# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Keeps vLLM on several hosts one group: where a peer was lost, the service of this host starts anew.

vLLM itself does not notice when another host of the group is gone: it waits for it for good. Each host runs
this beside its service. It looks at what the kernel knows, and sends nothing but pings: whether the service
still has a connection to each peer that it once had one to, and whether the peer's host answers. When not, it
kills the service, which systemd starts again, and which then waits for its peers as at boot. A peer that was
started anew may be quick to connect again, to a service that knows nothing of it: so connections that stood
for a while are missed even where there are new ones.

Usage: vllm_watch.py UNIT USER PEER...
"""

from __future__ import annotations

import os
import pwd
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

PERIOD = 5.0
# Rounds without a connection, and without an answer, after which a peer counts as lost.
ROUNDS_UNCONNECTED = 3
ROUNDS_SILENT = 6
# Rounds after which a connection counts as one of the group's own.
ROUNDS_STANDING = 6
ESTABLISHED = "01"


class Link(NamedTuple):
    """One connection: the peer's address, and the ports here and there."""

    address: str
    here: int
    there: int


@dataclass
class Peer:
    """What was seen of one peer since the service was started."""

    joined: bool = False
    unconnected: int = 0
    ages: dict[Link, int] = field(default_factory=dict)
    standing: set[Link] = field(default_factory=set)
    answered: bool = False
    silent: int = 0


@dataclass
class Watch:
    """Decides from round to round whether the group has fallen apart.

    Attributes:
        peers: addresses of the other hosts that this one holds connections to.
    """

    peers: Sequence[str]
    invocation: str = ""
    seen: dict[str, Peer] = field(default_factory=dict)

    def round(self, invocation: str, links: Iterable[Link], answering: Callable[[str], bool | None]) -> str:
        """One look.

        Args:
            invocation: names this start of the service; empty while it does not run.
            links: the connections that the service has.
            answering: whether a host answers; None where that cannot be told.

        Returns:
            Why the service has to start anew, or nothing.
        """
        if invocation != self.invocation:
            self.invocation, self.seen = invocation, {peer: Peer() for peer in self.peers}
        if not invocation:
            return ""
        now = set(links)
        for address, peer in self.seen.items():
            peer.ages = {link: peer.ages.get(link, 0) + 1 for link in now if link.address == address}
            peer.joined |= bool(peer.ages)
            if not peer.joined:
                continue
            peer.standing |= {link for link, age in peer.ages.items() if age >= ROUNDS_STANDING}
            whole = peer.standing & now if peer.standing else peer.ages
            peer.unconnected = 0 if whole else peer.unconnected + 1
            if peer.unconnected >= ROUNDS_UNCONNECTED:
                return f"{address} closed its connections"
            answer = answering(address)
            peer.answered |= answer is True
            peer.silent = peer.silent + 1 if answer is False and peer.answered else 0
            if peer.silent >= ROUNDS_SILENT:
                return f"{address} does not answer any more"
        return ""


def remote(word: str) -> str:
    """An address of /proc/net/tcp or tcp6, 32-bit words in the machine's order, for people."""
    raw = b"".join(struct.pack("=I", int(word[at : at + 8], 16)) for at in range(0, len(word), 8))
    if len(raw) == 4:
        return socket.inet_ntop(socket.AF_INET, raw)
    mapped = raw[:12] == b"\0" * 10 + b"\xff\xff"
    return socket.inet_ntop(socket.AF_INET, raw[12:]) if mapped else socket.inet_ntop(socket.AF_INET6, raw)


def connections(user: int, lines: Iterable[str]) -> set[Link]:
    """What a user's processes have open connections to, from lines of /proc/net/tcp."""
    found = set()
    for line in lines:
        cells = line.split()
        if len(cells) > 7 and cells[3] == ESTABLISHED and cells[7] == str(user):
            address, _, port = cells[2].rpartition(":")
            found.add(Link(remote(address), int(cells[1].rpartition(":")[2], 16), int(port, 16)))
    return found


def table() -> list[str]:
    """The kernel's connections."""
    lines: list[str] = []
    for path in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines += Path(path).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue  # A kernel without IPv6.
    return lines


def checksum(data: bytes) -> int:
    """The internet's checksum."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ping(address: str, timeout: float = 1.0) -> bool | None:
    """Whether a host answers an echo request; None for what cannot be asked so."""
    if ":" in address:
        return None
    mark = struct.pack("!HH", os.getpid() & 0xFFFF, int(time.monotonic()) & 0xFFFF)
    packet = struct.pack("!BBH", 8, 0, 0) + mark
    packet = struct.pack("!BBH", 8, 0, checksum(packet)) + mark
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as link:
            until = time.monotonic() + timeout
            link.sendto(packet, (address, 0))
            while (left := until - time.monotonic()) > 0:
                link.settimeout(left)
                data, sender = link.recvfrom(1024)
                inner = data[(data[0] & 0x0F) * 4 :]
                if sender[0] == address and inner[:1] == b"\0" and inner[4:8] == mark:
                    return True
    except OSError:
        return False
    return False


def invocation_of(unit: str) -> str:
    """systemd's name for this start of a service; empty while it does not run."""
    done = subprocess.run(
        ["systemctl", "show", unit, "--property=ActiveState,InvocationID"],
        capture_output=True,
        text=True,
        check=False,
    )
    row = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    return row.get("InvocationID", "") if row.get("ActiveState") == "active" else ""


def main(unit: str, user: str, peers: Sequence[str]) -> None:
    """Watch until the end of days."""
    watch = Watch(peers)
    number = pwd.getpwnam(user).pw_uid
    while True:
        reason = watch.round(invocation_of(unit), connections(number, table()), ping)
        if reason:
            print(f"{unit} starts anew: {reason}", flush=True)
            # Not stopped in good order: it hangs in a call to the peer that is gone. And not by SIGKILL,
            # which is how the kernel ends what takes too much memory: its log is to tell the two apart.
            subprocess.run(["systemctl", "kill", "--signal=ALRM", unit], check=False)
        time.sleep(PERIOD)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
