# Copyright: the dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""HTTP for downloads: kept connections, redirects, proxies, and what an answer means for the next try.

Of urllib only the reading of proxy variables is used: it closes the connection after each answer, and
carries its headers across redirects to other hosts.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import functools
import http.client
import io
import re
import socket
import ssl
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

USER_AGENT = "dsprov-fetch/2"
REDIRECTS = (301, 302, 303, 307, 308)
HOPS = 10
# What a signed address answers when its time is over.
EXPIRED = (400, 401, 403, 404, 410)
# Refusals that pass by themselves.
PASSING = (408, 425, 429)
BUSY = (429, 503)


class SourceError(Exception):
    """One source failed; another may do.

    again: asking the same source once more makes sense. wait: seconds it asked us to wait first.
    busy: it has more to do than it can, so that fewer connections may help.
    """

    def __init__(
        self, message: str, again: bool = False, wait: float | None = None, busy: bool = False
    ) -> None:
        super().__init__(message)
        self.again = again
        self.wait = wait
        self.busy = busy


@dataclass(frozen=True)
class Source:
    """Where a file may come from.

    url: http, https, file, or `pypi:PROJECT/FILE`. headers: sent to the host of `url` alone (a token), never
    shown. min_rate: bytes a second under which, over ten seconds, the next source is tried.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    min_rate: int = 0

    @property
    def shown(self) -> str:
        """The address as messages may have it."""
        return shown(self.url) if "://" in self.url else self.url


def shown(url: str) -> str:
    """Return `url` fit for a log: no password, no query (signed links carry their secret there)."""
    parts = urllib.parse.urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urllib.parse.urlunsplit((parts.scheme, host, parts.path, "", ""))


def explain(error: BaseException, stall: float) -> str:
    """Say in a few words what a network error was."""
    if isinstance(error, TimeoutError | socket.timeout):
        return f"no byte for {stall:.0f} s"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate not accepted ({error.verify_message}); check the host's clock and trusted CAs"
    if isinstance(error, socket.gaierror):
        return "the name does not resolve"
    if isinstance(error, http.client.IncompleteRead):
        return "cut off"
    return str(error) or type(error).__name__


def validator(headers: Mapping[str, str] | Any) -> str:
    """Return what names this version of the file: a strong ETag, else its date, else nothing."""
    tag = str(headers.get("ETag") or "")
    return tag if tag and not tag.startswith("W/") else str(headers.get("Last-Modified") or "")


def content_range(value: str) -> tuple[int, int, int | None] | None:
    """Read `bytes 5-9/10` into (5, 9, 10); None where it says something else, `*` is None too."""
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", value.strip())
    if not match:
        return None
    return int(match[1]), int(match[2]), None if match[3] == "*" else int(match[3])


def content_length(headers: Mapping[str, str] | Any) -> int | None:
    """Return the length that an answer claims, or None."""
    value = headers.get("Content-Length")
    if value is None or not re.fullmatch(r"\s*\d+\s*", value):
        return None
    return int(value)


def retry_after(value: str | None, now: float | None = None) -> float | None:
    """Read Retry-After, seconds or a date, into seconds from now; None where it says nothing."""
    if not value:
        return None
    if re.fullmatch(r"\s*\d+\s*", value):
        return float(value)
    try:
        moment = email.utils.parsedate_to_datetime(value).timestamp()
    except (TypeError, ValueError):
        return None
    return max(0.0, moment - (time.time() if now is None else now))


def refuse(response: http.client.HTTPResponse) -> SourceError | None:
    """Return what an answer other than 200 and 206 means, None for those two."""
    code = response.status
    if code in (200, 206):
        return None
    return SourceError(
        f"answers {code} {response.reason}".strip(),
        again=code >= 500 or code in PASSING,
        wait=retry_after(response.headers.get("Retry-After")) if code in BUSY else None,
        busy=code in BUSY,
    )


class Body:
    """What an answer brings, as it comes: nothing that came is lost when the rest does not come.

    Nothing is allocated for bodies of a known length.
    """

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self._response = response
        self._past_buffer = False

    def read(self, into: memoryview) -> int:
        """Read what is there, at most as much as `into` holds; return its bytes, 0 at the end."""
        response = self._response
        if response.chunked or response.length is None:
            data = response.read1(len(into))
            into[: len(data)] = data
            return len(data)
        if not response.length or response.fp is None:
            return 0
        room = into[: response.length]
        if self._past_buffer:
            count = response.fp.raw.readinto(room) or 0
        else:
            # What came with the headers lies in the reader's buffer. Asked for more than a buffer holds, the
            # reader would wait for the network too, and drop what it has when nothing comes.
            room = room[: io.DEFAULT_BUFFER_SIZE]
            count = response.fp.readinto1(room)
            self._past_buffer = count < len(room) or len(room) == io.DEFAULT_BUFFER_SIZE
        response.length -= count
        if not count:
            response.close()
        return count


@functools.lru_cache(maxsize=1)
def tls_context() -> ssl.SSLContext:
    """Return what certificates are checked with, made once."""
    # Reading the CAs takes tens of milliseconds; plain http should not pay for them.
    return ssl.create_default_context()


def _place(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port of an http or https address; raise SourceError for any other."""
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise SourceError(f"the address is not valid ({error})") from error
    if parts.scheme not in ("http", "https"):
        raise SourceError("only http, https, file and pypi: sources are known")
    if not parts.hostname:
        raise SourceError("the address names no host")
    return parts.scheme, parts.hostname, port or (443 if parts.scheme == "https" else 80)


