"""NVIDIA's container toolkit: the real programs, built from the Go module, packed as NVIDIA's own package is.

Its repository cannot be reached from everywhere the lab runs, the module proxy can.
"""

from __future__ import annotations

import json
from pathlib import Path

from . import common, ollama
from .common import Artifact, Log

MODULE = "github.com/NVIDIA/nvidia-container-toolkit"
SUMS = {
    "1.20.1": "h1:DsE0Pnu2XAl7IC00W2tmld7i/GerwnZGzRbmChj295Q=",
    "1.19.0": "h1:iuttW93jclh0+y3RdBw8DR7v6Gfv6h+HjjY87cTyn9M=",
}
PROGRAMS = ("nvidia-ctk", "nvidia-cdi-hook", "nvidia-container-runtime")
UNITS = ("nvidia-cdi-refresh.service", "nvidia-cdi-refresh.path")


def build(cache: Path, log: Log) -> Artifact:
    """Programs and units of all releases, in a folder for each; `path` is the folder above."""
    recipe = {"module": MODULE, "sums": SUMS, "programs": PROGRAMS, "units": UNITS, "revision": 1}

    def make(out: Path) -> Artifact:
        common.need_tools({"gcc": "build-essential"}, log)
        go = ollama.go(cache, log)
        for version, wanted in SUMS.items():
            words = [go, "mod", "download", "-json", f"{MODULE}@v{version}"]
            row = json.loads(common.run(words, cwd=Path("/")))
            if row["Sum"] != wanted:
                raise common.BuildError(f"{MODULE} {version}: its sum is {row['Sum']}, expected {wanted}")
            source, target = Path(row["Dir"]), out / version
            target.mkdir()
            flags = f"-s -w -extldflags=-Wl,-z,lazy -X {MODULE}/internal/info.version={version}"
            with common.step(log, f"building the container toolkit {version}"):
                for program in PROGRAMS:
                    common.run(
                        [
                            go,
                            "build",
                            "-trimpath",
                            "-ldflags",
                            flags,
                            "-o",
                            target / program,
                            f"./cmd/{program}",
                        ],
                        cwd=source,
                        env={"CGO_ENABLED": "1", "GOFLAGS": "-mod=readonly"},
                    )
            for unit in UNITS:
                (target / unit).write_bytes((source / "deployments" / "systemd" / unit).read_bytes())
        return Artifact(out, "", 0, next(iter(SUMS)), {"versions": list(SUMS)})

    return common.cached(cache, "container-toolkit", recipe, make, log)
