#!/usr/bin/python
# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Ansible module: an engine's service and software, as they are on a host, and what stands in their way."""

from __future__ import annotations

DOCUMENTATION = r"""
module: service_info
short_description: Look at an engine's service and its software, in one round trip
version_added: 0.1.0
description:
  - Says which software the host should have and whether it is whole, and what the service runs now; and
    refuses what cannot work, before anything is changed.
  - The software is a virtual environment (O(venv)) or was built on the host (O(build)); either way one folder
    a release in O(prefix), where the link C(current) leads to the one in use.
  - Reads only.
options:
  title:
    description: The engine's name and version, for messages.
    type: str
    required: true
  role:
    description: The role, whose inputs messages name.
    type: str
    required: true
  prefix:
    description: Folder of all releases.
    type: path
    required: true
  venv:
    description: Of software in a virtual environment.
    type: dict
    suboptions:
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
        description: Room that a new one takes while it is made.
        type: int
        default: 0
  build:
    description: Of software that M(dsprov.appliance.cmake_build) makes on the host.
    type: dict
    suboptions:
      version:
        description: Release of the sources.
        type: str
        required: true
      inputs:
        description: All that the programs depend on.
        type: dict
        required: true
      native:
        description: Whether code is made for the host's own CPU, which then counts among O(build.inputs).
        type: bool
        default: true
      root:
        description: Folder to build in.
        type: path
        required: true
  unit:
    description: The service.
    type: str
    required: true
  command:
    description: The service's command; its first word is a program of the software.
    type: list
    elements: str
    required: true
  environment:
    description: Settings that the process must have, for V(verify).
    type: dict
    default: {}
  key_file:
    description: Environment file with the API key, which the service reads when it starts.
    type: path
  ports:
    description: Ports that the service listens on; somebody else's are refused.
    type: list
    elements: int
    default: []
  beside:
    description: Units that belong to the service.
    type: list
    elements: str
    default: []
  files:
    description: Files that the service reads and that this run does not bring.
    type: list
    elements: path
    default: []
  folders:
    description: Folders that it reads and that this run does not bring.
    type: list
    elements: path
    default: []
  texts:
    description: Files beside the unit that RV(texts) has to tell, for the way back.
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
    title: KTransformers 0.7.2
    role: ktransformers
    prefix: /opt/dsprov/ktransformers
    venv:
      release: 0.7.2-1a2b3c4d
      stamp: "{{ digest }}"
      pythons: ["3.12", "3.11"]
    unit: dsprov-ktransformers.service
    command: "{{ dsprov_plan.command }}"
    ports: [11437]

- name: Look at llama.cpp on the host
  dsprov.appliance.service_info:
    title: llama.cpp b11434
    role: llama_cpp
    prefix: /opt/dsprov/llama_cpp
    build:
      version: b11434
      inputs: {sha256: "{{ digest_of_the_sources }}", options: {GGML_NATIVE: "ON"}}
      root: /var/lib/dsprov/build/llama_cpp
    unit: dsprov-llama-server.service
    command: "{{ dsprov_plan.command }}"
    key_file: /etc/dsprov/secrets/llama-server.env
    ports: [11435]
"""

