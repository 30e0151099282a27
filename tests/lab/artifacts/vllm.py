"""vLLM's build for CPUs in a virtual environment, from the role's own list of packages, and Ray beside it."""

from __future__ import annotations

from pathlib import Path

from . import common
from .common import Artifact, Log
from .open_webui import PYTHON, _uv

ROLE = Path(__file__).resolve().parents[3] / "roles" / "vllm"
VERSION = "0.32.0"
PACKAGES = ROLE / "files" / f"requirements-cpu-{VERSION}.txt"
RAY = ROLE / "files" / "requirements-ray-2.60.0.txt"
REVISION = 1


def build(cache: Path, log: Log) -> Artifact:
    """The folder, whose venv/bin/python has vLLM; only tests of its command line need it."""
    recipe = {
        "packages": common.sha256_of(PACKAGES),
        "ray": common.sha256_of(RAY),
        "python": PYTHON,
        "revision": REVISION,
    }

    def make(out: Path) -> Artifact:
        venv = out / "venv"
        uv = _uv(cache, log)
        common.run([uv, "venv", "--quiet", f"--python={PYTHON}", venv])
        with common.step(log, f"vLLM {VERSION}: fetching its packages"):
            installing = [uv, "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
            common.run([*installing, f"--python={venv / 'bin' / 'python'}", "-r", PACKAGES, "-r", RAY])
        name = f"vllm-{VERSION}+cpu.dist-info"
        alias = venv / "lib" / f"python{PYTHON}" / "site-packages" / name
        alias.mkdir()
        text = f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n"
        (alias / "METADATA").write_text(text, encoding="utf-8")
        return Artifact(out, "", 0, VERSION)

    return common.cached(cache, "vllm", recipe, make, log)
