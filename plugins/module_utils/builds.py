# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""What a build from source depends on, whether it is whole, how far it is, and what went wrong in it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.dsprov.appliance.plugins.module_utils import files

# Written into a finished build's folder: what it was made of, and its files.
STAMP = ".dsprov-build.json"
_STEP = re.compile(r"^\[(\d+)/(\d+)\]", re.MULTILINE)
# Causes first that make compilers say misleading things afterwards.
_FULL = re.compile(r"No space left on device")
_KILLED = re.compile(r"(fatal error: Killed signal terminated program|signal 9|\bKilled$)", re.MULTILINE)
_ERRORS = (
    re.compile(r"^\S[^\n]*:\d+(?::\d+)?: (?:fatal )?error: [^\n]+", re.MULTILINE),
    re.compile(r"^[^\n]*\(\d+\): (?:catastrophic )?error[^\n]*: [^\n]+", re.MULTILINE),
    re.compile(r"^nvcc (?:fatal|error)\s*: [^\n]+", re.MULTILINE),
    re.compile(r"^ptxas (?:fatal|error)\s*: [^\n]+", re.MULTILINE),
    re.compile(r"^[^\n]*(?:undefined reference to|cannot find -l)[^\n]+", re.MULTILINE),
    re.compile(r"^CMake Error[^\n]*\n+(?:\s*\n)*[^\n]+", re.MULTILINE),
    re.compile(r"^ninja: error: [^\n]+", re.MULTILINE),
)
# Instructions that code is chosen by; the kernel's other flags come and go with its updates.
_ISA = re.compile(r"(avx|amx|sse4|ssse3|fma|f16c|bmi|gfni|vaes|vpclmul|movdir)\w*")
LONGEST = 400


def digest_of(inputs: Mapping[str, Any]) -> str:
    """Sixteen hex digits that stand for everything a build is made of."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def folder_of(prefix: str, version: str, digest: str) -> str:
    """Where a build with this digest lies, below its prefix."""
    return f"{prefix}/{version}-{digest[:8]}"


def whole(path: str, digest: str) -> bool:
    """Whether a finished build with this digest lies at `path`, with every file as it was."""
    stamp = files.load_json(os.path.join(path, STAMP))
    if stamp.get("digest") != digest:
        return False
    there = files.list_tree(path, STAMP)
    return all(there.get(name) == entry for name, entry in stamp.get("files", {}).items())


def isa(cpuinfo: str) -> str:
    """Instructions of a CPU that code is made for, sorted, from the text of /proc/cpuinfo."""
    found = re.search(r"^flags\s*: (.*)$", cpuinfo, re.MULTILINE)
    return " ".join(sorted(flag for flag in (found[1].split() if found else []) if _ISA.fullmatch(flag)))


def progress(log: str) -> tuple[int, int] | None:
    """Steps done and steps in all, from Ninja's words; None before the first one."""
    steps = _STEP.findall(log)
    return (int(steps[-1][0]), int(steps[-1][1])) if steps else None


def remaining_seconds(steps: Sequence[tuple[float, int]], total: int) -> float | None:
    """Seconds until `total` steps are done, from (time, steps done) seen so far; None while it is too early.

    Steps differ much in length, so this is what a person would guess and no more.
    """
    if len(steps) < 2 or steps[-1][1] <= steps[0][1]:
        return None
    (begun, first), (now, last) = steps[0], steps[-1]
    return (now - begun) / (last - first) * (total - last)


def first_error(log: str) -> tuple[str, str]:
    """The kind of a failure ("disk", "memory" or "compiler") and its first words on one line.

    Args:
        log: the output of CMake and Ninja.
    """
    for kind, pattern in (("disk", _FULL), ("memory", _KILLED)):
        found = pattern.search(log)
        if found:
            line = log[log.rfind("\n", 0, found.start()) + 1 :].splitlines()[0]
            return kind, _one_line(line)
    hits = [found for found in (pattern.search(log) for pattern in _ERRORS) if found]
    if hits:
        return "compiler", _one_line(min(hits, key=lambda hit: hit.start())[0])
    words = [line for line in log.splitlines() if line.strip()]
    return "compiler", _one_line(words[-1] if words else "it said nothing")


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else line[: LONGEST - 3] + "..."
