"""Options that several verbs share, with one meaning everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from dsprov import words

Command = TypeVar("Command", bound=Callable[..., Any])


def _language(_context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    if value:
        words.choose(value)


def stack(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator, in the order they are written."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
lang = click.option(
    "--lang",
    type=click.Choice(words.LANGUAGES),
    expose_value=False,
    is_eager=True,
    callback=_language,
    help="Language of messages, 语言; by default the locale's.",
)
inventory = click.option(
    "-i",
    "--inventory",
    "inventories",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    metavar="HOSTS",
    help="Ansible inventory; may be given more than once, later ones win.",
)
tier = click.option(
    "--tier", required=True, metavar="TIER", help="What to build; `dsprov tiers list` shows all."
)
limit = click.option("--limit", metavar="PATTERN", help="Only these hosts or groups of the inventory.")
extra = click.option(
    "-e",
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a variable, such as dsprov_context_length=8192. Never a secret.",
)
channel = click.option(
    "--channel",
    type=click.Choice(["upstream", "cn", "auto"]),
    help="Where bytes come from; auto takes the fastest places that answer the hosts.",
)
print_command = click.option(
    "--print-command", is_flag=True, help="Show the equivalent ansible-playbook line and stop."
)
verbose = click.option("-v", "--verbose", count=True, help="Show Ansible's own output; more v, more of it.")
bundle = click.option(
    "--bundle",
    "bundle",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Take everything from this offline bundle; once for each folder of one that was cut.",
)
ansible_arguments = click.argument("ansible_arguments", nargs=-1, type=click.UNPROCESSED)

run_options = stack(limit, channel, extra, print_command, verbose, as_json, lang, ansible_arguments)
