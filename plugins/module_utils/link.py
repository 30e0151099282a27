# Copyright: the dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""One source in use: its connections, what each fills, and what becomes of it when it fails.

As many threads as there are connections claim ranges that nobody has or fills; whoever leads the fetch looks
after them a few times a second.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass

from ansible_collections.dsprov.appliance.plugins.module_utils import simple_index, wire
from ansible_collections.dsprov.appliance.plugins.module_utils.claims import NOWHERE, SMALL, Claim, Claims
from ansible_collections.dsprov.appliance.plugins.module_utils.files import FileError
from ansible_collections.dsprov.appliance.plugins.module_utils.pace import Pace
from ansible_collections.dsprov.appliance.plugins.module_utils.part import GoneError, Part
from ansible_collections.dsprov.appliance.plugins.module_utils.pieces import MIB
from ansible_collections.dsprov.appliance.plugins.module_utils.rates import Limiter
from ansible_collections.dsprov.appliance.plugins.module_utils.wire import Source, SourceError

# What one read asks for at most.
MOST_READ = 512 * 1024
# A source that brought no more than this since it failed last got no further.
LEAST_PROGRESS = 16 * 1024
# A server that asks for patience gets no more than this, in seconds.
LONGEST_WAIT = 300.0
# How often a server may say that it is busy before it counts as failed.
BUSY_TRIES = 8
# How often a connection that hangs beside lively ones is ended before its time.
HURRIES = 50


@dataclass(frozen=True)
class Terms:
    """What a fetch lays down for each of its sources; the fields are those of `Fetcher`.

    others: whether another source may be tried instead of this one. tick: raises what stops the work.
    """

    pypi_index: str
    stall: float
    takeover: float
    connect_timeout: float
    tries: int
    connections: int
    most_connections: int
    limiter: Limiter
    others: Callable[[Link], bool]
    tick: Callable[[], None]


