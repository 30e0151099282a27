#!/usr/bin/python
# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Ansible module: what is on a host of vLLM, and what stands in the way of it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_info
short_description: Look at vLLM on a host, in one round trip
version_added: 0.1.0
description:
  - Says which virtual environment the host should have and whether it is whole, which Python can make it, and
    what the unit runs now; and refuses what cannot work, before anything is changed.
  - Reads only.
options:
  release:
    description: Name of the wanted virtual environment, a folder of O(prefix).
    type: str
    required: true
  stamp:
    description: Digest of what it is made from.
    type: str
    required: true
  prefix:
    description: Folder of all virtual environments.
    type: path
    default: /opt/dsprov/vllm
  python:
    description: The interpreter to use; any that the host has in its path otherwise.
    type: path
  python_minimum:
    description: Oldest Python that vLLM runs on.
    type: str
    default: "3.11"
  python_below:
    description: First Python that is too new.
    type: str
    default: "3.14"
  unit:
    description: The service.
    type: str
    default: dsprov-vllm.service
  command:
    description: The service's command; its first word is a program of the virtual environment.
    type: list
    elements: str
    required: true
  key_file:
    description: Environment file with the API key.
    type: path
    required: true
  rules:
    description: File with the firewall's rules of a group of hosts.
    type: path
    default: /etc/dsprov/vllm.nft
  ports:
    description: Ports that the service listens on; somebody else's are refused.
    type: list
    elements: int
    default: []
  weights_follow:
    description: Whether the weights are brought by this very run, so that they need not be there yet.
    type: bool
    default: true
  purpose:
    description: V(install) refuses what stands in the way, V(verify) what runs otherwise than wanted.
    type: str
    choices: [install, verify, remove]
    default: install
attributes:
  check_mode:
    description: Reads only.
    support: full
author:
  - The dsprov authors
"""

EXAMPLES = r"""
- name: Look at vLLM on the host
  dsprov.appliance.vllm_info:
    release: 0.33.0-cuda-1a2b3c4d
    stamp: "{{ digest }}"
    command: "{{ dsprov_plan.command }}"
    key_file: /etc/dsprov/secrets/vllm.env
"""

RETURN = r"""
present:
  description: Whether the wanted virtual environment is there, whole, and its Python too.
  returned: success
  type: bool
python:
  description: C(path) and C(version) of an interpreter that will do, or empty; C(seen), what was found.
  returned: success
  type: dict
stamp:
  description: What the stamp of the wanted virtual environment says when it is whole.
  returned: success
  type: str
site:
  description: Folder of packages in the virtual environment.
  returned: success
  type: str
current:
  description: Name of the virtual environment that is in use.
  returned: success
  type: str
releases:
  description: Names of all virtual environments.
  returned: success
  type: list
  elements: str
unit:
  description: What systemd says about the service.
  returned: success
  type: dict
unit_text:
  description: The unit as it is now.
  returned: success
  type: str
grouped:
  description: Whether this host was made one of several that share a model.
  returned: success
  type: bool
key_current:
  description: Whether the process was started after the key was last written.
  returned: success
  type: bool
exec_start:
  description: The command as systemd reads it.
  returned: success
  type: str
groups:
  description: Groups of the host whose members may use GPUs and network cards.
  returned: success
  type: list
  elements: str
"""

import os
import re
import shutil
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.dsprov.appliance.plugins.module_utils import units

STAMP = ".dsprov-stamp"
DEVICE_GROUPS = ("video", "render", "rdma")


class RefusalError(Exception):
    """Says what stands in the way, where, and what to do."""


def numbers(version: str) -> tuple[int, ...]:
    """The first two numbers of a version, to compare."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


