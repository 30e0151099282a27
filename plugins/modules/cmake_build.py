#!/usr/bin/python
# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Ansible module: programs from source, built on the host in its own time."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cmake_build
short_description: Build programs from source with CMake and Ninja, and put them in place as a whole
version_added: 0.1.0
description:
  - Builds in a process of its own on the host, so that a broken connection costs nothing. A call returns
    after O(wait) seconds at the latest and says how far the build is; call it with C(until) RV(finished).
  - The process ends itself when nobody has asked for it for O(patience) seconds. Whatever ended it, the next
    call goes on from what is compiled.
  - The finished programs appear at once, in a folder of their own, with a stamp of what they were made from.
    A folder that is there and whole is left alone.
options:
  name:
    description: What is built, in messages.
    type: str
    required: true
  source:
    description: Folder of the sources, with their C(CMakeLists.txt).
    type: path
    required: true
  build:
    description: Folder to build in. It is removed when the programs are in place.
    type: path
    required: true
  dest:
    description: Folder that the programs become, as C(bin) below it.
    type: path
    required: true
  digest:
    description: Digest of everything the programs depend on.
    type: str
    required: true
  inputs:
    description: What the digest was made from, kept beside the programs for people.
    type: dict
    default: {}
  options:
    description: CMake's cache entries.
    type: dict
    default: {}
  targets:
    description: Programs to build; each has to come out as C(bin/NAME) of the build folder.
    type: list
    elements: str
    required: true
  jobs:
    description: Compilers at once. V(0) takes as many as there are processors and memory (2 GiB each) for.
    type: int
    default: 0
  niceness:
    description: How much the build stands back behind what the host serves meanwhile.
    type: int
    default: 10
  ccache:
    description: Folder of the compiler cache; empty for none.
    type: path
  ccache_size:
    description: How large it may become.
    type: str
    default: 5G
  extra_hash:
    description:
      - Text that is part of every key in the compiler cache, such as the flags of the CPU.
    type: str
    default: ''
  library_path:
    description: Folder of libraries that the programs are tried with, where the host has none yet.
    type: path
  try_with:
    description: Arguments with which the first of O(targets) has to end well before anything is put in place.
    type: list
    elements: str
    default: [--version]
  needs_bytes:
    description: Room that the build takes in O(build); checked first.
    type: int
    default: 0
  wait:
    description: Seconds after which a call returns, with RV(finished) false, when there is more to do.
    type: int
    default: 10
  patience:
    description: Seconds without a call after which the build ends itself.
    type: int
    default: 120
attributes:
  check_mode:
    description: Says whether something would be built.
    support: full
  diff_mode:
    description: Shows nothing.
    support: none
author:
  - The dsprov authors
"""

EXAMPLES = r"""
- name: Ensure llama.cpp is built
  dsprov.appliance.cmake_build:
    name: llama.cpp b11434
    source: /var/lib/dsprov/build/llama_cpp/src/b11434
    build: /var/lib/dsprov/build/llama_cpp/b11434-0123abcd
    dest: /opt/dsprov/llama_cpp/b11434-0123abcd
    digest: 0123abcd4567ef89
    options: {GGML_NATIVE: "ON"}
    targets: [llama-server]
  register: __build
  until: __build.finished
  retries: 4000
  delay: 0
"""

RETURN = r"""
finished:
  description: Whether there is nothing more to do.
  returned: always
  type: bool
progress:
  description: How far it is, in words for people.
  returned: always
  type: str
  sample: 41 of 228 steps, about 6 min left
path:
  description: The folder of the programs.
  returned: always
  type: str
log:
  description: File with all that CMake and the compilers said.
  returned: always
  type: str
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.dsprov.appliance.plugins.module_utils import builds, files

GIB = 1 << 30
PAUSE = 0.25
# Held while a build runs, so that on a disk that it has filled there is room to say so.
ROOM = 1 << 20


