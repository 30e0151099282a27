"""The GGUF reader: real headers, shards, web servers, and every way for a file to be broken."""

from __future__ import annotations

import http.server
import json
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.dsprov.appliance.plugins.module_utils import gguf, sizing
from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import catalogue
from tests.conftest import Dsprov
from tests.fixtures import ggufs
from tests.fixtures.machines import cards, facts

TINY: dict[str, Any] = {
    "layers": 3, "hidden": 512, "heads": 8, "kv_heads": 4, "head_dim": 64, "feed": 1536, "words": 400,
}  # fmt: skip
LATENT: dict[str, Any] = {
    "layers": 3, "hidden": 512, "heads": 8, "feed": 1024, "experts": 8, "active": 2, "expert_feed": 256,
    "words": 400,
}  # fmt: skip


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return ggufs.write(tmp_path / "tiny.gguf", *ggufs.dense("llama", **TINY))


def model_of(path: Path) -> dict[str, Any]:
    return gguf.model_of(gguf.read(str(path)), str(path))[2]


def test_every_byte_of_a_file_is_somewhere(tiny: Path) -> None:
    model = model_of(tiny)
    (variant,) = model["variants"].values()
    weights = sizing.weights_of(variant)
    data = weights.embedding + weights.output + sum(weights.layers) + sum(weights.experts)
    header = len(ggufs.header(*ggufs.dense("llama", **TINY))[0])
    assert tiny.stat().st_size - header - 32 * 40 <= data <= tiny.stat().st_size - header
    assert model["attention"] == {
        "layers": 3, "hidden": 512, "heads": 8, "kv_heads": 4, "kind": "gqa", "head_dim": 64,
    }  # fmt: skip
    assert model["vocabulary"] == 400
    assert sizing.kv_bytes_per_token(model, "f16") == 3 * 2 * 4 * 64 * 2


def test_a_tied_model_has_its_embedding_twice(tmp_path: Path) -> None:
    model = model_of(ggufs.write(tmp_path / "t.gguf", *ggufs.dense("llama", **TINY, tied=True)))
    (variant,) = model["variants"].values()
    assert model["tied_embeddings"]
    assert variant["weights"]["output"] > variant["weights"]["embedding"]


@pytest.mark.parametrize("whole", [False, True])
def test_latent_attention_and_its_old_files(tmp_path: Path, whole: bool) -> None:
    model = model_of(ggufs.write(tmp_path / "d.gguf", *ggufs.latent(**LATENT, whole=whole)))
    (variant,) = model["variants"].values()
    weights = sizing.weights_of(variant)
    assert weights.experts[0] == 0
    assert weights.experts[1] == weights.experts[2] > 0
    values = 8 * (192 + 128) if whole else 512 + 64
    assert sizing.kv_bytes_per_token(model, "f16", variant) == 3 * values * 2
    assert (variant.get("kv_cache_types") == ["f16"]) is whole


def test_the_catalogues_own_7b_is_read_as_it_is_written(tmp_path: Path) -> None:
    """A header of the same shapes gives the same cache and the same shape as the catalogue has."""
    shape = ggufs.dense(
        "qwen2",
        layers=28,
        hidden=3584,
        heads=28,
        kv_heads=4,
        head_dim=128,
        feed=18944,
        words=152064,
        kind="q8_0",
    )
    model = model_of(ggufs.write(tmp_path / "7b.gguf", *shape))
    known = catalogue()["models"]["deepseek-r1:7b"]
    assert model["attention"] == known["attention"]
    assert model["parameters"] == known["parameters"]
    (variant,) = model["variants"].values()
    row = known["variants"]["Q8_0"]
    assert sizing.weights_of(variant).layers == sizing.weights_of(row).layers
    assert abs(variant["bytes"] - row["bytes"]) < 8_000_000  # The vocabularies' own bytes differ.
    assert model["vocabulary"] == known["vocabulary"]


