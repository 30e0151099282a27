# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""A host as modules look at it: files and commands that may be missing."""

from __future__ import annotations

import os
import shutil
import subprocess


def read(path: str) -> str:
    """A file's text; nothing where it is missing or cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def run(*command: str, timeout: float = 60) -> str:
    """What a command prints, in English; nothing where it is missing or fails.

    Raises:
        subprocess.TimeoutExpired: it took more than `timeout` seconds.
    """
    if not shutil.which(command[0]):
        return ""
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, check=False, env=environment
    )
    return done.stdout if done.returncode == 0 else ""
