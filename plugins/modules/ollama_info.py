#!/usr/bin/python
# Copyright: The dsprov authors
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: everything the ollama role wants to know about a host, in one round trip."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ollama_info
short_description: Look at Ollama on a host, judge its settings, and prove that it works
version_added: 0.1.0
description:
  - Reads the unit, the running process, the drop-ins, the versions unpacked and the models on the disk.
  - Refuses settings that this version of Ollama does not know, and situations in which a change would do
    harm, before anything is changed.
  - With O(verify), asks the running server whether every setting took effect and lets the model answer once.
  - Changes nothing.
options:
  version:
    description: The version of Ollama that is wanted.
    type: str
    required: true
  arch:
    description: The machine that the archive was built for, as C(uname -m) says it.
    type: str
    default: x86_64
  environment:
    description: Settings for C(ollama serve). Empty values are left out.
    type: dict
    default: {}
  models:
    description: Models that are wanted, as in M(dsprov.appliance.ollama_model).
    type: list
    elements: dict
    default: []
  models_dir:
    description: Folder of the models; empty for the one in use, or O(new_models_dir) where none is.
    type: str
    default: ""
  new_models_dir:
    description: Folder of the models where none is in use.
    type: path
    default: /var/lib/dsprov/ollama/models
  home:
    description: Home of the service user where it has to be made.
    type: path
    default: /var/lib/dsprov/ollama/home
  prefix:
    description: Folder with one folder a version and the link C(current).
    type: path
    default: /opt/dsprov/ollama
  sources_dir:
    description: Folder in which the artifacts of models lie.
    type: path
    default: /var/lib/dsprov/models
  receipts_dir:
    description: Folder with our notes about models.
    type: path
    default: /var/lib/dsprov/ollama/models.d
  user:
    description: User that the service runs as.
    type: str
    default: ollama
  unit:
    description: Name of the unit.
    type: str
    default: ollama.service
  take_over:
    description: Whether settings of other drop-ins that would win over ours may be set aside.
    type: bool
    default: false
  wait:
    description: Seconds to wait until the server answers with the wanted version. V(0) does not ask.
    type: int
    default: 0
  verify:
    description: Whether to compare the running server with what is wanted.
    type: bool
    default: false
  prompt:
    description: What to say to each model when verifying; empty to ask nothing.
    type: str
    default: ""
  timeout:
    description: Seconds that an answer may take, the loading of the model included.
    type: int
    default: 1800
attributes:
  check_mode:
    description: Changes nothing in any mode.
    support: full
  diff_mode:
    description: There is nothing to show.
    support: none
author:
  - The dsprov authors
"""

EXAMPLES = r"""
- name: Look at Ollama
  dsprov.appliance.ollama_info:
    version: 0.32.7
    environment:
      OLLAMA_HOST: 127.0.0.1:11434
      OLLAMA_FLASH_ATTENTION: true
      OLLAMA_KV_CACHE_TYPE: q8_0
  register: look

- name: Prove that the model answers
  dsprov.appliance.ollama_info:
    version: 0.32.7
    environment: "{{ look.environment }}"
    models:
      - {name: smollm2:135m, tag: smollm2:135m}
    verify: true
    prompt: What is the capital of France?
"""

RETURN = r"""
environment:
  description: The settings as Ollama will read them, OLLAMA_MODELS included.
  returned: success
  type: dict
assignments:
  description: The settings as systemd reads them, quoted.
  returned: success
  type: list
  elements: str
models_dir:
  description: Folder of the models.
  returned: success
  type: str
home:
  description: Home of the service user.
  returned: success
  type: str
account:
  description: The service user as it should be, with the device groups that this host has.
  returned: success
  type: dict
unit:
  description: The unit as systemd knows it.
  returned: success
  type: dict
  contains:
    exists: {description: Whether there is one., type: bool}
    path: {description: Its file., type: str}
    ours: {description: Whether dsprov wrote it., type: bool}
    active: {description: Whether it runs., type: bool}
    enabled: {description: Whether it starts at boot., type: bool}
    pid: {description: Its main process., type: int}
