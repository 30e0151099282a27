"""NVIDIA's container toolkit: the real programs, built from the Go module, packed as NVIDIA's own package is.

Its repository cannot be reached from everywhere the lab runs, the module proxy can.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from . import common, ollama
from .common import Artifact, Log

MODULE = "github.com/NVIDIA/nvidia-container-toolkit"
SUMS = {
    "1.20.1": "h1:DsE0Pnu2XAl7IC00W2tmld7i/GerwnZGzRbmChj295Q=",
    "1.19.0": "h1:iuttW93jclh0+y3RdBw8DR7v6Gfv6h+HjjY87cTyn9M=",
}
PROGRAMS = ("nvidia-ctk", "nvidia-cdi-hook", "nvidia-container-runtime")
PACKAGE = "nvidia-container-toolkit-base"
# What debhelper puts in the place of its mark for units: enabled, and started where systemd runs.
_DEBHELPER = """
if [ "$1" = configure ]; then
    deb-systemd-helper enable {units} >/dev/null
    if [ -d /run/systemd/system ]; then
        systemctl --system daemon-reload >/dev/null || true
        deb-systemd-invoke start {units} >/dev/null || true
    fi
fi
"""


def layout(source: Path, programs: Path) -> dict[str, Path]:
    """The package's files by their place on a host, as its own list for Debian says."""
    text = (source / "packaging" / "debian" / f"{PACKAGE}.install").read_text(encoding="utf-8")
    files = {}
    for line in text.splitlines():
        name, folder = line.split()
        found = [programs / name] if name in PROGRAMS else sorted((source / "deployments").rglob(name))
        if len(found) != 1 or not found[0].exists():
            raise common.BuildError(f"{PACKAGE}: {len(found)} files {name} in {source}")
        files[f"{folder.rstrip('/')}/{name}"] = found[0]
    return files


def postinst(source: Path, files: dict[str, Path]) -> str:
    """The package's script after its installation."""
    text = (source / "packaging" / "debian" / f"{PACKAGE}.postinst").read_text(encoding="utf-8")
    units = [path.rpartition("/")[2] for path in files if re.fullmatch(r"/lib/systemd/system/[^/]+", path)]
    return text.replace("#DEBHELPER#", _DEBHELPER.format(units=" ".join(units)) if units else "")


def build(cache: Path, log: Log) -> Artifact:
    """Every release as VERSION/root, its files in their places, and VERSION/postinst; `path` is above."""
    recipe = {"module": MODULE, "sums": SUMS, "programs": PROGRAMS, "script": _DEBHELPER, "revision": 2}

    def make(out: Path) -> Artifact:
        common.need_tools({"gcc": "build-essential"}, log)
        go = ollama.go(cache, log)
        for version, wanted in SUMS.items():
            words = [go, "mod", "download", "-json", f"{MODULE}@v{version}"]
            row = json.loads(common.run(words, cwd=Path("/")))
            if row["Sum"] != wanted:
                raise common.BuildError(f"{MODULE} {version}: its sum is {row['Sum']}, expected {wanted}")
            source, programs = Path(row["Dir"]), out / version / "programs"
            programs.mkdir(parents=True)
            # As its Makefile has them; functions of the driver's library are looked up when they are called.
            flags = f"-s -w -extldflags=-Wl,-z,lazy -X {MODULE}/internal/info.version={version}"
            with common.step(log, f"building the container toolkit {version}"):
                for program in PROGRAMS:
                    common.run(
                        [go, "build", "-trimpath", "-ldflags", flags, "-o", programs, f"./cmd/{program}"],
                        cwd=source,
                        env={"CGO_ENABLED": "1", "GOFLAGS": "-mod=readonly"},
                    )
            files = layout(source, programs)
            for path, file in files.items():
                target = out / version / "root" / path.lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
            (out / version / "postinst").write_text(postinst(source, files), encoding="utf-8")
            shutil.rmtree(programs)
        return Artifact(out, "", 0, next(iter(SUMS)), {"versions": list(SUMS)})

    return common.cached(cache, "container-toolkit", recipe, make, log)