RETURN = r"""
present:
  description: Whether the wanted software is there and whole; of a virtual environment, its Python too.
  returned: success
  type: bool
release:
  description: Name of the wanted software's folder.
  returned: success
  type: str
current:
  description: Name of the folder that is in use.
  returned: success
  type: str
releases:
  description: Names of all such folders.
  returned: success
  type: list
  elements: str
python:
  description: C(path) and C(version) of an interpreter that will do, or empty; C(seen), what was found.
  returned: with O(venv)
  type: dict
stamp:
  description: What the stamp of the wanted virtual environment says when it is whole; empty without a Python.
  returned: with O(venv)
  type: str
build:
  description: The wanted build.
  returned: with O(build)
  type: dict
  contains:
    digest: {description: Stands for all that it depends on., type: str}
    inputs: {description: All that it depends on., type: dict}
    path: {description: Its folder., type: str}
    folder: {description: Where it is built., type: str}
    isa: {description: Instructions of the CPU that it is made for., type: str}
    leftovers: {description: 'What builds that failed, or were given up, left in O(build.root).', type: list}
unit:
  description: What systemd says about the service.
  returned: success
  type: dict
fell:
  description: Why the service fell over since somebody started it, by its log; empty where it did not.
  returned: success
  type: str
beside:
  description: What systemd says about each of O(beside), by name.
  returned: success
  type: dict
unit_text:
  description: The unit as it is now.
  returned: success
  type: str
texts:
  description: Of O(texts), what each holds now; empty where it is not there.
  returned: success
  type: dict
exec_start:
  description: The command as systemd reads it.
  returned: success
  type: str
exe:
  description: The program that runs.
  returned: success
  type: str
process_digest:
  description: C(DSPROV_DIGEST) in the environment of the running process.
  returned: success
  type: str
key_current:
  description: Whether the process was started with what O(key_file) holds now.
  returned: success
  type: bool
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

from ansible_collections.dsprov.appliance.plugins.module_utils import builds, units

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


class Venv:
    """Software in a virtual environment."""

    def __init__(self, params: dict[str, Any]) -> None:
        self.title: str = params["title"]
        self.role: str = params["role"]
        self.wanted: dict[str, Any] = params["venv"]
        self.prefix = Path(params["prefix"])
        self.release: str = self.wanted["release"]
        self.python = self._python()

    def _python(self) -> dict[str, Any]:
        """An interpreter that the packages are made for."""
        wanted = [numbers(version) for version in self.wanted["pythons"]]
        names = [f"python{version}" for version in self.wanted["pythons"]]
        seen: list[str] = []
        for name in [self.wanted["python"]] if self.wanted["python"] else ["python3", *names]:
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
        return f"{self.wanted['stamp']} {python}" if python else ""

    def present(self) -> bool:
        """Whether the wanted one is whole."""
        folder = self.prefix / self.release
        return bool(self.stamp) and (
            units.read(folder / STAMP).strip() == self.stamp and (folder / "bin" / "python").exists()
        )

    def refusals(self) -> list[str]:
        """What keeps it from being made here."""
        found = []
        if not self.python["path"] and not self.wanted["python_follows"]:
            seen = ", ".join(self.python["seen"]) or "none"
            found.append(
                f"{self.title} has packages for Python {' and '.join(self.wanted['pythons'])} only, and the "
                f"host has {seen}; install one of them and name it in {self.role}_python"
            )
        if self.wanted["glibc"] and numbers(glibc()) < numbers(self.wanted["glibc"]):
            have = glibc() or "another C library"
            found.append(
                f"{self.title} needs glibc {self.wanted['glibc']} and the host has {have}; upgrade the "
                "distribution, or choose another engine (dsprov_engine)"
            )
        return found + self._room()

    def _room(self) -> list[str]:
        needed = self.wanted["install_bytes"]
        if self.present() or not needed:
            return []
        there = next(path for path in (self.prefix, *self.prefix.parents) if path.exists())
        free = shutil.disk_usage(there).free
        if free >= needed:
            return []
        return [
            f"{self.title} takes {needed / 1e9:.1f} GB while it is installed and {there} has "
            f"{free / 1e9:.1f} GB free; free {(needed - free) / 1e9:.1f} GB"
        ]

    def row(self) -> dict[str, Any]:
        """What the module returns of it alone."""
        return {"python": self.python, "stamp": self.stamp}


class Build:
    """Software built on the host."""

    def __init__(self, params: dict[str, Any]) -> None:
        wanted = params["build"]
        self.isa = builds.isa(units.read(Path("/proc/cpuinfo"))) if wanted["native"] else ""
        self.root: str = wanted["root"]
        self.inputs = {**wanted["inputs"], "version": wanted["version"], "isa": self.isa}
        self.digest = builds.digest_of(self.inputs)
        self.path = builds.folder_of(params["prefix"], wanted["version"], self.digest)
        self.release = os.path.basename(self.path)

    def present(self) -> bool:
        """Whether the wanted one is there, with every file as it was."""
        return builds.whole(self.path, self.digest)

    def refusals(self) -> list[str]:
        """Nothing: room is looked for when a build begins, which may go on from one that was cut off."""
        return []

    def row(self) -> dict[str, Any]:
        """What the module returns of it alone."""
        build = {
            "digest": self.digest,
            "inputs": self.inputs,
            "path": self.path,
            "folder": f"{self.root}/{self.release}",
            "isa": self.isa,
            "leftovers": self._leftovers(),
        }
        return {"build": build}

    def _leftovers(self) -> list[str]:
        """What lies where builds are made and belongs to none that goes on."""
        try:
            found = [entry.path for entry in os.scandir(self.root)]
        except OSError:
            return []
        return sorted(found) if self.present() else []


class Look:
    """The one look."""

    def __init__(self, params: dict[str, Any]) -> None:
        self.params = params
        self.prefix = Path(params["prefix"])
        self.software: Venv | Build = Venv(params) if params["venv"] else Build(params)
        self.unit = units.Unit.read(params["unit"])
        self.process = units.environment_of(self.unit.pid) if self.unit.pid else {}
        self.exe = units.link_of(Path(f"/proc/{self.unit.pid}/exe")) if self.unit.pid else ""
        self.current = os.path.basename(units.link_of(self.prefix / "current"))

    def releases(self) -> list[str]:
        """Folders of releases."""
        try:
            entries = list(os.scandir(self.prefix))
        except OSError:
            return []
        hidden = (entry for entry in entries if not entry.name.startswith("."))
        return sorted(entry.name for entry in hidden if entry.is_dir(follow_symlinks=False))

    def key_current(self) -> bool:
        """Whether the process has every setting of the key's file; without such a file it has."""
        if not self.params["key_file"]:
            return True
        lines = units.read(Path(self.params["key_file"])).splitlines()
        wanted = dict(line.split("=", 1) for line in lines if "=" in line)
        return bool(wanted) and all(self.process.get(name) == value for name, value in wanted.items())

    def refuse_harm(self) -> None:
        """Name what stands in the way before anything is changed."""
        params = self.params
        found = self.software.refusals()
        if self.unit.exists and not self.unit.ours:
            found.append(
                f"{self.unit.path}: a unit of this name that dsprov did not write; rename or remove it"
            )
        for port in params["ports"]:
            pid, program = units.listener(port)
            if program and not (pid and params["unit"] in units.read(Path(f"/proc/{pid}/cgroup"))):
                who = f"{program} (process {pid})" if pid else "another process"
                found.append(f"port {port} is taken by {who}; stop it, or set {params['role']}_port")
        for kind, there in (("file", os.path.isfile), ("folder", os.path.isdir)):
            found += [
                f"{path}: this {kind} is not there; put it there, or let the plan bring it"
                for path in params[f"{kind}s"]
                if not there(path)
            ]
        if found:
            raise RefusalError("; ".join(found))

    def verify(self) -> None:
        """Compare what runs with what is wanted."""
        name, release = self.params["unit"], self.software.release
        if not self.unit.active or not self.unit.pid:
            raise RefusalError(f"{name} does not run; its last words: {units.last_words(name)}")
        if not self.software.present() or self.current != release:
            raise RefusalError(f"{release} is not what is in use; run the install again")
        for key, value in self.params["environment"].items():
            if self.process.get(key) != str(value):
                raise RefusalError(
                    f"{name}: {key} is {self.process.get(key, 'not set')!r}, not {value!r}; restart it"
                )
        if isinstance(self.software, Build):
            self._verify_program(self.software)

    def _verify_program(self, build: Build) -> None:
        """A program of ours is one process with the command's own words."""
        name, command = self.params["unit"], self.params["command"]
        words = units.words_of(Path(f"/proc/{self.unit.pid}/cmdline"))[1:]
        if words != command[1:]:
            raise RefusalError(f"{name} runs as '{' '.join(words)}' and not as planned; restart it")
        if self.exe != f"{build.path}/bin/{command[0]}":
            raise RefusalError(f"{name} runs {self.exe}, not the build {build.path}; restart it")

    def _exec_start(self) -> str:
        """The wanted command with its program's path; nothing where none is wanted, as when it is removed."""
        if not self.params["command"]:
            return ""
        program, *words = self.params["command"]
        return units.exec_line([f"{self.prefix}/current/bin/{program}", *words])

    def row(self) -> dict[str, Any]:
        """As the module returns it."""
        groups = units.read(Path("/etc/group"))
        return {
            **self.software.row(),
            "present": self.software.present(),
            "release": self.software.release,
            "current": self.current,
            "releases": self.releases(),
            "unit": self.unit.row(),
            "beside": {name: units.Unit.read(name).row() for name in self.params["beside"]},
            "unit_text": units.read(Path(self.unit.path)) if self.unit.path else "",
            "texts": {path: units.read(Path(path)) for path in self.params["texts"]},
            "fell": units.cause(self.params["unit"]) if self.unit.failed or self.unit.restarts else "",
            "exec_start": self._exec_start(),
            "exe": self.exe,
            "process_digest": self.process.get(DIGEST, ""),
            "key_current": self.key_current(),
            "groups": [g for g in DEVICE_GROUPS if re.search(rf"^{g}:", groups, re.MULTILINE)],
        }


