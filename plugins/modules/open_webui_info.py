#!/usr/bin/python
# Copyright (c) 2026 The dsprov authors
# SPDX-License-Identifier: Apache-2.0
"""Say in one look how Open WebUI is installed on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: open_webui_info
short_description: Say in one look how Open WebUI is installed on a host
version_added: 0.1.0
description:
  - Reads the container, the unit, the software prefix and the data folder, and changes nothing.
  - Finds a Python interpreter that Open WebUI can run on, for the way without Docker.
author: The dsprov authors (@dsprov)
options:
  container:
    description: Name of the container.
    type: str
    required: true
  image:
    description: Reference of the wanted image, to say whether the host has it already.
    type: str
    default: ''
  unit:
    description: Name of the systemd unit of the way without Docker.
    type: str
    required: true
  prefix:
    description: Folder that holds one folder for each installed version and the link C(current).
    type: path
    required: true
  data:
    description: The data folder.
    type: path
    required: true
  python:
    description: An interpreter to use instead of looking for one.
    type: path
  python_minimum:
    description: The lowest version of Python that will do.
    type: str
    default: '3.11'
  python_below:
    description: The first version of Python that will not do any more.
    type: str
    default: '3.13'
attributes:
  check_mode:
    description: Changes nothing anyway.
    support: full
  diff_mode:
    description: Changes nothing.
    support: none
"""

EXAMPLES = r"""
- name: Look at what is there
  dsprov.appliance.open_webui_info:
    container: dsprov-open-webui
    unit: dsprov-open-webui.service
    prefix: /opt/dsprov/open-webui
    data: /var/lib/dsprov/open-webui
  register: open_webui
"""

RETURN = r"""
docker:
  description: >-
    C(client) and C(requests) say whether the Docker client and Python's requests are there, C(server) is the
    engine's version or empty, C(image_present) whether the wanted image is; C(container), C(running) and
    C(image) describe the container.
  type: dict
  returned: success
venv:
  description: C(unit), C(active), the C(version) that is current, and C(stamp), the digest of its packages.
  type: dict
  returned: success
data:
  description: C(database) says whether there is one; C(owner) is the folder's user id, or -1.
  type: dict
  returned: success
python:
  description: C(path) and C(version) of an interpreter that will do, or empty; C(seen) are versions found.
  type: dict
  returned: success
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule


def run(*command: str) -> tuple[int, str]:
    """Run a command without a shell; return its exit status and output."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return 127, ""
    return done.returncode, done.stdout.strip()


def numbers(version: str) -> tuple[int, ...]:
    """Turn C(3.11.2) into numbers that compare."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


class OpenWebuiInfo:
    """The one look."""

    def __init__(self, params: dict[str, Any]) -> None:
        self.params = params

    def docker(self) -> dict[str, Any]:
        """Look at Docker, the container and the image."""
        found: dict[str, Any] = {
            "client": bool(shutil.which("docker")),
            "requests": importlib.util.find_spec("requests") is not None,
            "server": "",
            "image_present": False,
            "container": False,
            "running": False,
            "image": "",
        }
        if not found["client"]:
            return found
        status, text = run("docker", "version", "--format", "{{.Server.Version}}")
        if status != 0:
            return found
        found["server"] = text
        status, text = run(
            "docker",
            "container",
            "inspect",
            "--format",
            "[{{json .State.Running}},{{json .Config.Image}}]",
            self.params["container"],
        )
        if status == 0:
            running, image = json.loads(text)
            found.update(container=True, running=running, image=image)
        if self.params["image"]:
            found["image_present"] = (
                run("docker", "image", "inspect", "--format", "{{.Id}}", self.params["image"])[0] == 0
            )
        return found

    def venv(self) -> dict[str, Any]:
        """Look at the unit and at the installed version."""
        current = Path(self.params["prefix"]) / "current"
        found: dict[str, Any] = {"unit": False, "active": False, "version": "", "stamp": ""}
        if current.is_symlink():
            found["version"] = current.readlink().name
        stamp = current / ".dsprov-stamp"
        if stamp.is_file():
            found["stamp"] = stamp.read_text(encoding="utf-8").strip()
        status, text = run("systemctl", "show", "--property=LoadState,ActiveState", self.params["unit"])
        if status == 0:
            states = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
            found["unit"] = states.get("LoadState") == "loaded"
            found["active"] = states.get("ActiveState") in {"active", "activating", "reloading"}
        return found

    def data(self) -> dict[str, Any]:
        """Look at the data folder."""
        folder = Path(self.params["data"])
        owner = folder.stat().st_uid if folder.is_dir() else -1
        return {"database": (folder / "webui.db").is_file(), "owner": owner}

    def python(self) -> dict[str, Any]:
        """Find an interpreter that Open WebUI can run on."""
        low, high = numbers(self.params["python_minimum"]), numbers(self.params["python_below"])
        minors = range(high[1] - 1, low[1] - 1, -1)
        names = (
            [self.params["python"]]
            if self.params["python"]
            else [*(f"python3.{minor}" for minor in minors), "python3"]
        )
        seen: list[str] = []
        for name in names:
            path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/local/bin:/usr/bin:/bin")
            if not path:
                continue
            status, text = run(path, "-c", "import platform; print(platform.python_version())")
            if status != 0:
                continue
            seen.append(text)
            if low <= numbers(text) < high:
                return {"path": path, "version": text, "seen": seen}
        return {"path": "", "version": "", "seen": seen}


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "container": {"type": "str", "required": True},
            "image": {"type": "str", "default": ""},
            "unit": {"type": "str", "required": True},
            "prefix": {"type": "path", "required": True},
            "data": {"type": "path", "required": True},
            "python": {"type": "path"},
            "python_minimum": {"type": "str", "default": "3.11"},
            "python_below": {"type": "str", "default": "3.13"},
        },
        supports_check_mode=True,
    )
    look = OpenWebuiInfo(module.params)
    module.exit_json(
        changed=False, docker=look.docker(), venv=look.venv(), data=look.data(), python=look.python()
    )


if __name__ == "__main__":
    main()
