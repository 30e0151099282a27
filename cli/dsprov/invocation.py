"""What will be run, as data: everything a playbook run is made of, decided before anything runs."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import problems, tier_path
from dsprov.paths import COLLECTION, state_dir

SECRET_WORDS = ("password", "secret", "token", "api_key", "apikey", "passwd")


@dataclass(frozen=True)
class Invocation:
    """One run of a playbook of the collection.

    Attributes:
        verb: the CLI's verb, and the playbook's name after `dsprov.appliance.`.
        inventories: absolute paths, the tier's first so that the user's own win.
        overrides: KEY=VALUE pairs, as given.
        limit: Ansible's host pattern, or None.
        dry_run: Ansible's check mode, with differences shown.
        arguments: handed on to ansible-playbook as they are.
    """

    verb: str
    inventories: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    limit: str | None = None
    dry_run: bool = False
    verbosity: int = 0
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def playbook(self) -> str:
        """The playbook's full name."""
        return f"dsprov.appliance.{self.verb}"

    def command(self) -> list[str]:
        """The equivalent ansible-playbook command, word by word."""
        words = ["ansible-playbook", self.playbook]
        for path in self.inventories:
            words += ["-i", path]
        for pair in self.overrides:
            words += ["-e", pair]
        if self.limit:
            words += ["--limit", self.limit]
        if self.dry_run:
            words += ["--check", "--diff"]
        if self.verbosity:
            words.append("-" + "v" * self.verbosity)
        return [*words, *self.arguments]

    def shell_line(self) -> str:
        """The same as a line for a shell, with the environment it wants."""
        settings = [f"{key}={shlex.quote(value)}" for key, value in self.environment.items()]
        return " ".join([*settings, shlex.join(self.command())])


def compose(
    verb: str,
    inventories: Sequence[Path],
    *,
    tier: str | None = None,
    overrides: Sequence[str] = (),
    channel: str | None = None,
    limit: str | None = None,
    dry_run: bool = False,
    verbosity: int = 0,
    arguments: Sequence[str] = (),
) -> Invocation:
    """Checks what can be checked without Ansible, and puts a run together.

    Raises:
        ProblemError: tier-unknown, file-missing, inventory-empty, override-invalid, override-secret.
    """
    first = [str(tier_path(tier))] if tier else []
    own = [check_inventory(path) for path in inventories]
    pairs = [check_override(text) for text in overrides]
    if channel:
        pairs.append(f"dsprov_channel={channel}")
    # An inventory that cannot be read is an error, even where the tier's can.
    environment = {"ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "True"}
    if "ANSIBLE_CONFIG" not in os.environ:
        environment["ANSIBLE_CONFIG"] = str(COLLECTION / "ansible.cfg")
    return Invocation(
        verb=verb,
        inventories=(*first, *own),
        overrides=tuple(pairs),
        limit=limit,
        dry_run=dry_run,
        verbosity=verbosity,
        arguments=tuple(arguments),
        environment=environment,
    )


def check_inventory(path: Path) -> str:
    """An inventory's absolute path, if it is there and says anything at all."""
    if "," in str(path):  # Ansible's own form of an inventory on the command line: HOST,HOST
        return str(path)
    try:
        there = path.exists()
    except OSError as error:
        raise problems().error("inventory-invalid", file=path, detail=error.strerror) from error
    if not there:
        raise problems().error("file-missing", file=path)
    if path.is_file():
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise problems().error("inventory-invalid", file=path, detail=error.strerror) from error
        lines = [line.strip() for line in text.splitlines()]
        if not any(line and not line.startswith(("#", ";", "---")) for line in lines):
            raise problems().error("inventory-empty", file=path)
    return str(path.resolve())


def check_override(text: str) -> str:
    """A KEY=VALUE pair, if it is one and holds no secret: command lines can be read by every user."""
    key, equals, _value = text.partition("=")
    if not equals or not key.isidentifier():
        raise problems().error("override-invalid", text=text)
    if any(word in key.lower() for word in SECRET_WORDS) and not key.endswith(("_file", "_path")):
        raise problems().error("override-secret", key=key)
    return text


def log_path(verb: str, stamp: str) -> Path:
    """Where the whole Ansible log of a run is kept."""
    return state_dir() / "logs" / f"{stamp}-{verb}.log"


def ansible_environment(invocation: Invocation) -> dict[str, str]:
    """Settings of the environment that every run needs, whatever the caller's shell is like."""
    here = str(Path(sys.executable).parent)
    return {
        **invocation.environment,
        "PATH": f"{here}{os.pathsep}{os.environ.get('PATH', '/usr/bin:/bin')}",
        "LC_ALL": "C.UTF-8",
        # Long work tells how it goes every few seconds: `Progress` shows it in place.
        "DSPROV_PROGRESS": "1",
        # ansible-runner leaves longer results out, such as the plan of many hosts; in bytes.
        "MAX_EVENT_RES": str(1 << 30),
        "HOME": os.environ.get("HOME") or str(state_dir()),
    }
