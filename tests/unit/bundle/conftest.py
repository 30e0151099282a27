"""Small bundles in real folders."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.dsprov.appliance.plugins.plugin_utils.bundle import (
    Row,
    hash_file,
    manifest_bytes,
    write_manifest,
)

MIB = 1024 * 1024
Make = Callable[..., Path]

CONTENT = {
    "apt/debian-12/pool/a_1_amd64.deb": b"package",
    "files/0123/tool.tar.zst": b"archive" * 100,
    "weights/tiny/Q4/tiny.gguf": bytes(range(256)) * 4096 * 3 + b"end",
    "wheels/thing/thing-1.0-py3-none-any.whl": b"wheel",
    "wheels/thing/thing-1.0.tar.gz": b"",
}


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes a bundle of these files, with pieces of one MiB; `over` replaces keys of the manifest."""

    def write(
        content: Mapping[str, bytes] = CONTENT, name: str = "bundle", over: Mapping[str, Any] | None = None
    ) -> Path:
        folder = tmp_path / name
        rows = []
        for path, data in content.items():
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
            row = Row(path, len(data), hashlib.sha256(data).hexdigest(), hash_file(file, MIB))
            rows.append(row.document())
        document = {
            "schema": 1,
            "dsprov": "0.1.0",
            "tier": "demo",
            "arch": "x86_64",
            "systems": ["debian-12"],
            "made_for": [{"engine": "ollama", "model": "tiny", "variant": "Q4"}],
            "packages": {"debian-12": ["a"]},
            "images": [],
            "key": None,
            "piece_bytes": MIB,
            "files": rows,
            **(over or {}),
        }
        write_manifest(folder, manifest_bytes(document))
        return folder

    return write