VENV = {
    "release": {"type": "str", "required": True},
    "stamp": {"type": "str", "required": True},
    "python": {"type": "path"},
    "pythons": {"type": "list", "elements": "str", "required": True},
    "python_follows": {"type": "bool", "default": False},
    "glibc": {"type": "str", "default": ""},
    "install_bytes": {"type": "int", "default": 0},
}
BUILD = {
    "version": {"type": "str", "required": True},
    "inputs": {"type": "dict", "required": True},
    "native": {"type": "bool", "default": True},
    "root": {"type": "path", "required": True},
}


def main() -> None:
    """Run the module."""
    paths = {"type": "list", "elements": "path", "default": []}
    module = AnsibleModule(
        argument_spec={
            "title": {"type": "str", "required": True},
            "role": {"type": "str", "required": True},
            "prefix": {"type": "path", "required": True},
            "venv": {"type": "dict", "options": VENV},
            "build": {"type": "dict", "options": BUILD},
            "unit": {"type": "str", "required": True},
            "command": {"type": "list", "elements": "str", "required": True},
            "environment": {"type": "dict", "default": {}},
            # A path, not a secret.
            "key_file": {"type": "path", "no_log": False},
            "ports": {"type": "list", "elements": "int", "default": []},
            "beside": {"type": "list", "elements": "str", "default": []},
            "files": paths,
            "folders": paths,
            "texts": paths,
            "purpose": {"type": "str", "choices": ["install", "verify", "remove"], "default": "install"},
        },
        mutually_exclusive=[("venv", "build")],
        required_one_of=[("venv", "build")],
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