class Link:
    """A source for one turn: what was learnt of it, and how it does.

    over: why it is not asked any more. banned: it gave what cannot be right, or never will. suspect: what it
    gave is in doubt. `part.lock` guards what threads share.
    """

    def __init__(self, source: Source, part: Part, terms: Terms) -> None:
        now = time.monotonic()
        self.source = source
        self.part = part
        self.terms = terms
        self.over: SourceError | None = None
        self.banned = False
        self.suspect = False
        self.got = 0
        self.running = 0
        self._live = False
        self._claims = Claims(part)
        self._lines: set[wire.Line] = set()
        # Threads between their look whether they are still wanted and the end of their write.
        self._writing = 0
        # What the source turned out to be.
        self._route: wire.Route | None = None
        self._origin: int | None = None
        self._ranges: bool | None = None
        self._changes = 0
        self._changed = 0.0
        # How it fails.
        self._strikes = 0
        self._struck = 0.0
        self._furthest = -1
        self._wait_until = 0.0
        self._last_byte = now
        # A source where a connection hangs again and again is judged by `stall` alone.
        self._hurries = HURRIES
        self._pace = Pace(terms.connections, terms.most_connections, now)
        # Up to where the attempts tell of it.
        self._told = now
        self._got_told = 0

    def again(self) -> Link:
        """Return the same source for another turn; threads that hang in this one stay with this one."""
        fresh = Link(self.source, self.part, self.terms)
        fresh._route, fresh._origin, fresh._ranges = self._route, self._origin, self._ranges
        fresh._changes, fresh._hurries = self._changes, self._hurries
        return fresh

    @property
    def key(self) -> str:
        """What stands for the source in a journal: its address may hold secrets."""
        return hashlib.sha256(self.source.url.encode()).hexdigest()[:16]

    @property
    def rate(self) -> float:
        """Bytes a second, over the last while."""
        return self._pace.rate

    @property
    def _known(self) -> int | None:
        """The number of the version that it serves, unless the bytes of that one were given up."""
        return None if self._origin in self.part.dead else self._origin

    # The whole

    def run(self) -> None:
        """Use the source until the file is complete or the source is over. Raises what `tick` raises."""
        self._live = True
        try:
            if self._is_file:
                self._spawn()
            else:
                self._find()
            while not self.part.complete and not self.over:
                self._manage()
                self.terms.tick()
                self.part.news.wait(0.2)
                self.part.news.clear()
        finally:
            self._halt()
        if self.part.complete:
            if self.got or not self.part.outcome.attempts:
                self._note("ok")
        elif self.over:
            self.banned = self.banned or not self.over.again
            self._note(str(self.over))

    @property
    def _is_file(self) -> bool:
        return self.source.url.startswith("file://")

    def _find(self) -> None:
        terms = self.terms
        try:
            url = self.source.url
            if url.startswith("pypi:"):
                url = simple_index.find_in_index(
                    url, terms.pypi_index, self.part.sha256, terms.connect_timeout, terms.stall
                )
            self._route = self._route or wire.Route(url, self.source.headers)
        except SourceError as error:
            self.over = error
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            self.over = SourceError(wire.explain(error, terms.stall), again=True)

    def _note(self, result: str) -> None:
        now = time.monotonic()
        self.part.outcome.note(self.source.shown, result, self.got - self._got_told, now - self._told)
        self._got_told, self._told = self.got, now

    # Its connections, and what each fills

    def _manage(self) -> None:
        """Look after a source: silence, slowness, the number of connections."""
        now = time.monotonic()
        with self.part.lock:
            running = self.running
            self._pace.add(now, self.got)
            quiet = now - max(self._last_byte, self._wait_until)
            others = self.terms.others(self)
            if others and quiet > self.terms.takeover:
                self.over = SourceError(f"no byte for {quiet:.0f} s", again=True)
                return
            least = self.source.min_rate
            if others and least and self._pace.below(least, now, self._wait_until):
                self.over = SourceError(f"only {self.rate / 1e6:.3f} MB/s", again=True)
                return
            if now < self._wait_until:
                return
            self._hurry(now)
            if self._ranges:
                self._pace.adapt(now, self.got, self.terms.limiter.limit, self.part.behind)
            else:
                self._pace.target = 1
            wanted = 1 - running
            if self._ranges and self.part.total is not None:
                wanted = min(self._pace.target - running, self._claims.wanted())
        for _ in range(max(0, wanted)):
            self._spawn()

    def _hurry(self, now: float) -> None:
        """End a connection that hangs beside others that do not, so that its range goes to one of them."""
        if self._hurries <= 0 or not self._ranges:
            return
        patience = self.terms.takeover / 2
        lively = now - self._last_byte < patience / 4
        for claim in self._claims.rows:
            alone = len(self._claims.rows) == 1 and self.got > claim.stop - claim.at
            hangs = not claim.hurried and now - claim.moved > patience
            if claim.line and hangs and (lively or alone):
                claim.hurried = True
                self._hurries -= 1
                claim.line.abort()

    def _claim(self) -> Claim | None:
        """Give a connection something to fill, or None when it is not needed."""
        with self.part.lock:
            if self.over or self.part.fatal or self.part.ended or not self._live:
                return None
            if self.running > self._pace.target or self.part.coverage.bytes == self.part.total:
                return None
            return self._claims.take(self._ranges)

    def _spawn(self) -> None:
        with self.part.lock:
            self.running += 1
        work = self._work_file if self._is_file else self._work
        threading.Thread(target=work, name="fetch", daemon=True).start()

    def _halt(self) -> None:
        with self.part.lock:
            self._live = False
            lines = list(self._lines)
        for line in lines:
            line.abort()
        # A thread that waits for a connect or a name cannot be woken; it finds later that nobody wants it.
        # One that writes is waited for: its bytes must not come after those of the next source.
        deadline = time.monotonic() + 1.0
        while self._writing or (self.running and time.monotonic() < deadline):
            time.sleep(0.002)
        with self.part.lock:
            self._claims.rows.clear()

    def _work(self) -> None:
        """Fill one range after the other over one connection; the body of a thread."""
        route = self._route
        line = wire.Line(route, self.terms.connect_timeout, self.terms.stall) if route else None
        try:
            while line:
                with self.part.lock:
                    self._lines.add(line)
                while (wait := self._wait_until - time.monotonic()) > 0 and self._live:
                    time.sleep(min(wait, 0.1))
                claim = self._claim()
                if claim is None:
                    return
                claim.line, claim.moved = line, time.monotonic()
                try:
                    self._take(line, claim)
                except GoneError:
                    line.close()
                except FileError as error:
                    self.part.fatal = error
                    return
                except (SourceError, OSError, http.client.HTTPException, ValueError) as error:
                    line.close()
                    if claim.hurried:
                        return
                    problem = error if isinstance(error, SourceError) else None
                    self._strike(
                        claim, problem or SourceError(wire.explain(error, self.terms.stall), again=True)
                    )
                finally:
                    self._release(claim)
                    self.part.news.set()
        finally:
            if line:
                line.close()
            with self.part.lock:
                if line:
                    self._lines.discard(line)
                self.running -= 1
            self.part.news.set()

    def _release(self, claim: Claim) -> None:
        with self.part.lock:
            self._claims.release(claim)

    def _strike(self, claim: Claim, problem: SourceError) -> None:
        """Take note of a failure; say when the source may be asked again, or that it is over."""
        now = time.monotonic()
        with self.part.lock:
            if self.over or not self._live:
                return
            if not problem.again:
                self.over = problem
                return
            if claim.began < self._struck:
                return  # The same trouble as another connection's.
            grown = self.part.coverage.bytes > self._furthest + LEAST_PROGRESS
            self._furthest = max(self._furthest, self.part.coverage.bytes)
            self._strikes = 1 if grown else self._strikes + 1
            self._struck = now
            self._pace.trouble(now)
            delay = 0.0 if grown and not problem.busy else min(30.0, 0.2 * 2.0 ** (self._strikes - 1))
            if problem.wait is not None:
                delay = min(LONGEST_WAIT, max(problem.wait, 0.1))
            if problem.busy:
                self._pace.fewer(self.running)
            beyond = self._strikes >= (BUSY_TRIES if problem.busy else self.terms.tries)
            if beyond or (delay > self.terms.takeover and self.terms.others(self)):
                self.over = problem
            else:
                self._wait_until = now + delay
        if not self.over:
            self._note(str(problem))

    # One range

    def _take(self, line: wire.Line, claim: Claim) -> None:
        """Ask for a range and fill it. Raises SourceError, OSError, HTTPException, FileError."""
        headers: dict[str, str] = {}
        asked = claim.stop  # Another connection may take the second half before the answer is here.
        if not claim.whole:
            headers["Range"] = f"bytes={claim.at}-{asked - 1}"
            known = self._known
            version = self.part.origins[known]["validator"] if known is not None else ""
            if version:
                headers["If-Range"] = version
        response = line.get(headers)
        refusal = wire.refuse(response)
        if response.status == 416 and self.part.size is None and not self._changes:
            # The file there is shorter than what is known of its size.
            with self.part.layout:
                self._changes += 1
                self.part.forget()
                self.part.total = None
            raise SourceError(f"answers 416 to bytes from {claim.at} on", again=True)
        if refusal:
            raise refusal
        self._last_byte = time.monotonic()
        if response.status == 206 and not claim.whole:
            self._take_range(response, claim, asked)
        elif response.status == 200:
            if headers.get("If-Range") not in (None, wire.validator(response.headers)):
                # Not the version that was asked for; the next request asks for ranges of this one.
                self._version(wire.validator(response.headers), claim.began)
                raise GoneError
            self._take_whole(response, claim)
        else:
            raise SourceError(f"answers {response.status} to a request without a range", again=True)
        if response.length == 0:
            response.read()  # Reads nothing, but tells the connection that it may be used again.
        if not response.isclosed():
            line.close()

    def _take_range(self, response: http.client.HTTPResponse, claim: Claim, asked: int) -> None:
        said = wire.content_range(response.headers.get("Content-Range") or "")
        if said is None or said[0] != claim.at or said[1] >= asked:
            raise SourceError("answers with another range than the one asked for", again=True)
        first, last, total = said
        length = wire.content_length(response.headers)
        if length is not None and length != last - first + 1:
            raise SourceError(f"announces {length} bytes for a range of {last - first + 1}", again=True)
        if total is None:
            self._ranges = False
            raise SourceError("does not say how long the file is", again=True)
        self._agree(total)
        origin = self._version(wire.validator(response.headers), claim.began)
        with self.part.lock:
            # Until the size was known, the range was a guess.
            claim.stop = min(claim.stop, total)
        self._ranges = True
        self.part.news.set()
        self._pour(response, claim, origin, last + 1)

    def _take_whole(self, response: http.client.HTTPResponse, claim: Claim) -> None:
        """Read an answer that begins at the first byte; what is there already is read past."""
        total = wire.content_length(response.headers)
        self._agree(total)
        origin = self._version(wire.validator(response.headers), claim.began)
        with self.part.lock:
            if not claim.whole:
                if self._ranges and self._strikes < self.terms.tries - 1:
                    # One of several servers behind one name, perhaps; beginning anew would cost more.
                    raise SourceError("ignores ranges", again=True)
                self._ranges = False
                self._pace.target = 1
                if any(other is not claim for other in self._claims.rows):
                    raise SourceError("ignores ranges", again=True)
            large = self.part.total is not None and self.part.total > SMALL and not self.part.coverage.bytes
            if large and self._ranges is None and response.headers.get("Accept-Ranges") == "bytes":
                # Now that its size is known, others help; this answer is read as far as the first piece.
                self._ranges = True
                claim.at, claim.stop, claim.whole = 0, self.part.piece, False
            else:
                # Nobody else may work beside it.
                claim.at, claim.whole = 0, True
                claim.stop = self.part.total if self.part.total is not None else NOWHERE
        self._pour(response, claim, origin, self.part.total)
        if self.part.total is None:
            self.part.cut(claim.at)

    def _agree(self, total: int | None) -> None:
        """Compare the size that a source offers with the one known; lay the file out on the first answer."""
        with self.part.layout:
            if not self._live:
                raise GoneError
            if self.part.total is None:
                if self.part.follower is None or total is not None:
                    self.part.begin(total)
            elif total is not None and total != self.part.total:
                if self.part.size is not None or self._changes:
                    raise SourceError(f"offers {total} bytes, wanted {self.part.total}")
                # Nobody knows the size beforehand, and another source or another version has another one.
                self._changes += 1
                self.part.forget()
                self.part.begin(total)

    def _version(self, version: str, asked: float) -> int:
        """Return the number under which bytes of this version of the source's file are noted.

        asked: when the question was put whose answer said so.
        """
        changed: set[int] = set()
        with self.part.lock:
            now = new = self._known
            if now is not None and self.part.origins[now]["validator"] == version:
                return now
            if asked < self._changed:
                raise GoneError  # An answer from before the last change.
            for number, row in enumerate(self.part.origins):
                if row["key"] != self.key or number in self.part.dead:
                    continue
                if row["validator"] == version and version:
                    new = number
                elif row["validator"] != version and (row["validator"] or number == now):
                    changed.add(number)
            if new is None or new == now:
                self.part.origins.append({"key": self.key, "name": self.source.shown, "validator": version})
                new = len(self.part.origins) - 1
            self._origin = new
            held = any(row[2] in changed for row in self.part.coverage.rows)
        if changed:
            self.part.forget(changed)
        if held or now in changed:
            self._changes += 1
            self._changed = time.monotonic()
            if self._changes > 2:
                raise SourceError("the file there keeps changing")
            self.part.outcome.note(self.source.shown, "the file there changed; begun again")
        return new

    def _pour(self, response: http.client.HTTPResponse, claim: Claim, origin: int, end: int | None) -> None:
        """Write what an answer brings from `claim.at` on; `end` is where it should end."""
        at = claim.at
        body, buffer = wire.Body(response), memoryview(bytearray(MOST_READ))
        while end is None or at < end:
            room = min(MOST_READ, (end if end is not None else NOWHERE) - at, claim.stop - at)
            if room <= 0:
                return  # Another connection took the rest.
            room, delay = self.terms.limiter.grant(room)
            while delay > 0 and self._live:
                time.sleep(min(delay, 0.2))
                delay -= 0.2
            if not self._live:
                raise GoneError
            self._give_way()
            count = body.read(buffer[:room])
            if not count:
                break
            at = self._store(claim, origin, buffer[:count], at)
        if end is not None and at < end:
            have = self.part.coverage.bytes
            raise SourceError(f"cut off at {have} of {self.part.total} bytes", again=True)

    def _give_way(self) -> None:
        """Let the digest catch up: it is one thread, and where processors are few it would be left over."""
        for _look in range(10):
            if not self.part.behind or not self._live:
                return
            time.sleep(0.002)

    def _store(self, claim: Claim, origin: int, data: memoryview, at: int) -> int:
        """Write `data` at `at` where nothing is yet; return where it ends."""
        end = at + len(data)
        with self.part.lock:
            if not self._live:
                raise GoneError
            places = self.part.coverage.missing(at, end) if claim.whole else [(at, end)]
            self._writing += 1
        try:
            self.part.write(data, at, places)
        finally:
            with self.part.lock:
                self._writing -= 1
        with self.part.lock:
            if origin in self.part.dead or not self._live:
                raise GoneError
            self.part.came(places, origin)
            claim.at = end
            self.got += len(data)
            self.part.outcome.bytes_fetched += len(data)
            self._last_byte = claim.moved = time.monotonic()
        self.part.tell()
        return end

    # A file of this host

    def _work_file(self) -> None:
        """Copy from a file of this host, within the kernel; the body of a thread."""
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.source.url).path)
        try:
            with open(path, "rb", buffering=0) as source:
                found = os.fstat(source.fileno())
                total = found.st_size
                if self.part.size is not None and total != self.part.size:
                    raise SourceError(f"{path} has {total} bytes, wanted {self.part.size}")
                self._agree(total)
                origin = self._version(f"{found.st_mtime_ns}-{found.st_ino}", time.monotonic())
                self._copy(source.fileno(), origin, total)
        except FileError as error:
            self.part.fatal = error
        except SourceError as error:
            self.over = error
        except GoneError:
            pass
        except OSError as error:
            self.over = SourceError(f"{path}: {error.strerror}")
        finally:
            with self.part.lock:
                self.running -= 1
            self.part.news.set()

    def _copy(self, source: int, origin: int, total: int) -> None:
        view = memoryview(bytearray(MIB))
        while self._live:
            with self.part.lock:
                gaps = self.part.coverage.missing(0, total)
                if not gaps:
                    return
                first, end = gaps[0]
                claim = Claim(first, end, time.monotonic())
                self._claims.rows = [claim]
            while claim.at < end:
                count = os.preadv(source, [view[: min(MIB, end - claim.at)]], claim.at)
                if not count:
                    raise SourceError("the file became shorter while it was read")
                self._store(claim, origin, view[:count], claim.at)
