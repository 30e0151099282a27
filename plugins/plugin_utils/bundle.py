# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""A bundle on the controller: its manifest, where each file's bytes lie, and whether they are the right ones.

A bundle may lie in several folders (media): each holds the whole manifest and some of the files. A file that
was cut lies as PATH.cut-OFFSET, each cut from its offset to the next one's.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ansible_collections.dsprov.appliance.plugins.module_utils.problems import Problem, human_bytes
from ansible_collections.dsprov.appliance.plugins.plugin_utils import catalogue

SCHEMA = 1
MANIFEST = "manifest.json"
# What the manifest is checked by: one line as sha256sum writes it.
SUM = "manifest.sha256"
PIECE_BYTES = 256 * 1024 * 1024
CUT = ".cut-"
# Where a host finds the bundle unless dsprov_bundle_port says otherwise.
PORT = 4870
_READ_BYTES = 1024 * 1024
# Digests are computed without Python's lock: as many threads as processors read and compute at once.
_THREADS = os.cpu_count() or 1


@dataclass(frozen=True)
class Row:
    """One file of the manifest. `pieces`: digests of its pieces, empty where it is no longer than one."""

    path: str
    bytes: int
    sha256: str
    pieces: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """The row as the manifest has it."""
        row: dict[str, Any] = {"path": self.path, "bytes": self.bytes, "sha256": self.sha256}
        return {**row, "pieces": list(self.pieces)} if self.pieces else row


@dataclass(frozen=True)
class Segment:
    """Consecutive bytes of a row: `length` of them, from `offset` of the row on, at the start of `file`."""

    file: Path
    offset: int
    length: int


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folders, and its manifest as read and checked."""

    folders: tuple[Path, ...]
    document: Mapping[str, Any]
    digest: str

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """Every file, by path."""
        return tuple(
            Row(row["path"], row["bytes"], row["sha256"], tuple(row.get("pieces", ())))
            for row in self.document["files"]
        )

    @cached_property
    def by_digest(self) -> dict[str, Row]:
        """Every file by its sha256."""
        return {row.sha256: row for row in self.rows}

    @cached_property
    def by_path(self) -> dict[str, Row]:
        """Every file by its path."""
        return {row.path: row for row in self.rows}

    @property
    def bytes(self) -> int:
        """Sum of the files' sizes."""
        return sum(row.bytes for row in self.rows)

    def segments(self, row: Row) -> list[Segment]:
        """Where a row's bytes lie, in order.

        Raises:
            ProblemError: bundle-damaged; the file, or a part of it, is missing or has another size.
                bundle-unreadable.
        """
        found: dict[int, Segment] = {}
        for folder in self.folders:
            whole = folder / row.path
            if (size := _size(whole)) is not None:
                if size != row.bytes:
                    detail = f"has {size} bytes, the manifest says {row.bytes}"
                    raise damaged(whole, detail)
                return [Segment(whole, 0, size)]
            for cut in self._cuts[folder].get(row.path, ()):
                offset = int(cut.name.rpartition(CUT)[2])
                found[offset] = Segment(cut, offset, _size(cut) or 0)
        end = 0
        for offset in sorted(found):
            if offset != end:
                break
            end += found[offset].length
        if end != row.bytes or not found:
            where = self.folders[0] / row.path
            raise damaged(where, f"bytes from {end} on are missing" if found else "is missing")
        return [found[offset] for offset in sorted(found)]

    @cached_property
    def _cuts(self) -> dict[Path, dict[str, list[Path]]]:
        """By folder, the cuts of each row."""
        known: dict[Path, dict[str, list[Path]]] = {}
        for folder in self.folders:
            known[folder] = {}
            for cut in folder.rglob(f"*{CUT}*"):
                name, _, offset = cut.relative_to(folder).as_posix().rpartition(CUT)
                if offset.isdecimal():
                    known[folder].setdefault(name, []).append(cut)
        return known


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> Exception:
    """A file of a bundle that is there and cannot be read, as an exception."""
    detail = error.strerror or str(error)
    return catalogue.problems().error("bundle-unreadable", file=path, detail=detail)