class Look:
    """The one look."""

    def __init__(self, params: dict[str, Any]) -> None:
        self.params = params
        self.prefix = Path(params["prefix"])
        self.unit = units.Unit.read(params["unit"])
        self.python = self._python()

    def _python(self) -> dict[str, Any]:
        """An interpreter that vLLM runs on."""
        low, high = numbers(self.params["python_minimum"]), numbers(self.params["python_below"])
        names = [f"python3.{minor}" for minor in range(high[1] - 1, low[1] - 1, -1)]
        wanted = [self.params["python"]] if self.params["python"] else ["python3", *names]
        seen: list[str] = []
        for name in wanted:
            path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/local/bin:/usr/bin:/bin")
            version = (
                units.run([path, "-c", "import platform; print(platform.python_version())"]) if path else ""
            )
            if not version.strip():
                continue
            seen.append(version.strip())
            if path and low <= numbers(version) < high:
                return {"path": path, "version": version.strip(), "seen": seen}
        return {"path": "", "version": "", "seen": seen}

    def present(self) -> bool:
        """Whether the wanted virtual environment is whole."""
        folder = self.prefix / self.params["release"]
        return units.read(folder / STAMP).strip() == self.stamp and (folder / "bin" / "python").exists()

    @property
    def stamp(self) -> str:
        """What the stamp of a whole one says: the digest, and the Python that its packages are for."""
        return f"{self.params['stamp']} {'.'.join(map(str, numbers(self.python['version'])))}"

    def releases(self) -> list[str]:
        """Folders of virtual environments."""
        try:
            entries = list(os.scandir(self.prefix))
        except OSError:
            return []
        return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))

    def key_current(self) -> bool:
        """Whether the process was started after the key was last written."""
        text = units.run(
            [
                "systemctl",
                "show",
                self.params["unit"],
                "--property=ExecMainStartTimestamp",
                "--timestamp=unix",
            ]
        )
        started = re.search(r"=@(\d+)", text)
        try:
            written = os.stat(self.params["key_file"]).st_mtime
        except OSError:
            return False
        # systemd gives whole seconds.
        return bool(started) and written < int(started[1]) + 1

    def refuse_harm(self) -> None:
        """Name what stands in the way before anything is changed."""
        found = []
        if not self.python["path"]:
            seen = ", ".join(dict.fromkeys(self.python["seen"])) or "none"
            low, high = self.params["python_minimum"], self.params["python_below"]
            found.append(
                f"vLLM needs Python {low} or later, below {high}, and the host has {seen}; install one with "
                "its package manager, and name it in vllm_python if it is not in the path"
            )
        if self.unit.exists and not self.unit.ours:
            found.append(
                f"{self.unit.path}: a unit of this name that dsprov did not write; rename or remove it"
            )
        for port in self.params["ports"]:
            pid, program = units.listener(port)
            if program and not (pid and self._ours(pid)):
                who = f"{program} (process {pid})" if pid else "another process"
                found.append(f"port {port} is taken by {who}; stop it, or choose another in vllm_command")
        model = next(iter(self.params["command"][2:3]), "")
        if model.startswith("/") and not self.params["weights_follow"] and not os.path.isdir(model):
            found.append(f"{model}: the model's folder is not there; put it there, or let the plan bring it")
        if found:
            raise RefusalError("; ".join(found))

    def _ours(self, pid: int) -> bool:
        """Whether a process belongs to the service."""
        return self.params["unit"] in units.read(Path(f"/proc/{pid}/cgroup"))

    def verify(self) -> None:
        """Compare what runs with what is wanted."""
        name = self.params["unit"]
        if not self.unit.active or not self.unit.pid:
            raise RefusalError(f"{name} does not run; its last words: {units.last_words(name)}")
        if not self.present() or units.link_of(self.prefix / "current") != self.params["release"]:
            raise RefusalError(f"{name} does not run {self.params['release']}; run the install again")

    def row(self) -> dict[str, Any]:
        """As the module returns it."""
        groups = units.read(Path("/etc/group"))
        version = ".".join(map(str, numbers(self.python["version"])))
        program = f"{self.prefix}/current/bin/{self.params['command'][0]}"
        return {
            "present": self.present(),
            "python": self.python,
            "stamp": self.stamp,
            "site": f"lib/python{version}/site-packages",
            "current": units.link_of(self.prefix / "current"),
            "releases": self.releases(),
            "unit": self.unit.row(),
            "unit_text": units.read(Path(self.unit.path)) if self.unit.path else "",
            "grouped": os.path.exists(self.params["rules"]),
            "key_current": self.key_current(),
            "exec_start": units.exec_line([program, *self.params["command"][1:]]),
            "groups": [g for g in DEVICE_GROUPS if re.search(rf"^{g}:", groups, re.MULTILINE)],
        }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "release": {"type": "str", "required": True},
            "stamp": {"type": "str", "required": True},
            "prefix": {"type": "path", "default": "/opt/dsprov/vllm"},
            "python": {"type": "path"},
            "python_minimum": {"type": "str", "default": "3.11"},
            "python_below": {"type": "str", "default": "3.14"},
            "unit": {"type": "str", "default": "dsprov-vllm.service"},
            "command": {"type": "list", "elements": "str", "required": True},
            # A path, not a secret.
            "key_file": {"type": "path", "required": True, "no_log": False},
            "rules": {"type": "path", "default": "/etc/dsprov/vllm.nft"},
            "ports": {"type": "list", "elements": "int", "default": []},
            "weights_follow": {"type": "bool", "default": True},
            "purpose": {"type": "str", "choices": ["install", "verify", "remove"], "default": "install"},
        },
        supports_check_mode=True,
    )
    try:
        look = Look(module.params)
        if module.params["purpose"] == "verify":
            look.verify()
        elif module.params["purpose"] == "install":
            look.refuse_harm()
        module.exit_json(changed=False, **look.row())
    except RefusalError as error:
        module.fail_json(msg=f"vllm: {error}")


if __name__ == "__main__":
    main()
