# Copyright: the dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""What is there of a file that arrives out of order: coverage, its journal, and the sha256 that follows.

The sha256 of the whole file is taken in order, behind the bytes as they come, out of the page cache. At
each end of a piece the digest of all bytes up to there (a *prefix digest*, `head -c N FILE | sha256sum`) is
kept: it costs nothing more, and later names the piece in which a file is damaged.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

MIB = 1 << 20
LARGEST_PIECE = 64 * MIB
READ = MIB
# The journal is written anew when it has grown to this many bytes.
LONG_JOURNAL = 256 * 1024


def piece_size(total: int) -> int:
    """Return the bytes of a piece: 64 MiB for files of 8 GiB and more, down to 1 MiB for small ones."""
    size = MIB
    while size < LARGEST_PIECE and size * 256 <= total:
        size *= 2
    return size


def first_damage(path: str, piece: int, prefixes: Sequence[str], sha256: str) -> tuple[int, int] | None:
    """Read a file and return the first piece [first, end) whose bytes are not the wanted ones, or None.

    piece, prefixes: as a fetch left them. Without prefixes the whole file is one piece. Later pieces can be
    judged only when this one is mended, since each prefix digest vouches for all bytes before it.
    """
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(READ))
    position = boundary = 0
    with open(path, "rb", buffering=0) as handle:
        for wanted in prefixes:
            first, boundary = boundary, boundary + piece
            while position < boundary and (count := handle.readinto(buffer[: boundary - position])):
                digest.update(buffer[:count])
                position += count
            if position < boundary or digest.hexdigest() != wanted:
                return first, boundary
        while count := handle.readinto(buffer):
            digest.update(buffer[:count])
            position += count
    return None if digest.hexdigest() == sha256 else (boundary, max(position, boundary))


class Coverage:
    """Which bytes are there: rows [first, end, origin], sorted, without overlap. The owner locks."""

    def __init__(self, rows: Iterable[Iterable[int]] = ()) -> None:
        self.rows: list[list[int]] = []
        self.bytes = 0
        for first, end, origin in rows:
            self.add(first, end, origin)

    def add(self, first: int, end: int, origin: int) -> None:
        """Note that [first, end), which was not there, came from `origin`."""
        if first >= end:
            return
        at = bisect.bisect_right(self.rows, first, key=lambda row: row[0])
        before = self.rows[at - 1] if at else None
        after = self.rows[at] if at < len(self.rows) else None
        if (before and before[1] > first) or (after and after[0] < end):
            raise ValueError(f"bytes {first}-{end} are there already")
        self.bytes += end - first
        joins_before = before is not None and before[1] == first and before[2] == origin
        joins_after = after is not None and after[0] == end and after[2] == origin
        if joins_before and before is not None:
            before[1] = end
            if joins_after and after is not None:
                before[1] = after[1]
                del self.rows[at]
        elif joins_after and after is not None:
            after[0] = first
        else:
            self.rows.insert(at, [first, end, origin])

    def drop(self, first: int, end: int) -> None:
        """Forget the bytes [first, end)."""
        kept = []
        for row in self.rows:
            if row[0] < first:
                kept.append([row[0], min(row[1], first), row[2]])
            if row[1] > end:
                kept.append([max(row[0], end), row[1], row[2]])
        self.rows = kept
        self.bytes = sum(row[1] - row[0] for row in kept)

    def drop_origins(self, origins: set[int]) -> int | None:
        """Forget all that came from `origins`; return the first byte forgotten, if any."""
        gone = [row[0] for row in self.rows if row[2] in origins]
        self.rows = [row for row in self.rows if row[2] not in origins]
        self.bytes = sum(row[1] - row[0] for row in self.rows)
        return min(gone, default=None)

    def frontier(self) -> int:
        """Return how many bytes are there from the beginning without a gap."""
        reached = 0
        for first, end, _origin in self.rows:
            if first > reached:
                break
            reached = end
        return reached

    def by_origin(self) -> dict[int, int]:
        """Return the bytes that came from each origin."""
        counted: dict[int, int] = {}
        for first, end, origin in self.rows:
            counted[origin] = counted.get(origin, 0) + end - first
        return counted

    def missing(self, first: int, end: int) -> list[tuple[int, int]]:
        """Return the ranges within [first, end) that are not there."""
        gaps = []
        for row in self.rows:
            if row[1] <= first:
                continue
            if row[0] >= end:
                break
            if row[0] > first:
                gaps.append((first, row[0]))
            first = row[1]
        if first < end:
            gaps.append((first, end))
        return gaps


