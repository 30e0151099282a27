"""dsprov probe: read the hosts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dsprov import options
from dsprov.verb import run_verb
from dsprov.words import say, t

if TYPE_CHECKING:
    from dsprov.runner import Outcome


def facts_document(outcome: Outcome) -> dict[str, Any]:
    """The facts document, schema 1, of the hosts that answered."""
    return {
        "schema": 1,
        "hosts": {n: h.results["facts"] for n, h in sorted(outcome.hosts.items()) if "facts" in h.results},
    }


@click.command(help="Read the hosts' hardware and system; change nothing. Prints or writes a facts document.")
@options.inventory
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write the facts there (YAML)."
)
@options.run_options
def command(inventories: tuple[Path, ...], output: Path | None, **choices: Any) -> int:
    """Facts as JSON with --json, as YAML otherwise."""

    def report(outcome: Outcome) -> None:
        import yaml

        facts = facts_document(outcome)
        if not facts["hosts"]:
            return  # Nothing was read: a file from an earlier look stays as it is.
        text = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)
        if output is None:
            click.echo(text, nl=False)
        else:
            write_text(output, text)

    def document(outcome: Outcome) -> dict[str, Any]:
        facts = facts_document(outcome)
        if not facts["hosts"]:
            return outcome.document("probe")  # Nothing was read: the document says why.
        if output is not None:
            import json

            write_text(output, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
        return facts

    return run_verb("probe", inventories, document=document, report=report, **choices)


def write_text(path: Path, text: str) -> None:
    """Writes a file in one step.

    Raises:
        click.ClickException: the folder is missing or not ours to write.
    """
    if not path.name or path.is_dir():
        raise click.ClickException(t(f"{path}: is a folder, give a file", f"{path}:是文件夹,请给出文件"))
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise click.ClickException(f"{path}: {error.strerror}") from error
    say(t(f"written: {path}", f"已写入:{path}"))