def _basic(user: str | None, password: str | None) -> str:
    pair = f"{urllib.parse.unquote(user or '')}:{urllib.parse.unquote(password or '')}"
    return "Basic " + base64.b64encode(pair.encode()).decode()


def _proxy(scheme: str, host: str, port: int) -> urllib.parse.SplitResult | None:
    """Return the proxy that the environment names for an address, if any."""
    if host == "localhost" or host == "::1" or host.startswith("127."):
        return None  # This machine: a tunnel's end, which no proxy can reach.
    proxies = urllib.request.getproxies_environment()
    value = proxies.get(scheme) or proxies.get("all")
    # Not listed in the types of the standard library, though documented since long.
    bypass = urllib.request.proxy_bypass_environment  # type: ignore[attr-defined]
    if not value or bypass(f"{host}:{port}", proxies):
        return None
    found = urllib.parse.urlsplit(value if "://" in value else f"http://{value}")
    if found.scheme not in ("http", "https") or not found.hostname:
        raise SourceError(f"a proxy of the kind {found.scheme} is not supported; name one that speaks http")
    return found


class Route:
    """Where an address leads. Redirects are followed once, and asked for again when the target refuses.

    Hubs answer each request for a large file with a signed address that holds for minutes; asking them
    again for every range would run into their limits.
    """

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        parts = urllib.parse.urlsplit(url)
        self.home = _place(url)
        self.url = urllib.parse.urlunsplit(
            parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="")
        )
        self.target: str | None = None
        self._secret = dict(headers)
        if parts.username or parts.password:
            self._secret.setdefault("Authorization", _basic(parts.username, parts.password))

    def headers_for(self, url: str) -> dict[str, str]:
        """Return the headers of the source where `url` is on its own host, else none."""
        return self._secret if _place(url) == self.home else {}