@dataclass
class Saved:
    """What a journal says about a part. origins: rows {key, name, validator}; prefixes: hex digests."""

    sha256: str = ""
    size: int | None = None
    piece: int = MIB
    there: list[list[int]] = field(default_factory=list)
    origins: list[dict[str, str]] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)


class Journal:
    """What is known to be on disk of a part, one JSON object a line; a later line goes before an earlier one.

    A line is written only after the bytes it speaks of were flushed. A torn last line is passed over.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._handle: Any = None
        self._length = 0
        self._prefixes: list[str] = []

    def read(self) -> Saved:
        """Return what the journal says; nothing where there is none that can be trusted."""
        saved = Saved()
        try:
            with open(self.path, "rb") as handle:
                lines = handle.read().split(b"\n")[:-1]
        except FileNotFoundError:
            return saved
        try:
            for number, line in enumerate(lines):
                row = json.loads(line)
                if number == 0:
                    if row["schema"] != 1:
                        return Saved()
                    size = row["size"]
                    saved = Saved(str(row["sha256"]), None if size is None else int(size), int(row["piece"]))
                    if saved.piece < 1:
                        return Saved()
                    continue
                there = Coverage([int(value) for value in part] for part in row["there"])
                origins = [
                    {name: str(entry[name]) for name in ("key", "name", "validator")}
                    for entry in row["origins"]
                ]
                start, prefixes = int(row["from"]), [str(value) for value in row["prefixes"]]
                if any(part[2] >= len(origins) or part[0] < 0 for part in there.rows):
                    raise ValueError("an origin that is not listed")
                saved.there, saved.origins = there.rows, origins
                saved.prefixes = saved.prefixes[:start] + prefixes
        except (ValueError, KeyError, TypeError, IndexError):
            # Torn by a power loss: what stood before it holds.
            pass
        return saved

    def write(self, state: Saved, anew: bool = False) -> None:
        """Record `state`; `anew` replaces the whole journal, which is also done when it has grown long."""
        if self._handle is None or anew or self._length > LONG_JOURNAL:
            self._replace(state)
            return
        # Prefix digests are many and rarely change: only new ones go into a line.
        start = 0
        for old, new in zip(self._prefixes, state.prefixes, strict=False):
            if old != new:
                break
            start += 1
        self._append(state, start)

    def _line(self, state: Saved, start: int) -> bytes:
        row = {
            "there": state.there,
            "origins": state.origins,
            "from": start,
            "prefixes": state.prefixes[start:],
        }
        return json.dumps(row, separators=(",", ":")).encode() + b"\n"

    def _append(self, state: Saved, start: int) -> None:
        line = self._line(state, start)
        view = memoryview(line)
        while view:
            view = view[os.write(self._handle, view) :]
        os.fdatasync(self._handle)
        self._length += len(line)
        self._prefixes = list(state.prefixes)

    def _replace(self, state: Saved) -> None:
        self.close()
        head = {"schema": 1, "sha256": state.sha256, "size": state.size, "piece": state.piece}
        data = json.dumps(head).encode() + b"\n" + self._line(state, 0)
        fresh = self.path + ".new"
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(handle, view) :]
            os.fdatasync(handle)
            os.replace(fresh, self.path)
        except BaseException:
            os.close(handle)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(fresh)
            raise
        self._handle = handle
        self._length = len(data)
        self._prefixes = list(state.prefixes)
        folder = os.open(os.path.dirname(os.path.abspath(self.path)), os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def close(self) -> None:
        """Let the file go."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def remove(self) -> None:
        """Delete the journal."""
        self.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)


