#!/usr/bin/python
# Copyright (c) 2026 The dsprov authors
# SPDX-License-Identifier: Apache-2.0
"""Make secrets on the host itself, once, and never let a value leave it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: secrets
short_description: Make secrets on the host once and keep them there
version_added: 0.1.0
description:
  - Keeps C(NAME=value) lines in an environment file that shells and systemd read alike.
  - A secret that is missing is made on the host; one that is there is kept, whoever wrote it.
  - No value is ever returned, shown in a diff or taken as an argument.
author: The dsprov authors (@dsprov)
options:
  path:
    description: Absolute path of the environment file. Its folder is made with mode C(0700) if it is missing.
    type: path
    required: true
  secrets:
    description: The secrets that the file has to hold. Other lines of the file stay as they are.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the environment variable.
        type: str
        required: true
      kind:
        description:
          - V(password) is made of letters and digits that cannot be mistaken for one another.
          - V(hex) is made of hexadecimal digits.
        type: str
        choices: [password, hex]
        default: password
      length:
        description: Number of characters, 16 to 512. V(24) for a password and V(64) for V(hex) if unset.
        type: int
      file:
        description:
          - A file that holds this secret alone, for people or programs to read.
          - What people write into it wins over the environment file.
        type: path
attributes:
  check_mode:
    description: Says what would be made and writes nothing.
    support: full
  diff_mode:
    description: Shows names and modes, never values.
    support: full
"""

EXAMPLES = r"""
- name: Ensure Open WebUI has its secrets
  dsprov.appliance.secrets:
    path: /etc/dsprov/secrets/open-webui.env
    secrets:
      - {name: WEBUI_SECRET_KEY, kind: hex}
      - name: WEBUI_ADMIN_PASSWORD
        file: /etc/dsprov/secrets/open-webui-admin-password
"""

RETURN = r"""
path:
  description: Path of the environment file.
  type: str
  returned: success
made:
  description: Names of the secrets that did not exist before.
  type: list
  elements: str
  returned: success
renewed:
  description: Names of the secrets that are new in the environment file, made or taken from their own file.
  type: list
  elements: str
  returned: success
changed_paths:
  description: Files that were written or whose owner or mode was set right.
  type: list
  elements: str
  returned: success
"""

import os
import re
import secrets as entropy
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

# Without 0 O 1 l I: people type the first password from a sheet of paper.
LETTERS_AND_DIGITS = "23456789abcdefghijkmnopqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ"
NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
# What sh, systemd's EnvironmentFile and Docker's env_file all read alike without quotes.
PLAIN_VALUE = re.compile(r"^[A-Za-z0-9_.:/@%+=,-]+$")
LENGTHS = {"password": 24, "hex": 64}


class SecretsError(Exception):
    """Says what is wrong and where, never with a value in it."""


