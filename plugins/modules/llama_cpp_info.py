#!/usr/bin/python
# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Ansible module: what is on a host of llama.cpp, what it should be, and what stands in the way."""

from __future__ import annotations

DOCUMENTATION = r"""
module: llama_cpp_info
short_description: Look at llama.cpp on a host, in one round trip
version_added: 0.1.0
description:
  - Says which build the host should have, from the pinned version, the options, the CPU and the GPUs, and
    whether it is there; what the unit runs now; and refuses what cannot work, before anything is changed.
  - Reads only.
options:
  version:
    description: Release of llama.cpp, such as V(b11434).
    type: str
    required: true
  sha256:
    description: Digest of its sources.
    type: str
    required: true
  options:
    description: CMake's cache entries, by the user.
    type: dict
    default: {}
  targets:
    description: Programs to build.
    type: list
    elements: str
    required: true
  cuda:
    description: The CUDA toolkit to build with, as C(version), C(path) and C(stubs); empty for the CPU alone.
    type: dict
    default: {}
  capabilities:
    description: Compute capabilities of the host's GPUs, such as V(8.9).
    type: list
    elements: str
    default: []
  capability_floor:
    description: Compute capability below which this version has no code.
    type: str
    default: "7.0"
  prefix:
    description: Folder of the builds.
    type: path
    default: /opt/dsprov/llama_cpp
  build_root:
    description: Folder to build in; on a disk, since a build takes gigabytes.
    type: path
    default: /var/lib/dsprov/build/llama_cpp
  unit:
    description: Name of the unit.
    type: str
    default: dsprov-llama-server.service
  command:
    description: The server's command by the plan; its first word is the program's name.
    type: list
    elements: str
    required: true
  models:
    description:
      - Further models. The server then hands requests on to one process a model, which starts when it is
        asked for; the command's own model is loaded from the start.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name under which it is served.
        type: str
        required: true
      path:
        description: Its GGUF file, or the first of several.
        type: path
        required: true
      settings:
        description: Options of the server for this model, without the leading dashes.
        type: dict
        default: {}
  models_max:
    description: How many models are loaded at once; the one that was not used for longest makes room.
    type: int
    default: 2
  preset:
    description: File that describes the models to the server.
    type: path
    default: /etc/dsprov/llama-server-models.ini
  environment:
    description: The server's environment by the plan.
    type: dict
    default: {}
  key_file:
    description: File with the line C(LLAMA_API_KEY=...) that the service reads.
    type: path
    required: true
  weights_follow:
    description: Whether the model's file is still to be brought, so that it need not be there.
    type: bool
    default: true
  purpose:
    description:
      - V(install) refuses what cannot work, V(verify) fails where the running process differs from all this.
    type: str
    choices: [install, verify, remove]
    default: install
attributes:
  check_mode:
    description: Reads only, so check mode makes no difference.
    support: full
author:
  - The dsprov authors
"""

EXAMPLES = r"""
- name: Look at llama.cpp on the host
  dsprov.appliance.llama_cpp_info:
    version: b11434
    sha256: "{{ sources_sha256 }}"
    targets: [llama-server]
    command: "{{ dsprov_plan.command }}"
    key_file: /etc/dsprov/secrets/llama-server.env
  register: __look
"""

