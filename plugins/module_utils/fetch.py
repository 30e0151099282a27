# Copyright: the dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Bring one file, known by its sha256, from the first source that works; standard library alone.

Several connections fill a preallocated part, piece by piece; its sha256 follows the bytes as they come; a
journal says which of them are on disk. What a network does to a long download, and what happens then:

* cut off, reset, 5xx: the same source is asked for what is missing while it makes progress, then the next;
* silent: after `takeover` seconds the next source goes on where this one stood, after `stall` seconds the
  same one is asked again where it is the only one;
* 429 and 503: the time it asks for is waited, with fewer connections; 403 and 404: the next source at once;
* a redirect that expired in the middle: asked for anew;
* a file that changed meanwhile (ETag, date, size): what came of it is forgotten, never spliced;
* a server that ignores ranges: one connection, from the beginning after each cut;
* a wrong digest: where all bytes came from one source it is left and they are deleted; where they came
  from several, the bytes of the lesser ones are fetched anew from the others;
* killed, power lost: what the journal has is kept, read once for the digest, and repaired piece by piece.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import os
import threading
import time
import urllib.parse
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.dsprov.appliance.plugins.module_utils import simple_index, wire
from ansible_collections.dsprov.appliance.plugins.module_utils.files import (
    FileError,
    fsync_directory,
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
from ansible_collections.dsprov.appliance.plugins.module_utils.wire import Source, SourceError

# A file up to this size is asked for at once, without ranges.
SMALL = 4 * MIB
# What one read asks for at most.
MOST_READ = 512 * 1024
# A source that brought no more than this since it failed last got no further.
LEAST_PROGRESS = 16 * 1024
# A connection faster than this (bytes a second) needs no others beside it.
FAST = 64 * MIB
# The journal is written when this much came, or after so many seconds.
JOURNAL_BYTES, JOURNAL_SECONDS = 64 * MIB, 1.0
# A server that asks for patience gets no more than this, in seconds.
LONGEST_WAIT = 300.0
# How often a server may say that it is busy before it counts as failed.
BUSY_TRIES = 8
# How often a connection that hangs beside lively ones is ended before its time.
HURRIES = 50
# Seconds over which the rate is taken.
WINDOW = 10.0
LEAST_STEAL = 2 * MOST_READ


class AbandonedError(Exception):
    """Whoever asked for the download is gone, or stopped it; what came so far is kept."""


class _GoneError(Exception):
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


@dataclass(frozen=True)
class Progress:
    """How a fetch stands: bytes there, bytes hashed, bytes in all (None: not known), bytes a second,
    the source in use ("" while none is) and its connections."""

    done: int
    hashed: int
    total: int | None
    rate: float
    source: str
    connections: int


class Limiter:
    """Holds all connections together under `limit` bytes a second; 0 is no limit. May be changed meanwhile,
    and shared between fetchers."""

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._next = 0.0

    def grant(self, wanted: int) -> tuple[int, float]:
        """Return how many bytes may be read, and after how many seconds."""
        limit = self.limit
        if limit <= 0:
            return wanted, 0.0
        granted = min(wanted, max(4096, limit // 20))
        with self._lock:
            now = time.monotonic()
            self._next = max(self._next, now - 0.1) + granted / limit
            return granted, max(0.0, self._next - now)


def reopen(path: str, sha256: str, size: int, piece: int, prefixes: Sequence[str]) -> None:
    """Make the damaged file `path` a part again, of which a fetch replaces only the pieces that are wrong.

    sha256, size: of the whole file as it should be. piece, prefixes: as the fetch that brought it left them.
    """
    has = os.stat(path).st_size
    state = Saved(
        sha256,
        size,
        piece,
        [[0, min(has, size), 0]] if has and size else [],
        [{"key": "disk", "name": path, "validator": ""}],
        list(prefixes),
    )
    os.truncate(path, size)
    journal = Journal(path + ".part.journal")
    journal.write(state)
    journal.close()
    os.replace(path, path + ".part")
    fsync_directory(os.path.dirname(os.path.abspath(path)))


@dataclass(eq=False)
class _Claim:
    """A range that one connection fills: `at` moves from its beginning to `stop`."""

    at: int
    stop: int
    began: float
    # Everything from the beginning to whatever end, for a server that knows no ranges.
    whole: bool = False
    line: wire.Line | None = None
    moved: float = 0.0
    hurried: bool = False


class _Link:
    """One source in use: what was learnt of it, and how it does."""

    def __init__(self, source: Source, most: int) -> None:
        now = time.monotonic()
        self.source = source
        self.route: wire.Route | None = None
        self.origin: int | None = None
        self.ranges: bool | None = None
        self.changes = 0
        self.changed = 0.0
        self.banned = False
        self.suspect = False
        self.over: SourceError | None = None
        self.strikes = 0
        self.struck = 0.0
        self.furthest = -1
        self.wait_until = 0.0
        self.last_byte = now
        self.told = now
        self.got = 0
        self.got_told = 0
        self.target = 1
        self.most = self.most_at_first = most
        self.running = 0
        self.lines: set[wire.Line] = set()
        self.window: deque[tuple[float, int]] = deque([(now, 0)])
        self.trial: tuple[float, int, float] | None = None
        self.measured: tuple[float, int] = (now, 0)
        self.next_trial = 0.0
        # Threads between their look whether they are still wanted and the end of their write.
        self.writing = 0

    def again(self) -> _Link:
        """Return the same source for another turn; threads that hang in this one stay with this one."""
        fresh = _Link(self.source, self.most_at_first)
        fresh.route, fresh.origin, fresh.ranges = self.route, self.origin, self.ranges
        fresh.changes = self.changes
        return fresh

    @property
    def key(self) -> str:
        """What stands for the source in a journal: its address may hold secrets."""
        return hashlib.sha256(self.source.url.encode()).hexdigest()[:16]


@dataclass
class Fetcher:
    """Downloads into `part` until its bytes have the digest `sha256`.

    name: what messages call the file. size: bytes of the whole file where known. stall: seconds without a
    byte after which a connection is given up. takeover: the same for a whole source while there is another.
    tries: how often one source may fail without getting further. connections: how many to begin with;
    most_connections: where a single one is slow. limiter: bytes a second over all of them. extra: bytes that
    the caller needs beside the file on the same disk. alive: asked each second, False stops the work.
    progress: called every `every` seconds and at the end.
    """

    name: str
    part: str
    sha256: str
    size: int | None = None
    pypi_index: str = "https://pypi.org/simple"
    stall: float = 60.0
    takeover: float = 20.0
    connect_timeout: float = 15.0
    tries: int = 3
    connections: int = 4
    most_connections: int = 16
    limiter: Limiter = field(default_factory=Limiter)
    extra: int = 0
    alive: Callable[[], bool] = lambda: True
    progress: Callable[[Progress], None] = lambda _progress: None
    every: float = 1.0
    outcome: Outcome = field(default_factory=Outcome)

    def __post_init__(self) -> None:
        self._journal = Journal(self.part + ".journal")
        self._lock = threading.Lock()
        self._layout = threading.Lock()
        self._notes = threading.Lock()
        self._turn = threading.Event()
        self._saver_turn = threading.Event()
        self._coverage = Coverage()
        self._claims: list[_Claim] = []
        self._origins: list[dict[str, str]] = []
        # Origins that an earlier run noted, and those whose bytes nobody wants any more.
        self._kept: set[int] = set()
        self._dead: set[int] = set()
        self._links: list[_Link] = []
        self._link: _Link | None = None
        self._total: int | None = None
        self._piece = 0
        self._descriptor = -1
        self._follower: Follower | None = None
        self._fatal: Exception | None = None
        self._expected: list[str] = []
        self._noted = 0
        self._tail_mended = False
        self._stopped = False
        # A source where this happens again and again is judged by `stall` alone.
        self._hurries_left = HURRIES
        self._ended = False
        self._looked = 0.0
        self._shown = 0.0

    # For the caller

    def fetch(self, sources: Sequence[str | Source]) -> Outcome:
        """Try `sources` in order; on return `part` is complete, verified and on disk.

        Raises FileError where no source gave the file or the disk failed, AbandonedError where `alive` said
        False or `stop` was called. In both cases what came and may be right is kept for the next run.
        """
        self._links = [
            _Link(source if isinstance(source, Source) else Source(source), self.most_connections)
            for source in sources
        ]
        saver = threading.Thread(target=self._save_now_and_then, name="journal", daemon=True)
        try:
            self._open()
            saver.start()
            self._bring()
        except BaseException:
            self._close(saver, keep=True)
            raise
        self._close(saver, keep=False)
        return self.outcome

    def stop(self) -> None:
        """End the work soon; `fetch` raises AbandonedError. For signal handlers and other threads."""
        self._stopped = True
        self._turn.set()

    def place(self, dest: str, mode: int = 0o644) -> None:
        """Give the finished part its name, in one step that survives a power loss."""
        os.chmod(self.part, mode)
        os.replace(self.part, dest)
        fsync_directory(os.path.dirname(os.path.abspath(dest)))
        self._journal.remove()

    def there(self) -> list[tuple[int, int]]:
        """Return the ranges [first, end) that have come, sorted, whatever the thread that asks.

        They are verified only when `fetch` has returned.
        """
        with self._lock:
            ranges: list[tuple[int, int]] = []
            for first, end, _origin in self._coverage.rows:
                if ranges and ranges[-1][1] == first:
                    ranges[-1] = (ranges[-1][0], end)
                else:
                    ranges.append((first, end))
            return ranges

    # The part and its journal

    def _open(self) -> None:
        make_parents(self.part)
        try:
            self._descriptor = os.open(self.part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._disk_error(error) from error
        saved = self._journal.read()
        has = os.fstat(self._descriptor).st_size
        # A part has its full size from the beginning, so only the journal says what is in it.
        fits = saved.sha256 == self.sha256 and (self.size is None or saved.size in (None, self.size))
        fits = fits and (has == saved.size if saved.size is not None else True)
        limit = has if self.size is None else min(has, self.size)
        rows = [row for row in saved.there if row[1] <= limit] if fits else []
        if rows:
            self._coverage = Coverage(rows)
            self._origins = saved.origins
            self._kept = {row[2] for row in rows}
            self._expected = saved.prefixes
            self.outcome.bytes_kept = self._noted = self._coverage.bytes
            self._piece = saved.piece
        else:
            os.ftruncate(self._descriptor, 0)
        total = self.size if self.size is not None else saved.size if rows else None
        if total is not None:
            self._begin(total)

    def _begin(self, total: int | None) -> None:
        """Lay the file out once its size is known, or known to be unknown. Raises FileError."""
        self._total = total
        if not self._piece:
            self._piece = piece_size(total) if total is not None else LARGEST_PIECE
        need_space(self.part, (total or 0) - self._coverage.bytes + self.extra, self.name)
        try:
            if total is not None:
                # Sparse: reserving blocks is slow where the file system does not know how.
                os.ftruncate(self._descriptor, total)
        except OSError as error:
            raise self._disk_error(error) from error
        if self._follower is None:
            self._follower = Follower(
                self._descriptor, self._piece, self._frontier, self._expected, self._spoilt, self._turn.set
            )
            self._follower.start()

    def _frontier(self) -> int:
        with self._lock:
            return self._coverage.frontier()

    def _spoilt(self, first: int, end: int) -> None:
        with self._lock:
            self._coverage.drop(first, end)
            self._note("", f"bytes {first}-{end - 1} were damaged on disk; fetched again", 0, 0.0)
        self._turn.set()

    def _disk_error(self, error: OSError) -> FileError:
        said = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return FileError(
                f"{self.part}: {said}; free some space, then run the same command: what came is kept"
            )
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            return FileError(f"{self.part}: {said}; make the folder writable, then run the same command")
        return FileError(f"{self.part}: {said}; look at the disk, then run the same command")

    def _state(self) -> Saved:
        follower = self._follower
        prefixes = follower.progress()[1] if follower else self._expected
        with self._lock:
            return Saved(
                self.sha256,
                self._total,
                self._piece,
                [list(row) for row in self._coverage.rows],
                [dict(row) for row in self._origins],
                prefixes,
            )

    def _save(self, anew: bool = False) -> None:
        """Flush the bytes, then say in the journal that they are there."""
        state = self._state()
        os.fdatasync(self._descriptor)
        self._journal.write(state, anew)
        self._noted = sum(row[1] - row[0] for row in state.there)

    def _save_now_and_then(self) -> None:
        while not self._ended:
            self._saver_turn.wait(JOURNAL_SECONDS)
            self._saver_turn.clear()
            if self._ended or self._coverage.bytes == self._noted or self._fatal:
                continue
            try:
                self._save()
            except OSError as error:
                self._fatal = self._disk_error(error)
                self._turn.set()

    def _close(self, saver: threading.Thread, keep: bool) -> None:
        self._ended = True
        self._saver_turn.set()
        follower = self._follower
        if follower and follower.is_alive():
            follower.end()
            follower.join()
        if saver.is_alive():
            saver.join()
        if self._descriptor < 0:
            return
        try:
            if not keep:
                os.fdatasync(self._descriptor)
            elif self._coverage.bytes:
                self._save_at_last()
            else:
                self._discard()
        except OSError as error:
            raise self._disk_error(error) from error
        finally:
            # A thread that still waits for a connect must not write into another file of the same number.
            with self._lock:
                os.close(self._descriptor)
                self._descriptor = -1
            self._journal.close()

    def _save_at_last(self) -> None:
        """Save what came, on a full disk too."""
        try:
            self._save()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                return  # The disk that ends the work has been told of already; its journal says what it can.
            # The last bytes make room for the journal that vouches for all others.
            with contextlib.suppress(OSError), self._lock:
                end = self._coverage.rows[-1][1]
                self._coverage.drop(end - MIB, end)
                os.ftruncate(self._descriptor, end - MIB if end > MIB else 0)
                os.ftruncate(self._descriptor, self._total or self._coverage.frontier())
            with contextlib.suppress(OSError):
                self._save(anew=True)

    def _discard(self) -> None:
        for path in (self.part, self._journal.path):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    # The way through the sources

    def _bring(self) -> None:
        number, round_began, turns = 0, self._coverage.bytes, len(self._links)
        while True:
            if self._complete():
                if self._judge():
                    return
                number, round_began = 0, self._coverage.bytes
                continue
            usable = [link for link in self._links[number:] if self._usable(link)]
            if usable:
                number = self._links.index(usable[0]) + 1
                self._links[number - 1] = usable[0].again()
                self._run(self._links[number - 1])
                continue
            if self._coverage.bytes >= round_began + max(MIB, (self._total or 0) // 100):
                # Enough came in this round for another one to make sense.
                round_began, number = self._coverage.bytes, 0
                if any(self._usable(link) for link in self._links):
                    continue
            if turns > 0 and any(link.suspect for link in self._links):
                # The others cannot replace what is in doubt: now the doubted have a turn without them.
                turns -= 1
                for link in self._links:
                    link.suspect = not link.suspect
                self._forget(set(range(len(self._origins))))
                number, round_began = 0, 0
                continue
            told = "; ".join(f"{row['source']}: {row['result']}" for row in self.outcome.attempts[-12:])
            raise FileError(
                f"{self.name}: no source gave the file ({told}); name one that does, or try again later"
            )

    def _usable(self, link: _Link) -> bool:
        return not link.banned and not link.suspect

    def _others(self, link: _Link) -> bool:
        """Tell whether another source may be tried instead of `link`."""
        return any(other is not link and self._usable(other) for other in self._links)

    def _complete(self) -> bool:
        with self._lock:
            return self._total is not None and self._coverage.bytes == self._total

    def _judge(self) -> bool:
        """Wait for the digest; True when it is the wanted one. Else take away what cannot be right."""
        follower = self._follower
        total = self._total
        if follower is None or total is None:
            raise FileError(f"{self.name}: nothing to judge")  # Only after `_complete`.
        follower.more.set()
        while follower.position() < total:
            if not self._complete():
                return False
            self._tick()
            self._turn.wait(0.2)
            self._turn.clear()
        got = follower.digest()
        with self._lock:
            counted = self._coverage.by_origin()
        most = max(counted, key=lambda origin: counted[origin], default=None)
        if got == self.sha256:
            self.outcome.source = self._origins[most]["name"] if most is not None else ""
            self.outcome.size, self.outcome.piece = total, self._piece
            self.outcome.prefixes = follower.progress()[1]
            self._report(force=True)
            return True
        text = f"sha256 is {got}, wanted {self.sha256}"
        if self._mend_tail(total):
            return False
        keys = {self._origins[origin]["key"] for origin in counted}
        if len(keys) > 1:
            # One of several sources gave other bytes than the rest: the smallest part is the cheapest doubt.
            least = min(counted, key=lambda origin: counted[origin])
            key = self._origins[least]["key"]
            doubted = {origin for origin in counted if self._origins[origin]["key"] == key}
            self._note(
                self._origins[least]["name"],
                f"{text}; its {counted[least]} bytes are fetched elsewhere",
                0,
                0.0,
            )
            for link in self._links:
                link.suspect = link.suspect or link.key == key
            self._forget(doubted)
            return False
        for link in self._links:
            # Bytes that lay on a disk since an earlier run say nothing about the source of today.
            if link.key in keys and not any(origin in self._kept for origin in counted):
                link.banned = True
        name = self._origins[most]["name"] if most is not None else ""
        self._note(name, f"{text}; the bytes are deleted", 0, 0.0)
        for link in self._links:
            link.suspect = False
        self._forget(set(counted))
        if self.size is None:
            # What was wrong may have been the size.
            self._total = None
        return False

    def _mend_tail(self, total: int) -> bool:
        """Drop the bytes behind the last prefix digest of an earlier run, once, where all those agree."""
        first = total // self._piece * self._piece
        with self._lock:
            untouched = all(row[2] in self._kept for row in self._coverage.rows if row[1] > first)
            if (
                self._tail_mended
                or len(self._expected) * self._piece != first
                or not first < total
                or not untouched
            ):
                return False
            self._tail_mended = True
        self._spoilt(first, total)
        if self._follower:
            self._follower.rewind(first)
        return True

    def _forget(self, origins: set[int]) -> None:
        """Drop the bytes of `origins`, on disk too; who still writes some is refused."""
        with self._lock:
            self._dead |= origins
            first = self._coverage.drop_origins(origins)
            for link in self._links:
                if link.origin in origins:
                    link.origin = None
        if self._follower and first is not None:
            self._follower.rewind(first)
        self._noted = -1

    # One source

    def _run(self, link: _Link) -> None:
        """Use `link` until the file is complete or the source is over."""
        self._link = link
        try:
            if link.source.url.startswith("file://"):
                self._spawn(link)
            else:
                try:
                    url = link.source.url
                    if url.startswith("pypi:"):
                        url = simple_index.find_in_index(
                            url, self.pypi_index, self.sha256, self.connect_timeout, self.stall
                        )
                    link.route = link.route or wire.Route(url, link.source.headers)
                except SourceError as error:
                    link.over = error
                except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
                    link.over = SourceError(wire.explain(error, self.stall), again=True)
            while not self._complete() and not link.over:
                self._manage(link)
                self._tick()
                self._turn.wait(0.2)
                self._turn.clear()
        finally:
            self._halt(link)
        if self._complete():
            if link.got or not self.outcome.attempts:
                self._note_link(link, "ok")
        elif link.over:
            link.banned = link.banned or not link.over.again
            self._note_link(link, str(link.over))

    def _manage(self, link: _Link) -> None:
        """Look after a source: silence, slowness, the number of connections."""
        now = time.monotonic()
        with self._lock:
            got, running = link.got, link.running
            if now - link.window[-1][0] >= 0.2:
                link.window.append((now, got))
                while len(link.window) > 2 and now - link.window[1][0] >= WINDOW:
                    link.window.popleft()
            quiet = now - max(link.last_byte, link.wait_until)
            others = self._others(link)
            if others and quiet > self.takeover:
                link.over = SourceError(f"no byte for {quiet:.0f} s", again=True)
                return
            rate = self._rate(link)
            seen = now - max(link.window[0][0], link.wait_until)
            if others and link.source.min_rate and seen >= WINDOW and rate < link.source.min_rate:
                link.over = SourceError(f"only {rate / 1e6:.3f} MB/s", again=True)
                return
            if now < link.wait_until:
                return
            self._hurry(link, now)
            self._adapt(link, now)
            wanted = min(link.target, self._places(link)) - running
        for _ in range(max(0, wanted)):
            self._spawn(link)

    def _hurry(self, link: _Link, now: float) -> None:
        """End a connection that hangs beside others that do not, so that its range goes to one of them."""
        if self._hurries_left <= 0 or not link.ranges:
            return
        patience = self.takeover / 2
        lively = now - link.last_byte < patience / 4
        for claim in self._claims:
            alone = len(self._claims) == 1 and link.got > claim.stop - claim.at
            hangs = not claim.hurried and now - claim.moved > patience
            if claim.line and hangs and (lively or alone):
                claim.hurried = True
                self._hurries_left -= 1
                claim.line.abort()

    def _rate(self, link: _Link) -> float:
        first, last = link.window[0], link.window[-1]
        return (last[1] - first[1]) / (last[0] - first[0]) if last[0] > first[0] else 0.0

    def _adapt(self, link: _Link, now: float) -> None:
        """Set the number of connections: more where each is slow and more of them bring more."""
        if link.source.url.startswith("file://") or not link.ranges:
            link.target = 1
            return
        if link.target < min(self.connections, link.most):
            link.target = min(self.connections, link.most)
            link.measured = (now, link.got)
            return
        began, got = link.measured
        if now - began < 0.3:
            return
        if link.most < link.most_at_first and now - link.struck > 30.0:
            link.most, link.struck = link.most * 2, now
        rate = (link.got - got) / (now - began)
        link.measured = (now, link.got)
        if link.trial:
            tried_at, before, rate_before = link.trial
            if now - tried_at < 1.0:
                return
            link.trial = None
            if rate < 1.1 * rate_before:
                # No faster: the link is full, and more connections are only a burden to others.
                link.target = before
                link.next_trial = now + 60.0
                return
        limit = self.limiter.limit
        free = not limit or rate < 0.9 * limit
        if link.target < link.most and rate / link.target < FAST and free and now >= link.next_trial and rate:
            link.trial = (now, link.target, rate)
            slow = rate / link.target < FAST / 2
            link.target = min(link.most, link.target * (4 if slow else 2))

    def _places(self, link: _Link) -> int:
        """Count what connections could take up now: gaps that nobody fills, by pieces. Under the lock."""
        if self._total is None or not link.ranges:
            return 1
        free = sum((end - first + self._piece - 1) // self._piece for first, end in self._gaps())
        stealable = sum(1 for claim in self._claims if claim.stop - claim.at >= 2 * LEAST_STEAL)
        return link.running + free + (stealable if not free else 0)

    def _gaps(self) -> list[tuple[int, int]]:
        """Return the ranges that nobody has and nobody fills. Under the lock."""
        if self._total is None:
            return []
        gaps = self._coverage.missing(0, self._total)
        for claim in self._claims:
            kept: list[tuple[int, int]] = []
            for first, end in gaps:
                if claim.stop <= first or claim.at >= end:
                    kept.append((first, end))
                    continue
                if first < claim.at:
                    kept.append((first, claim.at))
                if claim.stop < end:
                    kept.append((claim.stop, end))
            gaps = kept
        return gaps

    def _claim(self, link: _Link) -> _Claim | None:
        """Give a connection something to fill, or None when it is not needed."""
        with self._lock:
            if link.over or self._fatal or self._ended or link is not self._link:
                return None
            if link.running > link.target or self._coverage.bytes == self._total:
                return None
            now = time.monotonic()
            if self._total is None or link.ranges is False or self._small():
                if self._claims:
                    return None
                if link.ranges is False or self._total is not None or not self._coverage.bytes:
                    claim = _Claim(0, 1 << 62 if self._total is None else self._total, now, whole=True)
                else:
                    # The answer to the first range says how long the file is.
                    first = self._coverage.frontier()
                    claim = _Claim(first, first + MIB, now)
                self._claims.append(claim)
                return claim
            gaps = self._gaps()
            if gaps:
                first, end = gaps[0]
                stop = min(end, (first // self._piece + 1) * self._piece)
                # A short rest is not worth a request.
                claim = _Claim(first, end if end - stop < max(SMALL, self._piece) // 4 else stop, now)
                self._claims.append(claim)
                return claim
            # At the end the idle help the slow.
            slow = max(self._claims, key=lambda one: one.stop - one.at, default=None)
            if slow is None or slow.whole or slow.stop - slow.at < 2 * LEAST_STEAL:
                return None
            middle = slow.at + (slow.stop - slow.at) // 2
            claim = _Claim(middle, slow.stop, now)
            slow.stop = middle
            self._claims.append(claim)
            return claim

    def _small(self) -> bool:
        return self._total is not None and self._total <= SMALL and not self._coverage.bytes

    def _spawn(self, link: _Link) -> None:
        with self._lock:
            link.running += 1
        work = self._work_file if link.source.url.startswith("file://") else self._work
        threading.Thread(target=work, args=(link,), name="fetch", daemon=True).start()

    def _halt(self, link: _Link) -> None:
        with self._lock:
            self._link = None
            lines = list(link.lines)
        for line in lines:
            line.abort()
        # A thread that waits for a connect or a name cannot be woken; it finds later that nobody wants it.
        # One that writes is waited for: its bytes must not come after those of the next source.
        deadline = time.monotonic() + 1.0
        while link.writing or (link.running and time.monotonic() < deadline):
            time.sleep(0.002)
        with self._lock:
            self._claims.clear()

    def _work(self, link: _Link) -> None:
        """Fill one range after the other over one connection; the body of a thread."""
        route = link.route
        line = wire.Line(route, self.connect_timeout, self.stall) if route else None
        try:
            while line:
                with self._lock:
                    link.lines.add(line)
                while (wait := link.wait_until - time.monotonic()) > 0 and link is self._link:
                    time.sleep(min(wait, 0.1))
                claim = self._claim(link)
                if claim is None:
                    return
                claim.line, claim.moved = line, time.monotonic()
                try:
                    self._take(link, line, claim)
                except _GoneError:
                    line.close()
                except FileError as error:
                    self._fatal = error
                    return
                except (SourceError, OSError, http.client.HTTPException, ValueError) as error:
                    line.close()
                    if claim.hurried:
                        return
                    problem = error if isinstance(error, SourceError) else None
                    self._strike(
                        link, claim, problem or SourceError(wire.explain(error, self.stall), again=True)
                    )
                finally:
                    self._release(claim)
                    self._turn.set()
        finally:
            if line:
                line.close()
            with self._lock:
                if line:
                    link.lines.discard(line)
                link.running -= 1
            self._turn.set()

    def _release(self, claim: _Claim) -> None:
        with self._lock:
            if claim in self._claims:
                self._claims.remove(claim)

    def _strike(self, link: _Link, claim: _Claim, problem: SourceError) -> None:
        """Take note of a failure; say when the source may be asked again, or that it is over."""
        now = time.monotonic()
        with self._lock:
            if link.over or link is not self._link:
                return
            if not problem.again:
                link.over = problem
                return
            if claim.began < link.struck:
                return  # The same trouble as another connection's.
            grown = self._coverage.bytes > link.furthest + LEAST_PROGRESS
            link.furthest = max(link.furthest, self._coverage.bytes)
            link.strikes = 1 if grown else link.strikes + 1
            link.struck = now
            delay = 0.0 if grown and not problem.busy else min(30.0, 0.2 * 2.0 ** (link.strikes - 1))
            if problem.wait is not None:
                delay = min(LONGEST_WAIT, max(problem.wait, 0.1))
            if problem.busy:
                link.most = link.target = max(1, min(link.target, link.running) // 2)
                link.trial = None
            beyond = link.strikes >= (BUSY_TRIES if problem.busy else self.tries)
            if beyond or (delay > self.takeover and self._others(link)):
                link.over = problem
            else:
                link.wait_until = now + delay
        if not link.over:
            self._note_link(link, str(problem))

    # One range

    def _take(self, link: _Link, line: wire.Line, claim: _Claim) -> None:
        """Ask for a range and fill it. Raises SourceError, OSError, HTTPException, FileError."""
        headers: dict[str, str] = {}
        asked = claim.stop  # Another connection may take the second half before the answer is here.
        if not claim.whole:
            headers["Range"] = f"bytes={claim.at}-{asked - 1}"
            version = self._origins[link.origin]["validator"] if link.origin is not None else ""
            if version:
                headers["If-Range"] = version
        response = line.get(headers)
        refusal = wire.refuse(response)
        if response.status == 416 and self.size is None and not link.changes:
            # The file there is shorter than what is known of its size.
            with self._layout:
                link.changes += 1
                self._forget(set(range(len(self._origins))))
                self._total = None
            raise SourceError(f"answers 416 to bytes from {claim.at} on", again=True)
        if refusal:
            raise refusal
        link.last_byte = time.monotonic()
        if response.status == 206 and not claim.whole:
            self._take_range(link, response, claim, asked)
        elif response.status == 200:
            if headers.get("If-Range") not in (None, wire.validator(response.headers)):
                # Not the version that was asked for; the next request asks for ranges of this one.
                self._origin(link, wire.validator(response.headers), claim.began)
                raise _GoneError
            self._take_whole(link, response, claim)
        else:
            raise SourceError(f"answers {response.status} to a request without a range", again=True)
        if response.length == 0:
            response.read()  # Reads nothing, but tells the connection that it may be used again.
        if not response.isclosed():
            line.close()

    def _take_range(self, link: _Link, response: http.client.HTTPResponse, claim: _Claim, asked: int) -> None:
        said = wire.content_range(response.headers.get("Content-Range") or "")
        if said is None or said[0] != claim.at or said[1] >= asked:
            raise SourceError("answers with another range than the one asked for", again=True)
        first, last, total = said
        length = wire.content_length(response.headers)
        if length is not None and length != last - first + 1:
            raise SourceError(f"announces {length} bytes for a range of {last - first + 1}", again=True)
        if total is None:
            link.ranges = False
            raise SourceError("does not say how long the file is", again=True)
        self._agree(link, total)
        origin = self._origin(link, wire.validator(response.headers), claim.began)
        with self._lock:
            # Until the size was known, the range was a guess.
            claim.stop = min(claim.stop, total)
        link.ranges = True
        self._turn.set()
        self._pour(link, response, claim, origin, last + 1)

    def _take_whole(self, link: _Link, response: http.client.HTTPResponse, claim: _Claim) -> None:
        """Read an answer that begins at the first byte; what is there already is read past."""
        total = wire.content_length(response.headers)
        self._agree(link, total)
        origin = self._origin(link, wire.validator(response.headers), claim.began)
        with self._lock:
            if not claim.whole:
                if link.ranges and link.strikes < self.tries - 1:
                    # One of several servers behind one name, perhaps; beginning anew would cost more.
                    raise SourceError("ignores ranges", again=True)
                link.ranges = False
                link.target = 1
                if any(other is not claim for other in self._claims):
                    raise SourceError("ignores ranges", again=True)
            large = self._total is not None and self._total > SMALL and not self._coverage.bytes
            if large and link.ranges is None and response.headers.get("Accept-Ranges") == "bytes":
                # Now that its size is known, others help; this answer is read as far as the first piece.
                link.ranges = True
                claim.at, claim.stop, claim.whole = 0, self._piece, False
            else:
                # Nobody else may work beside it.
                claim.at, claim.whole = 0, True
                claim.stop = self._total if self._total is not None else 1 << 62
        self._pour(link, response, claim, origin, self._total)
        if self._total is None:
            with self._lock:
                self._total = claim.at
                os.ftruncate(self._descriptor, claim.at)

    def _agree(self, link: _Link, total: int | None) -> None:
        """Compare the size that a source offers with the one known; lay the file out on the first answer."""
        with self._layout:
            if link is not self._link:
                raise _GoneError
            if self._total is None:
                if self._follower is None or total is not None:
                    self._begin(total)
            elif total is not None and total != self._total:
                if self.size is not None or link.changes:
                    raise SourceError(f"offers {total} bytes, wanted {self._total}")
                # Nobody knows the size beforehand, and another source or another version has another one.
                link.changes += 1
                self._forget(set(range(len(self._origins))))
                self._begin(total)

    def _origin(self, link: _Link, version: str, asked: float) -> int:
        """Return the number under which bytes of this version of the source's file are noted.

        asked: when the question was put whose answer said so.
        """
        changed: set[int] = set()
        with self._lock:
            now = link.origin
            if now is not None and self._origins[now]["validator"] == version:
                return now
            if asked < link.changed:
                raise _GoneError  # An answer from before the last change.
            for number, row in enumerate(self._origins):
                if row["key"] != link.key or number in self._dead:
                    continue
                if row["validator"] == version and version:
                    link.origin = number
                elif row["validator"] != version and (row["validator"] or number == now):
                    changed.add(number)
            if link.origin == now or link.origin is None:
                self._origins.append({"key": link.key, "name": link.source.shown, "validator": version})
                link.origin = len(self._origins) - 1
            held = any(row[2] in changed for row in self._coverage.rows)
            new = link.origin
        if changed:
            self._forget(changed)
            link.origin = new
        if held or now in changed:
            link.changes += 1
            link.changed = time.monotonic()
            if link.changes > 2:
                raise SourceError("the file there keeps changing")
            self._note(link.source.shown, "the file there changed; begun again", 0, 0.0)
        return new

    def _pour(
        self, link: _Link, response: http.client.HTTPResponse, claim: _Claim, origin: int, end: int | None
    ) -> None:
        """Write what an answer brings from `claim.at` on; `end` is where it should end."""
        at = claim.at
        while end is None or at < end:
            room = min(MOST_READ, (end if end is not None else 1 << 62) - at, claim.stop - at)
            if room <= 0:
                return  # Another connection took the rest.
            room, delay = self.limiter.grant(room)
            while delay > 0 and link is self._link:
                time.sleep(min(delay, 0.2))
                delay -= 0.2
            if link is not self._link:
                raise _GoneError
            # Gives what is there: nothing that came is lost when the rest does not.
            data = memoryview(response.read1(room))
            if not data:
                break
            at = self._store(link, claim, origin, data, at)
        if end is not None and at < end:
            have = self._coverage.bytes
            raise SourceError(f"cut off at {have} of {self._total} bytes", again=True)

    def _store(self, link: _Link, claim: _Claim, origin: int, data: memoryview, at: int) -> int:
        """Write `data` at `at` where nothing is yet; return where it ends."""
        end = at + len(data)
        with self._lock:
            if link is not self._link:
                raise _GoneError
            places = self._coverage.missing(at, end) if claim.whole else [(at, end)]
            link.writing += 1
        try:
            for first, last in places:
                piece, offset = data[first - at : last - at], first
                while piece:
                    written = os.pwrite(self._descriptor, piece, offset)
                    piece, offset = piece[written:], offset + written
        except OSError as error:
            raise self._disk_error(error) from error
        finally:
            with self._lock:
                link.writing -= 1
        with self._lock:
            if origin in self._dead or link is not self._link:
                raise _GoneError
            for first, last in places:
                self._coverage.add(first, last, origin)
            claim.at = end
            link.got += len(data)
            self.outcome.bytes_fetched += len(data)
            link.last_byte = claim.moved = time.monotonic()
            unsaved = self._coverage.bytes - self._noted
        if self._follower and not self._follower.more.is_set():
            self._follower.more.set()
        if unsaved >= JOURNAL_BYTES and not self._saver_turn.is_set():
            self._saver_turn.set()
        return end

    def _work_file(self, link: _Link) -> None:
        """Copy from a file of this host, within the kernel; the body of a thread."""
        path = urllib.parse.unquote(urllib.parse.urlsplit(link.source.url).path)
        try:
            with open(path, "rb", buffering=0) as source:
                found = os.fstat(source.fileno())
                total = found.st_size
                if self.size is not None and total != self.size:
                    raise SourceError(f"{path} has {total} bytes, wanted {self.size}")
                self._agree(link, total)
                origin = self._origin(link, f"{found.st_mtime_ns}-{found.st_ino}", time.monotonic())
                self._copy(link, source.fileno(), origin, total)
        except FileError as error:
            self._fatal = error
        except SourceError as error:
            link.over = error
        except _GoneError:
            pass
        except OSError as error:
            link.over = SourceError(f"{path}: {error.strerror}")
        finally:
            with self._lock:
                link.running -= 1
            self._turn.set()

    def _copy(self, link: _Link, source: int, origin: int, total: int) -> None:
        view = memoryview(bytearray(MIB))
        while link is self._link:
            with self._lock:
                gaps = self._coverage.missing(0, total)
                if not gaps:
                    return
                first, end = gaps[0]
                claim = _Claim(first, end, time.monotonic())
                self._claims = [claim]
            while claim.at < end:
                count = os.preadv(source, [view[: min(MIB, end - claim.at)]], claim.at)
                if not count:
                    raise SourceError("the file became shorter while it was read")
                self._store(link, claim, origin, view[:count], claim.at)

    # What is told

    def _tick(self) -> None:
        """Look after what stops the work; raise it."""
        now = time.monotonic()
        if self._fatal:
            raise self._fatal
        if self._follower and self._follower.problem:
            raise self._disk_error(self._follower.problem)
        if self._stopped:
            raise AbandonedError(self.name)
        if now - self._looked >= 1.0:
            self._looked = now
            if not self.alive():
                raise AbandonedError(self.name)
        self._report()

    def _report(self, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self._shown < self.every:
            return
        self._shown = now
        link = self._link
        self.progress(
            Progress(
                self._coverage.bytes,
                self._follower.position() if self._follower else 0,
                self._total,
                self._rate(link) if link else 0.0,
                link.source.shown if link else "",
                link.running if link else 0,
            )
        )

    def _note_link(self, link: _Link, result: str) -> None:
        now = time.monotonic()
        self._note(link.source.shown, result, link.got - link.got_told, now - link.told)
        link.got_told, link.told = link.got, now

    def _note(self, source: str, result: str, count: int, seconds: float) -> None:
        """Add a row to the attempts; the same trouble again goes into the row it has."""
        with self._notes:
            self._note_locked(source, result, count, seconds)

    def _note_locked(self, source: str, result: str, count: int, seconds: float) -> None:
        rows = self.outcome.attempts
        if rows and rows[-1]["source"] == source and rows[-1]["result"] == result and result != "ok":
            rows[-1]["bytes"] += count
            rows[-1]["seconds"] = round(rows[-1]["seconds"] + seconds, 3)
            return
        rows.append({"source": source, "result": result, "bytes": count, "seconds": round(seconds, 3)})
        if len(rows) > 100:
            del rows[20]
