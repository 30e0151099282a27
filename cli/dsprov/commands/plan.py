"""dsprov plan: what would run where, from live hosts or from a facts file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ansible_collections.dsprov.appliance.plugins.module_utils.planner import plan as make_plan
from ansible_collections.dsprov.appliance.plugins.plugin_utils import catalogue as data
from ansible_collections.dsprov.appliance.plugins.plugin_utils.requests import request_from
from dsprov import options
from dsprov.commands.probe import write_text
from dsprov.invocation import check_override
from dsprov.show import show_model, show_plan
from dsprov.words import say_problems, t


def plan_from_facts(
    path: Path, tier: str | None, overrides: Sequence[str], source: str | None = None
) -> tuple[dict[str, Any], int]:
    """A plan from a facts file; with `source` of the GGUF file there, in place of the tier's model.

    Returns:
        The plan and the exit code: 0, or 2 for a bad request, or 3 where the plan refuses.

    Raises:
        ProblemError: the file, the tier or an override is not usable.
    """
    table = data.problems()
    facts = data.read_yaml(path)
    data.check(facts, data.facts_schema(), None, path)
    if not facts["hosts"]:
        raise table.error("facts-host-missing", file=path)
    pairs = [check_override(text).partition("=") for text in overrides]
    rows = data.catalogue()
    variables = data.tier_variables(tier) if tier else {"dsprov_tier": "custom"}
    if source is not None:
        name, rows = data.with_gguf(source)
        variables = {**variables, "dsprov_model": name}
    variables = {**variables, **{key: value for key, _equals, value in pairs}}
    request, found = request_from(variables)
    if request is None:
        code = max(table.exit_code(problem["code"]) for problem in found)
        return {"schema": 1, "tier": tier or "custom", "ok": False, "hosts": [], "problems": found}, code
    plan = make_plan(facts, request, rows)
    return plan, exit_code(plan)


def exit_code(plan: dict[str, Any]) -> int:
    """2 where somebody can mend it on the spot, 3 where the hosts do not suffice: as a live run ends."""
    table = data.problems()
    codes = {table.exit_code(p["code"]) for p in plan["problems"] if p["severity"] == "error"}
    return next((code for code in (2, 3) if code in codes), 0)


@click.command(help="Say what would run where, and why not. Changes nothing.")
@click.option(
    "-i", "--inventory", "inventories", multiple=True, type=click.Path(path_type=Path), metavar="HOSTS",
    help="Hosts to read first.",
)  # fmt: skip
@click.option(
    "--facts", type=click.Path(path_type=Path), metavar="FILE", help="Facts written by probe or by hand."
)
@click.option("--gguf", metavar="FILE|URL", help="Plan this GGUF model instead of the tier's; needs no tier.")
@click.option("--tier", metavar="TIER", help="What to build; `dsprov tiers list` shows all.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write the plan there (JSON)."
)
@click.option("--why", is_flag=True, help="Also say what was considered and turned down, and the commands.")
@options.run_options
def command(
    inventories: tuple[Path, ...],
    facts: Path | None,
    gguf: str | None,
    tier: str | None,
    output: Path | None,
    why: bool,
    **choices: Any,
) -> int:
    """From live hosts with -i, from a file with --facts."""
    if gguf is not None and not inventories and facts is None:
        name, rows = data.with_gguf(gguf)
        show_model(name, rows["models"][name], choices["as_json"])
        return 0
    if tier is None and gguf is None:
        raise click.UsageError(t("Missing option '--tier'.", "缺少选项 '--tier'。"))
    if bool(inventories) == bool(facts):
        raise click.UsageError(
            t("give either -i HOSTS or --facts FILE", "请给出 -i HOSTS 或 --facts FILE 之一")
        )
    if facts is not None:
        overrides = list(choices["overrides"])
        if choices["channel"]:
            overrides.append(f"dsprov_channel={choices['channel']}")
        plan, code = plan_from_facts(facts, tier, overrides, gguf)
        _hand_over(
            plan, choices["as_json"], output, why, None if choices["as_json"] else data.read_yaml(facts)
        )
        if not choices["as_json"]:
            say_problems(plan["problems"])
        return code

    from dsprov.verb import run_verb

    if gguf is not None:
        # Read here first: a file that is none costs no look at the hosts.
        name, _rows = data.with_gguf(gguf)
        place = gguf if "://" in gguf else str(Path(gguf).resolve())
        given = json.dumps({"preflight_gguf": place, "dsprov_model": name})
        choices["ansible_arguments"] = ("-e", given, *choices["ansible_arguments"])

    def report(outcome: Any) -> None:
        if outcome.plan:
            _hand_over(outcome.plan, False, output, why, {"hosts": _facts(outcome)})

    def document(outcome: Any) -> Any:
        if output is not None and outcome.plan:
            write_text(output, _text(outcome.plan))
        return outcome.plan or outcome.document("plan")

    return run_verb("plan", inventories, tier=tier, document=document, report=report, **choices)


def _text(plan: dict[str, Any]) -> str:
    return json.dumps(plan, indent=2, ensure_ascii=False) + "\n"


def _facts(outcome: Any) -> dict[str, Any]:
    return {name: host.results["facts"] for name, host in outcome.hosts.items() if "facts" in host.results}


def _hand_over(
    plan: dict[str, Any],
    as_json: bool,
    output: Path | None,
    why: bool,
    facts: dict[str, Any] | None = None,
) -> None:
    if output is not None:
        write_text(output, _text(plan))
    if as_json:
        click.echo(json.dumps(plan, ensure_ascii=False))
    else:
        show_plan(plan, why, facts)
