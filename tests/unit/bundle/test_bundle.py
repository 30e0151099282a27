"""A bundle's bytes: read whole, one wrong bit named, cut and put together again."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.dsprov.appliance.plugins.module_utils.problems import ProblemError
from ansible_collections.dsprov.appliance.plugins.plugin_utils import bundle as bundles
from dsprov.bundle import split
from tests.conftest import Dsprov
from tests.unit.bundle.conftest import CONTENT, MIB, Make

BIG = "weights/tiny/Q4/tiny.gguf"


def flip(file: Path, at: int) -> None:
    """One bit of a file, with its times as they were."""
    before = file.stat()
    data = bytearray(file.read_bytes())
    data[at] ^= 1 << random.Random(at).randrange(8)
    file.write_bytes(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_whole_bundle_is_whole(make: Make, dsprov: Dsprov) -> None:
    folder = make()
    said = dsprov("bundle", "verify", folder, "--json")
    assert said.code == 0
    assert said.document["ok"] is True
    assert said.document["bytes"] == sum(map(len, CONTENT.values()))
    assert dsprov("bundle", "verify", folder).code == 0


@pytest.mark.parametrize("path", [path for path, data in CONTENT.items() if data])
@pytest.mark.parametrize("where", [0.0, 0.5, 1.0])
def test_one_flipped_bit_is_found_and_named(path: str, where: float, make: Make, dsprov: Dsprov) -> None:
    folder = make()
    flip(folder / path, int(where * (len(CONTENT[path]) - 1)))
    said = dsprov("bundle", "verify", folder)
    assert said.code == 2
    assert str(folder / path) in said.one_line()
    (problem,) = dsprov("bundle", "verify", folder, "--json").document["problems"]
    assert problem["code"] == "bundle-damaged"
    assert problem["message"]["zh"] != problem["message"]["en"] or "sha256" in problem["message"]["en"]


def test_the_piece_is_named(make: Make) -> None:
    folder = make()
    flip(folder / BIG, 2 * MIB + 5)
    (problem,) = bundles.verify(bundles.open_bundle([folder])).problems
    assert f"from byte {2 * MIB} on" in problem["message"]["en"]


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda file: file.unlink(), "is missing"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "bytes, the manifest says"),
        (lambda file: file.write_bytes(file.read_bytes() + b"x"), "bytes, the manifest says"),
        (lambda file: (file.unlink(), file.mkdir()), "is missing"),
        (lambda file: (file.unlink(), file.symlink_to(file)), "is missing"),
    ],
)
@pytest.mark.parametrize("path", ["apt/debian-12/pool/a_1_amd64.deb", BIG])
def test_a_file_that_is_not_what_it_was(
    path: str, damage: Any, word: str, make: Make, dsprov: Dsprov
) -> None:
    folder = make()
    damage(folder / path)
    said = dsprov("bundle", "verify", folder)
    assert said.code == 2
    assert word in said.one_line()
    assert str(folder / path) in said.err


@pytest.fixture
def plain_user() -> Iterator[Callable[[], contextlib.AbstractContextManager[None]]]:
    """A block that is run without root's right to read everything."""

    @contextlib.contextmanager
    def block() -> Iterator[None]:
        if os.geteuid():
            yield
            return
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)

    yield block


