"""NVIDIA's wheels of CUDA as the catalogue pins them."""

from __future__ import annotations

from pathlib import Path

import yaml

from . import common
from .common import Artifact, Log

_CATALOGUE = Path(__file__).parents[3] / "catalog" / "software.yml"


def build(cache: Path, log: Log) -> Artifact:
    """The wheels; extra["wheels"] is project to (path, sha256). The path is the compiler's."""
    row = yaml.safe_load(_CATALOGUE.read_text(encoding="utf-8"))["software"]["cuda"]
    wheels: dict[str, tuple[Path, str]] = {}
    for file in row["files"].values():
        project = file["sources"][0].removeprefix("pypi:").split("/")[0]
        path = common.pypi_file(cache, project, file["name"], file["sha256"], log)
        wheels[project] = (path, file["sha256"])
    path, sha256 = wheels["nvidia-cuda-nvcc"]
    return Artifact(path, sha256, path.stat().st_size, row["version"], {"wheels": wheels})
