# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Services of a host as systemd and the kernel see them: units, their processes, who holds a port."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MARK = "# Kept by dsprov"
# An error as Python prints it, also behind what a logger puts before each line.
_ERROR = re.compile(r"(?m)(?:^|[ \]])((?:[A-Za-z_]+\.)*[A-Z]\w*(?:Error|Exception)): (.+)$")
# An error as programs in C++ print it: by the word, or by the letter that llama.cpp gives its lines.
_PLAIN = re.compile(r"(?m)^(?:\d[\d.]+ E )(.{4,})$|^(error\b.{4,})$")
# What the processes around the failed one say of it.
_SEQUEL = re.compile(r"(?i)(initialization failed|root cause|engine core|died unexpectedly)")
# How systemd notes it; without cgroup v2 it sees no more than the signal.
_OOM = re.compile(r"(Failed with result 'oom-kill'|killed by the OOM killer)")
_SIGKILL = "code=killed, status=9/KILL"
# The word of a group's watch (roles/vllm/files/vllm_watch.py): nobody else sends it.
_ALARM = "code=killed, status=14/ALRM"
_EXIT = "Main process exited"
_SMALLER = "take a smaller model or context, or give it more memory"
OUT_OF_MEMORY = f"out of memory: the kernel ended it; {_SMALLER}"
KILLED = f"ended by SIGKILL, as the kernel does out of memory; {_SMALLER}"
LOST = "a host of its group was lost: journalctl -u dsprov-vllm-watch says which"
_PROPERTIES = "LoadState,FragmentPath,DropInPaths,ActiveState,UnitFileState,MainPID,User,NRestarts"


@dataclass
class Unit:
    """What systemd says about a service."""

    exists: bool = False
    path: str = ""
    ours: bool = False
    active: bool = False
    enabled: bool = False
    failed: bool = False
    pid: int = 0
    user: str = ""
    restarts: int = 0
    drop_ins: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, name: str) -> Unit:
        """Ask systemd; a host without it counts as one without the unit."""
        text = run(["systemctl", "show", name, "--property", _PROPERTIES])
        row = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        path = row.get("FragmentPath", "")
        return cls(
            exists=row.get("LoadState") == "loaded" and bool(path),
            path=path,
            ours=bool(path) and read(Path(path)).startswith(MARK),
            active=row.get("ActiveState") == "active",
            enabled=row.get("UnitFileState") == "enabled",
            failed=row.get("ActiveState") == "failed",
            pid=int(row.get("MainPID") or 0),
            user=row.get("User", ""),
            restarts=int(row.get("NRestarts") or 0),
            drop_ins=row.get("DropInPaths", "").split(),
        )

    def row(self) -> dict[str, Any]:
        """As a module returns it."""
        keys = ("exists", "path", "ours", "active", "enabled", "pid", "drop_ins")
        return {key: getattr(self, key) for key in keys}


def run(command: Sequence[str]) -> str:
    """Standard output of a command, empty when it cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def read(path: Path) -> str:
    """Text of a file, empty when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def words_of(path: Path) -> list[str]:
    """The words of a file in /proc that are separated by zero bytes."""
    return [word for word in read(path).split("\0") if word]


def environment_of(pid: int) -> dict[str, str]:
    """The environment that a process was started with."""
    return dict(word.split("=", 1) for word in words_of(Path(f"/proc/{pid}/environ")) if "=" in word)


def link_of(path: Path) -> str:
    """Where a link leads, empty when it is none."""
    try:
        return str(path.readlink())
    except OSError:
        return ""


def last_words(unit: str, lines: int = 4) -> str:
    """The end of a service's log on one line."""
    text = run(["journalctl", f"_SYSTEMD_UNIT={unit}", f"--lines={lines}", "--output=cat", "--no-pager"])
    return " | ".join(line.strip()[:300] for line in text.splitlines() if line.strip()) or "none"


def cause(unit: str) -> str:
    """Why a service fell over, by its log: the first error that names itself, else its last words."""
    text = run(["journalctl", f"--unit={unit}", "--lines=3000", "--output=cat", "--no-pager"])
    named = named_error(text, f"Started {unit}") or f"its last words: {last_words(unit)}"
    limit = run(["systemctl", "show", unit, "--property=MemoryMax", "--value"]).strip()
    if named in (OUT_OF_MEMORY, KILLED) and limit.isdigit():
        return f"{named}; its unit bounds it to {limit} bytes (MemoryMax)"
    return named


def named_error(log: str, start: str) -> str:
    """What brought a program down, by the last start that says so; empty where none does.

    A Python program's error, else the kernel's hand, else the first error of a program in C++.

    Args:
        log: what it and systemd said, over several starts.
        start: how the line begins that systemd writes at each of them.
    """
    for run_of_it in reversed(log.split(start)):
        for name, words in _ERROR.findall(run_of_it):
            if not _SEQUEL.search(words):
                return f"{name}: {words.strip()[:300]}"
        if _OOM.search(run_of_it):
            return OUT_OF_MEMORY
        if _SIGKILL in run_of_it:
            return KILLED
        if _ALARM in run_of_it:
            return LOST
        if _EXIT in run_of_it:
            plain = _PLAIN.search(run_of_it)
            return (plain[1] or plain[2]).strip()[:300] if plain else ""
    return ""


def listener(port: int) -> tuple[int, str]:
    """Process and program that listen on a TCP port; (0, '') when nobody does, (0, '?') when unknown."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in read(Path(table)).splitlines()[1:]:
            part = line.split()
            if len(part) > 9 and part[3] == "0A" and int(part[1].rsplit(":", 1)[1], 16) == port:
                inodes.add(f"socket:[{part[9]}]")
    if not inodes:
        return 0, ""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            for handle in (process / "fd").iterdir():
                if link_of(handle) in inodes:
                    return int(process.name), read(process / "comm").strip()
        except OSError:
            continue
    return 0, "?"


def exec_line(words: Sequence[str]) -> str:
    """A command as systemd's Exec lines read it, every word taken literally."""
    return " ".join(_exec_word(word) for word in words)


def _exec_word(word: str) -> str:
    text = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return text if re.fullmatch(r"[A-Za-z0-9_.:/=,@%+-]+", text) else f'"{text}"'
