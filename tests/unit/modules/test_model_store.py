"""The model_store module: what is missing, what is refused; the unit itself is tested on real hosts."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.dsprov.appliance.plugins.module_utils import files as disk
from ansible_collections.dsprov.appliance.plugins.modules import model_store
from tests.unit.modules.harness import ModuleFailedError, run_module

DATA = b"weights" * 1000
ROW = {
    "name": "a.gguf",
    "bytes": len(DATA),
    "sha256": hashlib.sha256(DATA).hexdigest(),
    "sources": [{"url": "https://x.example.org/a.gguf"}],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(disk, "DATA_ROOT", str(tmp_path / "data"))
    yield tmp_path / "data" / "models" / "m" / "Q4"


def look(folder: Path, /, **more: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"folder": str(folder), "files": [ROW], "phase": "look", **more}
    return run_module("model_store", **options)


def test_a_file_counts_while_its_receipt_holds(folder: Path) -> None:
    assert look(folder)["missing"] == ["a.gguf"]
    folder.mkdir(parents=True)
    (folder / "a.gguf").write_bytes(DATA)
    assert look(folder)["missing"] == ["a.gguf"], "nobody has verified it"
    disk.write_receipt(str(folder / "a.gguf"), ROW["sha256"])
    found = look(folder)
    assert (found["missing"], found["changed"]) == ([], False)
    assert look(folder, deep=True)["missing"] == ["a.gguf"]
    os.utime(folder / "a.gguf", (1, 1))
    assert look(folder)["missing"] == ["a.gguf"]


def test_the_same_bytes_have_the_same_name_wherever_they_lie(folder: Path, tmp_path: Path) -> None:
    one, two = look(folder), look(tmp_path / "elsewhere")
    assert one["content"] == two["content"]
    assert one["unit"] != two["unit"]
    other = {**ROW, "sha256": "0" * 64}
    assert look(folder, files=[other])["content"] != one["content"]


def test_the_unit_can_be_found_by_people(folder: Path) -> None:
    unit = look(folder)["unit"]
    assert unit.startswith("dsprov-fetch-m-Q4-")
    assert unit.endswith(".service")


def test_an_address_that_was_given_is_taken(folder: Path) -> None:
    assert look(folder, address="10.1.2.3")["address"] == "10.1.2.3"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"folder": ""}, "absolute path is needed"),
        ({"folder": "models/x"}, "absolute path is needed"),
        ({"limit": "fast"}, "model_store_limit: 'fast' is no rate"),
        ({"files": [{**ROW, "name": "../x"}]}, "no name of a file"),
        ({"phase": "bring"}, "action plugin"),
    ],
)
def test_refused_in_one_line(folder: Path, more: dict[str, Any], words: str) -> None:
    with pytest.raises(ModuleFailedError, match=words) as caught:
        look(folder, **more)
    assert "\n" not in str(caught.value)
    assert not folder.exists()


def test_a_disk_without_room_is_refused_before_anything_is_started(folder: Path) -> None:
    huge = {**ROW, "bytes": 1 << 59}
    with pytest.raises(ModuleFailedError, match=r"the rest of m/Q4 needs .* bytes"):
        look(folder, files=[huge], phase="begin")


def test_what_has_come_needs_no_room_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(parents=True)
    size = 8 << 20
    (folder / "a.gguf.part").write_bytes(os.urandom(size // 2))
    os.truncate(folder / "a.gguf.part", size)
    wanted: list[int] = []
    monkeypatch.setattr(disk, "need_space", lambda _path, count, _what: wanted.append(count))
    store = model_store.Store(
        {"folder": str(folder), "files": [{**ROW, "bytes": size}], "limit": "", "deep": False}
    )
    store._make_room()
    assert wanted == [size // 2]


def test_removed_with_receipts_and_empty_folders_and_nothing_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = subprocess.CompletedProcess([], 0, stdout="", stderr="")
    monkeypatch.setattr(model_store, "run", lambda *_words: quiet)
    theirs = folder.parent / "Q8" / "theirs.gguf"
    for path in (folder / "a.gguf", folder / "a.gguf.part", theirs):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(DATA)
    disk.write_receipt(str(folder / "a.gguf"), ROW["sha256"])
    assert run_module("model_store", check=True, folder=str(folder), files=[ROW], phase="remove")["changed"]
    assert (folder / "a.gguf").exists()
    assert look(folder, phase="remove")["changed"]
    left = sorted(path.name for path in folder.parents[2].rglob("*"))
    assert left == ["Q8", "m", "models", "receipts", "theirs.gguf"]
    assert not look(folder, phase="remove")["changed"]


def test_the_code_for_the_host_stands_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is copied to the host runs with nothing else of the collection, nor Ansible, in reach."""
    monkeypatch.setattr(model_store, "CODE_ROOT", str(tmp_path / "opt"))
    (tmp_path / "opt" / "old").mkdir(parents=True)
    monkeypatch.setattr(
        model_store, "run", lambda *_words: subprocess.CompletedProcess([], 0, stdout="", stderr="")
    )
    code = model_store.place_code()
    assert [path.name for path in (tmp_path / "opt").iterdir()] == [Path(code).name]
    assert model_store.place_code() == code
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            f"import sys; sys.path.insert(0, {code!r}); "
            f"import {model_store.UTILS}.store_unit as unit; print(unit.__file__)",
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(code)
