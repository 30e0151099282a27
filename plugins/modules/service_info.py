#!/usr/bin/python
# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Ansible module: an engine in a virtual environment, as it is on a host, and what stands in its way."""

from __future__ import annotations

DOCUMENTATION = r"""
module: service_info
short_description: Look at an engine that runs from a virtual environment, in one round trip
version_added: 0.1.0
description:
  - Says which virtual environment the host should have and whether it is whole, which Python can make it, and
    what the service runs now; and refuses what cannot work, before anything is changed.
  - Reads only.
options:
  title:
    description: The engine's name, for messages.
    type: str
    required: true
  role:
    description: The role, whose inputs messages name.
    type: str
    required: true
  prefix:
    description: Folder of all virtual environments.
    type: path
    required: true
  release:
    description: Name of the wanted one.
    type: str
    required: true
  stamp:
    description: Digest of what it is made from.
    type: str
    required: true
  python:
    description: The interpreter to use; any that the host has in its path otherwise.
    type: path
  pythons:
    description: Versions of Python that will do, best first.
    type: list
    elements: str
    required: true
  python_follows:
    description: Whether this very run installs such a Python, so that it need not be there yet.
    type: bool
    default: false
  glibc:
    description: Oldest C library that its packages run on.
    type: str
    default: ''
  install_bytes:
    description: Room that a new virtual environment takes while it is made.
    type: int
    default: 0
  unit:
    description: The service.
    type: str
    required: true
  command:
    description: The service's command; its first word is a program of the virtual environment.
    type: list
    elements: str
    required: true
  port:
    description: Port that the service listens on; somebody else's is refused.
    type: int
    required: true
  folders:
    description: Folders that the command reads and that this run does not bring.
    type: list
    elements: path
    default: []
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
- name: Look at KTransformers on the host
  dsprov.appliance.service_info:
    title: KTransformers
    role: ktransformers
    prefix: /opt/dsprov/ktransformers
    release: 0.7.2-1a2b3c4d
    stamp: "{{ digest }}"
    pythons: ["3.12", "3.11"]
    unit: dsprov-ktransformers.service
    command: "{{ dsprov_plan.command }}"
    port: 11437
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
  description: What the stamp of the wanted virtual environment says when it is whole; empty without a Python.
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
process_digest:
  description: C(DSPROV_DIGEST) in the environment of the running process.
  returned: success
  type: str
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
DIGEST = "DSPROV_DIGEST"


class RefusalError(Exception):
    """Says what stands in the way, where, and what to do."""


def numbers(version: str) -> tuple[int, ...]:
    """The first two numbers of a version, to compare."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def glibc() -> str:
    """Version of the host's C library; empty where it is another than glibc."""
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")[2]
    except (ValueError, OSError):
        return ""


