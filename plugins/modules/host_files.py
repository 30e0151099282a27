#!/usr/bin/python
# Copyright: the dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Ansible module: a list of files, folders, links and system accounts in one round trip."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_files
short_description: Bring files, folders, links and system accounts of a host into the wanted state, in one
  round trip
version_added: 0.1.0
description:
  - Applies a list in order, each item atomically, and shows a diff per item.
  - A file that somebody else wrote or edited is copied to V(/var/lib/dsprov/backups) before it is replaced
    or removed.
  - Lets systemd read its units again when one under V(/etc/systemd/system) changed, also when an earlier
    run was killed between the two.
options:
  files:
    description: What is wanted, in the order in which it is made. Missing parent folders are made, V(0755).
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Absolute path. A file that is reached through a symbolic link is written where
          the link points.
        type: path
        required: true
      state:
        description:
          - What there is to be at O(files[].path).
          - With V(absent), folders are removed with all they hold inside dsprov's own folders,
            elsewhere only when empty.
        type: str
        choices: [file, directory, link, absent]
        default: file
      content:
        description: The whole text of the file. Never put a secret here, M(dsprov.appliance.secrets)
          is for them.
        type: str
      target:
        description: Where the link points.
        type: str
      owner:
        description: Owner; root for something new, unchanged for what is there, when not given.
        type: str
      group:
        description: Group; as for the owner.
        type: str
      mode:
        description: Mode, quoted. V(0644) for a new file, V(0755) for a new folder, when not given.
        type: str
      backup:
        description: Keep a copy of a file that was not as dsprov last wrote it.
        type: bool
        default: true
  users:
    description: System accounts to have, made before the files. Nothing is taken from one that exists.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the account and of its group.
        type: str
        required: true
      home:
        description: Home folder, which is not made here.
        type: path
        default: /nonexistent
      shell:
        description: Login shell.
        type: path
        default: /usr/sbin/nologin
      groups:
        description: More groups to be a member of. Those that the host does not have are left out.
        type: list
        elements: str
        default: []
  daemon_reload:
    description: Run C(systemctl daemon-reload) when a unit or drop-in changed.
    type: bool
    default: true
  unit:
    description:
      - A systemd unit that reads these files when it starts. RV(restart_required) then tells whether
        one of them is newer than the running process, whoever changed it and whenever.
    type: str
attributes:
  check_mode:
    description: Says what would change.
    support: full
  diff_mode:
    description: One diff per item. The text of files that not everybody may read is left out.
    support: full
author:
  - The dsprov authors
"""

EXAMPLES = r"""
- name: Ensure the account, the folders and the drop-in are present
  dsprov.appliance.host_files:
    users:
      - name: ollama
        home: /var/lib/dsprov/ollama
        groups: [video, render]
    files:
      - {path: /var/lib/dsprov/ollama/models, state: directory, owner: ollama, group: ollama, mode: "0750"}
      - path: /etc/systemd/system/ollama.service.d/dsprov.conf
        content: "{{ lookup('ansible.builtin.template', 'dropin.conf.j2') }}"
    unit: ollama.service
"""

RETURN = r"""
changed_paths:
  description: Items that changed, in order. Accounts are named as V(user:NAME).
  returned: always
  type: list
  elements: str
backups:
  description: Copies of what others wrote, by path.
  returned: always
  type: dict
daemon_reloaded:
  description: Whether systemd was told to read its units again.
  returned: always
  type: bool
restart_required:
  description: Whether O(unit) runs on older files than these. False when it does not run.
  returned: always
  type: bool