RETURN = r"""
build:
  description: The build that the host should have.
  returned: success
  type: dict
  contains:
    digest: {description: Stands for everything it depends on., type: str}
    inputs: {description: What it depends on., type: dict}
    path: {description: Its folder., type: str}
    folder: {description: Where it is built., type: str}
    options: {description: CMake's cache entries., type: dict}
    isa: {description: Instructions of the CPU that it is made for., type: str}
    present: {description: Whether it is there., type: bool}
unit:
  description: The unit as systemd knows it.
  returned: success
  type: dict
unit_text:
  description: The unit's file as it is now.
  returned: success
  type: str
command:
  description: The server's command, word by word.
  returned: success
  type: list
  elements: str
preset_text:
  description: What O(preset) has to hold; empty for one model.
  returned: success
  type: str
preset_now:
  description: What O(preset) holds now.
  returned: success
  type: str
exec_start:
  description: The command as the unit writes it.
  returned: success
  type: str
exe:
  description: The program that runs.
  returned: success
  type: str
current:
  description: The folder that the link C(current) leads to.
  returned: success
  type: str
leftovers:
  description: What builds that failed, or were given up for another one, left in O(build_root).
  returned: success
  type: list
  elements: str
builds:
  description: Folders of finished builds.
  returned: success
  type: list
  elements: str
process_digest:
  description: The digest of the unit that the running process was started with.
  returned: success
  type: str
key_current:
  description: Whether the running process was started with the API key that the file holds.
  returned: success
  type: bool
groups:
  description: Groups of GPU devices that the host has.
  returned: success
  type: list
  elements: str
"""

import os
import re
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.dsprov.appliance.plugins.module_utils import builds, files, units
from ansible_collections.dsprov.appliance.plugins.module_utils.hardware import floor_of
from ansible_collections.dsprov.appliance.plugins.module_utils.units import Unit, read

# Instructions that code is chosen by; the kernel's other flags come and go with its updates.
ISA = re.compile(r"(avx|amx|sse4|ssse3|fma|f16c|bmi|gfni|vaes|vpclmul|movdir)\w*")
# What a server says once for all its models.
OF_ALL_MODELS = {"--host", "--port", "--metrics", "--offline", "--numa"}
DEVICE_GROUPS = ("video", "render")
# What every build has. Nothing is fetched, and no page is served: people come by Open WebUI.
OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "CMAKE_BUILD_WITH_INSTALL_RPATH": "ON",
    "GGML_CCACHE": "ON",
    "GGML_NATIVE": "ON",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
}


class RefusalError(Exception):
    """Something stands in the way; the message says what, where and how to mend it."""


def isa() -> str:
    """Instructions of this host's CPU, sorted."""
    found = re.search(r"^flags\s*: (.*)$", read(Path("/proc/cpuinfo")), re.MULTILINE)
    return " ".join(sorted(flag for flag in (found[1].split() if found else []) if ISA.fullmatch(flag)))


def option(command: list[str], name: str) -> str:
    """The word after an option of a command, where it stands last, or empty."""
    return next((command[i + 1] for i in range(len(command) - 2, -1, -1) if command[i] == name), "")


def router(command: list[str], params: dict[str, Any]) -> tuple[list[str], str]:
    """The command of a server for several models, and the file that describes them.

    Words of a command win over that file, so only what is the same for all models stays in the command.
    """
    words, own, rest = [command[0]], [], command[1:]
    while rest:
        word = rest.pop(0)
        value = rest.pop(0) if rest and not rest[0].startswith("--") else None
        if word in OF_ALL_MODELS:
            words += [word] if value is None else [word, value]
        elif word != "--alias":
            own.append((word.removeprefix("--"), "true" if value is None else value))
    name = option(command, "--alias")
    names = [name, *(model["name"] for model in params["models"])]
    twice = next((one for one in names if names.count(one) > 1), None)
    if twice:
        raise RefusalError(f"llama_cpp_models: {twice} is there twice; give each model a name of its own")
    lines = ["; Kept by dsprov (role llama_cpp); changes made here are put back.", "version = 1"]
    # The part of a name after a colon is put into capitals; by its alias a model keeps its name.
    head = "\n[{}]\nalias = {}"
    lines += [head.format(name.replace(":", "-"), name), "load-on-startup = true"]
    lines += [f"{key} = {text}" for key, text in own]
    for model in params["models"]:
        lines += [head.format(model["name"].replace(":", "-"), model["name"]), f"model = {model['path']}"]
        lines += [f"{key} = {text}" for key, text in sorted((model.get("settings") or {}).items())]
    words += ["--models-preset", params["preset"], "--models-max", str(params["models_max"])]
    return words, "\n".join(lines) + "\n"


