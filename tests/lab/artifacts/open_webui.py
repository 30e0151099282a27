"""The real Open WebUI from PyPI, as a local image with the interface of the published one."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path

from . import base, common
from .common import Artifact, Log

VERSION = "0.11.3"
WHEEL_SHA256 = "8436f9bb29c5accbdfd90d78470fcc917c882bd53f72ed88fed91b1ee97fa547"
WHEEL = f"open_webui-{VERSION}-py3-none-any.whl"
UV_VERSION = "0.13.9"
PYTHON = "3.11"
PLATFORM = "x86_64-manylinux_2_36"
TARGET = ("--python-version", PYTHON, "--python-platform", PLATFORM)
REVISION = 1

RECIPES = Path(__file__).parent / "recipes"
LOCK = RECIPES / f"open-webui-{VERSION}.txt"
LEFT_OUT = RECIPES / "open-webui-left-out.txt"
START = RECIPES / "start.sh"

RUNTIME = base.Recipe(
    "python-3.11",
    "bookworm",
    "12",
    ("python3", "ca-certificates", "curl", "netbase"),
    ('rm -f "$1"/etc/machine-id',),
    ('CMD ["python3"]',),
)

COMPILE = (
    "python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash "
    f"/usr/local/lib/python{PYTHON}/dist-packages"
)

DOCKERFILE = f"""\
FROM {{runtime}}
COPY site/ /usr/local/lib/python{PYTHON}/dist-packages/
COPY app/ /app/
RUN {COMPILE} || true
ENV FROM_INIT_PY=true DATA_DIR=/app/backend/data HOST=0.0.0.0 PORT=8080 ENV=prod \\
    RAG_EMBEDDING_ENGINE=openai PYTHONUNBUFFERED=1 SCARF_NO_ANALYTICS=true DO_NOT_TRACK=true \\
    ANONYMIZED_TELEMETRY=false WEBUI_BUILD_VERSION={VERSION}
LABEL org.opencontainers.image.title="Open WebUI" org.opencontainers.image.version="{VERSION}" \\
    org.opencontainers.image.source="https://pypi.org/project/open-webui/{VERSION}/"
WORKDIR /app/backend
EXPOSE 8080
HEALTHCHECK --interval=30s --timeout=5s --start-period=180s CMD curl -fs http://127.0.0.1:${{{{PORT:-8080}}}}/health
CMD ["bash", "start.sh"]
"""


def _uv(cache: Path, log: Log) -> Path:
    """The uv of this machine, else one in the cache."""
    beside = Path(sys.executable).parent / "uv"
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found:
        return Path(found)
    home = cache / "tools" / f"uv-{UV_VERSION}"
    with common.locked(cache, "uv", log):
        if not (home / "bin" / "uv").exists():
            with common.step(log, f"fetching uv {UV_VERSION}"):
                common.run([sys.executable, "-m", "venv", home])
                common.run([home / "bin" / "pip", "install", "--quiet", f"uv=={UV_VERSION}"])
    return home / "bin" / "uv"


def lock(cache: Path, log: Log) -> Path:
    """Resolve the requirements anew (for a maintainer who changes the version) and write the lock file."""
    work = cache / "tmp"
    work.mkdir(parents=True, exist_ok=True)
    rows = LEFT_OUT.read_text(encoding="utf-8").splitlines()
    names = [row for row in rows if row and not row.startswith("#")]
    never = work / "left-out.txt"
    never.write_text("".join(f"{name} ; sys_platform == 'never'\n" for name in names), encoding="utf-8")
    wanted = work / "open-webui.in"
    wanted.write_text(f"open-webui=={VERSION}\n", encoding="utf-8")
    compiling = [_uv(cache, log), "pip", "compile", "-q", "--no-annotate", "--no-header", *TARGET]
    resolved = common.run([*compiling, "--overrides", never, wanted])
    head = (
        f"# Open WebUI {VERSION} for CPython {PYTHON} on glibc 2.36, less what {LEFT_OUT.name} names;"
        " made by\n"
        "#   python -m tests.lab.artifacts lock-open-webui\n"
    )
    LOCK.write_text(head + resolved, encoding="utf-8")
    return LOCK


def _thin(site: Path) -> None:
    """Leave out source maps, and keep one of each large file that the frontend carries two or three times."""
    frontend = site / "open_webui" / "frontend"
    for path in frontend.rglob("*.map"):
        path.unlink()
    seen: dict[str, Path] = {}
    large = [path for path in frontend.rglob("*") if path.is_file() and path.stat().st_size > 1 << 20]
    for path in sorted(large):
        digest = common.sha256_of(path)
        first = seen.setdefault(digest, path)
        if first is not path:
            path.unlink()
            path.symlink_to(os.path.relpath(first, path.parent))


def build(cache: Path, log: Log) -> Artifact:
    """See that the local image `dsprov-lab/open-webui:KEY` is there; extra["image"] is its tag."""
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (LOCK, START)}
    runtime = base.build_image(RUNTIME.name, cache, log, {RUNTIME.name: RUNTIME})
    recipe = {
        "dockerfile": DOCKERFILE,
        "files": files,
        "runtime": runtime.extra["image"],
        "revision": REVISION,
    }
    tag = f"dsprov-lab/open-webui:{common.key_of(recipe)}"

    def make(out: Path) -> Artifact:
        site, app = out / "site", out / "app" / "backend"
        (app / "data").mkdir(parents=True)
        with common.step(log, f"Open WebUI {VERSION}: fetching its packages"):
            wheel = common.pypi_file(cache, "open-webui", WHEEL, WHEEL_SHA256, log)
            pins = out / "requirements.txt"
            rows = LOCK.read_text(encoding="utf-8").splitlines()
            rows = [row for row in rows if not row.startswith("open-webui==")]
            pins.write_text("\n".join(rows), encoding="utf-8")
            installing = [
                _uv(cache, log),
                "pip",
                "install",
                "-q",
                "--no-deps",
                "--only-binary",
                ":all:",
                *TARGET,
            ]
            common.run([*installing, "--target", site, "-r", pins, wheel])
            pins.unlink()
            _thin(site)
        shutil.copy(START, app / "start.sh")
        (out / "Dockerfile").write_text(DOCKERFILE.format(runtime=runtime.extra["image"]), encoding="utf-8")
        with common.step(log, f"Open WebUI {VERSION}: docker build"):
            common.run(["docker", "build", "--tag", tag, out], log_file=cache / "logs" / "open-webui.log")
        size = int(common.run(["docker", "image", "inspect", "--format", "{{.Size}}", tag]))
        for folder in (site, out / "app"):
            shutil.rmtree(folder)
        identity = common.image_id(tag) or ""
        extra = {"image": tag, "name": "ghcr.io/open-webui/open-webui"}
        return Artifact(out, identity.removeprefix("sha256:"), size, VERSION, extra)

    with common.locked(cache, "image-open-webui", log):
        if common.image_id(tag) is None:
            shutil.rmtree(cache / "open-webui" / common.key_of(recipe), ignore_errors=True)
        return common.cached(cache, "open-webui", recipe, make, log)
