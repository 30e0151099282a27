"""dsprov check: everything that can be known before an install, without changing anything."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dsprov import options
from dsprov.show import show_check, show_plan
from dsprov.verb import run_verb
from dsprov.words import say

if TYPE_CHECKING:
    from dsprov.runner import Outcome


def report(outcome: Outcome) -> None:
    """The plan, then a line a host."""
    if outcome.plan:
        facts = {n: h.results["facts"] for n, h in outcome.hosts.items() if "facts" in h.results}
        show_plan(outcome.plan, facts={"hosts": facts})
        say()
    states = {name: host.state for name, host in outcome.hosts.items()}
    if states:
        show_check(states, outcome.problems, outcome.plan)


@click.command(help="Preflight: reachability, variables, plan, ports, disk. Changes nothing.")
@options.inventory
@options.tier
@options.bundle
@options.run_options
def command(inventories: tuple[Path, ...], tier: str, bundle: tuple[Path, ...], **choices: Any) -> int:
    """Runs the same preflight as install, and stops there."""
    return run_verb("check", inventories, tier=tier, report=report, bundle=bundle, **choices)
