"""Weights that cannot come: one line that says why, the exit code, and nothing half done; then they come."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.own_models import NAME, VARIANT, inventory_lines, own_model
from tests.lab.engine import ensure_network
from tests.lab.origin import Origin

from .conftest import Lab, Run, dsprov

FOLDER = f"/var/lib/dsprov/models/own-135m/{VARIANT}"
SIZE = 3_000_000
# The engine that fetches its weights before it does anything else; none of these installs gets further.
ENGINE = "llama_cpp"
HALF_DONE = (
    f"ls -A {FOLDER} 2>/dev/null; ls -A /run/dsprov/fetch 2>/dev/null; "
    "systemctl list-units --all --plain --no-legend 'dsprov-*' 'llama*'; ls /opt/dsprov | grep -v fetch"
)


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[Origin]:
    (tmp_path / "www").mkdir()
    served = Origin(str(ensure_network(print)[1]), 0, tmp_path / "www")
    served.start()
    yield served
    served.shutdown()


@pytest.fixture
def models(lab: Lab, origin: Origin) -> Iterator[dict[str, Any]]:
    path = origin.folder / "own.gguf"
    path.write_bytes(os.urandom(SIZE))
    yield own_model([path], origin.url)
    lab.sh("t12", f"rm -rf {FOLDER}")


def install(lab: Lab, folder: Path, models: dict[str, Any], **more: Any) -> Run:
    lines = inventory_lines(models, dsprov_engine=ENGINE, **more)
    return dsprov("install", "--tier", "demo", "-i", lab.variant(folder, lines))


def refused(lab: Lab, folder: Path, models: dict[str, Any], code: int, *words: str, **more: Any) -> None:
    """An install ends with one line that says all of this, and leaves what there was."""
    before = lab.sh("t12", HALF_DONE, check=False)
    run = install(lab, folder, models, **more)
    assert run.code == code, run.err
    assert len(run.errors) == 1, run.err
    for word in words:
        assert word in run.errors[0], run.errors[0]
    assert lab.sh("t12", HALF_DONE, check=False) == before


def test_a_wrong_digest_in_the_catalogue(
    lab: Lab, tmp_path: Path, origin: Origin, models: dict[str, Any]
) -> None:
    row = models[NAME]["variants"][VARIANT]["files"][0]
    right, row["sha256"] = row["sha256"], "0" * 64
    refused(lab, tmp_path, models, 1, "t12", "own.gguf", right, "0" * 64)
    assert sum(origin.sent.values()) >= SIZE, "it was judged by its bytes"


def test_a_file_of_another_size(lab: Lab, tmp_path: Path, models: dict[str, Any]) -> None:
    models[NAME]["variants"][VARIANT]["files"][0]["bytes"] -= 1
    models[NAME]["variants"][VARIANT]["bytes"] -= 1
    refused(lab, tmp_path, models, 1, "t12", f"offers {SIZE} bytes, wanted {SIZE - 1}")


def test_no_source_has_it(lab: Lab, tmp_path: Path, origin: Origin, models: dict[str, Any]) -> None:
    (origin.folder / "own.gguf").unlink()
    refused(lab, tmp_path, models, 1, "t12", "own.gguf", "404", "name one that does")


def test_an_unknown_variant(lab: Lab, tmp_path: Path, origin: Origin, models: dict[str, Any]) -> None:
    before = lab.fingerprint("t12")
    words = ("dsprov_variant", "Q4_2", VARIANT)
    refused(lab, tmp_path, models, 2, *words, dsprov_variant="Q4_2")
    assert lab.fingerprint("t12") == before
    assert origin.sent == {}


@contextmanager
def mounted(lab: Lab, options: str) -> Iterator[None]:
    """A disk of its own for the weights."""
    place = "/var/lib/dsprov/models"
    lab.sh("t12", f"mkdir -p {place} && mount -t tmpfs -o {options} tmpfs {place}")
    try:
        yield
    finally:
        lab.sh("t12", f"umount {place}; rmdir {place} 2>/dev/null || true")


def test_a_disk_that_is_full(lab: Lab, tmp_path: Path, origin: Origin, models: dict[str, Any]) -> None:
    with mounted(lab, "size=2m"):
        refused(lab, tmp_path, models, 1, "t12", "needs 3300000 bytes", "free some")
    assert origin.sent == {}


def test_a_disk_that_is_read_only(lab: Lab, tmp_path: Path, origin: Origin, models: dict[str, Any]) -> None:
    with mounted(lab, "ro"):
        refused(lab, tmp_path, models, 1, "t12", "Read-only file system", "mount it writable")
    assert origin.sent == {}


def test_a_folder_that_not_even_root_may_write_to(
    lab: Lab, tmp_path: Path, origin: Origin, models: dict[str, Any]
) -> None:
    """As on a share that takes root for nobody."""
    lab.sh("t12", f"mkdir -p {FOLDER} && chattr +i {FOLDER}")
    try:
        words = ("t12", FOLDER, "Operation not permitted", "make the folder writable")
        refused(lab, tmp_path, models, 1, *words)
    finally:
        lab.sh("t12", f"chattr -i {FOLDER}")
    assert sum(origin.sent.values()) == 0
