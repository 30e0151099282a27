#!/usr/bin/python
# Copyright (c) 2026 The dsprov authors
# SPDX-License-Identifier: Apache-2.0
"""Copy a live SQLite database safely, or put a copy back."""

from __future__ import annotations

DOCUMENTATION = r"""
module: sqlite_backup
short_description: Copy a live SQLite database safely, or put a copy back
version_added: 0.1.0
description:
  - Copies with SQLite's own online backup, so that a database in use gives a copy that is whole.
  - The copy is checked, written under another name and renamed, and readable by its owner alone.
  - With O(restore), the named copy is put in place of the database. Stop what uses the database first.
author: The dsprov authors (@dsprov)
options:
  path:
    description: The database file.
    type: path
    required: true
  folder:
    description: Where copies are kept. It is made with mode C(0700) if it is missing.
    type: path
    required: true
  label:
    description: A word that goes into the copy's name, such as the version that wrote the database.
    type: str
    default: copy
  keep:
    description: How many copies to keep; older ones are removed after a good copy was made.
    type: int
    default: 5
  restore:
    description: Path of a copy to put in place of O(path) instead of making one.
    type: path
attributes:
  check_mode:
    description: Says what would be copied and writes nothing.
    support: full
  diff_mode:
    description: There is no text to compare.
    support: none
"""

EXAMPLES = r"""
- name: Ensure the database can be brought back
  dsprov.appliance.sqlite_backup:
    path: /var/lib/dsprov/open-webui/webui.db
    folder: /var/lib/dsprov/backups/open-webui
    label: 0.11.3

- name: Ensure the database is the one from before the upgrade
  dsprov.appliance.sqlite_backup:
    path: /var/lib/dsprov/open-webui/webui.db
    folder: /var/lib/dsprov/backups/open-webui
    restore: /var/lib/dsprov/backups/open-webui/webui-0.11.3-20261121T101500Z.db
"""

RETURN = r"""
backup:
  description: Path of the copy that was made or put back; empty if there was no database.
  type: str
  returned: success
bytes:
  description: Size of the copy.
  type: int
  returned: success
removed:
  description: Older copies that were removed.
  type: list
  elements: str
  returned: success
"""

import os
import re
import shutil
import sqlite3
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule


class BackupError(Exception):
    """Says what failed, where, and what to do."""


@dataclass
class Result:
    """What was done."""

    changed: bool = False
    copy: str = ""
    bytes: int = 0
    removed: list[str] = field(default_factory=list)


class SqliteBackup:
    """One database and the folder of its copies."""

    def __init__(
        self, path: str, folder: str, label: str = "copy", keep: int = 5, check: bool = False
    ) -> None:
        self.path = Path(path)
        self.folder = Path(folder)
        self.label = re.sub(r"[^A-Za-z0-9._-]+", "-", label) or "copy"
        self.keep = keep
        self.check = check

    def make(self) -> Result:
        """Make a copy; without a database there is nothing to do."""
        if not self.path.exists():
            return Result()
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        target = self.folder / f"{self.path.stem}-{self.label}-{stamp}{self.path.suffix}"
        size = self.path.stat().st_size
        if self.check:
            return Result(changed=True, copy=str(target), bytes=size)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if free < size * 1.1:
            raise BackupError(
                f"{self.folder}: {free} bytes free, a copy of {self.path} needs {int(size * 1.1)}; make room"
            )
        self._copy(self.path, target)
        return Result(changed=True, copy=str(target), bytes=target.stat().st_size, removed=self._prune())

    def restore(self, copy: str) -> Result:
        """Put a copy in place of the database, with the owner and mode that the database has."""
        source = Path(copy)
        if not source.exists():
            raise BackupError(f"{source}: there is no such copy; see {self.folder}")
        if self.check:
            return Result(changed=True, copy=copy, bytes=source.stat().st_size)
        owner = self.path.stat() if self.path.exists() else self.path.parent.stat()
        self._copy(source, self.path, drop_log=True)
        os.chown(self.path, owner.st_uid, owner.st_gid)
        return Result(changed=True, copy=copy, bytes=self.path.stat().st_size)

    def _copy(self, source: Path, target: Path, drop_log: bool = False) -> None:
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        os.close(handle)
        try:
            with (
                closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True, timeout=30)) as from_there,
                closing(sqlite3.connect(temporary)) as to_here,
            ):
                from_there.backup(to_here)
                to_here.execute("PRAGMA journal_mode=DELETE")
                verdict = to_here.execute("PRAGMA quick_check").fetchone()[0]
            if verdict != "ok":
                raise BackupError(f"{source}: SQLite finds it damaged ({verdict}); repair it before going on")
            with Path(temporary).open("rb") as stream:
                os.fsync(stream.fileno())
            if drop_log:
                # A log of the database that goes would be played into the one that comes.
                for suffix in ("-wal", "-shm"):
                    Path(f"{target}{suffix}").unlink(missing_ok=True)
            Path(temporary).replace(target)
        except sqlite3.Error as error:
            raise BackupError(
                f"{source}: cannot be copied by SQLite ({error}); is it a database, is the disk full?"
            ) from None
        finally:
            for suffix in ("", "-journal", "-wal", "-shm"):
                Path(f"{temporary}{suffix}").unlink(missing_ok=True)

    def _prune(self) -> list[str]:
        copies = sorted(
            self.folder.glob(f"{self.path.stem}-*{self.path.suffix}"),
            key=lambda copy: copy.stat().st_mtime_ns,
        )
        old = copies[: -self.keep] if self.keep > 0 else []
        for copy in old:
            copy.unlink()
        return [str(copy) for copy in old]


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "folder": {"type": "path", "required": True},
            "label": {"type": "str", "default": "copy"},
            "keep": {"type": "int", "default": 5},
            "restore": {"type": "path"},
        },
        supports_check_mode=True,
    )
    params = module.params
    keeper = SqliteBackup(
        params["path"], params["folder"], params["label"], params["keep"], module.check_mode
    )
    try:
        result = keeper.restore(params["restore"]) if params["restore"] else keeper.make()
    except BackupError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(
            msg=f"{error.filename or params['path']}: {error.strerror}; see to its folder and disk"
        )
    module.exit_json(changed=result.changed, backup=result.copy, bytes=result.bytes, removed=result.removed)


if __name__ == "__main__":
    main()
