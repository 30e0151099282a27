# Copyright: the dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Hands weights on to other hosts of the same run while they still arrive; standard library alone.

Read-only, files of one job by their sha256, one address, a bearer token. What has not come yet is waited for:
the answer goes on as the bytes come. Nothing is verified here: who takes the bytes has the digest.
"""

from __future__ import annotations

import contextlib
import functools
import hmac
import http.server
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

# Nothing new for so long: who asked is better off elsewhere.
PATIENCE = 90.0
SEND_TIMEOUT = 60.0
# A pause between two looks for new bytes: a hundredth of what any of the rates we see would notice.
PAUSE = 0.05
CHUNK = 8 * 1024 * 1024
CONNECTIONS = 64
_PATH = re.compile(r"/([0-9a-f]{64})")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass
class Offer:
    """One file that others may have.

    path: where its bytes are. size: of the whole, None until it is known. until: how far the bytes reach
    without a gap from an offset on. gone: it failed here, and nobody shall wait for it.
    """

    path: str
    size: int | None
    until: Callable[[int], int] = lambda _start: 0
    gone: bool = False
    handle: int = -1
    lock: threading.Lock = field(default_factory=threading.Lock)

    def open(self) -> int:
        """Return a descriptor that outlives a new name or the end of the file; -1 while there is none."""
        with self.lock:
            if self.handle < 0:
                with contextlib.suppress(FileNotFoundError):
                    self.handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            return self.handle

    def close(self) -> None:
        """Let the file go: nobody waits for it any more."""
        with self.lock:
            self.gone = True
            if self.handle >= 0:
                os.close(self.handle)
                self.handle = -1


def whole(path: str) -> Offer:
    """An offer of a file that is complete and verified."""
    size = os.stat(path).st_size
    return Offer(path, size, lambda _start: size)


class PeerServer(http.server.ThreadingHTTPServer):
    """Listens on one address. `offers`: by sha256; `last`: when somebody was last served (monotonic)."""

    daemon_threads = True
    # The sockets of a unit that was just ended are no reason to refuse the next one.
    allow_reuse_address = True
    request_queue_size = CONNECTIONS

    def __init__(self, address: str, port: int, token: str) -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, port), _Handler)
        self.token = token
        self.offers: dict[str, Offer] = {}
        self.last = time.monotonic()
        self.sent = 0
        self._places = threading.BoundedSemaphore(CONNECTIONS)
        self._ended = False

    def start(self) -> None:
        """Serve in a thread of its own."""
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True).start()

    def stop(self) -> None:
        """Stop listening; what is being sent ends."""
        self._ended = True
        self.shutdown()
        self.server_close()

    @property
    def ended(self) -> bool:
        """Whether it was told to stop."""
        return self._ended

    def process_request(self, request: Any, client_address: Any) -> None:
        """Refuse more connections than this: each is a thread."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """As the parent's, counting connections."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Peers come and go; that is no news."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: PeerServer
    protocol_version = "HTTP/1.1"
    server_version = "dsprov"
    sys_version = ""
    timeout = SEND_TIMEOUT

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the parent's name
        """Say nothing: a line a range would fill the journal."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        said = self.headers.get("Authorization") or ""
        if not hmac.compare_digest(said.encode(), f"Bearer {self.server.token}".encode()):
            self._refuse(HTTPStatus.UNAUTHORIZED)
            return
        match = _PATH.fullmatch(self.path)
        offer = self.server.offers.get(match[1]) if match else None
        if offer is None or offer.gone:
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        self.server.last = time.monotonic()
        size = self._wait(lambda: offer.size, offer) if body else offer.size
        if size is None:
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        first, end, partial = 0, size, False
        asked = self.headers.get("Range")
        if asked is not None:
            spoken = _RANGE.fullmatch(asked.strip())
            if spoken:
                first, partial = int(spoken[1]), True
                end = min(int(spoken[2]) + 1, size) if spoken[2] else size
            if partial and first >= end:
                self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
                self.send_header("Content-Range", f"bytes */{size}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        self.send_response(HTTPStatus.PARTIAL_CONTENT if partial else HTTPStatus.OK)
        if partial:
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{size}")
        self.send_header("Content-Length", str(end - first))
        # By content: every host's copy is the same file.
        self.send_header("ETag", f'"{self.path[1:]}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("X-Dsprov-There", str(offer.until(0)))
        self.end_headers()
        if body:
            self._send(offer, first, end)

    def _refuse(self, status: HTTPStatus) -> None:
        self.close_connection = True
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.end_headers()

    def _wait(self, look: Callable[[], Any], offer: Offer) -> Any:
        """Return what `look` gives once it gives something; None when that takes too long."""
        until = time.monotonic() + PATIENCE
        while True:
            found = look()
            if found or offer.gone or self.server.ended or time.monotonic() > until:
                return None if offer.gone or self.server.ended else found
            time.sleep(PAUSE)

    def _send(self, offer: Offer, first: int, end: int) -> None:
        """Send [first, end) as it comes; the connection ends early where nothing more comes."""
        self.wfile.flush()
        at = first
        source: Any = None
        try:
            while at < end:
                reach = self._wait(functools.partial(_reach, offer, at, end), offer)
                handle = offer.open() if reach else -1
                if handle < 0:
                    self.close_connection = True
                    return
                source = source or os.fdopen(os.dup(handle), "rb", buffering=0)
                while at < reach:
                    # Not os.sendfile: this one knows how to wait on a socket with a timeout.
                    sent = self.connection.sendfile(source, at, min(CHUNK, reach - at))
                    if not sent:
                        self.close_connection = True
                        return
                    at += sent
                    self.server.sent += sent
                    self.server.last = time.monotonic()
        finally:
            if source:
                source.close()


def _reach(offer: Offer, at: int, end: int) -> int:
    """How far the bytes from `at` on go, up to `end`; 0 while there are none."""
    reach = min(offer.until(at), end)
    return reach if reach > at else 0
