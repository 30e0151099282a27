"""Run by vLLM's own Python: which of the commands on standard input its own command line refuses, as JSON.

Of a command by which Ray runs vLLM, each reads its part.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from typing import Any


def ray_refuses(words: list[str]) -> str:
    """What Ray says of its part of a command, on a first host and on others; nothing where it takes it."""
    import click  # vLLM's Python has it.
    from ray.scripts.scripts import cli
    from ray.scripts.symmetric_run import (
        curate_and_validate_ray_start_args,
    )

    try:
        given = curate_and_validate_ray_start_args(words)
        start = cli.commands["start"]
        for role in (["--head", "--port=1"], ["--address", "10.0.0.1:1", "--block"]):
            context = start.make_context("start", [*role, *given])
            if context.args:
                return f"not understood: {context.args}"
    except click.ClickException as error:
        return error.format_message()
    return ""


def main() -> None:
    """Let `vllm` read each command as far as to where it would begin to serve."""
    from vllm.entrypoints.cli import main as program  # type: ignore[import-not-found]
    from vllm.entrypoints.cli.serve import ServeSubcommand  # type: ignore[import-not-found]

    def served(args: Any) -> None:
        nonlocal reached
        reached = bool(args.served_model_name)

    ServeSubcommand.cmd = staticmethod(served)
    ServeSubcommand.validate = lambda _self, _args: None
    refused = []
    for command in json.load(sys.stdin):
        words, said = command, ""
        if command[:2] == ["ray", "symmetric-run"]:
            at = command.index("--")
            words, said = command[at + 1 :], ray_refuses(command[2:at])
        if not said:
            reached = False
            errors = io.StringIO()
            sys.argv = words
            with contextlib.redirect_stderr(errors), contextlib.suppress(SystemExit):
                program.main()
            said = "" if reached else errors.getvalue()[-500:] or "it does not begin to serve"
        if said:
            refused.append({"command": command, "said": said})
    json.dump(refused, sys.stdout)


if __name__ == "__main__":
    main()