@dataclass(frozen=True)
class Secret:
    """One secret that is wanted."""

    name: str
    kind: str = "password"
    length: int | None = None
    file: str | None = None

    def make(self) -> str:
        """Return a fresh value from the kernel's random source."""
        length = self.length or LENGTHS[self.kind]
        if self.kind == "hex":
            return entropy.token_hex((length + 1) // 2)[:length]
        while True:
            value = "".join(entropy.choice(LETTERS_AND_DIGITS) for _ in range(length))
            if (
                any(c.islower() for c in value)
                and any(c.isupper() for c in value)
                and any(c.isdigit() for c in value)
            ):
                return value


@dataclass
class Outcome:
    """What was found and done, without values."""

    made: list[str] = field(default_factory=list)
    renewed: list[str] = field(default_factory=list)
    changed_paths: list[str] = field(default_factory=list)
    before: dict[str, str] = field(default_factory=dict)
    after: dict[str, str] = field(default_factory=dict)


def parse(text: str, path: str) -> dict[str, str]:
    """Read C(NAME=value) lines; comments and blank lines are allowed."""
    values: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, sign, value = line.partition("=")
        if not sign or not NAME.match(name):
            raise SecretsError(f"{path}: line {number} is not NAME=value; mend or remove that line")
        if value and not PLAIN_VALUE.match(value):
            raise SecretsError(
                f"{path}: line {number}: the value of {name} has quotes, blanks or signs that shells and "
                "systemd read differently; use letters, digits and _ . : / @ % + = , - only"
            )
        values[name] = value
    return values


def read_private(path: Path) -> str | None:
    """Return the text of a regular file, or None if there is none. A link is refused."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SecretsError(
            f"{path}: cannot be read as a plain file ({error.strerror}); remove it or put a file there"
        ) from None
    with os.fdopen(handle, "rb") as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise SecretsError(f"{path}: is not a plain file; remove it")
        try:
            return stream.read().decode()
        except UnicodeDecodeError:
            raise SecretsError(f"{path}: is not UTF-8 text; remove it or write it again") from None


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read; readers see the old or the new one, never a part."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            os.fchmod(stream.fileno(), 0o600)
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class SecretsFile:
    """Keeps one environment file and the single-secret files beside it."""

    def __init__(self, path: str, secrets: list[Secret], check: bool = False) -> None:
        self.path = Path(path)
        self.secrets = secrets
        self.check = check
        self.outcome = Outcome()

    def converge(self) -> Outcome:
        """Make what is missing and set modes right."""
        self._refuse_bad_input()
        text = read_private(self.path)
        values = parse(text, str(self.path)) if text is not None else {}
        lines = text.splitlines() if text is not None else []
        fresh: dict[str, str] = {}
        for secret in self.secrets:
            known = values.get(secret.name)
            value = self._from_own_file(secret) or known or None
            if known and value == known:
                self.outcome.before[secret.name] = self.outcome.after[secret.name] = "kept"
                continue
            self.outcome.before[secret.name] = "differs" if known else "absent"
            self.outcome.after[secret.name] = "made" if value is None else f"taken from {secret.file}"
            if value is None:
                value = secret.make()
                self.outcome.made.append(secret.name)
            self.outcome.renewed.append(secret.name)
            fresh[secret.name] = values[secret.name] = value
        if fresh:
            lines = [line for line in lines if line.partition("=")[0] not in fresh]
            lines += [f"{name}={value}" for name, value in fresh.items()]
        self._folder(self.path.parent)
        self._file(
            self.path, "".join(f"{line}\n" for line in lines) if fresh else text or "", rewrite=bool(fresh)
        )
        for secret in self.secrets:
            if secret.file:
                self._folder(Path(secret.file).parent)
                wanted = f"{values[secret.name]}\n"
                self._file(Path(secret.file), wanted, rewrite=read_private(Path(secret.file)) != wanted)
        return self.outcome

    def _refuse_bad_input(self) -> None:
        names = [secret.name for secret in self.secrets]
        for secret in self.secrets:
            if not NAME.match(secret.name):
                raise SecretsError(f"secrets: '{secret.name}' is not the name of an environment variable")
            if names.count(secret.name) > 1:
                raise SecretsError(f"secrets: {secret.name} is named twice")
            if secret.length is not None and not 16 <= secret.length <= 512:
                raise SecretsError(f"secrets: length of {secret.name} is {secret.length}; use 16 to 512")
        for path in [str(self.path), *(secret.file for secret in self.secrets if secret.file)]:
            if not path.startswith("/"):
                raise SecretsError(f"{path}: is not an absolute path")

    def _from_own_file(self, secret: Secret) -> str | None:
        if not secret.file:
            return None
        text = read_private(Path(secret.file))
        value = (text or "").strip()
        if not value:
            return None
        if not PLAIN_VALUE.match(value):
            raise SecretsError(
                f"{secret.file}: the secret in it has signs that shells and systemd read differently; "
                "use letters, digits and _ . : / @ % + = , - only, or remove the file"
            )
        return value

    def _folder(self, folder: Path) -> None:
        if folder.is_dir():
            return
        self._note(folder)
        if not self.check:
            folder.mkdir(mode=0o700, parents=True)

    def _file(self, path: Path, text: str, rewrite: bool) -> None:
        if rewrite:
            self._note(path)
            if not self.check:
                write_private(path, text)
                return
        try:
            state = path.lstat()
        except FileNotFoundError:
            return
        mode = stat.S_IMODE(state.st_mode)
        if mode != 0o600 or state.st_uid != os.geteuid() or state.st_gid != os.getegid():
            self._note(path)
            self.outcome.before[str(path)] = f"{state.st_uid}:{state.st_gid} {mode:04o}"
            self.outcome.after[str(path)] = f"{os.geteuid()}:{os.getegid()} 0600"
            if not self.check:
                path.chmod(0o600)
                os.chown(path, os.geteuid(), os.getegid())

    def _note(self, path: Path) -> None:
        if str(path) not in self.outcome.changed_paths:
            self.outcome.changed_paths.append(str(path))


def as_lines(state: dict[str, str]) -> str:
    """Turn a before or after state into the text that a diff shows."""
    return "".join(f"{name}: {what}\n" for name, what in sorted(state.items()))


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "secrets": {
                "type": "list",
                "elements": "dict",
                "required": True,
                # Names and lengths only; hiding them would hide the names everywhere else, too.
                "no_log": False,
                "options": {
                    "name": {"type": "str", "required": True},
                    "kind": {"type": "str", "choices": ["password", "hex"], "default": "password"},
                    "length": {"type": "int"},
                    "file": {"type": "path"},
                },
            },
        },
        supports_check_mode=True,
    )
    wanted = [Secret(**entry) for entry in module.params["secrets"]]
    try:
        outcome = SecretsFile(module.params["path"], wanted, check=module.check_mode).converge()
    except SecretsError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(
            msg=f"{error.filename or module.params['path']}: {error.strerror}; see to its folder and disk"
        )
    module.exit_json(
        changed=bool(outcome.changed_paths),
        path=module.params["path"],
        made=outcome.made,
        renewed=outcome.renewed,
        changed_paths=outcome.changed_paths,
        diff={
            "before_header": module.params["path"],
            "after_header": module.params["path"],
            "before": as_lines(outcome.before),
            "after": as_lines(outcome.after),
        },
    )


if __name__ == "__main__":
    main()