"""

import contextlib
import grp
import hashlib
import os
import pwd
import shutil
import stat
import subprocess
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.dsprov.appliance.plugins.module_utils import files

UNIT_ROOT = "/etc/systemd/system/"
OWN_TREES = ("/etc/dsprov", "/opt/dsprov", "/var/lib/dsprov", "/var/log/dsprov")


class HostFiles:
    """Applies the lists of one call."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.check: bool = module.check_mode
        self.changed_paths: list[str] = []
        self.backups: dict[str, str] = {}
        self.diffs: list[dict[str, str]] = []
        self.written_path = files.data_path("receipts", "host-files.json")
        self.reload_pending = files.data_path("receipts", "daemon-reload.pending")
        self.written: dict[str, Any] = files.load_json(self.written_path)
        self.new_accounts: set[str] = set()

    # Accounts

    def user(self, want: dict[str, Any]) -> None:
        """Make a system account, or add one that exists to the groups it lacks."""
        name = want["name"]
        groups = [group for group in want["groups"] if _group_id(group) is not None]
        try:
            account = pwd.getpwnam(name)
        except KeyError:
            command = [
                "useradd",
                "--system",
                "--no-create-home",
                "--home-dir",
                want["home"],
                "--shell",
                want["shell"],
            ]
            command += ["--gid", name] if _group_id(name) is not None else ["--user-group"]
            if groups:
                command += ["--groups", ",".join(groups)]
            self.new_accounts.add(name)
            self._change(f"user:{name}", "", f"system account {name}\n", [*command, name])
            return
        member_of = {entry.gr_name for entry in grp.getgrall() if name in entry.gr_mem}
        member_of |= {entry.gr_name for entry in grp.getgrall() if entry.gr_gid == account.pw_gid}
        missing = [group for group in groups if group not in member_of]
        if missing:
            after = f"{name} is a member of {', '.join(missing)}\n"
            self._change(
                f"user:{name}", "", after, ["usermod", "--append", "--groups", ",".join(missing), name]
            )

    def _change(self, label: str, before: str, after: str, command: list[str]) -> None:
        self._note(label, before, after)
        if not self.check:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise files.FileError(f"{label}: {command[0]} says {done.stderr.strip() or done.returncode}")

    # Items

    def item(self, want: dict[str, Any]) -> None:
        """Bring one path into its state."""
        path = os.path.normpath(want["path"])
        if not os.path.isabs(path):
            raise files.FileError(f"{path}: not an absolute path; name the file from the root on")
        changed = getattr(self, "_" + want["state"])(path, want)
        if want["state"] in ("file", "directory"):
            changed = self._attributes(os.path.realpath(path), want, changed)
        if changed and path not in self.changed_paths:
            self.changed_paths.append(path)

    def _file(self, path: str, want: dict[str, Any]) -> bool:
        path = os.path.realpath(path)
        if want["content"] is None:
            raise files.FileError(f"{path}: a file needs its content")
        data = want["content"].encode()
        before: bytes | None = None
        found: os.stat_result | None = None
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found = os.stat(path)
            if not stat.S_ISREG(found.st_mode):
                raise files.FileError(f"{path}: there is something that is not a file; move it away")
            with open(path, "rb") as handle:
                before = handle.read()
        if before == data:
            self._remember(path, data)
            return False
        mode = int(want["mode"], 8) if want["mode"] else (stat.S_IMODE(found.st_mode) if found else 0o644)
        hidden = not mode & 0o044
        self._note(
            path,
            "" if hidden else (before or b"").decode("utf-8", "replace"),
            "(not shown)\n" if hidden else want["content"],
        )
        if self.check:
            return True
        self._keep(path, before, want)
        self._unit_changes(path)
        uid = _user_id(want["owner"]) if want["owner"] else (found.st_uid if found else 0)
        gid = _group_id(want["group"]) if want["group"] else (found.st_gid if found else 0)
        if uid is None or gid is None:
            raise files.FileError(
                f"{path}: the host has no owner {want['owner']}:{want['group']}; list the account under users"
            )
        files.atomic_write(path, data, mode, uid, gid)
        self._remember(path, data)
        return True

    def _directory(self, path: str, want: dict[str, Any]) -> bool:
        if os.path.isdir(path):
            return False
        if os.path.lexists(path):
            raise files.FileError(f"{path}: there is something that is not a folder; move it away")
        self._note(path, "", "folder\n")
        if not self.check:
            files.make_parents(path)
            os.mkdir(path)
            os.chmod(path, int(want["mode"] or "0755", 8))
        return True

    def _link(self, path: str, want: dict[str, Any]) -> bool:
        if not want["target"]:
            raise files.FileError(f"{path}: a link needs its target")
        before = os.readlink(path) if os.path.islink(path) else None
        if before == want["target"]:
            return False
        if before is None and os.path.isdir(path):
            raise files.FileError(f"{path}: a folder is in the place of the link; move it away")
        self._note(path, f"-> {before}\n" if before else "", f"-> {want['target']}\n")
        if not self.check:
            if before is None and os.path.isfile(path):
                with open(path, "rb") as handle:
                    self._keep(path, handle.read(), want)
            self._unit_changes(path)
            files.atomic_link(want["target"], path)
        return True

    def _absent(self, path: str, want: dict[str, Any]) -> bool:
        if not os.path.lexists(path):
            return False
        folder = os.path.isdir(path) and not os.path.islink(path)
        if (
            folder
            and os.listdir(path)
            and not any(path.startswith(tree + "/") or path == tree for tree in OWN_TREES)
        ):
            return False
        self._note(path, "folder\n" if folder else "present\n", "")
        if self.check:
            return True
        self._unit_changes(path)
        if folder:
            shutil.rmtree(path)
        else:
            if os.path.isfile(path) and not os.path.islink(path) and not path.startswith(OWN_TREES):
                with open(path, "rb") as handle:
                    self._keep(path, handle.read(), want)
            os.unlink(path)
        self.written.pop(path, None)
        return True

    def _attributes(self, path: str, want: dict[str, Any], changed: bool) -> bool:
        if not os.path.exists(path):
            return changed
        given = {key: want[key] for key in ("owner", "group", "mode")}
        if self.check:
            # In check mode an account that a list item would make is not there yet.
            for key in ("owner", "group"):
                if given[key] in self.new_accounts:
                    given[key] = None
                    changed = True
        before = os.stat(path)
        if not self.module.set_fs_attributes_if_different(
            self.module.load_file_common_arguments(given, path=path), False
        ):
            return changed
        if not changed:
            self._note(
                path,
                f"mode {stat.S_IMODE(before.st_mode):04o} owner {before.st_uid}:{before.st_gid}\n",
                _wish(given),
            )
        return True

    # Around them

    def _note(self, path: str, before: str, after: str) -> None:
        if path not in self.changed_paths:
            self.changed_paths.append(path)
        self.diffs.append({"before": before, "after": after, "before_header": path, "after_header": path})

    def _keep(self, path: str, before: bytes | None, want: dict[str, Any]) -> None:
        if before is None or not want["backup"] or self.written.get(path) == _digest(before):
            return
        self.backups[path] = files.back_up(path)

    def _remember(self, path: str, data: bytes) -> None:
        self.written[path] = _digest(data)

    def _unit_changes(self, path: str) -> None:
        # Marked before the change, so that a run killed in between is made good by the next one.
        if path.startswith(UNIT_ROOT) and self.module.params["daemon_reload"]:
            files.atomic_write(self.reload_pending, b"", 0o644)

    def save(self) -> None:
        """Remember what we wrote, for the next run's backups."""
        if not self.check and self.written != files.load_json(self.written_path):
            files.dump_json(self.written_path, self.written, 0o600)

    def reload(self) -> bool:
        """Tell systemd about changed units; return whether it was told."""
        if self.check or not os.path.exists(self.reload_pending):
            return False
        if os.path.isdir("/run/systemd/system"):
            done = subprocess.run(["systemctl", "daemon-reload"], capture_output=True, text=True, check=False)
            if done.returncode:
                raise files.FileError(
                    f"systemctl daemon-reload says {done.stderr.strip()}; look at the unit files just written"
                )
        os.unlink(self.reload_pending)
        return True

    def restart_required(self, unit: str) -> bool:
        """Tell whether a listed file is younger than the unit's running process."""
        done = subprocess.run(
            ["systemctl", "show", "--property=ActiveState,ExecMainStartTimestampMonotonic", unit],
            capture_output=True,
            text=True,
            check=False,
        )
        shown = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
        if shown.get("ActiveState") not in ("active", "reloading"):
            return False
        up_since = int(shown.get("ExecMainStartTimestampMonotonic", 0)) / 1e6
        started = time.time() - time.monotonic() + up_since
        for want in self.module.params["files"]:
            if want["state"] in ("file", "link"):
                with contextlib.suppress(OSError):
                    if os.lstat(want["path"]).st_mtime > started:
                        return True
        return any(not path.startswith("user:") for path in self.changed_paths)


