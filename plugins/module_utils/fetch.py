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

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ansible_collections.dsprov.appliance.plugins.module_utils.files import FileError, fsync_directory
from ansible_collections.dsprov.appliance.plugins.module_utils.link import Link, Terms
from ansible_collections.dsprov.appliance.plugins.module_utils.part import Outcome, Part
from ansible_collections.dsprov.appliance.plugins.module_utils.pieces import MIB, Journal, Saved
from ansible_collections.dsprov.appliance.plugins.module_utils.rates import Limiter
from ansible_collections.dsprov.appliance.plugins.module_utils.wire import Source


class AbandonedError(Exception):
    """Whoever asked for the download is gone, or stopped it; what came so far is kept."""


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
        self._part = Part(self.part, self.name, self.sha256, self.size, self.extra, self.outcome)
        self._links: list[Link] = []
        self._link: Link | None = None
        self._stopped = False
        self._looked = 0.0
        self._shown = 0.0

    # For the caller

    def fetch(self, sources: Sequence[str | Source]) -> Outcome:
        """Try `sources` in order; on return `part` is complete, verified and on disk.

        Raises FileError where no source gave the file or the disk failed, AbandonedError where `alive` said
        False or `stop` was called. In both cases what came and may be right is kept for the next run.
        """
        terms = Terms(
            self.pypi_index,
            self.stall,
            self.takeover,
            self.connect_timeout,
            self.tries,
            self.connections,
            self.most_connections,
            self.limiter,
            self._others,
            self._tick,
        )
        self._links = [
            Link(source if isinstance(source, Source) else Source(source), self._part, terms)
            for source in sources
        ]
        try:
            self._part.open()
            self._bring()
        except BaseException:
            self._part.close(keep=True)
            raise
        self._part.close(keep=False)
        return self.outcome

    def stop(self) -> None:
        """End the work soon; `fetch` raises AbandonedError. For signal handlers and other threads."""
        self._stopped = True
        self._part.news.set()

    def place(self, dest: str, mode: int = 0o644) -> None:
        """Give the finished part its name, in one step that survives a power loss."""
        os.chmod(self.part, mode)
        os.replace(self.part, dest)
        fsync_directory(os.path.dirname(os.path.abspath(dest)))
        self._part.journal.remove()

    def there(self) -> list[tuple[int, int]]:
        """Return the ranges [first, end) that have come, sorted, whatever the thread that asks.

        They are verified only when `fetch` has returned.
        """
        return self._part.there()

    # The way through the sources

    def _bring(self) -> None:
        number, round_began, turns = 0, self._part.coverage.bytes, len(self._links)
        while True:
            if self._part.complete:
                if self._judge():
                    return
                number, round_began = 0, self._part.coverage.bytes
                continue
            usable = [link for link in self._links[number:] if self._usable(link)]
            if usable:
                number = self._links.index(usable[0]) + 1
                self._links[number - 1] = usable[0].again()
                self._link = self._links[number - 1]
                try:
                    self._link.run()
                finally:
                    self._link = None
                continue
            if self._part.coverage.bytes >= round_began + max(MIB, (self._part.total or 0) // 100):
                # Enough came in this round for another one to make sense.
                round_began, number = self._part.coverage.bytes, 0
                if any(self._usable(link) for link in self._links):
                    continue
            if turns > 0 and any(link.suspect for link in self._links):
                # The others cannot replace what is in doubt: now the doubted have a turn without them.
                turns -= 1
                for link in self._links:
                    link.suspect = not link.suspect
                self._part.forget()
                number, round_began = 0, 0
                continue
            told = "; ".join(f"{row['source']}: {row['result']}" for row in self.outcome.attempts[-12:])
            raise FileError(
                f"{self.name}: no source gave the file ({told}); name one that does, or try again later"
            )

    def _usable(self, link: Link) -> bool:
        return not link.banned and not link.suspect

    def _others(self, link: Link) -> bool:
        """Tell whether another source may be tried instead of `link`."""
        return any(other is not link and self._usable(other) for other in self._links)

    def _judge(self) -> bool:
        """Wait for the digest; True when it is the wanted one. Else take away what cannot be right."""
        follower = self._part.follower
        total = self._part.total
        if follower is None or total is None:
            raise FileError(f"{self.name}: nothing to judge")  # Only after `_complete`.
        follower.more.set()
        while follower.position() < total:
            if not self._part.complete:
                return False
            self._tick()
            self._part.news.wait(0.2)
            self._part.news.clear()
        got = follower.digest()
        with self._part.lock:
            counted = self._part.coverage.by_origin()
        most = max(counted, key=lambda origin: counted[origin], default=None)
        if got == self.sha256:
            self.outcome.source = self._part.origins[most]["name"] if most is not None else ""
            self.outcome.size, self.outcome.piece = total, self._part.piece
            self.outcome.prefixes = follower.progress()[1]
            self._report(force=True)
            return True
        text = f"sha256 is {got}, wanted {self.sha256}"
        if self._part.mend_tail(total):
            return False
        keys = {self._part.origins[origin]["key"] for origin in counted}
        if len(keys) > 1:
            # One of several sources gave other bytes than the rest: the smallest part is the cheapest doubt.
            least = min(counted, key=lambda origin: counted[origin])
            key = self._part.origins[least]["key"]
            doubted = {origin for origin in counted if self._part.origins[origin]["key"] == key}
            self.outcome.note(
                self._part.origins[least]["name"], f"{text}; its {counted[least]} bytes are fetched elsewhere"
            )
            for link in self._links:
                link.suspect = link.suspect or link.key == key
            self._part.forget(doubted)
            return False
        for link in self._links:
            # Bytes that lay on a disk since an earlier run say nothing about the source of today.
            if link.key in keys and not any(origin in self._part.kept for origin in counted):
                link.banned = True
        name = self._part.origins[most]["name"] if most is not None else ""
        self.outcome.note(name, f"{text}; the bytes are deleted")
        for link in self._links:
            link.suspect = False
        self._part.forget(set(counted))
        if self.size is None:
            # What was wrong may have been the size.
            self._part.total = None
        return False

    # What is told

    def _tick(self) -> None:
        """Look after what stops the work; raise it."""
        now = time.monotonic()
        self._part.check()
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
                self._part.coverage.bytes,
                self._part.follower.position() if self._part.follower else 0,
                self._part.total,
                link.rate if link else 0.0,
                link.source.shown if link else "",
                link.running if link else 0,
            )
        )