class Look:
    """The one look."""

    def __init__(self, params: dict[str, Any]) -> None:
        self.params = params
        self.prefix = Path(params["prefix"])
        self.folder = self.prefix / params["release"]
        self.unit = units.Unit.read(params["unit"])
        self.python = self._python()

    def _python(self) -> dict[str, Any]:
        """An interpreter that the packages are made for."""
        wanted = [numbers(version) for version in self.params["pythons"]]
        names = [f"python{version}" for version in self.params["pythons"]]
        seen: list[str] = []
        for name in [self.params["python"]] if self.params["python"] else ["python3", *names]:
            path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/local/bin:/usr/bin:/bin")
            said = (
                units.run([path, "-c", "import platform; print(platform.python_version())"]) if path else ""
            )
            version = said.strip()
            seen += [version] if version and version not in seen else []
            if path and version and numbers(version) in wanted:
                return {"path": path, "version": version, "seen": seen}
        return {"path": "", "version": "", "seen": seen}

    @property
    def stamp(self) -> str:
        """What the stamp of a whole one says: the digest, and the Python that its packages are for."""
        python = ".".join(map(str, numbers(self.python["version"])))
        return f"{self.params['stamp']} {python}" if python else ""

    def present(self) -> bool:
        """Whether the wanted virtual environment is whole."""
        return bool(self.stamp) and (
            units.read(self.folder / STAMP).strip() == self.stamp
            and (self.folder / "bin" / "python").exists()
        )

    def releases(self) -> list[str]:
        """Folders of virtual environments."""
        try:
            entries = list(os.scandir(self.prefix))
        except OSError:
            return []
        hidden = (entry for entry in entries if not entry.name.startswith("."))
        return sorted(entry.name for entry in hidden if entry.is_dir(follow_symlinks=False))

    def refuse_harm(self) -> None:
        """Name what stands in the way before anything is changed."""
        params = self.params
        found = [*self._software(), *self._room()]
        if self.unit.exists and not self.unit.ours:
            found.append(
                f"{self.unit.path}: a unit of this name that dsprov did not write; rename or remove it"
            )
        pid, program = units.listener(params["port"])
        if program and not (pid and params["unit"] in units.read(Path(f"/proc/{pid}/cgroup"))):
            who = f"{program} (process {pid})" if pid else "another process"
            found.append(f"port {params['port']} is taken by {who}; stop it, or set {params['role']}_port")
        for folder in params["folders"]:
            if not os.path.isdir(folder):
                found.append(f"{folder}: this folder is not there; put it there, or let the plan bring it")
        if found:
            raise RefusalError("; ".join(found))

    def _software(self) -> list[str]:
        params, found = self.params, []
        if not self.python["path"] and not params["python_follows"]:
            seen = ", ".join(self.python["seen"]) or "none"
            found.append(
                f"{params['title']} has packages for Python {' and '.join(params['pythons'])} only, and the "
                f"host has {seen}; install one of them and name it in {params['role']}_python"
            )
        if params["glibc"] and numbers(glibc()) < numbers(params["glibc"]):
            have = glibc() or "another C library"
            found.append(
                f"{params['title']} needs glibc {params['glibc']} and the host has {have}; upgrade the "
                "distribution, or choose another engine (dsprov_engine)"
            )
        return found

    def _room(self) -> list[str]:
        if self.present() or not self.params["install_bytes"]:
            return []
        there = next(path for path in (self.prefix, *self.prefix.parents) if path.exists())
        free, needed = shutil.disk_usage(there).free, self.params["install_bytes"]
        if free >= needed:
            return []
        return [
            f"{self.params['title']} takes {needed / 1e9:.1f} GB while it is installed and {there} has "
            f"{free / 1e9:.1f} GB free; free {(needed - free) / 1e9:.1f} GB"
        ]

    def verify(self) -> None:
        """Compare what runs with what is wanted."""
        name = self.params["unit"]
        if not self.present() or units.link_of(self.prefix / "current") != self.params["release"]:
            raise RefusalError(f"{self.params['release']} is not what is in use; run the install again")
        if not self.unit.active or not self.unit.pid:
            raise RefusalError(f"{name} does not run; its last words: {units.last_words(name)}")

    def row(self) -> dict[str, Any]:
        """As the module returns it."""
        groups = units.read(Path("/etc/group"))
        program = f"{self.prefix}/current/bin/{self.params['command'][0]}"
        return {
            "present": self.present(),
            "python": self.python,
            "stamp": self.stamp,
            "current": units.link_of(self.prefix / "current"),
            "releases": self.releases(),
            "unit": self.unit.row(),
            "unit_text": units.read(Path(self.unit.path)) if self.unit.path else "",
            "process_digest": units.environment_of(self.unit.pid).get(DIGEST, "") if self.unit.pid else "",
            "exec_start": units.exec_line([program, *self.params["command"][1:]]),
            "groups": [g for g in DEVICE_GROUPS if re.search(rf"^{g}:", groups, re.MULTILINE)],
        }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "title": {"type": "str", "required": True},
            "role": {"type": "str", "required": True},
            "prefix": {"type": "path", "required": True},
            "release": {"type": "str", "required": True},
            "stamp": {"type": "str", "required": True},
            "python": {"type": "path"},
            "pythons": {"type": "list", "elements": "str", "required": True},
            "python_follows": {"type": "bool", "default": False},
            "glibc": {"type": "str", "default": ""},
            "install_bytes": {"type": "int", "default": 0},
            "unit": {"type": "str", "required": True},
            "command": {"type": "list", "elements": "str", "required": True},
            "port": {"type": "int", "required": True},
            "folders": {"type": "list", "elements": "path", "default": []},
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
        module.fail_json(msg=f"{module.params['role']}: {error}")


if __name__ == "__main__":
    main()
