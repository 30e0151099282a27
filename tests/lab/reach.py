"""What of a host can be reached from another machine: this one."""

from __future__ import annotations

import socket
from typing import Any

PATIENCE = 3.0


def address_of(host: Any) -> str:
    """Where the inventory says that a host is; it has others, Docker's among them."""
    return str(host.ansible.get_variables()["ansible_host"])


def open_ports(host: Any) -> set[int]:
    """TCP ports of a host, as testinfra knows it, that take a connection from here.

    A listener alone says little: torch's binds to every address, and systemd keeps callers away from it.
    """
    address = address_of(host)
    rows = (line.split()[3].rpartition(":") for line in host.check_output("ss -Hltn").splitlines())
    beyond = {int(port) for where, _, port in rows if not where.startswith(("127.", "[::1]"))}
    return {port for port in beyond if _takes(address, port)}


def _takes(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), PATIENCE).close()
    except OSError:
        return False
    return True
