"""One dsprov at a time on an inventory. The kernel drops the lock with its owner, so none goes stale."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import problems
from dsprov.paths import state_dir


def _owner(text: str) -> dict[str, Any]:
    """What the holder wrote of itself; it may be writing right now."""
    try:
        owner: dict[str, Any] = json.loads(text)
    except ValueError:
        return {}
    return owner


@contextmanager
def inventory_lock(inventories: Sequence[str]) -> Iterator[None]:
    """Holds the lock of an inventory.

    Raises:
        ProblemError: locked, with the owner's pid and since when.
    """
    folder = state_dir() / "locks"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    # The user's own inventory, not the tier's, says which machines are meant.
    name = hashlib.sha256(inventories[-1].encode()).hexdigest()[:16]
    with (folder / f"{name}.lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            owner = _owner(file.read())
            raise problems().error(
                "locked", pid=owner.get("pid", "?"), since=owner.get("since", "?")
            ) from error
        file.seek(0)
        file.truncate()
        json.dump({"pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}, file)
        file.flush()
        yield
