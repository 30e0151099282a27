"""Run by vLLM's own Python: which of the commands on standard input its own command line refuses, as JSON."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from typing import Any


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
    for words in json.load(sys.stdin):
        reached = False
        said = io.StringIO()
        sys.argv = words
        with contextlib.redirect_stderr(said), contextlib.suppress(SystemExit):
            program.main()
        if not reached:
            refused.append({"command": words, "said": said.getvalue()[-500:]})
    json.dump(refused, sys.stdout)


if __name__ == "__main__":
    main()
