# Copyright: the dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Files on a host: atomic writes, receipts, backups and locks, with the standard library alone.

A *receipt* is what one verified look at a file leaves behind: size, mtime in ns, inode and sha256.
While the first three still hold, nobody reads the bytes again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

DATA_ROOT = "/var/lib/dsprov"
CHUNK = 1 << 20


class FileError(Exception):
    """A file could not be brought into the wanted state; the text is one line for people."""


def data_path(*parts: str) -> str:
    """Return a path in dsprov's data folder on this host."""
    return os.path.join(DATA_ROOT, *parts)


def fsync_directory(path: str) -> None:
    """Make a rename inside the folder `path` survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_parents(path: str, mode: int = 0o755) -> list[str]:
    """Create the missing parents of `path` with `mode`, whatever the umask; return them, outermost first."""
    missing: list[str] = []
    parent = os.path.dirname(os.path.abspath(path))
    while not os.path.isdir(parent):
        missing.append(parent)
        parent = os.path.dirname(parent)
    missing.reverse()
    for folder in missing:
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)
        os.chmod(folder, mode)
    return missing


def atomic_write(path: str, data: bytes, mode: int, uid: int = -1, gid: int = -1) -> None:
    """Write `data` so that a reader, or a power loss, meets the old file or the new one, never a torn one."""
    make_parents(path)
    folder = os.path.dirname(os.path.abspath(path))
    # A dot in front: no daemon that reads whole folders (systemd, apt, sudo) takes it for a file of its own.
    descriptor, temporary = tempfile.mkstemp(prefix=".dsprov-", suffix=".tmp", dir=folder)
    try:
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(data)
            handle.flush()
            os.fchown(handle.fileno(), uid, gid)
            os.fchmod(handle.fileno(), mode)
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    fsync_directory(folder)


def atomic_link(target: str, path: str) -> None:
    """Make `path` a symbolic link to `target`, replacing a file or a link in one step."""
    make_parents(path)
    folder = os.path.dirname(os.path.abspath(path))
    temporary = os.path.join(folder, f".dsprov-{os.getpid()}-{time.monotonic_ns()}.tmp")
    os.symlink(target, temporary)
    try:
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    fsync_directory(folder)


def sha256_file(path: str) -> str:
    """Return the sha256 of a file's bytes in hex."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(CHUNK))
    with open(path, "rb", buffering=0) as handle:
        while count := handle.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def load_json(path: str) -> dict[str, Any]:
    """Read a JSON object that we wrote; a missing or torn one counts as empty."""
    try:
        with open(path, encoding="utf-8") as handle:
            value = json.load(handle)
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def dump_json(path: str, value: dict[str, Any], mode: int = 0o644) -> None:
    """Write a JSON object atomically, keys sorted."""
    atomic_write(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode(), mode)


def key_of(path: str) -> str:
    """Return a file name that stands for `path`: readable, and one for one."""
    absolute = os.path.abspath(path)
    readable = re.sub(r"[^A-Za-z0-9._-]", "_", os.path.basename(absolute))[:80]
    return f"{readable}-{hashlib.sha256(absolute.encode()).hexdigest()[:12]}"


def receipt_path(path: str) -> str:
    """Return where the receipt of `path` is kept."""
    return data_path("receipts", key_of(path) + ".json")


def read_receipt(path: str) -> dict[str, Any] | None:
    """Return the receipt of `path` while it describes the file, else None. Reads no byte of the file."""
    receipt = load_json(receipt_path(path))
    try:
        found = os.stat(path)
    except OSError:
        return None
    same = (
        stat.S_ISREG(found.st_mode)
        and receipt.get("path") == os.path.abspath(path)
        and receipt.get("size") == found.st_size
        and receipt.get("mtime_ns") == found.st_mtime_ns
        and receipt.get("inode") == found.st_ino
        and isinstance(receipt.get("sha256"), str)
    )
    return receipt if same else None


def write_receipt(path: str, sha256: str, **more: Any) -> dict[str, Any]:
    """Record that `path`, as it is now, has the digest `sha256`; `more` goes along."""
    found = os.stat(path)
    receipt: dict[str, Any] = {
        **more,
        "path": os.path.abspath(path),
        "size": found.st_size,
        "mtime_ns": found.st_mtime_ns,
        "inode": found.st_ino,
        "sha256": sha256,
    }
    dump_json(receipt_path(path), receipt)
    return receipt