def damaged(path: Path, detail: str) -> Exception:
    """What is wrong with a file of a bundle, as an exception."""
    return catalogue.problems().error("bundle-damaged", file=path, detail=detail)


def manifest_bytes(document: Mapping[str, Any]) -> bytes:
    """A manifest as it is written: the same document gives the same bytes."""
    return (json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def sum_bytes(manifest: bytes) -> bytes:
    """The line that a manifest is checked by."""
    return f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}\n".encode()


def write_manifest(folder: Path, manifest: bytes) -> None:
    """Makes a folder of files a bundle: the manifest comes last, in one step."""
    (folder / MANIFEST).unlink(missing_ok=True)
    for name, data in ((SUM, sum_bytes(manifest)), (MANIFEST, manifest)):
        part = folder / f".{name}.part"
        with part.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        part.replace(folder / name)


def split_folders(text: str) -> tuple[Path, ...]:
    """Folders from one text, as PATH has them."""
    return tuple(Path(part) for part in text.split(os.pathsep) if part)


def open_bundle(folders: Sequence[Path]) -> Bundle:
    """Reads and checks the manifest; no other byte.

    Raises:
        ProblemError: bundle-missing, bundle-damaged, bundle-unreadable, bundle-differs, bundle-newer,
            document-invalid.
    """
    found: list[tuple[Path, bytes]] = []
    for folder in folders:
        path = folder / MANIFEST
        try:
            found.append((path, path.read_bytes()))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise catalogue.problems().error("bundle-missing", file=folder) from error
        except OSError as error:
            raise unreadable(path, error) from error
    (path, raw), *others = found
    for one, text in found:
        if _read(one.with_name(SUM)) != sum_bytes(text):
            raise damaged(one, f"does not match {SUM} beside it")
    for other, text in others:
        if text != raw:
            raise catalogue.problems().error("bundle-differs", file=other, first=path)
    document = catalogue.read_yaml(path)
    if isinstance(document, dict) and isinstance(document.get("schema"), int) and document["schema"] > SCHEMA:
        version = document.get("dsprov", "?")
        raise catalogue.problems().error("bundle-newer", file=path, version=version)
    catalogue.check(document, catalogue.read_yaml(catalogue.CATALOG / "schema" / "bundle.yml"), None, path)
    return Bundle(tuple(folder.resolve() for folder in folders), document, hashlib.sha256(raw).hexdigest())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise damaged(path, "is missing") from error
    except OSError as error:
        raise unreadable(path, error) from error


@dataclass(frozen=True)
class _Piece:
    row: Row
    index: int
    offset: int
    length: int
    sha256: str


@dataclass
class Verdict:
    """What a look at every byte found: `bytes` read, a problem for each file that is not as it should be."""

    bytes: int = 0
    problems: list[Problem] = field(default_factory=list)


def verify(bundle: Bundle, progress: Callable[[int], None] = lambda _count: None) -> Verdict:
    """Reads every byte of a bundle, pieces side by side.

    Args:
        progress: called with counts of bytes as they are read; from several threads.
    """
    verdict = Verdict()
    pieces: list[_Piece] = []
    places: dict[str, list[Segment]] = {}
    for row in bundle.rows:
        try:
            places[row.path] = bundle.segments(row)
        except Exception as error:
            problem = getattr(error, "problem", None)
            if problem is None:
                raise
            verdict.problems.append(problem)
            continue
        pieces += _pieces(row, bundle.document["piece_bytes"])
    # The long ones first, so that no thread is left alone with one at the end.
    pieces.sort(key=lambda piece: -piece.length)
    with ThreadPoolExecutor(max_workers=_THREADS) as pool:
        jobs = [pool.submit(_check, piece, places[piece.row.path], progress) for piece in pieces]
        try:
            found = [job.result() for job in jobs]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    wrong: dict[str, tuple[str, str]] = {}
    for piece, fault in zip(pieces, found, strict=True):
        verdict.bytes += piece.length
        if fault:
            wrong.setdefault(piece.row.path, fault)
    for path, (code, detail) in sorted(wrong.items()):
        file = places[path][0].file if len(places[path]) == 1 else bundle.folders[0] / path
        verdict.problems.append(catalogue.problems().make(code, file=file, detail=detail))
    return verdict