class Follower(threading.Thread):
    """Takes the sha256 of a file in order while its bytes still come.

    descriptor: of the file, readable. piece: bytes between two prefix digests. frontier: says how far the
    bytes are there. expected: prefix digests of an earlier run. spoilt: called with a piece's [first, end)
    whose bytes on disk are not those that the earlier run had; the piece is read again when it is back.
    news: called after each piece and at the frontier.
    """

    def __init__(
        self,
        descriptor: int,
        piece: int,
        frontier: Callable[[], int],
        expected: list[str],
        spoilt: Callable[[int, int], None],
        news: Callable[[], None],
    ) -> None:
        super().__init__(name="sha256", daemon=True)
        self.more = threading.Event()
        self.problem: OSError | None = None
        self._descriptor = descriptor
        self._piece = piece
        self._frontier = frontier
        self._expected = expected
        self._spoilt = spoilt
        self._news = news
        self._lock = threading.Lock()
        self._digest = hashlib.sha256()
        self._position = 0
        # The state at the beginning of each piece, to go back to.
        self._states: list[Any] = [self._digest.copy()]
        self._prefixes: list[str] = []
        self._turn = 0
        self._again: set[int] = set()
        self._ended = False

    def progress(self) -> tuple[int, list[str]]:
        """Return how far the digest has come, and the prefix digests known, earlier runs' included."""
        with self._lock:
            return self._position, self._prefixes + self._expected[len(self._prefixes) :]

    def position(self) -> int:
        """Return how far the digest has come."""
        return self._position

    def digest(self) -> str:
        """Return the sha256 of what was read so far."""
        with self._lock:
            return str(self._digest.hexdigest())

    def rewind(self, first: int) -> None:
        """Go back to the piece that holds the byte `first`: what comes from there on was exchanged."""
        with self._lock:
            number = first // self._piece
            del self._expected[number:]
            self._back_to(min(number, len(self._states) - 1))
        self.more.set()

    def _back_to(self, number: int) -> None:
        if number * self._piece >= self._position:
            return
        self._turn += 1
        del self._states[number + 1 :]
        del self._prefixes[number:]
        self._digest = self._states[number].copy()
        self._position = number * self._piece

    def end(self) -> None:
        """Stop soon."""
        self._ended = True
        self.more.set()

    def run(self) -> None:
        """Follow until told to end."""
        try:
            self._follow()
        except OSError as error:
            self.problem = error
        self._news()

    def _follow(self) -> None:
        buffer = memoryview(bytearray(READ))
        while not self._ended:
            self.more.clear()
            with self._lock:
                turn, position, digest = self._turn, self._position, self._digest
            boundary = (position // self._piece + 1) * self._piece
            end = min(self._frontier(), boundary, position + READ)
            if end <= position:
                self._news()
                self.more.wait(1.0)
                continue
            count = os.preadv(self._descriptor, [buffer[: end - position]], position)
            if not count:
                raise OSError(0, "the part became shorter while it was read")
            with self._lock:
                # Only `rewind` comes between, and it starts from a copy.
                if turn != self._turn:
                    continue
            digest.update(buffer[:count])
            with self._lock:
                if turn != self._turn:
                    continue
                self._position = position + count
                spoilt = self._position == boundary and not self._end_piece(digest, boundary)
            if spoilt:
                self._spoilt(boundary - self._piece, boundary)

    def _end_piece(self, digest: Any, boundary: int) -> bool:
        """Keep the digest at a boundary; say False where an earlier run had another one there."""
        number = boundary // self._piece - 1
        found = digest.hexdigest()
        if number < len(self._expected) and self._expected[number] != found:
            if number not in self._again:
                self._again.add(number)
                self._back_to(number)
                return False
            # Fetched again and still another: what the earlier run had was of another origin. The digest
            # of the whole file decides.
            del self._expected[number:]
        self._prefixes.append(found)
        self._states.append(digest.copy())
        return True