class Line:
    """One connection at a time to wherever a route leads, kept between requests. For one thread; `abort`
    is for others.

    connect_timeout: seconds for the connect with TLS. stall: seconds without a byte.
    """

    def __init__(self, route: Route, connect_timeout: float, stall: float) -> None:
        self.route = route
        self._connect_timeout = min(connect_timeout, stall)
        self._stall = stall
        self._connection: http.client.HTTPConnection | None = None
        self._at: tuple[str, str, int] | None = None
        self._absolute = False
        self._proxy_headers: dict[str, str] = {}
        self._aborted = False

    def get(self, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        """Ask for the route's file; follow redirects. The answer's status is the caller's to judge."""
        remembered = self.route.target
        url = remembered or self.route.url
        for _hop in range(HOPS):
            response = self._ask(url, headers)
            if response.status in REDIRECTS:
                location = response.headers.get("Location")
                self._drain(response)
                if not location:
                    raise SourceError(f"answers {response.status} without saying where to")
                url = urllib.parse.urljoin(url, location)
                continue
            if remembered and response.status in EXPIRED:
                self._drain(response)
                if self.route.target == remembered:
                    self.route.target = None
                remembered, url = None, self.route.url
                continue
            if response.status in (200, 206) and url != self.route.url:
                self.route.target = url
            return response
        raise SourceError(f"redirects more than {HOPS} times")

    def close(self) -> None:
        """Let the connection go."""
        if self._connection:
            self._connection.close()
            self._connection = None

    def abort(self) -> None:
        """End what another thread waits for on this line."""
        self._aborted = True
        connection = self._connection
        sock = connection.sock if connection else None
        if sock is not None:
            with contextlib.suppress(OSError):
                # Not the method of an SSLSocket: it would let the other thread read on without TLS.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def _drain(self, response: http.client.HTTPResponse) -> None:
        # A short body is read so that the connection can be used again; a long one is not worth it.
        with contextlib.suppress(OSError, http.client.HTTPException):
            response.read(65536)
        if not response.isclosed():
            self.close()

    def _ask(self, url: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        place = _place(url)
        sent = {"User-Agent": USER_AGENT, **self.route.headers_for(url), **headers}
        kept = self._connection is not None and self._at == place and self._connection.sock is not None
        if not kept:
            self._connect(place)
        try:
            return self._send(url, sent)
        except (ConnectionError, http.client.BadStatusLine):
            # A server closes a kept connection when it likes; that says nothing about the file.
            if not kept or self._aborted:
                raise
        self._connect(place)
        return self._send(url, sent)

    def _connect(self, place: tuple[str, str, int]) -> None:
        self.close()
        if self._aborted:
            raise SourceError("ended", again=True)
        scheme, host, port = place
        proxy = _proxy(scheme, host, port)
        at, at_port = (proxy.hostname or "", proxy.port or 80) if proxy else (host, port)
        self._proxy_headers = {}
        if proxy and (proxy.username or proxy.password):
            self._proxy_headers["Proxy-Authorization"] = _basic(proxy.username, proxy.password)
        self._absolute = proxy is not None and scheme == "http"
        connection: http.client.HTTPConnection
        if scheme == "https":
            connection = http.client.HTTPSConnection(
                at, at_port, timeout=self._connect_timeout, context=tls_context()
            )
            if proxy:
                connection.set_tunnel(host, port, self._proxy_headers)
        else:
            connection = http.client.HTTPConnection(at, at_port, timeout=self._connect_timeout)
        try:
            connection.connect()
        except TimeoutError as error:
            raise SourceError(f"no connection within {self._connect_timeout:.0f} s", again=True) from error
        self._connection, self._at = connection, place
        if self._aborted:
            self.close()
            raise SourceError("ended", again=True)
        # Blocked networks swallow SYNs: less patience with the connect than with bytes.
        connection.sock.settimeout(self._stall)

    def _send(self, url: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        connection = self._connection
        if connection is None:
            raise SourceError("ended", again=True)
        parts = urllib.parse.urlsplit(url)
        target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
        # Spaces and letters beyond ASCII, as hubs write them into Location.
        target = urllib.parse.quote(target, safe="%/:=&?~#+!$,;'@()*[]")
        all_headers = dict(headers)
        if self._absolute:
            target = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{target}"
            all_headers.update(self._proxy_headers)
        try:
            connection.request("GET", target, headers=all_headers)
        except (ValueError, http.client.InvalidURL) as error:
            # Their own words would show the header's value.
            raise SourceError("the address or a header holds characters that HTTP does not allow") from error
        return connection.getresponse()
