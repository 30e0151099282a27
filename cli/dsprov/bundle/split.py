"""Cuts a bundle to media of a given size: folders that each hold the whole manifest and some of the files."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.dsprov.appliance.plugins.module_utils.problems import human_bytes
from ansible_collections.dsprov.appliance.plugins.plugin_utils.bundle import (
    CUT,
    MANIFEST,
    Bundle,
    Row,
    Segment,
    sum_bytes,
    write_manifest,
)
from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import problems

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {f"{unit}i": 1024**power for power, unit in enumerate("kmgt", 1)}
# No cut is shorter: a medium's last bytes are not worth a file.
_LEAST = 1024 * 1024
_BLOCK = 4 * 1024 * 1024


@dataclass(frozen=True)
class Part:
    """Some bytes of a file, as they go onto a medium; `path` is below the medium's folder."""

    row: Row
    path: str
    offset: int
    length: int


@dataclass
class Medium:
    """What goes into one folder."""

    name: str
    room: int
    parts: list[Part] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Bytes of its files, without the manifest."""
        return sum(part.length for part in self.parts)


def read_size(text: str) -> int:
    """Bytes of a size such as 25GB, 4GiB or 4g.

    Raises:
        ProblemError: bundle-size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", text.strip().lower())
    if not found or found[2] not in _UNITS:
        raise problems().error("bundle-size", size=text or "?", detail="is no size")
    return int(float(found[1]) * _UNITS[found[2]])


def lay_out(bundle: Bundle, size: int) -> list[Medium]:
    """Which bytes go onto which medium: in the manifest's order, and the same ones each time.

    A file that fits onto no medium is cut; one that does not fit onto the present one opens the next.

    Raises:
        ProblemError: bundle-size; the manifest alone leaves no room.
    """
    raw = (bundle.folders[0] / MANIFEST).read_bytes()
    manifest = len(raw) + len(sum_bytes(raw))
    room = size - manifest
    if room < _LEAST:
        needed = human_bytes(manifest + _LEAST)
        detail = f"every medium holds the manifest, too, and needs {needed}"
        raise problems().error("bundle-size", size=human_bytes(size), detail=detail)
    media = [Medium("medium-01", room)]
    for row in bundle.rows:
        if row.bytes <= room:
            if row.bytes > media[-1].room:
                media.append(Medium(f"medium-{len(media) + 1:02d}", room))
            media[-1].parts.append(Part(row, row.path, 0, row.bytes))
            media[-1].room -= row.bytes
            continue
        offset = 0
        while offset < row.bytes:
            if media[-1].room < _LEAST:
                media.append(Medium(f"medium-{len(media) + 1:02d}", room))
            length = min(media[-1].room, row.bytes - offset)
            media[-1].parts.append(Part(row, f"{row.path}{CUT}{offset}", offset, length))
            media[-1].room -= length
            offset += length
    return media


def write(
    bundle: Bundle, media: list[Medium], output: Path, progress: Callable[[int], None] = lambda _count: None
) -> None:
    """Copies every medium below `output`; one that is there whole is left alone.

    Raises:
        ProblemError: bundle-space, bundle-damaged, bundle-folder.
    """
    raw = (bundle.folders[0] / MANIFEST).read_bytes()
    output.mkdir(parents=True, exist_ok=True)
    for other in sorted(output.iterdir()):
        # The manifest goes onto each medium first: it says whose the files beside it are.
        if not other.name.startswith("medium-") or _read(other / MANIFEST) != raw:
            detail = f"holds something else than media of this bundle ({other.name})"
            raise problems().error("bundle-folder", folder=output, detail=detail)
    missing = [
        (medium, part)
        for medium in media
        for part in medium.parts
        if not _is_there(output / medium.name / part.path, part.length)
    ]
    needed = sum(part.length for _medium, part in missing)
    free = shutil.disk_usage(output).free
    if needed + needed // 10 > free:
        words = {"needed": human_bytes(needed + needed // 10), "free": human_bytes(free)}
        raise problems().error("bundle-space", folder=output, **words)
    progress(bundle.bytes - needed)
    for medium in media:
        (output / medium.name).mkdir(exist_ok=True)
        write_manifest(output / medium.name, raw)
    for medium, part in missing:
        target = output / medium.name / part.path
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f"{target.name}.part")
        with unfinished.open("wb", buffering=0) as out:
            for piece in _pieces(bundle.segments(part.row), part):
                _copy(piece, out.fileno(), progress)
            os.fsync(out.fileno())
        unfinished.replace(target)
    for left in output.glob("medium-*"):
        if left.name not in {medium.name for medium in media}:
            shutil.rmtree(left)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return b""


def _is_there(file: Path, length: int) -> bool:
    return file.is_file() and file.stat().st_size == length


def _pieces(segments: list[Segment], part: Part) -> Iterator[Segment]:
    """Where a part's bytes lie; `offset` is within the segment's file here."""
    end = part.offset + part.length
    for segment in segments:
        first, last = max(part.offset, segment.offset), min(end, segment.offset + segment.length)
        if first < last:
            yield Segment(segment.file, first - segment.offset, last - first)


def _copy(piece: Segment, out: int, progress: Callable[[int], None]) -> None:
    with piece.file.open("rb", buffering=0) as source:
        at, left = piece.offset, piece.length
        while left:
            sent = os.sendfile(out, source.fileno(), at, min(left, _BLOCK))
            if not sent:
                raise problems().error("bundle-damaged", file=piece.file, detail="became shorter")
            at, left = at + sent, left - sent
            progress(sent)
