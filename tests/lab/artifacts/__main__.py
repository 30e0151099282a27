"""python -m tests.lab.artifacts [WHAT ...]: build what the lab needs and print where it is, as JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from . import base, measuring, model, ollama, open_webui, tiny
from .common import Artifact, BuildError, Log, cache_root

BUILDERS: dict[str, Callable[[Path, Log], Artifact]] = {
    "ollama": ollama.build,
    "open-webui": open_webui.build,
    "model": model.build,
    "tiny": tiny.build,
}
# Built by name alone: no lab host needs them.
ON_DEMAND: dict[str, Callable[[Path, Log], Artifact]] = {
    "llama-tools": measuring.llama_tools,
    "gguf-estimate": measuring.gguf_estimate,
    "real-header": measuring.real_header,
}


def main(words: list[str]) -> int:
    begun = time.monotonic()

    def log(line: str) -> None:
        print(f"[{time.monotonic() - begun:6.1f} s] {line}", file=sys.stderr, flush=True)

    known = [*base.RECIPES, *BUILDERS]
    unknown = [word for word in words if word not in [*known, *ON_DEMAND, "lock-open-webui"]]
    if unknown:
        choices = ", ".join([*known, *ON_DEMAND])
        print(f"cannot build {', '.join(unknown)}: choose from {choices}", file=sys.stderr)
        return 2
    cache = cache_root()
    try:
        if words == ["lock-open-webui"]:
            print(open_webui.lock(cache, log))
            return 0
        builders = BUILDERS | ON_DEMAND
        made = {
            name: builders[name](cache, log) if name in builders else base.build_image(name, cache, log)
            for name in words or known
        }
    except BuildError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    print(json.dumps({name: asdict(row) for name, row in made.items()}, indent=1, default=str))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
