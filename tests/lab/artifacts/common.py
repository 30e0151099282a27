"""What every builder of the lab shares: a content-keyed cache, progress lines, tools, the Docker command."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

Log = Callable[[str], None]

PYPI_JSON = "application/vnd.pypi.simple.v1+json"
CHUNK = 1 << 20


class BuildError(RuntimeError):
    """A build that cannot go on; the message is one line for people."""


@dataclass(frozen=True)
class Artifact:
    """A thing that a builder made: a file or folder of the cache; extra["image"] is a local Docker image."""

    path: Path
    sha256: str
    bytes: int
    version: str
    extra: dict[str, Any] = field(default_factory=dict)


def cache_root() -> Path:
    """The lab's cache folder (DSPROV_CACHE, else XDG_CACHE_HOME/dsprov)."""
    base = os.environ.get("DSPROV_CACHE")
    if base:
        return Path(base) / "lab"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dsprov" / "lab"


def key_of(recipe: Mapping[str, Any]) -> str:
    """A short name for everything that decides what a build makes."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def step(log: Log, what: str) -> Iterator[None]:
    """One line when a step is done, with the time it took; a failure is named too."""
    begun = time.monotonic()
    log(f"{what} ...")
    try:
        yield
    except BaseException:
        log(f"{what}: failed after {time.monotonic() - begun:.1f} s")
        raise
    log(f"{what}: {time.monotonic() - begun:.1f} s")


def run(
    argv: Sequence[object],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    log_file: Path | None = None,
    stdin: Any = None,
) -> str:
    """Run a command; on failure raise one line that names it and where its output is."""
    words = [str(word) for word in argv]
    merged = {**os.environ, **(env or {})}
    if log_file is None:
        done = subprocess.run(
            words, cwd=cwd, env=merged, stdin=stdin, capture_output=True, text=True, check=False
        )
        tail = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no output"]
        if done.returncode:
            raise BuildError(f"{shlex.join(words[:4])} ended with {done.returncode}: {tail[0]}")
        return done.stdout
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("ab") as stream:
        code = subprocess.run(
            words, cwd=cwd, env=merged, stdin=stdin, stdout=stream, stderr=stream, check=False
        ).returncode
    if code:
        raise BuildError(f"{shlex.join(words[:4])} ended with {code}: see {log_file}")
    return ""


# --- tools


def os_release() -> dict[str, str]:
    with contextlib.suppress(OSError):
        return platform.freedesktop_os_release()
    return {}


def need_tools(tools: Mapping[str, str], log: Log) -> None:
    """See that each command is there; as root on Debian install it, else say in one line what is missing."""
    missing = {tool: package for tool, package in tools.items() if not shutil.which(tool)}
    if not missing:
        return
    packages = sorted(set(missing.values()))
    release = os_release()
    family = {release.get("ID", ""), *release.get("ID_LIKE", "").split()}
    if os.geteuid() == 0 and "debian" in family and shutil.which("apt-get"):
        with step(log, f"installing {' '.join(packages)} with apt"):
            quiet = {"DEBIAN_FRONTEND": "noninteractive"}
            run(["apt-get", "-q", "update"], env=quiet)
            run(["apt-get", "-q", "-y", "--no-install-recommends", "install", *packages], env=quiet)
        missing = {tool: package for tool, package in tools.items() if not shutil.which(tool)}
    if missing:
        names = ", ".join(f"{tool} (Debian package {package})" for tool, package in sorted(missing.items()))
        raise BuildError(f"not on this machine: {names}; install them and run the same command again")


# --- cache


@contextlib.contextmanager
def locked(cache: Path, name: str, log: Log) -> Iterator[None]:
    """One builder of a thing at a time; a second waits and then finds it made."""
    folder = cache / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log(f"{name}: another run is building it, waiting ...")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _load(folder: Path) -> Artifact | None:
    try:
        row = json.loads((folder / "artifact.json").read_text(encoding="utf-8"))
        path = folder / row["path"] if row["path"] else folder
        if row["path"] and path.stat().st_size != row["bytes"]:
            return None
        return Artifact(path, row["sha256"], row["bytes"], row["version"], row["extra"])
    except (OSError, KeyError, ValueError):
        return None


def cached(
    cache: Path, kind: str, recipe: Mapping[str, Any], make: Callable[[Path], Artifact], log: Log
) -> Artifact:
    """Return what was made from this recipe, or make it in a temporary folder and rename that."""
    key = key_of(recipe)
    final = cache / kind / key
    with locked(cache, kind, log):
        found = _load(final)
        if found is not None:
            log(f"{kind} {found.version}: cached ({key})")
            return found
        begun = time.monotonic()
        work = cache / "tmp" / kind  # ours while we hold the lock; what a killed run left there goes
        shutil.rmtree(work, ignore_errors=True)
        out = work / "out"
        out.mkdir(parents=True)
        try:
            made = make(out)
            relative = "" if made.path == out else str(made.path.relative_to(out))
            row = asdict(made) | {"path": relative, "recipe": dict(recipe)}
            (out / "artifact.json").write_text(json.dumps(row, indent=1, default=str), encoding="utf-8")
            final.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(final, ignore_errors=True)
            out.rename(final)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        log(f"{kind} {made.version}: made in {time.monotonic() - begun:.0f} s ({key})")
        loaded = _load(final)
        if loaded is None:
            raise BuildError(f"{final} was made but cannot be read back")
        return loaded


# --- bytes from outside


def pypi_index() -> str:
    """The simple index that this machine's pip and uv use."""
    for name in ("PIP_INDEX_URL", "UV_INDEX_URL", "UV_DEFAULT_INDEX"):
        if os.environ.get(name):
            return os.environ[name].rstrip("/")
    pip = shutil.which("pip") or shutil.which("pip3")
    if pip:
        with contextlib.suppress(BuildError):
            return run([pip, "config", "get", "global.index-url"]).strip().rstrip("/")
    return "https://pypi.org/simple"


