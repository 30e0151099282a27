# Copyright: the dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""A file while it comes: its bytes on disk, the journal that vouches for them, the digest that follows.

Threads of several connections write into one `Part`; what came from which version of which source is noted,
so that it can be taken away again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.dsprov.appliance.plugins.module_utils.files import (
    FileError,
    make_parents,
    need_space,
)
from ansible_collections.dsprov.appliance.plugins.module_utils.pieces import (
    LARGEST_PIECE,
    MIB,
    Coverage,
    Follower,
    Journal,
    Saved,
    piece_size,
)

# The journal is written when this much came, or after so many seconds.
JOURNAL_BYTES, JOURNAL_SECONDS = 64 * MIB, 1.0

# By how many bytes the digest may be behind those that come; so few are still near the processor.
LEAD = 32 * MIB


class GoneError(Exception):
    """The part of the file that a connection worked on is not its own any more."""


@dataclass
class Outcome:
    """What a fetch did.

    source: the one that gave most. attempts: a row {source, result, bytes, seconds} per try. bytes_fetched:
    bytes that crossed the wire. bytes_kept: bytes that an earlier run had brought. size, piece, prefixes:
    of the whole file, its bytes, the bytes between two prefix digests, and these (see pieces.py).
    """

    source: str = ""
    attempts: list[dict[str, Any]] = field(default_factory=list)
    bytes_fetched: int = 0
    bytes_kept: int = 0
    size: int = 0
    piece: int = 0
    prefixes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def note(self, source: str, result: str, count: int = 0, seconds: float = 0.0) -> None:
        """Add a row to the attempts; the same trouble again goes into the row it has."""
        with self._lock:
            rows = self.attempts
            if rows and rows[-1]["source"] == source and rows[-1]["result"] == result and result != "ok":
                rows[-1]["bytes"] += count
                rows[-1]["seconds"] = round(rows[-1]["seconds"] + seconds, 3)
                return
            rows.append({"source": source, "result": result, "bytes": count, "seconds": round(seconds, 3)})
            if len(rows) > 100:
                del rows[20]


