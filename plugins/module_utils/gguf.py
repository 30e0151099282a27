# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""GGUF headers: what a file holds, and the row of the catalogue that it would be. Standard library only.

Only the header is read: metadata and the table of tensors, from a file, from the shards of a split file, or
from a web server that answers ranges. Source of the format: ggml's docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ansible_collections.dsprov.appliance.plugins.module_utils import sizing

# Type number to (values a block, bytes a block). Source: ggml.h and ggml-common.h.
TYPES: dict[int, tuple[int, int]] = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82),
    23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2),
    34: (256, 54), 35: (256, 66), 39: (32, 17),
}  # fmt: skip
# Metadata's type number to struct's letter.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
# A header larger than this is none; a vocabulary of a million words takes about 20 MB.
MAX_HEADER = 256 * 1024 * 1024
CHUNK = 1024 * 1024
# Ten times what the largest models have: entries of metadata, words of all vocabularies, tensors, and values.
MAX_META, MAX_WORDS, MAX_TENSORS, MAX_VALUES = 10_000, 4_000_000, 100_000, 1 << 48
ALIGNMENT = 32
# general.file_type to the name that people know. Source: llama.h, enum llama_ftype.
FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
    19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL",
    26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16",
}  # fmt: skip
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_ARCHITECTURE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_EXPERTS = re.compile(r"\.ffn_(gate|up|down|gate_up)_(ch)?exps\.")
TIMEOUT = 30

Fetch = Callable[[int, int], bytes]


class Tensor(NamedTuple):
    """One row of a file's table: shape, bytes, number of values, and ggml's number of its type."""

    shape: tuple[int, ...]
    size: int
    values: int
    kind: int


class GgufError(Exception):
    """A file that is no GGUF, or none that can be read; the message says why."""


@dataclass
class Gguf:
    """A header, or the headers of all shards together.

    Attributes:
        meta: metadata; of an array only its length, as ("array", length), unless it is one of few numbers.
        tensors: by name.
        size: bytes of the files.
        files: their names.
    """

    meta: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    size: int = 0
    files: list[str] = field(default_factory=list)