def download(url: str, dest: Path, sha256: str) -> None:
    """Fetch a file, refuse it when its digest differs, and put it in place at once."""
    dest.parent.mkdir(parents=True, exist_ok=True)
    part = dest.with_name(dest.name + ".part")
    for tries_left in (2, 1, 0):
        digest = hashlib.sha256()
        try:
            with urlopen(Request(url), timeout=60) as answer, part.open("wb") as out:
                while block := answer.read(CHUNK):
                    digest.update(block)
                    out.write(block)
            break
        except OSError as problem:
            if not tries_left:
                raise BuildError(f"{url}: {problem}; see that this machine reaches it, then go on") from None
            time.sleep(2)
    if digest.hexdigest() != sha256:
        part.unlink()
        raise BuildError(f"{url}: sha256 is {digest.hexdigest()}, expected {sha256}")
    part.rename(dest)


def pypi_rows(project: str) -> list[dict[str, Any]]:
    """All files of a PyPI project, as the simple JSON interface (PEP 691) lists them."""
    index = f"{pypi_index()}/{project}/"
    try:
        with urlopen(Request(index, headers={"Accept": PYPI_JSON}), timeout=60) as answer:
            rows: list[dict[str, Any]] = json.load(answer)["files"]
    except (OSError, ValueError) as problem:
        raise BuildError(f"{index}: {problem}; set PIP_INDEX_URL to an index that answers") from None
    return rows


def pypi_file(cache: Path, project: str, filename: str, sha256: str, log: Log) -> Path:
    """A file of a PyPI project: nothing of it is run or built."""
    dest = cache / "downloads" / sha256[:16] / filename
    with locked(cache, f"download-{sha256[:16]}", log):
        if dest.exists():
            return dest
        with step(log, f"fetching {filename}"):
            urls = [row["url"] for row in pypi_rows(project) if row["filename"] == filename]
            if not urls:
                raise BuildError(f"{pypi_index()}/{project}/ lists no file {filename}")
            download(urls[0], dest, sha256)
    return dest


# --- Docker


def image_id(tag: str) -> str | None:
    """The id of a local image, or None."""
    done = subprocess.run(
        ["docker", "image", "inspect", "--format", "{{.Id}}", tag],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() if done.returncode == 0 else None


def import_rootfs(archive: Path, tag: str, changes: Sequence[str]) -> str:
    """Make a local image of a compressed root file system."""
    options = [word for change in changes for word in ("--change", change)]
    with subprocess.Popen(["zstd", "-dc", str(archive)], stdout=subprocess.PIPE) as unpack:
        run(["docker", "import", *options, "-", tag], stdin=unpack.stdout)
    if unpack.returncode:
        raise BuildError(f"{archive} is not whole: delete its folder and run the same command again")
    found = image_id(tag)
    if found is None:
        raise BuildError(f"docker import made no image {tag}")
    return found
