"""dsprov tiers: what can be built."""

from __future__ import annotations

from typing import Any

import click

from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import (
    tier_names,
    tier_path,
    tier_title,
    tier_variables,
)
from dsprov import options
from dsprov.words import pick


@click.group(help="List the tiers, or show one.")
def command() -> None:
    """Parent of `list` and `show`."""


@command.command("list")
@options.as_json
@options.lang
def list_tiers(as_json: bool) -> None:
    """A line a tier."""
    rows: list[dict[str, Any]] = [{"name": name, "title": tier_title(name)} for name in tier_names()]
    if as_json:
        import json

        click.echo(json.dumps({"schema": 1, "tiers": rows}, ensure_ascii=False))
        return
    for row in rows:
        click.echo(f"{row['name']:<10} {pick(row['title'])}")


@command.command("show")
@click.argument("name")
@options.as_json
@options.lang
def show_tier(name: str, as_json: bool) -> None:
    """The settings of one tier; whatever the user's inventory says wins over them."""
    variables = tier_variables(name)
    if as_json:
        import json

        click.echo(json.dumps({"schema": 1, "name": name, "variables": variables}, ensure_ascii=False))
        return
    click.echo(f"{name}: {pick(variables['dsprov_tier_title'])}")
    for key, value in variables.items():
        if key not in ("dsprov_tier", "dsprov_tier_title"):
            click.echo(f"  {key}: {value}")
    click.echo(f"  # {tier_path(name)}")