process_digest:
  description: The digest of the unit and drop-in that the running process was started with.
  returned: success
  type: str
exe:
  description: The program that runs.
  returned: success
  type: str
nvidia:
  description: Whether the host has an NVIDIA device.
  returned: success
  type: bool
current:
  description: The version that the link C(current) leads to.
  returned: success
  type: str
versions:
  description: The versions that are unpacked.
  returned: success
  type: list
  elements: str
drop_in:
  description: Text of our drop-in as it is now; empty when there is none.
  returned: success
  type: str
overriding:
  description: Drop-ins of others that would win over ours, with what they set.
  returned: success
  type: list
  elements: dict
wanting:
  description: Names of models that have to be made.
  returned: success
  type: list
  elements: str
fetch:
  description: Files that have to be fetched first, as arguments for M(dsprov.appliance.artifact).
  returned: success
  type: list
  elements: dict
files:
  description: Paths of the files that those models are made from.
  returned: success
  type: list
  elements: str
running:
  description: What the server said when verifying.
  returned: when O(verify) or O(wait)
  type: dict
"""

import platform
import pwd
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.dsprov.appliance.plugins.module_utils import ollama as known
from ansible_collections.dsprov.appliance.plugins.module_utils.units import (
    Unit,
    environment_of,
    last_words,
    link_of,
    listener,
    read,
    words_of,
)

UNIT_FOLDER = Path("/etc/systemd/system")
PRIVATE_FOLDERS = ("/root", "/home/", "/run/user/")
DEVICE_GROUPS = ("video", "render")


class RefusalError(Exception):
    """Something stands in the way; the message says what, where and how to mend it."""


def has_nvidia() -> bool:
    """Whether a display device of NVIDIA is on the PCI bus."""
    for device in Path("/sys/bus/pci/devices").glob("*"):
        if read(device / "vendor").strip() == "0x10de" and read(device / "class").startswith("0x03"):
            return True
    return False


class Look:
    """One look at a host."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params = params
        self.version = str(params["version"])
        self.prefix = Path(params["prefix"])
        self.unit_name = str(params["unit"])
        self.drop_in = UNIT_FOLDER / f"{self.unit_name}.d" / "dsprov.conf"
        self.unit = Unit.read(self.unit_name)
        self.process = environment_of(self.unit.pid) if self.unit.pid else {}
        self.problems: list[str] = []
        self.account = self._account()
        self.home = self._home()
        self.models_dir = self._models_dir()
        wanted = {**params["environment"], "OLLAMA_MODELS": self.models_dir}
        self.environment, problems = known.check_environment(wanted, self.version)
        self.problems += problems
        self.url = known.base_url(self.environment.get("OLLAMA_HOST", "127.0.0.1:11434"))
        self.specs = self._specs()

    def _account(self) -> dict[str, Any]:
        name = str(self.params["user"])
        groups = [
            group
            for group in DEVICE_GROUPS
            if re.search(rf"^{group}:", read(Path("/etc/group")), re.MULTILINE)
        ]
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            shell = "/usr/sbin/nologin"
            return {"name": name, "home": str(self.params["home"]), "shell": shell, "groups": groups}
        return {"name": name, "home": entry.pw_dir, "shell": entry.pw_shell, "groups": groups}

    def _home(self) -> str:
        """The account's home, where a closed-in service can use it (Ollama keeps its key there)."""
        home = str(self.account["home"])
        usable = Path(home).is_dir() and not home.startswith(PRIVATE_FOLDERS)
        return home if usable else str(self.params["home"])

    def _models_dir(self) -> str:
        """The folder asked for, the one in use, or a new one. Nothing of the user's is hidden by a change."""
        asked = str(self.params["models_dir"])
        if asked:
            return asked
        ours = str(self.params["new_models_dir"])
        used = known.unit_environment(read(self.drop_in)).get("OLLAMA_MODELS")
        if used:
            return used
        settings: dict[str, str] = {}
        if self.unit.exists:
            for path in (self.unit.path, *self.unit.drop_ins):
                settings |= known.unit_environment(read(Path(path)))
        settings |= self.process
        owner = self.unit.user or ("root" if self.unit.exists else self.account["name"])
        try:
            home = settings.get("HOME") or pwd.getpwnam(owner).pw_dir
        except KeyError:
            home = ""
        before = settings.get("OLLAMA_MODELS") or (f"{home}/.ollama/models" if home else "")
        if not before or not Path(before, "manifests").is_dir():
            return ours
        if before.startswith(PRIVATE_FOLDERS):
            self.problems.append(
                f"{before}: models of the user {owner} lie in a home folder, which the service may not read; "
                "move them and say where with ollama_models_dir, or name an empty folder there"
            )
        return before

    def _specs(self) -> list[known.ModelSpec]:
        specs: list[known.ModelSpec] = []
        for raw in self.params["models"]:
            try:
                specs.append(known.ModelSpec.of(raw, str(self.params["sources_dir"])))
            except known.ModelError as error:
                self.problems.append(f"ollama_models: {error}")
        return specs

    def overriding(self) -> list[dict[str, Any]]:
        """Drop-ins read after ours that set the same things otherwise."""
        rows = []
        for path in self.unit.drop_ins:
            name = Path(path).name
            if path == str(self.drop_in) or name < self.drop_in.name:
                continue
            text = read(Path(path))
            settings = {
                key: value
                for key, value in known.unit_environment(text).items()
                if self.environment.get(key, value) != value or key == "OLLAMA_HOST"
            }
            settings = {k: v for k, v in settings.items() if self.environment.get(k) != v}
            for key in ("User", "Group", "ExecStart"):
                value = known.unit_value(text, key)
                if value:
                    settings[key] = value
            if settings:
                rows.append({"path": path, "settings": settings})
        return rows

    def refuse_harm(self, overriding: Sequence[Mapping[str, Any]]) -> None:
        """Name what stands in the way before anything is changed."""
        machine = platform.machine()
        if machine != self.params["arch"]:
            self.problems.append(
                f"the archive is for {self.params['arch']}, this host is {machine}; "
                "set ollama_arch with ollama_archive_sources and ollama_archive_sha256"
            )
        if overriding and not self.params["take_over"]:
            for row in overriding:
                said = ", ".join(f"{key}={value}" for key, value in row["settings"].items())
                self.problems.append(
                    f"{row['path']}: {said} would win over dsprov's drop-in; "
                    "take it out, or set ollama_take_over to true to have the file set aside"
                )
        port = known.split_host(self.environment.get("OLLAMA_HOST", ""))[1] or 11434
        pid, program = listener(port)
        if program and (pid == 0 or pid != self.unit.pid):
            who = f"{program} (process {pid})" if pid else "another process"
            self.problems.append(
                f"port {port} is taken by {who}; stop it, or choose another with ollama_host"
            )
        if self.problems:
            raise RefusalError("; ".join(self.problems))

    def versions(self) -> list[str]:
        """Versions that are unpacked."""
        try:
            names = [
                entry.name for entry in self.prefix.iterdir() if entry.is_dir() and not entry.is_symlink()
            ]
        except OSError:
            return []
        return sorted((name for name in names if re.match(r"\d", name)), key=known.version_key)

    def wanting(self) -> list[known.ModelSpec]:
        """Models that have to be made."""
        receipts = str(self.params["receipts_dir"])
        return [s for s in self.specs if not known.satisfied(s, self.models_dir, receipts)]

    def fetch(self, wanting: Sequence[known.ModelSpec]) -> list[dict[str, Any]]:
        """Artifacts of those models."""
        names = {spec.name for spec in wanting if not spec.absent}
        rows: list[dict[str, Any]] = []
        for raw in self.params["models"]:
            if known.full_name(str(raw.get("name"))) in names:
                rows += known.fetch_rows(raw.get("artifacts") or [], str(self.params["sources_dir"]))
        return rows

    # -- asking the running server ----------------------------------------------------------------------

    def wait(self, seconds: int) -> dict[str, Any]:
        """Wait until the server answers with the wanted version, or the unit keeps falling over."""
        api = known.OllamaApi(self.url, timeout=5)
        first = self.unit.restarts
        end = time.monotonic() + seconds
        said = "it did not answer"
        while time.monotonic() < end:
            try:
                version = api.version()
            except known.ApiError as error:
                said = str(error)
            else:
                if version == self.version:
                    return {"version": version}
                said = f"it answers with version {version}, not {self.version}"
            unit = Unit.read(self.unit_name)
            if unit.failed or unit.restarts >= first + 3:
                said = "the service starts and falls over again"
                break
            time.sleep(0.25)
        raise RefusalError(
            f"{self.unit_name} is not healthy: {said}; its last words: {last_words(self.unit_name)}"
        )

    def verify(self) -> dict[str, Any]:
        """Compare the running server with what is wanted."""
        if not self.unit.active or not self.unit.pid:
            raise RefusalError(f"{self.unit_name} does not run; its last words: {last_words(self.unit_name)}")
        faults = [
            f"{key} is {self.process.get(key, 'not set')!r}, not {value!r}"
            for key, value in self.environment.items()
            if self.process.get(key) != value
        ]
        if faults:
            raise RefusalError(
                f"{self.unit_name} runs without settings of its drop-in: {', '.join(faults)}; restart it"
            )
        api = known.OllamaApi(self.url)
        version = api.version()
        if version != self.version:
            raise RefusalError(
                f"{self.url} answers with version {version}, not {self.version}; restart {self.unit_name}"
            )
        served = api.tags()
        rows = []
        for spec in self.specs:
            if spec.absent:
                continue
            if spec.name not in served:
                raise RefusalError(
                    f"{spec.name} is not among the models of {self.url}; run the install again"
                )
            if self.params["prompt"]:
                rows.append(self._one_answer(api, spec))
        return {"version": version, "models": served, "answers": rows}

    def _one_answer(self, api: known.OllamaApi, spec: known.ModelSpec) -> dict[str, Any]:
        timeout = float(self.params["timeout"])
        body = {
            "model": spec.name,
            "messages": [{"role": "user", "content": self.params["prompt"]}],
            "max_tokens": 8,
            "temperature": 0,
            "seed": 1,
        }
        started = time.monotonic()
        answer = api.need("POST", "/v1/chat/completions", body, timeout)
        seconds = time.monotonic() - started
        message = ((answer.get("choices") or [{}])[0].get("message")) or {}
        text = str(message.get("content") or message.get("reasoning") or "").strip()
        if not text:
            raise RefusalError(f"{spec.name} answered with nothing; {last_words(self.unit_name)}")
        loaded = self._loaded(api, spec)
        runner = self._runner(spec, loaded)
        return {"model": spec.name, "answer": text, "seconds": round(seconds, 2), **loaded, **runner}

    def _loaded(self, api: known.OllamaApi, spec: known.ModelSpec) -> dict[str, Any]:
        rows = [row for row in api.need("GET", "/api/ps").get("models") or [] if row.get("name") == spec.name]
        if not rows:
            return {}
        length = int(rows[0].get("context_length") or 0)
        wanted = int(
            dict(spec.parameters).get("num_ctx") or self.environment.get("OLLAMA_CONTEXT_LENGTH") or 0
        )
        if wanted and length != wanted:
            details = api.need("POST", "/api/show", {"model": spec.name}).get("model_info") or {}
            limit = next((int(v) for k, v in details.items() if k.endswith(".context_length")), 0)
            if not (limit and wanted > limit and length == limit):
                raise RefusalError(
                    f"{spec.name} has a context of {length}, not {wanted}; restart {self.unit_name}"
                )
        return {"context_length": length, "size": rows[0].get("size"), "size_vram": rows[0].get("size_vram")}

    def _runner(self, spec: known.ModelSpec, loaded: Mapping[str, Any]) -> dict[str, Any]:
        """What the process that holds the model was told about attention and cache (since 0.30)."""
        if not loaded:
            return {}
        manifest = known.read_json(known.manifest_path(self.models_dir, spec.name))
        blobs = {
            f"sha256-{str(layer.get('digest')).removeprefix('sha256:')}"
            for layer in manifest.get("layers") or []
        }
        for process in Path("/proc").glob("[0-9]*"):
            words = words_of(process / "cmdline")
            if (
                not words
                or Path(words[0]).name != "llama-server"
                or not any(Path(word).name in blobs for word in words)
            ):
                continue
            told = {words[i]: words[i + 1] for i in range(len(words) - 1) if words[i].startswith("-")}
            flash, cache = told.get("--flash-attn", ""), told.get("--cache-type-k", "")
            self._compare_runner(spec.name, flash, cache)
            return {"flash_attention": flash, "kv_cache_type": cache, "pid": int(process.name)}
        return {}

    def _compare_runner(self, name: str, flash: str, cache: str) -> None:
        wanted = self.environment.get("OLLAMA_FLASH_ATTENTION")
        if wanted is not None and flash != ("on" if wanted in known.TRUE_WORDS else "off"):
            raise RefusalError(
                f"{name} runs with flash attention {flash or 'unset'}, though OLLAMA_FLASH_ATTENTION={wanted}"
            )
        kv = self.environment.get("OLLAMA_KV_CACHE_TYPE", "").lower()
        if kv and cache != kv:
            raise RefusalError(f"{name} runs with a KV cache of type {cache or 'f16'}, not {kv}")


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "version": {"type": "str", "required": True},
            "arch": {"type": "str", "default": "x86_64"},
            "environment": {"type": "dict", "default": {}},
            "models": {"type": "list", "elements": "dict", "default": []},
            "models_dir": {"type": "str", "default": ""},
            "home": {"type": "path", "default": "/var/lib/dsprov/ollama/home"},
            "new_models_dir": {"type": "path", "default": "/var/lib/dsprov/ollama/models"},
            "prefix": {"type": "path", "default": "/opt/dsprov/ollama"},
            "sources_dir": {"type": "path", "default": "/var/lib/dsprov/models"},
            "receipts_dir": {"type": "path", "default": "/var/lib/dsprov/ollama/models.d"},
            "user": {"type": "str", "default": "ollama"},
            "unit": {"type": "str", "default": "ollama.service"},
            "take_over": {"type": "bool", "default": False},
            "wait": {"type": "int", "default": 0},
            "verify": {"type": "bool", "default": False},
            "prompt": {"type": "str", "default": ""},
            "timeout": {"type": "int", "default": 1800},
        },
        supports_check_mode=True,
    )
    try:
        look = Look(module.params)
        overriding = look.overriding()
        running: dict[str, Any] = {}
        if module.params["wait"]:
            running |= look.wait(module.params["wait"])
        if module.params["verify"]:
            running |= look.verify()
        if not running:
            look.refuse_harm(overriding)
        wanting = look.wanting()
        module.exit_json(
            changed=False,
            environment=look.environment,
            assignments=[known.unit_quote(f"{key}={value}") for key, value in look.environment.items()],
            models_dir=look.models_dir,
            home=look.home,
            account=look.account,
            unit=look.unit.row(),
            process_digest=look.process.get("DSPROV_DIGEST", ""),
            exe=link_of(Path(f"/proc/{look.unit.pid}/exe")) if look.unit.pid else "",
            nvidia=has_nvidia(),
            current=Path(link_of(look.prefix / "current")).name,
            versions=look.versions(),
            drop_in=read(look.drop_in),
            overriding=overriding,
            wanting=[spec.name for spec in wanting],
            fetch=look.fetch(wanting),
            files=[path for spec in wanting if not spec.absent for path in spec.files],
            running=running,
        )
    except (RefusalError, known.ApiError, known.ModelError) as error:
        module.fail_json(msg=f"ollama: {error}")


if __name__ == "__main__":
    main()
