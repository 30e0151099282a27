"""dsprov status: whether every service is healthy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dsprov import options
from dsprov.verb import run_verb
from dsprov.words import t

if TYPE_CHECKING:
    from dsprov.runner import Outcome


def document(outcome: Outcome) -> dict[str, Any]:
    """Per host what runs, its version and whether it is healthy."""
    hosts = {
        name: {"reachable": host.state != "unreachable", **host.results.get("status", {})}
        for name, host in sorted(outcome.hosts.items())
    }
    return {
        "schema": 1,
        "ok": outcome.exit_code == 0 and all(host.get("healthy") for host in hosts.values()),
        "hosts": hosts,
        "problems": outcome.problems,
    }


def report(outcome: Outcome) -> None:
    """A line a service."""
    for name, host in sorted(outcome.hosts.items()):
        status = host.results.get("status")
        if status is None:
            click.echo(f"{name}: {t('no answer', '无应答')}")
            continue
        if not status["installed"]:
            click.echo(f"{name}: {t('dsprov has installed nothing here', '尚未由 dsprov 安装')}")
            continue
        click.echo(f"{name}: {status['tier']} · {status['model']} · {status['when']}")
        for service in status["services"]:
            health = t("healthy", "健康") if service["healthy"] else t("NOT HEALTHY", "异常")
            rest = service["detail"] or service.get("model") or ""
            click.echo(f"  {service['name']:<12} {service['version'] or '-':<18} {health}  {rest}".rstrip())


@click.command(help="Look whether every service is healthy. Exit code 1 where one is not.")
@options.inventory
@options.run_options
def command(inventories: tuple[Path, ...], **choices: Any) -> int:
    """Reads what install recorded on each host, and asks each service."""
    healthy: list[bool] = []

    def told(outcome: Outcome) -> dict[str, Any]:
        found = document(outcome)
        healthy.append(found["ok"])
        return found

    def shown(outcome: Outcome) -> None:
        told(outcome)
        report(outcome)

    code = run_verb("status", inventories, document=told, report=shown, **choices)
    return code or (0 if all(healthy) else 1)