def _pieces(row: Row, length: int) -> Iterator[_Piece]:
    if not row.pieces:
        yield _Piece(row, 0, 0, row.bytes, row.sha256)
    for index, digest in enumerate(row.pieces):
        offset = index * length
        yield _Piece(row, index, offset, min(length, row.bytes - offset), digest)


def _check(
    piece: _Piece, segments: Sequence[Segment], progress: Callable[[int], None]
) -> tuple[str, str] | None:
    """What is wrong with a piece: a problem's code and its detail; None where all is well."""
    try:
        got = hash_range(segments, piece.offset, piece.length, progress)
    except OSError as error:
        return "bundle-unreadable", error.strerror or str(error)
    if got == piece.sha256:
        return None
    where = ""
    if piece.row.pieces:
        where = f" in {human_bytes(piece.length)} from byte {piece.offset} on"
    return "bundle-damaged", f"sha256 is {got}, the manifest says {piece.sha256}{where}"


def hash_range(
    segments: Sequence[Segment],
    offset: int,
    length: int,
    progress: Callable[[int], None] = lambda _count: None,
) -> str:
    """sha256 of `length` bytes from `offset` on, wherever they lie; ends early where bytes are missing."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(min(_READ_BYTES, max(1, length))))
    end = offset + length
    for segment in segments:
        first, last = max(offset, segment.offset), min(end, segment.offset + segment.length)
        if first >= last:
            continue
        with segment.file.open("rb", buffering=0) as handle:
            os.posix_fadvise(handle.fileno(), first - segment.offset, last - first, os.POSIX_FADV_SEQUENTIAL)
            handle.seek(first - segment.offset)
            left = last - first
            while left and (count := handle.readinto(buffer[: min(left, len(buffer))])):
                digest.update(buffer[:count])
                progress(count)
                left -= count
    return digest.hexdigest()


def hash_file(path: Path, piece_bytes: int = PIECE_BYTES) -> tuple[str, ...]:
    """Digests of a file's pieces, side by side; empty where it is no longer than one."""
    size = path.stat().st_size
    if size <= piece_bytes:
        return ()
    whole = [Segment(path, 0, size)]
    starts = range(0, size, piece_bytes)
    with ThreadPoolExecutor(max_workers=_THREADS) as pool:
        return tuple(pool.map(lambda start: hash_range(whole, start, min(piece_bytes, size - start)), starts))


def places(bundle: Bundle, port: int) -> dict[str, Any]:
    """The bundle as a channel: where a host finds each kind of thing, at a loopback port of its own.

    Every file is asked for by its digest (`blobs`), every package from `apt_repository`, every image from the
    registries; the other keys are there because a channel has them.
    """
    here = f"http://127.0.0.1:{port}"
    document = bundle.document
    registries = {row["registry"]: f"127.0.0.1:{port}/{row['registry']}" for row in document["images"]}
    return {
        "pypi_index": f"{here}/simple",
        "github": f"{here}/none",
        "huggingface": f"{here}/none",
        "modelscope": f"{here}/none",
        "hubs": ["huggingface"],
        "docker_apt": f"{here}/none",
        "nvidia_apt": f"{here}/none",
        "nvidia_container_apt": f"{here}/none",
        "registries": registries,
        "registry_mirrors": [],
        "insecure_registries": [],
        "blobs": f"{here}/blobs",
        "apt_repository": (
            {"url": f"{here}/apt", "key": document["key"]["public"], "systems": document["systems"]}
            if document["key"]
            else {}
        ),
    }
