#!/usr/bin/python
# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Looks whether what dsprov installed is healthy, in one round trip."""

from __future__ import annotations

DOCUMENTATION = r"""
module: status
short_description: Look at the services that an install recorded
version_added: 0.1.0
description:
  - Reads C(/etc/dsprov/state.json) and looks at each service by its unit or container and its HTTP answer.
  - Reads only.
options:
  path:
    description: The record of the install.
    type: path
    default: /etc/dsprov/state.json
  timeout:
    description: Seconds to wait for one answer.
    type: int
    default: 5
author:
  - The dsprov authors (@dsprov)
attributes:
  check_mode:
    description: Reads only, so check mode makes no difference.
    support: full
"""

EXAMPLES = r"""
- name: Look at the services
  dsprov.appliance.status:
  register: looked
"""

RETURN = r"""
status:
  description: C(installed), the recorded C(tier), C(model), C(access), and C(services), each with C(name),
    C(model) of an engine, C(healthy), C(version), C(state) and C(detail).
  returned: always
  type: dict
  sample: {"installed": true, "healthy": true, "tier": "demo", "services": []}
"""

import http.client
import json
import socket
import subprocess
import urllib.request
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCKER_SOCKET = "/var/run/docker.sock"


class SocketConnection(http.client.HTTPConnection):
    """HTTP over Docker's socket, so that no Docker library is needed."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(DOCKER_SOCKET)


def docker_get(path: str, timeout: int) -> Any:
    """One answer of Docker's API."""
    connection = SocketConnection("localhost", timeout=timeout)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        if answer.status != 200:
            raise OSError(f"Docker answered {answer.status} to {path}")
        return json.loads(answer.read())
    finally:
        connection.close()


def unit_state(unit: str) -> str:
    done = subprocess.run(
        ["systemctl", "is-active", unit], capture_output=True, text=True, timeout=20, check=False
    )
    return done.stdout.strip() or "unknown"


def http_json(url: str, timeout: int, key_file: str | None) -> Any:
    """A JSON answer on loopback, by no proxy, with the key where the service has one."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url)
    if key_file:
        with open(key_file, encoding="utf-8") as file:
            request.add_header("Authorization", f"Bearer {file.read().strip()}")
    with opener.open(request, timeout=timeout) as answer:
        return json.loads(answer.read() or b"null")


def look(service: dict[str, Any], timeout: int) -> dict[str, Any]:
    """One service: it is healthy when its unit or container runs and everything asked of it answers."""
    row: dict[str, Any] = {
        "name": service["name"],
        "model": service.get("model"),
        "version": None,
        "state": "unknown",
        "healthy": False,
        "detail": "",
    }
    try:
        if "unit" in service:
            row["state"] = unit_state(service["unit"])
            if row["state"] != "active":
                row["detail"] = (
                    f"{service['unit']} is {row['state']}; journalctl -u {service['unit']} says why"
                )
                return row
        if "container" in service:
            container = docker_get(f"/containers/{service['container']}/json", timeout)
            row["state"] = container["State"]["Status"]
            if row["state"] != "running":
                row["detail"] = f"container is {row['state']}; docker logs {service['container']} says why"
                return row
        if service["name"] == "docker":
            row["version"] = docker_get("/version", timeout)["Version"]
        key_file = service.get("key_file")
        if "version_url" in service:
            said = http_json(service["version_url"], timeout, key_file)
            # llama.cpp's server tells its build, such as b11434-dsprov.
            row["version"] = said["version"] if "version" in said else said["build_info"].split("-")[0]
        if "models_url" in service:
            served = [
                model["id"] for model in http_json(service["models_url"], timeout, key_file)["data"] or []
            ]
            names = {name.removesuffix(":latest") for name in served}
            if service["model"].removesuffix(":latest") not in names:
                row["detail"] = f"model {service['model']} is not served; install puts it back"
                return row
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        subprocess.SubprocessError,
        http.client.HTTPException,
    ) as error:
        row["detail"] = f"no healthy answer: {error}"
        return row
    row["healthy"] = True
    return row


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "default": "/etc/dsprov/state.json"},
            "timeout": {"type": "int", "default": 5},
        },
        supports_check_mode=True,
    )
    try:
        with open(module.params["path"], encoding="utf-8") as file:
            record = json.load(file)
    except FileNotFoundError:
        module.exit_json(changed=False, status={"installed": False, "healthy": False, "services": []})
    except (OSError, ValueError) as error:
        module.fail_json(msg=f"{module.params['path']}: {error}; run `dsprov install` to write it anew")
    services = [look(service, module.params["timeout"]) for service in record.get("services", [])]
    module.exit_json(
        changed=False,
        status={
            "installed": True,
            "healthy": bool(services) and all(service["healthy"] for service in services),
            "services": services,
            **{key: record.get(key) for key in ("tier", "model", "access", "when")},
        },
    )


if __name__ == "__main__":
    main()