def spare_jobs() -> int:
    """Compilers that processors and free memory suffice for."""
    processors = len(os.sched_getaffinity(0))
    with open("/proc/meminfo", encoding="ascii") as file:
        rows = dict(line.split(":", 1) for line in file)
    return max(1, min(processors, int(rows["MemAvailable"].split()[0]) * 1024 // (2 * GIB)))


class BuildError(Exception):
    """A step failed; the log says why."""


class Build:
    """One build: what is asked of it, and its folder on the host."""

    def __init__(self, params: dict[str, Any]) -> None:
        self.params = params
        self.folder: str = params["build"]
        self.dest: str = params["dest"]
        self.log = os.path.join(self.folder, "build.log")
        self.asked = os.path.join(self.folder, "asked")
        self.outcome = os.path.join(self.folder, "outcome.json")
        self.history = os.path.join(self.folder, "history.json")
        self.room = os.path.join(self.folder, "room")
        self.lock = -1

    # Asked from outside

    @contextlib.contextmanager
    def claim(self) -> Iterator[int | None]:
        """The lock that a running build holds, or None while one runs."""
        with open(os.path.join(self.folder, "lock"), "a", encoding="ascii") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
            else:
                yield handle.fileno()

    def step(self) -> dict[str, Any]:
        """Start the build unless it runs, and watch it for a while."""
        files.make_parents(os.path.join(self.folder, "x"))
        self._touch()
        while True:
            with self.claim() as lock:
                if lock is not None:
                    files.need_space(
                        self.folder, self.params["needs_bytes"], f"building {self.params['name']}"
                    )
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(self.outcome)
                    self._hold_room()
                    self._start(lock)
                    break
                if not os.path.exists(self.outcome):
                    break
            # One that has said how it ended is about to go: what it said was of before this call.
            time.sleep(PAUSE)
        end = time.monotonic() + self.params["wait"]
        while True:
            outcome = files.load_json(self.outcome)
            if outcome or time.monotonic() >= end:
                break
            with self.claim() as lock:
                if lock is not None and not files.load_json(self.outcome):
                    break  # It was killed: the next call goes on.
            time.sleep(PAUSE)
        if outcome.get("error"):
            raise files.FileError(outcome["error"])
        return {"finished": bool(outcome), "progress": "" if outcome else self.progress()}

    def _hold_room(self) -> None:
        try:
            with open(self.room, "ab") as file:
                os.posix_fallocate(file.fileno(), 0, ROOM)
        except OSError as error:
            raise files.FileError(self._full(str(error.strerror))) from None

    def _full(self, words: str) -> str:
        return (
            f"{self.params['name']}: the disk of {self.folder} is full ({words}); free some room there, then "
            "run the same command again: what is compiled is kept"
        )

    def _touch(self) -> None:
        with open(self.asked, "w", encoding="ascii"):
            os.utime(self.asked)

    def progress(self) -> str:
        """How far it is, for people."""
        try:
            with open(self.log, encoding="utf-8", errors="replace") as file:
                done = builds.progress(file.read())
        except OSError:
            done = None
        if done is None:
            return "configuring"
        seen = files.load_json(self.history).get("steps", [])
        seen.append([time.time(), done[0]])
        # A guess at the time is not worth the build.
        with contextlib.suppress(OSError):
            files.dump_json(self.history, {"steps": seen})
        left = builds.remaining_seconds([(one[0], one[1]) for one in seen], done[1])
        guess = "" if left is None or len(seen) < 3 else f", about {max(1, round(left / 60))} min left"
        return f"{done[0]} of {done[1]} steps{guess}"

    def _start(self, lock: int) -> None:
        """Build in a process that no session and no terminal holds."""
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child:
            os.waitpid(child, 0)
            return
        os.setsid()
        if os.fork():
            os._exit(0)
        try:
            nothing = os.open(os.devnull, os.O_RDWR)
            for number in (0, 1, 2):
                os.dup2(nothing, number)
            # Nothing of the caller's stays open but the lock: it waits until its pipes are closed.
            os.closerange(3, lock)
            os.closerange(lock + 1, 1 << 16)
            os.nice(self.params["niceness"])
            self.lock = lock
            self._work()
        finally:
            os._exit(0)

    # In the process that builds

    def _work(self) -> None:
        outcome: dict[str, Any] = {"error": ""}
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.history)
            self._make()
            self._put_in_place()
        except BuildError:
            outcome["error"] = self._reason()
        except (files.FileError, OSError) as error:
            full = isinstance(error, OSError) and error.errno == errno.ENOSPC
            outcome["error"] = self._full(str(error)) if full else f"{self.params['name']}: {error}"
        except SystemExit:
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.room)
        files.dump_json(self.outcome, outcome)

    def _reason(self) -> str:
        with open(self.log, encoding="utf-8", errors="replace") as file:
            kind, words = builds.first_error(file.read())
        name = self.params["name"]
        there = os.statvfs(self.folder)
        # The log is on the same disk, so it may lack the very words.
        if kind == "disk" or there.f_bavail * there.f_frsize < ROOM:
            return self._full(words if kind == "disk" else os.strerror(errno.ENOSPC))
        if kind == "memory":
            return (
                f"{name}: the host ran out of memory while it compiled ({words}); set fewer compilers at "
                "once, then run the same command again: what is compiled is kept"
            )
        return f"{name}: the build failed: {words}; all that was said: {self.log}"

    def _run(self, command: list[str], environment: dict[str, str] | None = None) -> None:
        """One step, its words into the log; ends with the build when nobody asks any more."""
        with open(self.log, "ab") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env={**os.environ, **self._environment(), **(environment or {})},
                start_new_session=True,
                # Should this process be killed, compilers that go on still hold the lock.
                pass_fds=(self.lock,),
            )
        while True:
            try:
                code = process.wait(timeout=1)
                break
            except subprocess.TimeoutExpired:
                if time.time() - os.stat(self.asked).st_mtime > self.params["patience"]:
                    os.killpg(process.pid, signal.SIGTERM)
                    process.wait()
                    raise SystemExit from None
        if code:
            raise BuildError

    def _environment(self) -> dict[str, str]:
        settings = {"LC_ALL": "C", "HOME": self.folder, "NINJA_STATUS": "[%f/%t] "}
        if self.params["ccache"]:
            hashed = os.path.join(self.folder, "hashed")
            files.atomic_write(hashed, self.params["extra_hash"].encode(), 0o644)
            settings |= {
                "CCACHE_DIR": self.params["ccache"],
                "CCACHE_MAXSIZE": self.params["ccache_size"],
                # Other folders and a compiler of the same bytes find what was compiled before.
                "CCACHE_BASEDIR": os.path.dirname(self.folder),
                "CCACHE_NOHASHDIR": "1",
                "CCACHE_COMPILERCHECK": "content",
                "CCACHE_EXTRAFILES": hashed,
            }
        return settings

    def _make(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.log)
        entries = [f"-D{key}={value}" for key, value in sorted(self.params["options"].items())]
        self._run(["cmake", "-S", self.params["source"], "-B", self.folder, "-G", "Ninja", *entries])
        jobs = self.params["jobs"] or spare_jobs()
        self._run(
            ["cmake", "--build", self.folder, "--parallel", str(jobs), "--target", *self.params["targets"]]
        )

    def _put_in_place(self) -> None:
        """Copy programs and libraries, try them, and give them their name in one step."""
        folder, base = os.path.split(self.dest)
        new = os.path.join(folder, f".{base}.dsprov-new")
        shutil.rmtree(new, ignore_errors=True)
        target = os.path.join(new, "bin")
        files.make_parents(os.path.join(target, "x"))
        made = os.path.join(self.folder, "bin")
        names = [name for name in os.listdir(made) if name in self.params["targets"] or ".so" in name]
        size = sum(os.lstat(os.path.join(made, name)).st_size for name in names)
        files.need_space(new, size, f"{self.params['name']}, built,")
        for name in names:
            shutil.copy2(os.path.join(made, name), os.path.join(target, name), follow_symlinks=False)
        programs = [os.path.join(target, n) for n in names if not os.path.islink(os.path.join(made, n))]
        self._run(["strip", "--strip-unneeded", *programs])
        library = self.params["library_path"]
        self._run(
            [os.path.join(target, self.params["targets"][0]), *self.params["try_with"]],
            {"LD_LIBRARY_PATH": library} if library else {},
        )
        for path, _folders, found in os.walk(new):
            for name in found:
                if not os.path.islink(os.path.join(path, name)):
                    os.chmod(os.path.join(path, name), 0o755)  # noqa: S103 - every account runs them
        stamp = {
            "digest": self.params["digest"],
            "name": self.params["name"],
            "inputs": self.params["inputs"],
            "files": files.list_tree(new, builds.STAMP),
        }
        files.dump_json(os.path.join(new, builds.STAMP), stamp)
        files.sync_tree(new)
        files.replace_tree(new, self.dest)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "source": {"type": "path", "required": True},
            "build": {"type": "path", "required": True},
            "dest": {"type": "path", "required": True},
            "digest": {"type": "str", "required": True},
            "inputs": {"type": "dict", "default": {}},
            "options": {"type": "dict", "default": {}},
            "targets": {"type": "list", "elements": "str", "required": True},
            "jobs": {"type": "int", "default": 0},
            "niceness": {"type": "int", "default": 10},
            "ccache": {"type": "path"},
            "ccache_size": {"type": "str", "default": "5G"},
            "extra_hash": {"type": "str", "default": ""},
            "library_path": {"type": "path"},
            "try_with": {"type": "list", "elements": "str", "default": ["--version"]},
            "needs_bytes": {"type": "int", "default": 0},
            "wait": {"type": "int", "default": 10},
            "patience": {"type": "int", "default": 120},
        },
        supports_check_mode=True,
    )
    build = Build(module.params)
    result: dict[str, Any] = {"path": build.dest, "log": build.log, "progress": "", "finished": True}
    if builds.whole(build.dest, module.params["digest"]):
        # It may have been finished while nobody looked: since the last call, or after a run that was cut off.
        made = os.path.exists(build.outcome)
        if not module.check_mode:
            shutil.rmtree(build.folder, ignore_errors=True)
        module.exit_json(changed=made, **result)
    if module.check_mode:
        module.exit_json(changed=True, **result)
    try:
        result |= build.step()
    except (files.FileError, OSError, json.JSONDecodeError) as error:
        module.fail_json(msg=str(error), **result)
    if result["finished"]:
        shutil.rmtree(build.folder, ignore_errors=True)
    module.exit_json(changed=True, **result)


if __name__ == "__main__":
    main()
