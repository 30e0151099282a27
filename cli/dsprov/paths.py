"""Where things are: the collection beside this package, and the user's own folders."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

# Wheel and editable install both put `ansible_collections` beside `dsprov`.
COLLECTION = Path(__file__).resolve().parent.parent / "ansible_collections" / "dsprov" / "appliance"


def state_dir() -> Path:
    """Folder for logs and locks: XDG_STATE_HOME, ~/.local/state, or one of ours among the temporary files."""
    base = os.environ.get("XDG_STATE_HOME")
    if not base:
        home = os.environ.get("HOME")
        base = f"{home}/.local/state" if home else f"{tempfile.gettempdir()}/dsprov-{os.getuid()}"
    return Path(base) / "dsprov"


def runtime_dir() -> Path:
    """Folder for what lives as long as a run, in memory where the system has such a place."""
    shm = Path("/dev/shm")  # noqa: S108 - only a unique, private folder is made in it
    return shm if shm.is_dir() and os.access(shm, os.W_OK) else Path(tempfile.gettempdir())
