"""Where things are: the collection beside this package, and the user's own folders."""

from __future__ import annotations

import errno
import os
import stat
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


def cache_dir() -> Path:
    """Folder for what can be fetched again: XDG_CACHE_HOME, ~/.cache, or beside the state."""
    base = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("HOME", "") and f"{os.environ['HOME']}/.cache")
    return Path(base) / "dsprov" if base else state_dir() / "cache"


def runtime_dir() -> Path:
    """Folder for what lives as long as a run, in memory where the system has such a place."""
    shm = Path("/dev/shm")  # noqa: S108 - only a unique, private folder is made in it
    return shm if shm.is_dir() and os.access(shm, os.W_OK) else Path(tempfile.gettempdir())


def socket_dir() -> Path:
    """A private folder for sockets, whose paths may not be long; the same one each time.

    Raises:
        PermissionError: somebody else made it.
    """
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    folder = Path(base) / f"dsprov-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o077:
        raise PermissionError(errno.EPERM, "is not a folder of this user alone", str(folder))
    return folder
