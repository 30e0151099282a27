"""dsprov check: everything that can be known before an install, without changing anything."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dsprov import options
from dsprov.commands.plan import show_plan
from dsprov.verb import run_verb
from dsprov.words import say, t

if TYPE_CHECKING:
    from dsprov.runner import Outcome


def report(outcome: Outcome) -> None:
    """The plan, then a verdict a host."""
    if outcome.plan:
        show_plan(outcome.plan)
    for name, host in sorted(outcome.hosts.items()):
        verdict = t("ready", "就绪") if host.state == "ok" else t("not ready", "未就绪")
        say(f"{name}: {verdict}")


@click.command(help="Preflight: reachability, variables, plan, ports, disk. Changes nothing.")
@options.inventory
@options.tier
@options.run_options
def command(inventories: tuple[Path, ...], tier: str, **choices: Any) -> int:
    """Runs the same preflight as install, and stops there."""
    return run_verb("check", inventories, tier=tier, report=report, **choices)
