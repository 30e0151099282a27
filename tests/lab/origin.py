"""A source of weights on this machine: slow by a fixed rate over all connections, unreliable as wanted.

`python -m tests.lab.origin --folder F --rate 50000000 --cut 0.05 --count FILE` serves the files of a folder;
what it sent of each is kept in FILE as JSON, so that a test can tell what came twice. With
`--make NAME=BYTES` it makes files for a source at that address, with their rows in `files.json`, and ends.
"""

from __future__ import annotations

import argparse
import hashlib
import http.server
import json
import os
import random
import re
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from .engine import ensure_network

BLOCK = 64 * 1024


class Origin(http.server.ThreadingHTTPServer):
    """Serves `folder`. rate: bytes a second over all, 0 for no bound. cut: share of answers cut off."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(
        self, address: str, port: int, folder: Path, rate: int = 0, cut: float = 0.0, seed: int = 1
    ) -> None:
        super().__init__((address, port), _Handler)
        self.folder, self.rate, self.cut = folder, rate, cut
        self.sent: dict[str, int] = {}
        self.clients: set[str] = set()
        self.dice = random.Random(seed)
        self._lock = threading.Lock()
        self._next = 0.0

    def start(self) -> None:
        """Serve in a thread of its own."""
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """Where files are: URL/NAME."""
        return f"http://{self.server_address[0]!s}:{self.server_port}"

    def pay(self, path: str, count: int) -> None:
        """Note that bytes are sent, and wait for their turn."""
        with self._lock:
            self.sent[path] = self.sent.get(path, 0) + count
            if not self.rate:
                return
            now = time.monotonic()
            self._next = max(self._next, now - 0.05) + count / self.rate
            wait = self._next - now
        if wait > 0:
            time.sleep(wait)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are what the tests are about."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Origin
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        # What is counted as sent shall not lie about here for long.
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BLOCK)
        super().setup()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the parent's name
        pass

    def do_GET(self) -> None:
        server, name = self.server, self.path.lstrip("/")
        path = server.folder / name
        if ".." in name or not path.is_file():
            self.send_error(404)
            return
        server.clients.add(self.client_address[0])
        size = path.stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        first = int(asked[1]) if asked else 0
        end = min(int(asked[2]) + 1 if asked and asked[2] else size, size)
        if first >= end:
            self.send_error(416)
            return
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{size}")
        self.send_header("Content-Length", str(end - first))
        self.send_header("ETag", f'"{size}-{int(path.stat().st_mtime)}"')
        self.end_headers()
        stop = end
        if server.cut and server.dice.random() < server.cut:
            stop = server.dice.randrange(first, end)
        with path.open("rb") as file:
            file.seek(first)
            while first < stop:
                block = file.read(min(BLOCK, stop - first))
                server.pay(name, len(block))
                self.wfile.write(block)
                first += len(block)
        self.close_connection = self.close_connection or stop < end


def make(folder: Path, wanted: list[str], url: str) -> None:
    """Fill a folder with files of noise, and write the rows that name them."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for word in wanted:
        name, _, size = word.partition("=")
        data = os.urandom(int(size))
        (folder / name).write_bytes(data)
        row = {"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        rows.append({**row, "sources": [f"{url}/{name}"]})
    (folder / "files.json").write_text(json.dumps(rows), encoding="utf-8")


def main() -> None:
    """Serve until ended."""
    words = argparse.ArgumentParser()
    words.add_argument("--address", default="127.0.0.1")
    words.add_argument("--port", type=int, default=0)
    words.add_argument("--folder", type=Path, required=True)
    words.add_argument("--rate", type=int, default=0)
    words.add_argument("--cut", type=float, default=0.0)
    words.add_argument("--count", type=Path)
    words.add_argument("--make", action="append", metavar="NAME=BYTES")
    given = words.parse_args()
    if given.address == "lab":
        given.address = str(ensure_network(print)[1])
    if given.make:
        make(given.folder, given.make, f"http://{given.address}:{given.port}")
        return
    origin = Origin(given.address, given.port, given.folder, given.rate, given.cut)
    origin.start()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print(origin.url, flush=True)
    while True:
        time.sleep(0.2)
        if given.count:
            part = given.count.with_suffix(".part")
            part.write_text(json.dumps({"sent": origin.sent, "clients": sorted(origin.clients)}))
            part.replace(given.count)


if __name__ == "__main__":
    main()