def _wish(given: dict[str, Any]) -> str:
    mode, owner, group = (given[key] or "as it is" for key in ("mode", "owner", "group"))
    return f"mode {mode} owner {owner}:{group}\n"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _user_id(name: str) -> int | None:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return int(name) if name.isdigit() else None


def _group_id(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return int(name) if name.isdigit() else None


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "path": {"type": "path", "required": True},
                    "state": {
                        "type": "str",
                        "choices": ["file", "directory", "link", "absent"],
                        "default": "file",
                    },
                    "content": {"type": "str"},
                    "target": {"type": "str"},
                    "owner": {"type": "str"},
                    "group": {"type": "str"},
                    "mode": {"type": "str"},
                    "backup": {"type": "bool", "default": True},
                },
            },
            "users": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "home": {"type": "path", "default": "/nonexistent"},
                    "shell": {"type": "path", "default": "/usr/sbin/nologin"},
                    "groups": {"type": "list", "elements": "str", "default": []},
                },
            },
            "daemon_reload": {"type": "bool", "default": True},
            "unit": {"type": "str"},
        },
        supports_check_mode=True,
    )
    work = HostFiles(module)
    reloaded = restart = False
    try:
        with files.locked("host-files", 30) if not module.check_mode else contextlib.nullcontext():
            try:
                for want in module.params["users"]:
                    work.user(want)
                for want in module.params["files"]:
                    work.item(want)
            finally:
                work.save()
            reloaded = work.reload()
        if module.params["unit"]:
            restart = work.restart_required(module.params["unit"])
    except (files.FileError, OSError, ValueError) as problem:
        module.fail_json(msg=str(problem), changed_paths=work.changed_paths, backups=work.backups)
    result: dict[str, Any] = {
        "changed": bool(work.changed_paths) or reloaded,
        "changed_paths": work.changed_paths,
        "backups": work.backups,
        "daemon_reloaded": reloaded,
        "restart_required": restart,
    }
    if module._diff:
        result["diff"] = work.diffs
    module.exit_json(**result)


if __name__ == "__main__":
    main()