class Look:
    """One look at a host."""

    def __init__(self, params: dict[str, Any]) -> None:
        self.params = params
        self.command: list[str] = list(params["command"])
        self.preset_text = ""
        if params["models"]:
            self.command, self.preset_text = router(self.command, params)
        self.unit = Unit.read(params["unit"])
        self.process = units.environment_of(self.unit.pid) if self.unit.pid else {}
        self.exe = units.link_of(Path(f"/proc/{self.unit.pid}/exe")) if self.unit.pid else ""
        self.build = self._build()

    def _build(self) -> dict[str, Any]:
        params = self.params
        options = {**OPTIONS, "LLAMA_BUILD_NUMBER": params["version"].lstrip("b")}
        options["LLAMA_BUILD_COMMIT"] = "dsprov"
        rpath = ["$ORIGIN"]
        if params["cuda"]:
            floor = floor_of(params["capability_floor"])
            usable = [text for text in params["capabilities"] if floor_of(text) >= floor]
            if not usable:
                found = ", ".join(sorted(set(params["capabilities"]))) or "none that is known"
                raise RefusalError(
                    f"llama.cpp {params['version']} has code for GPUs of compute capability "
                    f"{params['capability_floor']} and later, this host has {found}; set "
                    "llama_cpp_backend to cpu, or name them in cuda_toolkit_capabilities"
                )
            root = params["cuda"]["path"]
            rpath.append(f"{root}/lib")
            options |= {
                "GGML_CUDA": "ON",
                # Its only use here would be the split mode "tensor", which the planner does not choose.
                "GGML_CUDA_NCCL": "OFF",
                "CMAKE_CUDA_ARCHITECTURES": ";".join(builds.architectures(usable)),
                "CMAKE_CUDA_COMPILER": f"{root}/bin/nvcc",
                "CUDAToolkit_ROOT": root,
            }
        options["CMAKE_INSTALL_RPATH"] = ";".join(rpath)
        options |= {key: str(value) for key, value in params["options"].items()}
        inputs = {
            "version": params["version"],
            "sha256": params["sha256"],
            "options": options,
            "targets": sorted(params["targets"]),
            "cuda": params["cuda"].get("version", ""),
            "isa": isa() if options["GGML_NATIVE"] == "ON" else "",
        }
        digest = builds.digest_of(inputs)
        path = builds.folder_of(params["prefix"], params["version"], digest)
        stamp = files.load_json(os.path.join(path, builds.STAMP))
        there = files.list_tree(path, builds.STAMP)
        return {
            "digest": digest,
            "inputs": inputs,
            "path": path,
            "folder": f"{params['build_root']}/{os.path.basename(path)}",
            "options": options,
            "isa": inputs["isa"],
            "present": stamp.get("digest") == digest
            and all(there.get(name) == entry for name, entry in stamp["files"].items()),
        }

    def key(self) -> str:
        """The key that the service has to be started with; empty where none was made yet."""
        found = re.search(r"^LLAMA_API_KEY=(.*)$", read(Path(self.params["key_file"])), re.MULTILINE)
        return found[1] if found else ""

    def refuse_harm(self) -> None:
        """Name what stands in the way before anything is changed."""
        found = []
        port = int(option(self.command, "--port") or 0)
        pid, program = units.listener(port)
        if program and (pid == 0 or pid != self.unit.pid):
            who = f"{program} (process {pid})" if pid else "another process"
            found.append(f"port {port} is taken by {who}; stop it, or choose another with llama_cpp_port")
        own = option(self.params["command"], "--model")
        models = [] if self.params["weights_follow"] or not own else [own]
        for path in [*models, *(model["path"] for model in self.params["models"])]:
            if not os.path.isfile(path):
                found.append(
                    f"{path}: the model's file is not there; put it there, or let the role model_store "
                    "bring it"
                )
        if self.unit.exists and not self.unit.ours:
            found.append(
                f"{self.unit.path}: a unit of this name that dsprov did not write; rename or remove it"
            )
        if found:
            raise RefusalError("; ".join(found))

    def verify(self) -> None:
        """Compare the running process with what is wanted."""
        name = self.params["unit"]
        if not self.unit.active or not self.unit.pid:
            raise RefusalError(f"{name} does not run; its last words: {units.last_words(name)}")
        words = units.words_of(Path(f"/proc/{self.unit.pid}/cmdline"))[1:]
        if words != self.command[1:]:
            raise RefusalError(f"{name} runs as '{' '.join(words)}' and not as planned; restart it")
        for key, value in self.params["environment"].items():
            if self.process.get(key) != value:
                raise RefusalError(
                    f"{name}: {key} is {self.process.get(key, 'not set')!r}, not {value!r}; restart it"
                )
        if self.exe != f"{self.build['path']}/bin/{self.command[0]}":
            raise RefusalError(f"{name} runs {self.exe}, not the build {self.build['path']}; restart it")

    def builds(self) -> list[str]:
        """Folders of finished builds."""
        try:
            entries = list(os.scandir(self.params["prefix"]))
        except OSError:
            return []
        return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))

    def leftovers(self) -> list[str]:
        """What lies where builds are made and belongs to none that goes on."""
        try:
            found = [entry.path for entry in os.scandir(self.params["build_root"])]
        except OSError:
            return []
        return sorted(found) if self.build["present"] else []

    def row(self) -> dict[str, Any]:
        """As the module returns it."""
        program = f"{self.params['prefix']}/current/bin/{self.command[0]}"
        group_file = read(Path("/etc/group"))
        return {
            "build": self.build,
            "unit": self.unit.row(),
            "unit_text": read(Path(self.unit.path)) if self.unit.path else "",
            "command": self.command,
            "preset_text": self.preset_text,
            "preset_now": read(Path(self.params["preset"])),
            "exec_start": units.exec_line([program, *self.command[1:]]),
            "exe": self.exe,
            "current": os.path.basename(units.link_of(Path(self.params["prefix"], "current"))),
            "builds": self.builds(),
            "leftovers": self.leftovers(),
            "process_digest": self.process.get("DSPROV_DIGEST", ""),
            "key_current": bool(self.key()) and self.process.get("LLAMA_API_KEY", "") == self.key(),
            "groups": [g for g in DEVICE_GROUPS if re.search(rf"^{g}:", group_file, re.MULTILINE)],
        }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "version": {"type": "str", "required": True},
            "sha256": {"type": "str", "required": True},
            "options": {"type": "dict", "default": {}},
            "targets": {"type": "list", "elements": "str", "required": True},
            "cuda": {"type": "dict", "default": {}},
            "capabilities": {"type": "list", "elements": "str", "default": []},
            "capability_floor": {"type": "str", "default": "7.0"},
            "prefix": {"type": "path", "default": "/opt/dsprov/llama_cpp"},
            "build_root": {"type": "path", "default": "/var/lib/dsprov/build/llama_cpp"},
            "unit": {"type": "str", "default": "dsprov-llama-server.service"},
            "command": {"type": "list", "elements": "str", "required": True},
            "models": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "path": {"type": "path", "required": True},
                    "settings": {"type": "dict", "default": {}},
                },
            },
            "models_max": {"type": "int", "default": 2},
            "preset": {"type": "path", "default": "/etc/dsprov/llama-server-models.ini"},
            "environment": {"type": "dict", "default": {}},
            # A path, not a secret.
            "key_file": {"type": "path", "required": True, "no_log": False},
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
    except (RefusalError, ValueError) as error:
        module.fail_json(msg=f"llama_cpp: {error}")


if __name__ == "__main__":
    main()
