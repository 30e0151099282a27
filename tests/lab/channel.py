"""What the lab tells dsprov, as inventory data alone: where its mirrors are and which artifacts they hold."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

from . import mirror as mirrors
from . import nvidia
from .artifacts import model, tiny
from .artifacts.base import apt_sources
from .artifacts.common import Artifact, Log
from .engine import LabError
from .hosts import CCACHE
from .mirror import Mirror

ARTIFACTS = ("ollama", "open_webui", "model", "llama_cpp", "cuda", "tiny")
# Repositories that only those hosts need that ask for them by name.
ON_DEMAND = ("nvidia_drivers", "nvidia_containers")
# What the demo needs; the others are asked for by name.
USUAL = ("ollama", "open_webui", "model")
WEBUI_PATH = "ghcr.io/open-webui/open-webui"


def build(what: str, cache: Path, log: Log) -> Artifact:
    """Build one artifact, or find it in the cache."""
    if what not in ARTIFACTS:
        raise LabError(f"no artifact {what}: one of {', '.join(ARTIFACTS)}")
    made: Artifact = import_module(f"{__package__}.artifacts.{what}").build(cache, log)
    return made


def _ollama(cache: Path, mirror: Mirror, log: Log) -> dict[str, Any]:
    made = build("ollama", cache, log)
    path = mirrors.serve(cache, made, f"ollama/v{made.version}/{made.path.name}")
    return {
        "ollama_version": made.version,
        "ollama_archive_sources": [f"{mirror.files}/{path}"],
        "ollama_archive_sha256": made.sha256,
        "ollama_archive_bytes": made.bytes,
    }


def _open_webui(cache: Path, mirror: Mirror, log: Log) -> dict[str, Any]:
    made = build("open_webui", cache, log)
    digest = mirrors.push(mirror, str(made.extra["image"]), WEBUI_PATH, f"v{made.version}", log)
    return {"open_webui_version": made.version, "open_webui_image_digest": digest}


def _model(cache: Path, _mirror: Mirror, log: Log) -> dict[str, Any]:
    made = build("model", cache, log)
    model.write_index(cache / "www", {str(made.extra["project"]): [(made.path, made.sha256)]})
    return {}


def _llama_cpp(cache: Path, _mirror: Mirror, log: Log) -> dict[str, Any]:
    """The sources, and a compiler cache for all hosts: a second build takes seconds."""
    made = build("llama_cpp", cache, log)
    model.write_index(cache / "www", {str(made.extra["project"]): [(made.path, made.sha256)]})
    return {"llama_cpp_ccache_dir": CCACHE}


def _tiny(cache: Path, mirror: Mirror, log: Log) -> dict[str, Any]:
    """Small models of real architectures, as a user's own."""
    made = build("tiny", cache, log)
    rows = {}
    for name, files in made.extra["files"].items():
        base = f"tiny/{made.path.name}/{name}"
        for file, (size, digest) in files.items():
            one = Artifact(made.path / name / file, digest, size, made.version)
            mirrors.serve(cache, one, f"{base}/{file}")
        rows[name] = tiny.row(name, files, f"{mirror.files}/{base}")
    return {"dsprov_models": rows}


def _cuda(cache: Path, _mirror: Mirror, log: Log) -> dict[str, Any]:
    made = build("cuda", cache, log)
    model.write_index(cache / "www", {project: [row] for project, row in made.extra["wheels"].items()})
    return {}


def _nvidia_drivers(cache: Path, mirror: Mirror, log: Log) -> dict[str, Any]:
    place, key = nvidia.serve(cache, "drivers", log)
    return {
        "nvidia_driver_apt_url": f"{mirror.files}/{place}/cuda",
        "nvidia_driver_fingerprints": [key.fingerprint],
    }


def _nvidia_containers(cache: Path, mirror: Mirror, log: Log) -> dict[str, Any]:
    place, key = nvidia.serve(cache, "containers", log)
    return {
        "nvidia_container_toolkit_apt_url": f"{mirror.files}/{place}",
        "nvidia_container_toolkit_fingerprints": [key.fingerprint],
    }


_FILL = {
    "ollama": _ollama,
    "open_webui": _open_webui,
    "model": _model,
    "llama_cpp": _llama_cpp,
    "tiny": _tiny,
    "cuda": _cuda,
    "nvidia_drivers": _nvidia_drivers,
    "nvidia_containers": _nvidia_containers,
}


def base(cache: Path, mirror: Mirror, log: Log) -> dict[str, Any]:
    """The variables that point dsprov at the mirror, whatever it holds; a small image is always there."""
    small = mirrors.busybox(cache, mirror, log)
    mirrors.push(mirror, str(small.extra["image"]), "library/busybox", small.version, log)
    main, security = apt_sources()
    return {
        "dsprov_mirrors": {
            "pypi_index": f"{mirror.files}/simple",
            "debian": mirror.through(main),
            "debian_security": mirror.through(security),
            "registries": {"ghcr.io": f"{mirror.registry}/ghcr.io"},
            "registry_mirrors": [f"http://{mirror.registry}"],
            "insecure_registries": [mirror.registry],
        }
    }


def fill(cache: Path, mirror: Mirror, wanted: tuple[str, ...], log: Log) -> dict[str, Any]:
    """See that the mirror holds these artifacts; the variables that name them."""
    data: dict[str, Any] = {}
    with ThreadPoolExecutor(max_workers=len(ARTIFACTS)) as pool:
        for job in [pool.submit(_FILL[name], cache, mirror, log) for name in wanted]:
            data |= job.result()
    return data
