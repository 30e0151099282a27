"""What every verb that runs a playbook does around it: compose, lock, run, report."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dsprov import runner
from dsprov.invocation import Invocation, compose
from dsprov.lock import inventory_lock
from dsprov.progress import Progress
from dsprov.runner import Outcome
from dsprov.words import say, say_problems, t

if TYPE_CHECKING:
    from ansible_collections.dsprov.appliance.plugins.module_utils.problems import Problem
    from dsprov.bundle.use import BundleRun

Report = Callable[[Outcome], None]


def run_verb(
    verb: str,
    inventories: Sequence[Path],
    *,
    as_json: bool,
    verbose: int,
    print_command: bool,
    overrides: Sequence[str] = (),
    ansible_arguments: Sequence[str] = (),
    document: Callable[[Outcome], Any] | None = None,
    report: Report | None = None,
    bundle: Sequence[Path] = (),
    **choices: Any,
) -> int:
    """Runs a verb's playbook and reports it.

    Args:
        verb: the verb; its playbook has the same name.
        document: makes the JSON document of the outcome; the whole outcome by default.
        report: prints the outcome for people.
        bundle: folders of the offline bundle that everything comes from.
        choices: tier, channel, limit, dry_run, as `compose` takes them.

    Returns:
        The exit code of the contract.
    """
    invocation = compose(
        verb,
        inventories,
        overrides=overrides,
        verbosity=verbose,
        arguments=ansible_arguments,
        **choices,
    )
    offline = _offline(bundle, invocation, choices.get("tier"))
    if offline:
        invocation = offline.invocation
    if print_command:
        click.echo(invocation.shell_line())
        return 0
    with inventory_lock(invocation.inventories):
        if offline and (found := _damage(offline)):
            if as_json:
                words = {"schema": 1, "verb": verb, "ok": False, "exit": 2, "problems": found}
                click.echo(json.dumps(words, ensure_ascii=False))
            say_problems(found)
            return 2
        with offline or nullcontext(), Progress(verbose > 0) as progress:
            outcome = runner.run(invocation, progress)
    if as_json:
        click.echo(json.dumps((document or (lambda o: o.document(verb)))(outcome), ensure_ascii=False))
    else:
        (report or (lambda _outcome: None))(outcome)
    say_problems(outcome.problems)
    return outcome.exit_code


def _offline(bundle: Sequence[Path], invocation: Invocation, tier: str | None) -> BundleRun | None:
    if not bundle:
        return None
    if any(pair.startswith("dsprov_channel=") for pair in invocation.overrides):
        raise click.UsageError(t("a channel has no place beside --bundle", "使用 --bundle 时不能指定渠道"))
    from dsprov.bundle.use import BundleRun  # Runs without a bundle need not wait for it.

    return BundleRun(bundle, invocation, tier)


def _damage(offline: BundleRun) -> list[Problem]:
    """What is wrong with a run's bundle: every byte of it is read before any host is asked."""
    from dsprov.bundle.use import verify

    return verify(offline.bundle).problems


def summary(outcome: Outcome, dry_run: bool = False) -> None:
    """A line a host: what it came to, how much changed."""
    words = {
        "ok": t("ok", "成功"),
        "failed": t("failed", "失败"),
        "unreachable": t("unreachable", "无法连接"),
    }
    width = max((len(name) for name in outcome.hosts), default=4)
    say()
    for name, host in sorted(outcome.hosts.items()):
        count = len(host.changed)
        changes = t(f"{count} changed", f"更改 {count} 项")
        if dry_run:
            changes = t(f"{count} would change", f"将更改 {count} 项")
        say(f"{name:<{width}}  {words[host.state]}  {changes}")
    say(
        t(f"{outcome.seconds:.0f} s, log: {outcome.log}", f"用时 {outcome.seconds:.0f} 秒,日志:{outcome.log}")
    )