class Part:
    """The file `path` on its way to the digest `sha256`.

    name: what messages call it. size: its bytes where known beforehand. extra: bytes that are needed beside
    it on the same disk. `lock` guards coverage, origins, kept and dead, and what connections know of each
    other; `layout` makes one thread at a time decide how long the file is. `news` is set when something
    happened that whoever leads the fetch should look at.
    """

    def __init__(
        self, path: str, name: str, sha256: str, size: int | None, extra: int, outcome: Outcome
    ) -> None:
        self.path = path
        self.name = name
        self.sha256 = sha256
        self.size = size
        self.outcome = outcome
        self.journal = Journal(path + ".journal")
        self.lock = threading.Lock()
        self.layout = threading.Lock()
        self.news = threading.Event()
        self.coverage = Coverage()
        # Rows {key, name, validator}: a version of the file at a source; coverage holds their numbers.
        self.origins: list[dict[str, str]] = []
        # Origins that an earlier run noted, and those whose bytes nobody wants any more.
        self.kept: set[int] = set()
        self.dead: set[int] = set()
        self.total: int | None = None
        self.piece = 0
        self.follower: Follower | None = None
        # What ends the whole fetch, whichever thread met it.
        self.fatal: Exception | None = None
        self.ended = False
        self._extra = extra
        self._descriptor = -1
        self._expected: list[str] = []
        self._noted = 0
        # Bytes without a gap from the beginning: as the digest last saw it, and as an earlier run left it.
        self._reach = self._old = 0
        self._tail_mended = False
        self._saver = threading.Thread(target=self._save_now_and_then, name="journal", daemon=True)
        self._saver_turn = threading.Event()

    # Its beginning and its end

    def open(self) -> None:
        """Take up what an earlier run left, as far as its journal vouches for it. Raises FileError."""
        make_parents(self.path)
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self.disk_error(error) from error
        saved = self.journal.read()
        has = os.fstat(self._descriptor).st_size
        # A part has its full size from the beginning, so only the journal says what is in it.
        fits = saved.sha256 == self.sha256 and (self.size is None or saved.size in (None, self.size))
        fits = fits and (has == saved.size if saved.size is not None else True)
        limit = has if self.size is None else min(has, self.size)
        rows = [row for row in saved.there if row[1] <= limit] if fits else []
        if rows:
            self.coverage = Coverage(rows)
            self.origins = saved.origins
            self.kept = {row[2] for row in rows}
            self._expected = saved.prefixes
            self.outcome.bytes_kept = self._noted = self.coverage.bytes
            self._old = self.coverage.frontier()
            self.piece = saved.piece
        else:
            os.ftruncate(self._descriptor, 0)
        total = self.size if self.size is not None else saved.size if rows else None
        if total is not None:
            self.begin(total)
        self._saver.start()

    def begin(self, total: int | None) -> None:
        """Lay the file out once its size is known, or known to be unknown. Raises FileError."""
        self.total = total
        if not self.piece:
            self.piece = piece_size(total) if total is not None else LARGEST_PIECE
        need_space(self.path, (total or 0) - self.coverage.bytes + self._extra, self.name)
        try:
            if total is not None:
                # Sparse: reserving blocks is slow where the file system does not know how.
                os.ftruncate(self._descriptor, total)
        except OSError as error:
            raise self.disk_error(error) from error
        if self.follower is None:
            self.follower = Follower(
                self._descriptor, self.piece, self._frontier, self._expected, self._spoilt, self.news.set
            )
            self.follower.start()

    def cut(self, total: int) -> None:
        """Say how long the file is, now that all of it is there."""
        with self.lock:
            self.total = total
            os.ftruncate(self._descriptor, total)

    def close(self, keep: bool) -> None:
        """Let the file go; keep: it is not complete, and the next run goes on from it. Raises FileError."""
        self.ended = True
        self._saver_turn.set()
        follower = self.follower
        if follower and follower.is_alive():
            follower.end()
            follower.join()
        if self._saver.is_alive():
            self._saver.join()
        if self._descriptor < 0:
            return
        try:
            if not keep:
                os.fdatasync(self._descriptor)
            elif self.coverage.bytes:
                self._save_at_last()
            else:
                self._discard()
        except OSError as error:
            raise self.disk_error(error) from error
        finally:
            # A thread that still waits for a connect must not write into another file of the same number.
            with self.lock:
                os.close(self._descriptor)
                self._descriptor = -1
            self.journal.close()

    def _discard(self) -> None:
        for path in (self.path, self.journal.path):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    # What is there

    @property
    def complete(self) -> bool:
        """Whether all bytes are there, right or not."""
        with self.lock:
            return self.total is not None and self.coverage.bytes == self.total

    def there(self) -> list[tuple[int, int]]:
        """Return the ranges [first, end) that have come, sorted."""
        with self.lock:
            ranges: list[tuple[int, int]] = []
            for first, end, _origin in self.coverage.rows:
                if ranges and ranges[-1][1] == first:
                    ranges[-1] = (ranges[-1][0], end)
                else:
                    ranges.append((first, end))
            return ranges

    def check(self) -> None:
        """Raise what ended the work, if anything did."""
        if self.fatal:
            raise self.fatal
        if self.follower and self.follower.problem:
            raise self.disk_error(self.follower.problem)

    def disk_error(self, error: OSError) -> FileError:
        """Say what the disk refused, and what to do about it."""
        said = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return FileError(
                f"{self.path}: {said}; free some space, then run the same command: what came is kept"
            )
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            return FileError(f"{self.path}: {said}; make the folder writable, then run the same command")
        return FileError(f"{self.path}: {said}; look at the disk, then run the same command")

    # What comes and goes

    def write(self, data: memoryview, at: int, places: Sequence[tuple[int, int]]) -> None:
        """Write the `places` [first, end) of `data`, which begins at `at`. Raises FileError."""
        try:
            for first, last in places:
                piece, offset = data[first - at : last - at], first
                while piece:
                    written = os.pwrite(self._descriptor, piece, offset)
                    piece, offset = piece[written:], offset + written
        except OSError as error:
            raise self.disk_error(error) from error

    @property
    def behind(self) -> bool:
        """Whether the digest is far behind, an earlier run's bytes aside: these it reads from the disk."""
        at = self.follower.position() if self.follower else 0
        return at >= self._old and self._reach - at > LEAD

    def came(self, places: Sequence[tuple[int, int]], origin: int) -> None:
        """Note that `places` were written. Under the lock."""
        for first, last in places:
            self.coverage.add(first, last, origin)

    def tell(self) -> None:
        """Wake who works on what came."""
        if self.follower and not self.follower.more.is_set():
            self.follower.more.set()
        if self.coverage.bytes - self._noted >= JOURNAL_BYTES and not self._saver_turn.is_set():
            self._saver_turn.set()

    def forget(self, origins: Collection[int] | None = None) -> None:
        """Drop the bytes of `origins` (None: of all), on disk too; who still writes some is refused."""
        with self.lock:
            gone = set(range(len(self.origins)) if origins is None else origins)
            self.dead |= gone
            first = self.coverage.drop_origins(gone)
        if self.follower and first is not None:
            self.follower.rewind(first)
        self._noted = -1

    def mend_tail(self, total: int) -> bool:
        """Drop the bytes behind the last prefix digest of an earlier run, once, where all those agree."""
        first = total // self.piece * self.piece
        with self.lock:
            untouched = all(row[2] in self.kept for row in self.coverage.rows if row[1] > first)
            if (
                self._tail_mended
                or len(self._expected) * self.piece != first
                or not first < total
                or not untouched
            ):
                return False
            self._tail_mended = True
        self._spoilt(first, total)
        if self.follower:
            self.follower.rewind(first)
        return True

    def _spoilt(self, first: int, end: int) -> None:
        with self.lock:
            self.coverage.drop(first, end)
        self.outcome.note("", f"bytes {first}-{end - 1} were damaged on disk; fetched again")
        self.news.set()

    def _frontier(self) -> int:
        with self.lock:
            self._reach = self.coverage.frontier()
            return self._reach

    # Its journal

    def _state(self) -> Saved:
        prefixes = self.follower.progress()[1] if self.follower else self._expected
        with self.lock:
            return Saved(
                self.sha256,
                self.total,
                self.piece,
                [list(row) for row in self.coverage.rows],
                [dict(row) for row in self.origins],
                prefixes,
            )

    def _save(self, anew: bool = False) -> None:
        """Flush the bytes, then say in the journal that they are there."""
        state = self._state()
        os.fdatasync(self._descriptor)
        self.journal.write(state, anew)
        self._noted = sum(row[1] - row[0] for row in state.there)

    def _save_now_and_then(self) -> None:
        while not self.ended:
            self._saver_turn.wait(JOURNAL_SECONDS)
            self._saver_turn.clear()
            if self.ended or self.coverage.bytes == self._noted or self.fatal:
                continue
            try:
                self._save()
            except OSError as error:
                self.fatal = self.disk_error(error)
                self.news.set()

    def _save_at_last(self) -> None:
        """Save what came, on a full disk too."""
        try:
            self._save()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                return  # The disk that ends the work has been told of already; its journal says what it can.
            # The last bytes make room for the journal that vouches for all others.
            with contextlib.suppress(OSError), self.lock:
                end = self.coverage.rows[-1][1]
                self.coverage.drop(end - MIB, end)
                os.ftruncate(self._descriptor, end - MIB if end > MIB else 0)
                os.ftruncate(self._descriptor, self.total or self.coverage.frontier())
            with contextlib.suppress(OSError):
                self._save(anew=True)
