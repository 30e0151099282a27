"""dsprov install: the whole way from bare hosts to appliances."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dsprov import options
from dsprov.verb import run_verb, summary
from dsprov.words import say, t

if TYPE_CHECKING:
    from dsprov.runner import Outcome


@click.command(help="Turn the hosts into appliances. The same command again goes on, or changes nothing.")
@options.inventory
@options.tier
@click.option("--dry-run", is_flag=True, help="Say what would change, with differences; change nothing.")
@options.bundle
@options.run_options
def command(
    inventories: tuple[Path, ...], tier: str, dry_run: bool, bundle: tuple[Path, ...], **choices: Any
) -> int:
    """Preflight, converge, accept."""

    def report(outcome: Outcome) -> None:
        summary(outcome, dry_run)
        if dry_run:
            say(t("dry run: nothing was changed", "演练:未作任何更改"))
            return
        for name, host in sorted(outcome.hosts.items()):
            access = (host.results.get("document") or {}).get("access")
            if host.state == "ok" and access:
                _hand_over(name, access)
        if outcome.exit_code == 0:
            files = " ".join(f"-i {shlex.quote(str(path))}" for path in inventories)
            say(t(f"next: dsprov status {files}", f"下一步:dsprov status {files}"))

    return run_verb(
        "install", inventories, tier=tier, dry_run=dry_run, report=report, bundle=bundle, **choices
    )


def _hand_over(name: str, access: dict[str, Any]) -> None:
    """Where people reach the machine, and where its password is."""
    say()
    if access.get("web_ui"):
        say(t(f"{name}: Open WebUI {access['web_ui']}", f"{name}:Open WebUI {access['web_ui']}"))
        admin, file = access["admin"], access["password_file"]
        say(
            t(
                f"  sign in as {admin}; the password is in {file} on {name} (root only)",
                f"  登录名 {admin};密码在 {name} 的 {file}(仅 root 可读)",
            )
        )
        say(t(f"  from here: {access['tunnel']}", f"  从本机访问:{access['tunnel']}"))
    say(
        t(
            f"  OpenAI API on the host: {access['engine']}, model {access['model']}",
            f"  主机上的 OpenAI API:{access['engine']},模型 {access['model']}",
        )
    )
    if access.get("engine_key_file"):
        file = access["engine_key_file"]
        say(t(f"  its key is in {file} (root only)", f"  其密钥在 {file}(仅 root 可读)"))