@pytest.mark.parametrize("victim", [BIG, "manifest.json", "manifest.sha256"])
def test_a_file_that_may_not_be_read(
    victim: str, make: Make, dsprov: Dsprov, plain_user: Callable[[], contextlib.AbstractContextManager[None]]
) -> None:
    with tempfile.TemporaryDirectory() as place:  # tmp_path lies in a folder of root's own
        Path(place).chmod(0o755)
        folder = Path(shutil.copytree(make(), Path(place) / "bundle"))
        assert dsprov("bundle", "verify", folder).code == 0
        (folder / victim).chmod(0)
        with plain_user():
            said = dsprov("bundle", "verify", folder)
        assert said.code == 2
        assert f"{folder / victim}: cannot be read: Permission denied" in said.one_line()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"schema": 2, "dsprov": "9.0.0", "surprise": True}, "bundle-newer"),
        ({"schema": 0}, "document-invalid"),
        ({"extra": 1}, "document-invalid"),
        ({"files": [{"path": "../../etc/passwd", "bytes": 1, "sha256": "0" * 64}]}, "document-invalid"),
        ({"files": [{"path": "/etc/passwd", "bytes": 1, "sha256": "0" * 64}]}, "document-invalid"),
        ({"files": [{"path": "a/../../b", "bytes": 1, "sha256": "0" * 64}]}, "document-invalid"),
        ({"files": [{"path": "a", "bytes": -1, "sha256": "0" * 64}]}, "document-invalid"),
        ({"files": [{"path": "a", "bytes": 1, "sha256": "Z" * 64}]}, "document-invalid"),
        ({"piece_bytes": 0}, "document-invalid"),
    ],
)
def test_a_manifest_that_cannot_be_used(
    change: dict[str, Any], code: str, make: Make, dsprov: Dsprov, tmp_path: Path
) -> None:
    folder = make(over=change)
    hosts = tmp_path / "hosts.ini"
    hosts.write_text("gpu01 ansible_host=192.0.2.10\n", encoding="utf-8")
    for line in (
        ["bundle", "verify", folder],
        ["bundle", "show", folder],
        ["install", "--tier", "demo", "--bundle", folder, "-i", hosts],
    ):
        said = dsprov(*line, "--json")
        assert said.code == 2
        assert [problem["code"] for problem in said.document["problems"]] == [code]
        assert str(folder) in said.err


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_a_torn_manifest(content: bytes, make: Make, dsprov: Dsprov) -> None:
    folder = make()
    bundles.write_manifest(folder, content)
    said = dsprov("bundle", "show", folder)
    assert said.code == 2
    assert str(folder) in said.one_line()


@pytest.mark.parametrize("name", [bundles.MANIFEST, bundles.SUM])
def test_a_flipped_bit_anywhere_in_the_manifest(name: str, make: Make) -> None:
    folder = make()
    file = folder / name
    good = file.read_bytes()
    for index in range(len(good)):
        file.write_bytes(good[:index] + bytes([good[index] ^ 1 << index % 8]) + good[index + 1 :])
        with pytest.raises(ProblemError) as caught:
            bundles.open_bundle([folder])
        assert caught.value.problem["code"] == "bundle-damaged", index
        assert str(folder / bundles.MANIFEST) in caught.value.problem["message"]["en"]
    file.unlink()
    with pytest.raises(ProblemError):
        bundles.open_bundle([folder])


def test_a_folder_that_is_no_bundle(tmp_path: Path, dsprov: Dsprov) -> None:
    for folder in (tmp_path, tmp_path / "nothing", Path("/dev/null")):
        said = dsprov("bundle", "verify", folder)
        assert said.code == 2
        assert "no bundle is here" in said.one_line()


def test_folders_of_two_bundles(make: Make, dsprov: Dsprov) -> None:
    said = dsprov("bundle", "verify", make(), make(name="other", over={"tier": "basic"}))
    assert said.code == 2
    assert "another bundle" in said.one_line()


def test_install_reads_every_byte_before_any_host(make: Make, dsprov: Dsprov, tmp_path: Path) -> None:
    folder = make()
    flip(folder / BIG, 7)
    hosts = tmp_path / "hosts.ini"
    hosts.write_text("gpu01 ansible_host=192.0.2.10\n", encoding="utf-8")
    said = dsprov("install", "--tier", "demo", "--bundle", folder, "-i", hosts, "--json")
    assert said.code == 2
    (problem,) = said.document["problems"]
    assert problem["code"] == "bundle-damaged"
    assert str(folder / BIG) in problem["message"]["en"]
    other = dsprov("install", "--tier", "basic", "--bundle", folder, "-i", hosts)
    assert other.code == 2
    assert "made for tier demo, not basic" in other.one_line()
    both = dsprov("install", "--tier", "demo", "--bundle", folder, "--channel", "cn", "-i", hosts)
    assert both.code == 2
    port = dsprov("install", "--tier", "demo", "--bundle", folder, "-i", hosts, "-e", "dsprov_bundle_port=x")
    assert port.code == 2
    assert "dsprov_bundle_port" in port.one_line()