def test_shards_are_read_together(tmp_path: Path) -> None:
    meta, tensors = ggufs.dense("llama", **TINY)
    first = tmp_path / "m-00001-of-00002.gguf"
    ggufs.write(first, meta, tensors[:5])
    ggufs.write(tmp_path / "m-00002-of-00002.gguf", {"split.no": 1}, tensors[5:])
    whole = gguf.read(str(first))
    assert len(whole.tensors) == len(tensors)
    assert whole.files == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(gguf.GgufError, match="00002-of-00002"):
        gguf.read(str(first))


# -- from a web server ---------------------------------------------------------------------------


@pytest.fixture
def web(tiny: Path) -> Iterator[str]:
    content = tiny.read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if "missing" in self.path:
                self.send_error(404)
                return
            asked = self.headers.get("Range", "")
            if not asked or "whole" in self.path:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(content[:100])
                return
            first, _dash, last = asked.removeprefix("bytes=").partition("-")
            part = content[int(first) : int(last) + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}")
            self.end_headers()
            self.wfile.write(part)

        def log_message(self, *_arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_an_address_is_read_by_ranges(web: str, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "CHUNK", 997)
    there, here = gguf.read(f"{web}/tiny.gguf"), gguf.read(str(tiny))
    assert there.tensors == here.tensors
    assert there.meta == here.meta
    assert there.size == here.size


@pytest.mark.parametrize(("path", "says"), [("missing.gguf", "404"), ("whole.gguf", "ranges")])
def test_an_address_that_does_not_serve(web: str, path: str, says: str) -> None:
    with pytest.raises(gguf.GgufError, match=says):
        gguf.read(f"{web}/{path}")


def test_nobody_answers() -> None:
    with pytest.raises(gguf.GgufError, match=r"127\.0\.0\.1"):
        gguf.read("http://127.0.0.1:9/x.gguf")


# -- broken files --------------------------------------------------------------------------------

BROKEN = [
    b"",
    b"GG",
    b"GGUF",
    b"GGML" + b"\0" * 60,
    b"GGUF\x01\0\0\0" + b"\0" * 16,
    b"GGUF\x03\0\0\0" + b"\xff" * 16,
]


@pytest.mark.parametrize("content", BROKEN, ids=repr)
def test_a_file_that_is_none_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(gguf.GgufError, match=r"x\.gguf"):
        gguf.read(str(path))


@pytest.mark.parametrize(
    "name", ["/no/such.gguf", "/", "/proc/self/mem", "/dev/zero", "x\0y", "http://[::1", "http://"]
)
def test_what_cannot_be_read_is_named(name: str) -> None:
    with pytest.raises(gguf.GgufError):
        gguf.read(name)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.gguf")
    with pytest.raises(gguf.GgufError, match="no file"):
        gguf.read(str(tmp_path / "x.gguf"))


META, TENSORS = ggufs.dense("llama", **TINY)
ODD_META: list[tuple[dict[str, Any], str]] = [
    ({"general.architecture": "\x1b[2J"}, "general.architecture"),
    ({"general.architecture": ""}, "general.architecture"),
    ({"general.alignment": 0}, "alignment"),
    ({"general.alignment": "many"}, "alignment"),
    ({"llama.block_count": 0}, "layers"),
    ({"llama.block_count": 2**31}, "layers"),
    ({"llama.block_count": 9999}, "says 9999 layers, and holds 3"),
    ({"llama.block_count": "many"}, "block_count"),
    ({"llama.attention.head_count": 0}, "layers"),
]


@pytest.mark.parametrize(("changes", "says"), ODD_META, ids=str)
def test_metadata_that_sizes_nothing_is_named(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    path = ggufs.write(tmp_path / "x.gguf", {**META, **changes}, TENSORS)
    with pytest.raises(gguf.GgufError, match=says) as caught:
        model_of(path)
    assert str(caught.value).isprintable()


def test_a_file_type_of_no_number_is_none(tmp_path: Path) -> None:
    path = ggufs.write(tmp_path / "x.gguf", {**META, "general.file_type": [1, 2]}, TENSORS)
    assert list(model_of(path)["variants"]) == ["GGUF"]


def test_a_download_that_was_cut_off_is_named(tiny: Path) -> None:
    content = tiny.read_bytes()
    tiny.write_bytes(content[:-1])
    with pytest.raises(gguf.GgufError, match=f"cut off: it has {len(content) - 1} of {len(content)} bytes"):
        gguf.read(str(tiny))


def test_a_tensor_larger_than_any_is_named(tmp_path: Path) -> None:
    start, _length = ggufs.header(META, [*TENSORS, ("x", (1 << 62, 1 << 62), "f32")])
    (tmp_path / "x.gguf").write_bytes(start)
    with pytest.raises(gguf.GgufError, match="more values"):
        gguf.read(str(tmp_path / "x.gguf"))


@pytest.mark.parametrize("counts", [(3_000_000, 0), (0, 3_000_000), (2**63, 0)])
def test_a_table_without_end_in_a_file_of_holes_is_not_read(tmp_path: Path, counts: tuple[int, int]) -> None:
    path = tmp_path / "x.gguf"
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, *counts))
        file.truncate(1 << 37)
    with pytest.raises(gguf.GgufError, match="more entries"):
        gguf.read(str(path))


