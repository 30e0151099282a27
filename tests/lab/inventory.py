"""The inventory of a project: hosts.ini, group_vars/all.yml, known_hosts and the ssh key, in one folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from .hosts import USER, Running

ROOT = Path(__file__).resolve().parents[2]


def folder(project: str) -> Path:
    """Where a project's inventory lies; git does not see it."""
    return ROOT / ".lab" / project


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.chmod(mode)
    part.replace(path)


def write(path: Path, running: list[Running], key: Path, channel: Mapping[str, Any]) -> None:
    """Write the inventory at PATH with its group_vars and known_hosts beside it."""
    known = path.parent / "known_hosts"
    rows = [f"{one.address} {key_line}" for one in running for key_line in one.host_keys]
    _write(known, "".join(f"{row}\n" for row in rows))
    width = max(len(one.host.name) for one in running)
    names = "".join(f"{one.host.name:<{width}} ansible_host={one.address}\n" for one in running)
    options = f"-o UserKnownHostsFile={known} -o StrictHostKeyChecking=yes -o IdentitiesOnly=yes"
    text = (
        f"# Made by `python -m tests.lab up`: made anew by each one.\n[appliances]\n{names}\n"
        f"[appliances:vars]\nansible_user={USER}\nansible_ssh_private_key_file={key}\n"
        f'ansible_ssh_common_args="{options}"\nansible_python_interpreter=/usr/bin/python3\n'
    )
    _write(path, text)
    head = "# Made by `python -m tests.lab up`: where the lab's mirrors are.\n---\n"
    _write(path.parent / "group_vars" / "all.yml", head + yaml.safe_dump(dict(channel), sort_keys=True))


def relative(path: Path) -> str:
    """A path as people in the repository would type it."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