def test_show(make: Make, dsprov: Dsprov) -> None:
    folder = make()
    found = dsprov("bundle", "show", folder, "--files", "--json").document
    assert found["tier"] == "demo"
    assert found["kinds"]["weights"] == {"files": 1, "bytes": len(CONTENT[BIG])}
    assert [row["path"] for row in found["rows"]] == list(CONTENT)
    assert "Q4" in dsprov("bundle", "show", folder).out
    assert "权重" in dsprov("bundle", "show", folder, "--lang", "zh").out


# -- media ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["1100kB", "2MB", "2.5MiB", "10m"])
def test_cut_used_and_joined(size: str, make: Make, dsprov: Dsprov, tmp_path: Path) -> None:
    folder = make()
    out = tmp_path / "media"
    said = dsprov("bundle", "split", folder, "--size", size, "-o", out, "--json")
    assert said.code == 0, said.err
    media = [Path(row["folder"]) for row in said.document["media"]]
    for medium in media:
        weight = sum(file.stat().st_size for file in medium.rglob("*") if file.is_file())
        assert weight <= split.read_size(size)
    assert dsprov("bundle", "verify", *media).code == 0
    if len(media) > 1:
        assert dsprov("bundle", "verify", media[0]).code == 2
    joined = tmp_path / "joined"
    for medium in media:
        shutil.copytree(medium, joined, dirs_exist_ok=True)
    assert dsprov("bundle", "verify", joined).code == 0
    again = dsprov("bundle", "split", joined, "--size", size, "-o", tmp_path / "again", "--json")
    assert again.code == 0

    def bytes_of(place: Path) -> dict[str, bytes]:
        return {str(f.relative_to(place)): f.read_bytes() for f in place.rglob("*") if f.is_file()}

    assert bytes_of(out) == bytes_of(tmp_path / "again")
    victim = next(file for medium in media for file in medium.rglob("*.gguf*"))
    flip(victim, 3)
    said = dsprov("bundle", "verify", *media)
    assert said.code == 2
    assert "tiny.gguf" in said.one_line()


def test_a_split_goes_on(make: Make, dsprov: Dsprov, tmp_path: Path) -> None:
    folder, out = make(), tmp_path / "media"
    assert dsprov("bundle", "split", folder, "--size", "2MB", "-o", out).code == 0
    cut = next(out.rglob("*.cut-0"))
    cut.unlink()
    assert dsprov("bundle", "split", folder, "--size", "2MB", "-o", out).code == 0
    assert cut.exists()
    other = make(name="other", over={"tier": "basic"})
    said = dsprov("bundle", "split", other, "--size", "2MB", "-o", out)
    assert said.code == 2
    assert "holds something else" in said.one_line()


@pytest.mark.parametrize("size", ["", "x", "-1", "1", "10kB", "1PB", "2 apples"])
def test_a_size_that_is_none(size: str, make: Make, dsprov: Dsprov, tmp_path: Path) -> None:
    said = dsprov("bundle", "split", make(), "--size", size, "-o", tmp_path / "media")
    assert said.code == 2
    assert "--size" in said.one_line()
    assert not (tmp_path / "media").exists()


def test_the_manifest_is_one_text(make: Make) -> None:
    folder = make()
    raw = (folder / bundles.MANIFEST).read_bytes()
    assert bundles.manifest_bytes(json.loads(raw)) == raw
