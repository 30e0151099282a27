#!/usr/bin/python
# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Ansible module: whether hosts of a group reach each other, and how fast."""

from __future__ import annotations

DOCUMENTATION = r"""
module: peer_link
short_description: Measure the network between the hosts of a group
version_added: 0.1.0
description:
  - Entered twice on all hosts of a group. First with O(listen), which leaves a listener behind that ends by
    itself; then without, which sends zeros to each of O(peers) for a moment and says what got through.
  - The listener takes connections on one address only, and only from who knows O(token).
options:
  address:
    description: This host's own address in the group.
    type: str
    required: true
  port:
    description: The port to listen on and to send to.
    type: int
    required: true
  token:
    description: A word of this run that all hosts were given.
    type: str
    required: true
  listen:
    description: Listen, and return at once.
    type: bool
    default: false
  linger:
    description: Seconds after which the listener ends, also where not every peer has called.
    type: int
    default: 120
  peers:
    description: Addresses of the other hosts, each of which calls the listener once.
    type: list
    elements: str
    default: []
  seconds:
    description: How long to send to each.
    type: float
    default: 1.0
  patience:
    description: Seconds to try to reach a peer, which may still be busy starting its listener.
    type: float
    default: 30.0
  minimum_mbps:
    description: Rate, in megabits a second, below which the link is refused; V(0) refuses none.
    type: int
    default: 0
attributes:
  check_mode:
    description: Measures as otherwise; nothing on the host is changed.
    support: full
author:
  - The dsprov authors
"""

EXAMPLES = r"""
- name: Listen for the others
  dsprov.appliance.peer_link:
    address: 10.0.0.1
    port: 29500
    token: "{{ word }}"
    peers: [10.0.0.2]
    listen: true

- name: Measure the network between the hosts
  dsprov.appliance.peer_link: {address: 10.0.0.1, port: 29500, token: "{{ word }}", peers: [10.0.0.2]}
"""

RETURN = r"""
links:
  description: C(mbps) that got through to each peer.
  returned: success
  type: list
  elements: dict
"""

import contextlib
import hmac
import os
import signal
import socket
import struct
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.dsprov.appliance.plugins.module_utils import units

BLOCK = 1 << 20
COUNT = struct.Struct("!Q")
# What a listener calls itself, so that the next run knows one that an earlier run left.
LISTENER = "dsprov-link"


class LinkError(Exception):
    """Says which way is closed or slow, and what to do."""


def serve(listener: socket.socket, token: str, linger: float, callers: int) -> None:
    """Swallow what so many callers send, and answer how much it was, until the time is up."""
    until = time.monotonic() + linger
    while callers and (left := until - time.monotonic()) > 0:
        try:
            listener.settimeout(left)
            link, _peer = listener.accept()
        except OSError:
            return
        with link, contextlib.suppress(OSError):
            link.settimeout(10)
            said = _exactly(link, len(token))
            if not hmac.compare_digest(said, token.encode()):
                continue
            total = 0
            while data := link.recv(BLOCK):
                total += len(data)
            link.sendall(COUNT.pack(total))
            callers -= 1


def _exactly(link: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := link.recv(size - len(data))):
        data += more
    return data


def leave_behind(listener: socket.socket, token: str, linger: float, callers: int) -> None:
    """Serve in a process of its own, which holds on to nothing of ours; back when it is known by its name."""
    named, name_it = os.pipe()
    if child := os.fork():
        os.close(name_it)
        os.waitpid(child, 0)
        os.read(named, 1)  # Its end: the next run would take a listener without the name for a stranger's.
        os.close(named)
        listener.close()
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(LISTENER, encoding="ascii")
    null = os.open(os.devnull, os.O_RDWR)
    for handle in (0, 1, 2):
        os.dup2(null, handle)
    os.close(named)
    os.close(name_it)
    try:
        serve(listener, token, linger, callers)
    finally:
        os._exit(0)


def measure(address: str, own: str, port: int, token: str, seconds: float, patience: float) -> float:
    """Megabits a second from `own` to `address`.

    Raises:
        LinkError: nobody answers there in time, or who does is not of the group.
    """
    until = time.monotonic() + patience
    while True:
        try:
            link = socket.create_connection((address, port), timeout=5, source_address=(own, 0))
            break
        except OSError as error:
            if time.monotonic() >= until:
                raise LinkError(
                    f"{own} does not reach {address} port {port} ({error.strerror or error}); let the hosts "
                    "of the group reach each other on all TCP ports: see firewalls, cables and routes"
                ) from None
            time.sleep(0.5)
    with link:
        link.settimeout(20)
        zeros = bytes(BLOCK)
        begun = time.monotonic()
        try:
            link.sendall(token.encode())
            while time.monotonic() - begun < seconds:
                link.sendall(zeros)
            link.shutdown(socket.SHUT_WR)
            said = _exactly(link, COUNT.size)
        except OSError as error:
            raise LinkError(f"the link from {own} to {address} broke ({error.strerror or error})") from None
        took = time.monotonic() - begun
    if len(said) != COUNT.size:
        raise LinkError(
            f"{address} port {port} is held by another program; stop it and run the install again"
        )
    total: int = COUNT.unpack(said)[0]
    return round(total * 8 / took / 1e6, 1)


def bind(listener: socket.socket, address: str, port: int, patience: float = 5.0) -> None:
    """Take the port, from a listener of ours too: one of a run that failed, or of a call that ssh made twice.

    Raises:
        LinkError: somebody else has it.
    """
    until = time.monotonic() + patience
    while True:
        try:
            return listener.bind((address, port))
        except OSError as error:
            pid, program = units.listener(port)
            if program != LISTENER or time.monotonic() >= until:
                who = f"{program} (process {pid}) has it; stop it" if pid else error.strerror or error
                raise LinkError(f"cannot listen on {address} port {port}: {who}") from None
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            time.sleep(0.1)


def run(params: dict[str, Any]) -> dict[str, Any]:
    """What the module does."""
    own, port, token = params["address"], params["port"], params["token"]
    if params["listen"]:
        family = socket.AF_INET6 if ":" in own else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bind(listener, own, port)
        listener.listen(16)
        leave_behind(listener, token, params["linger"], len(params["peers"]))
        return {"links": []}
    rows = []
    for peer in params["peers"]:
        rate = measure(peer, own, port, token, params["seconds"], params["patience"])
        if rate < params["minimum_mbps"]:
            raise LinkError(
                f"{rate:.0f} Mbit/s get through from {own} to {peer}, and {params['minimum_mbps']} are "
                "wanted; see to the link between them, or lower vllm_link_minimum_mbps"
            )
        rows.append({"peer": peer, "mbps": rate})
    return {"links": rows}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "address": {"type": "str", "required": True},
            "port": {"type": "int", "required": True},
            "token": {"type": "str", "required": True, "no_log": True},
            "listen": {"type": "bool", "default": False},
            "linger": {"type": "int", "default": 120},
            "peers": {"type": "list", "elements": "str", "default": []},
            "seconds": {"type": "float", "default": 1.0},
            "patience": {"type": "float", "default": 30.0},
            "minimum_mbps": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(changed=False, **run(module.params))
    except LinkError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