def test_shards_that_are_one_file_are_named(tmp_path: Path, tiny: Path) -> None:
    first = tiny.rename(tmp_path / "m-00001-of-00002.gguf")
    (tmp_path / "m-00002-of-00002.gguf").symlink_to(first)
    with pytest.raises(gguf.GgufError, match="in a shard before it"):
        gguf.read(str(first))


WHOLE = ggufs.header(*ggufs.latent(**LATENT))[0]


@settings(max_examples=300, deadline=None)
@given(place=st.integers(0, len(WHOLE) - 1), byte=st.integers(0, 255), end=st.integers(0, len(WHOLE)))
def test_any_damage_ends_in_words(place: int, byte: int, end: int) -> None:
    content = bytearray(WHOLE)
    content[place] = byte
    data = bytes(content[:end] if byte % 2 else content)

    def fetch(start: int, count: int) -> bytes:
        return data[start : start + count]

    try:
        meta, tensors, _end = gguf.read_header(fetch)
        gguf.model_of(gguf.Gguf(meta, tensors, len(data), ["x.gguf"]), "x.gguf")
    except gguf.GgufError as error:
        assert "\n" not in str(error)


# -- on the command line -------------------------------------------------------------------------


def test_plan_of_a_file(dsprov: Dsprov, tiny: Path, write: Any) -> None:
    machine = write("f.yml", facts(gpus=cards(1)))
    said = dsprov("plan", "--gguf", tiny, "--facts", machine, "--json")
    assert said.code == 0, said.err
    (row,) = said.document["hosts"]
    assert (said.document["tier"], row["model"], row["engine"]) == ("custom", "tiny", "ollama")
    assert row["placement"]["gpu_layers"] == 3
    refused = dsprov(
        "plan", "--gguf", tiny, "--facts", machine, "--json", "-e", "dsprov_context_length=999999"
    )
    assert refused.code == 3


def test_sizes_of_a_file_without_a_host(dsprov: Dsprov, tiny: Path) -> None:
    document = dsprov("plan", "--gguf", tiny, "--json").document
    assert document["layers"] == 3
    assert {row["kv_cache_type"] for row in document["sizes"]} == {"f16", "q8_0", "q4_0"}
    said = dsprov("plan", "--gguf", tiny, "--lang", "zh")
    assert "KV 缓存" in said.out
    json.dumps(document)


def test_a_file_that_is_none_ends_in_one_line(dsprov: Dsprov, write: Any) -> None:
    path = write("x.gguf", "hello")
    said = dsprov("plan", "--gguf", path)
    assert said.code == 2
    assert str(path) in said.one_line()