def back_up(path: str) -> str:
    """Copy a file that somebody else wrote, readable by root alone, and return the copy's path."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    base = data_path("backups", os.path.abspath(path).lstrip("/"))
    make_parents(data_path("backups", "x"), 0o700)
    for number in range(1000):
        copy = f"{base}.{stamp}" + (f".{number}" if number else "")
        if not os.path.lexists(copy):
            with open(path, "rb") as handle:
                atomic_write(copy, handle.read(), 0o600)
            return copy
    raise FileError(
        f"{base}.{stamp}: a thousand backups within one second; look at what keeps rewriting {path}"
    )


def need_space(path: str, wanted: int, what: str) -> None:
    """Raise FileError unless the file system of `path` has `wanted` bytes and a tenth to spare."""
    folder = os.path.dirname(os.path.abspath(path))
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    needed = wanted + wanted // 10
    if free < needed:
        raise FileError(
            f"{folder}: {what} needs {needed} bytes (10 % to spare), {free} are free; "
            "free some or choose another folder"
        )
    if wanted and found.f_files and not found.f_favail:
        raise FileError(f"{folder}: no inode is left for {what}; delete files there or choose another folder")


@contextlib.contextmanager
def locked(name: str, timeout: float, progress: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Hold the lock `name` on this host; wait up to `timeout` seconds, then say who has it.

    While the value of `progress` keeps changing, its owner is at work, and the wait goes on.
    Leaves no file behind. The lock is the kernel's (flock), so one whose owner died is free at once.
    """
    path = data_path("receipts", name + ".lock")
    make_parents(path)
    deadline = time.monotonic() + timeout
    last = progress()
    while True:
        handle = open(path, "a+", encoding="ascii")  # noqa: SIM115 - closed below, after the lock's whole life
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            owner = handle.read().strip() or "unknown"
            handle.close()
            if (state := progress()) != last:
                last, deadline = state, time.monotonic() + timeout
            if time.monotonic() >= deadline:
                raise FileError(
                    f"{path}: process {owner} on this host has worked on it for more than {timeout:.0f} s; "
                    "let it finish or end it, then run the same command again"
                ) from None
            time.sleep(0.2)
            continue
        try:
            # The owner before us may have removed the file between our open and our lock.
            if os.fstat(handle.fileno()).st_ino == os.stat(path).st_ino:
                break
        except FileNotFoundError:
            pass
        handle.close()
    try:
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        handle.close()


def list_tree(root: str, skip: str) -> dict[str, list[int | str]]:
    """Describe a folder by stat, without `skip`: relative path -> [size, mtime in ns] or [link target]."""
    found: dict[str, list[int | str]] = {}
    for folder, folders, names in os.walk(root):
        for name in names + [entry for entry in folders if os.path.islink(os.path.join(folder, entry))]:
            path = os.path.join(folder, name)
            relative = os.path.relpath(path, root)
            if relative == skip:
                continue
            entry = os.lstat(path)
            if stat.S_ISLNK(entry.st_mode):
                found[relative] = [os.readlink(path)]
            else:
                found[relative] = [entry.st_size, entry.st_mtime_ns]
    return found


def replace_tree(new: str, path: str) -> None:
    """Put the finished folder `new` in the place of `path`, which may exist; both on one file system."""
    old = new + ".old"
    shutil.rmtree(old, ignore_errors=True)
    if os.path.lexists(path):
        os.rename(path, old)
    os.rename(new, path)
    fsync_directory(os.path.dirname(os.path.abspath(path)))
    if os.path.islink(old) or os.path.isfile(old):
        os.unlink(old)
    else:
        shutil.rmtree(old, ignore_errors=True)


def sync_tree(root: str, call: Callable[[int], None] = os.fsync) -> None:
    """Flush every file of a folder to disk, so that its rename cannot outlive its content."""
    for folder, _folders, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            if os.path.islink(path):
                continue
            descriptor = os.open(path, os.O_RDONLY)
            try:
                call(descriptor)
            finally:
                os.close(descriptor)
        fsync_directory(folder)