class _Window:
    """Reads forward through bytes that come in chunks."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._data = b""
        self._start = 0
        self._at = 0
        self._words = 0

    @property
    def place(self) -> int:
        """Bytes read so far."""
        return self._at

    def take(self, count: int) -> bytes:
        if count < 0 or self._at + count > MAX_HEADER:
            raise GgufError("its header does not end")
        while self._at + count > self._start + len(self._data):
            end = self._start + len(self._data)
            more = self._fetch(end, max(CHUNK, self._at + count - end))
            if not more:
                raise GgufError("it ends within its header")
            self._data = self._data[self._at - self._start :] + more
            self._start = self._at
        begin = self._at - self._start
        self._at += count
        return self._data[begin : begin + count]

    def number(self, letter: str) -> Any:
        return struct.unpack("<" + letter, self.take(struct.calcsize(letter)))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            raise GgufError(f"it has metadata of the unknown type {kind}")
        inner, count = self.number("I"), self.number("Q")
        self._words += count
        if self._words > MAX_WORDS:
            raise GgufError("it has an array without end")
        if inner in SCALARS:
            raw = self.take(struct.calcsize(SCALARS[inner]) * count)
            return (
                list(struct.unpack(f"<{count}{SCALARS[inner]}", raw)) if count <= 4096 else ("array", count)
            )
        for _ in range(count):
            if inner != STRING:
                raise GgufError("it has an array of arrays")
            self.take(self.number("Q"))
        return ("array", count)


def read_header(fetch: Fetch) -> tuple[dict[str, Any], dict[str, Tensor], int]:
    """Metadata and tensors of one file, and how many bytes the whole file must have.

    Args:
        fetch: gives up to so many bytes from an offset; fewer at the file's end.

    Raises:
        GgufError: it is no GGUF that is known.
    """
    window = _Window(fetch)
    if window.take(4) != b"GGUF":
        raise GgufError("it does not begin as a GGUF file does")
    version = window.number("I")
    if version not in (2, 3):
        raise GgufError(f"it is of GGUF version {version}, known are 2 and 3")
    tensor_count, meta_count = window.number("Q"), window.number("Q")
    if tensor_count > MAX_TENSORS or meta_count > MAX_META:
        raise GgufError("it has more entries than any model")
    meta: dict[str, Any] = {}
    for _ in range(meta_count):
        key = window.text()
        meta[key] = window.value(window.number("I"))
    tensors: dict[str, Tensor] = {}
    data = 0
    for _ in range(tensor_count):
        name = window.text()
        dimensions = window.number("I")
        if dimensions > 8:
            raise GgufError(f"tensor {name[:60]!r} has {dimensions} dimensions")
        shape = tuple(window.number("Q") for _ in range(dimensions))
        kind, offset = window.number("I"), window.number("Q")
        if kind not in TYPES:
            raise GgufError(f"tensor {name[:60]!r} has the unknown type {kind}")
        values = 1
        for length in shape:
            values *= length
        if values > MAX_VALUES:
            raise GgufError(f"tensor {name[:60]!r} has more values than any model")
        block, size = TYPES[kind]
        tensors[name] = Tensor(shape, values // block * size, values, kind)
        data = max(data, offset + tensors[name].size)
    alignment = meta.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
        raise GgufError("its alignment is none")
    return meta, tensors, -(-window.place // alignment) * alignment + data if tensors else window.place


def read(source: str) -> Gguf:
    """The header of a file or an address, and those of its other shards where it is the first of several.

    Raises:
        GgufError: it cannot be read.
    """
    whole = Gguf()
    for name in _shards(source):
        fetch, size = _open(name)
        try:
            meta, tensors, needed = read_header(fetch)
            size = size or needed  # Some servers do not say.
            if size < needed:
                raise GgufError(f"it is cut off: it has {size} of {needed} bytes")
            twice = sorted(tensors.keys() & whole.tensors.keys())
            if twice:
                raise GgufError(f"tensor {twice[0][:60]!r} was in a shard before it, too")
        except (struct.error, MemoryError, OverflowError) as error:
            raise GgufError(f"{name}: its header is broken: {error}") from error
        except GgufError as error:
            raise GgufError(f"{name}: {error}") from error
        whole.meta = {**meta, **whole.meta}
        whole.tensors.update(tensors)
        whole.size += size
        whole.files.append(name.rsplit("/", 1)[-1])
    return whole


def _shards(source: str) -> Iterator[str]:
    found = _SHARD.search(source.partition("?")[0])
    if not found:
        yield source
        return
    for index in range(1, int(found[2]) + 1):
        yield source.replace(found[0], f"-{index:05}-of-{found[2]}.gguf")


def _open(name: str) -> tuple[Fetch, int]:
    if name.startswith(("http://", "https://")):
        return _web(name)
    try:
        status = os.stat(name)
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise ValueError("it is no file")  # A pipe would be waited for.
        with open(name, "rb"):
            pass
    except (OSError, ValueError) as error:
        raise GgufError(f"{name}: {getattr(error, 'strerror', None) or error}") from error

    def from_file(start: int, count: int) -> bytes:
        try:
            with open(name, "rb") as file:
                file.seek(start)
                return file.read(count)
        except OSError as error:
            raise GgufError(error.strerror or str(error)) from error

    return from_file, status.st_size


def _web(url: str) -> tuple[Fetch, int]:
    sizes: list[int] = []

    def from_web(start: int, count: int) -> bytes:
        headers = {"Range": f"bytes={start}-{start + count - 1}", "User-Agent": "dsprov"}
        try:
            request = urllib.request.Request(url, headers=headers)
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                if answer.status != 206:
                    raise GgufError("the server does not answer ranges")
                total = answer.headers.get("Content-Range", "").rpartition("/")[2]
                if total.isdecimal():
                    sizes.append(int(total))
                return bytes(answer.read(count))
        except urllib.error.HTTPError as error:
            if error.code == 416:
                return b""
            raise GgufError(f"the server answers {error.code} {error.reason}") from error
        except (OSError, ValueError) as error:
            raise GgufError(str(getattr(error, "reason", None) or error)) from error

    try:
        first = from_web(0, CHUNK)
    except GgufError as error:
        raise GgufError(f"{url}: {error}") from error

    def fetch(start: int, count: int) -> bytes:
        return first[start : start + count] if start < len(first) else from_web(start, count)

    return fetch, sizes[0] if sizes else 0


def repacked_bytes(gguf: Gguf, flags: Collection[str]) -> dict[str, int]:
    """Bytes of the buffers in which llama.cpp keeps weights in its CPU's own layout, by the buffer's name.

    It does so where no GPU is used; the originals stay in the page cache, which may drop them.
    """
    found: dict[str, int] = {}
    for name, tensor in gguf.tensors.items():
        if name == "token_embd.weight" and "output.weight" in gguf.tensors:
            continue  # Looked up, not multiplied by; without a head of its own it is the head, too.
        experts = bool(_EXPERTS.search(name))
        packed = sizing.repacked(tensor.kind, tensor.shape, tensor.size, flags, experts=experts)
        if packed:
            found[packed[0]] = found.get(packed[0], 0) + packed[1]
    return found


# -- as a row of the catalogue -------------------------------------------------------------------


def model_of(gguf: Gguf, source: str) -> tuple[str, str, dict[str, Any]]:
    """A header as the catalogue would have it.

    Returns:
        The model's name, its variant's name, and the model's row.

    Raises:
        GgufError: something that sizes hang on is missing.
    """
    meta = gguf.meta
    arch = str(meta.get("general.architecture", ""))
    if not _ARCHITECTURE.fullmatch(arch):
        raise GgufError(f"{source}: its metadata has no usable general.architecture")

    def number(key: str, default: int | None = None) -> int:
        value = meta.get(f"{arch}.{key}", default)
        if isinstance(value, list) and value:
            value = max(value)  # A figure a layer: the largest is the safe one.
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise GgufError(f"{source}: its metadata has no usable {arch}.{key}")
        return value

    if "token_embd.weight" not in gguf.tensors:
        raise GgufError(f"{source}: it holds no language model (no token_embd.weight)")
    layers, hidden, heads = number("block_count"), number("embedding_length"), number("attention.head_count")
    if not layers or not hidden or not heads or layers > 10_000:
        raise GgufError(f"{source}: its metadata has no usable layers")
    own, experts = [0] * layers, [0] * layers
    embedding = gguf.tensors["token_embd.weight"].size
    output = 0
    for name, tensor in gguf.tensors.items():
        block = re.match(r"blk\.(\d{1,5})\.", name)
        if block and int(block[1]) < layers:
            (experts if _EXPERTS.search(name) else own)[int(block[1])] += tensor.size
        elif name != "token_embd.weight":
            output += tensor.size
    if own.count(0) > layers // 2:
        raise GgufError(f"{source}: it says {layers} layers, and holds {layers - own.count(0)}")
    tied = "output.weight" not in gguf.tensors
    if tied:
        output += embedding  # llama.cpp loads it once more, as the head.
    attention: dict[str, Any] = {
        "layers": layers,
        "hidden": hidden,
        "heads": heads,
        "kv_heads": number("attention.head_count_kv", heads),
    }
    legacy = False
    if number("attention.kv_lora_rank", 0):
        rope = number("rope.dimension_count")
        legacy = "blk.0.attn_k_b.weight" not in gguf.tensors
        key = number("attention.key_length_mla", number("attention.key_length", 0))
        attention |= {
            "kind": "mla",
            "head_dim": key,
            "q_lora_rank": number("attention.q_lora_rank", 0),
            "kv_lora_rank": number("attention.kv_lora_rank"),
            "qk_rope_head_dim": rope,
            "qk_nope_head_dim": max(0, key - rope),
            "v_head_dim": number("attention.value_length_mla", number("attention.value_length", 0)),
        }
    else:
        attention |= {"kind": "gqa", "head_dim": number("attention.key_length", hidden // heads)}
    feed: dict[str, Any] = {
        "intermediate": number("feed_forward_length", 0) or number("expert_feed_forward_length", 0)
    }
    if number("expert_count", 0):
        feed |= {
            "experts": number("expert_count"),
            "active": number("expert_used_count", 1),
            "shared": number("expert_shared_count", 0),
            "expert_intermediate": number("expert_feed_forward_length", feed["intermediate"]),
            "dense_layers": number("leading_dense_block_count", 0),
        }
    shape = gguf.tensors["token_embd.weight"].shape
    title = str(meta.get("general.name") or gguf.files[0].removesuffix(".gguf"))
    kind = meta.get("general.file_type")
    variant = FILE_TYPES.get(kind, "GGUF") if isinstance(kind, int) else "GGUF"
    rows = [
        {"bytes": layer, "experts": part, "at": str(index)}
        for index, (layer, part) in enumerate(zip(own, experts, strict=True))
    ]
    row: dict[str, Any] = {
        "title": title,
        "source": source,
        "parameters": max(1, sum(tensor.values for tensor in gguf.tensors.values())),
        "attention": attention,
        "feed_forward": feed,
        "tied_embeddings": tied,
        "vocabulary": shape[1] if len(shape) > 1 else 1,
        "context_limit": number("context_length", 1 << 20) or 1 << 20,
        "variants": {
            variant: {
                "format": "gguf",
                "precision": "gguf",
                "bytes": max(1, gguf.size),
                "counts": "files",
                "weights": {"embedding": embedding, "output": output, "layers": rows},
                "shards": {"count": len(gguf.files), "name": gguf.files[0], "sources": [{"file": source}]},
                **({"kv": "mha", "kv_cache_types": ["f16"]} if legacy else {}),
            }
        },
    }
    return gguf.files[0].removesuffix(".gguf"), variant, row
