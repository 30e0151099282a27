"""A Python index of a test's own: projects of a folder, as PEP 503 or PEP 691 has them; files may lie."""

from __future__ import annotations

import hashlib
import html
import http.server
import json
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

JSON = "application/vnd.pypi.simple.v1+json"


class Index(http.server.ThreadingHTTPServer):
    """Serves FOLDER/PROJECT/FILE below /simple/.

    Args:
        folder: a folder for each project, by its normalised name.
        as_json: whether who asks for JSON gets it; a plain mirror has pages of HTML alone.
        spoilt: names of files whose bytes differ from what their digest says.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, address: str, folder: Path, *, as_json: bool = True, spoilt: Collection[str] = ()
    ) -> None:
        super().__init__((address, 0), _Handler)
        self.folder, self.as_json, self.spoilt = folder, as_json, spoilt
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        """What pip and uv call the index."""
        return f"http://{self.server_address[0]!s}:{self.server_port}/simple"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away after a wrong file are what the tests are about."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Index
    protocol_version = "HTTP/1.1"

    def log_message(self, *_words: object) -> None:
        pass

    def do_GET(self) -> None:
        words = unquote(self.path).strip("/").split("/")
        self.server.asked.append(self.path)
        place = self.server.folder.joinpath(*words[1:])
        if words[0] != "simple" or ".." in words or not place.exists():
            self._send(404, "text/plain", b"not here\n")
        elif place.is_file():
            data = place.read_bytes()
            if place.name in self.server.spoilt:
                data = data[:-2] + b"\1\0x"  # A comment at the end: a whole zip file still, of other bytes.
            self._send(200, "application/octet-stream", data)
        else:
            self._page(place)

    def do_HEAD(self) -> None:
        self.do_GET()

    def _page(self, project: Path) -> None:
        rows = {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(project.iterdir())
        }
        at = f"/simple/{project.name}"
        if self.server.as_json and JSON in self.headers.get("Accept", ""):
            files = [
                {"filename": name, "url": f"{at}/{name}", "hashes": {"sha256": digest}}
                for name, digest in rows.items()
            ]
            page = {"meta": {"api-version": "1.0"}, "name": project.name, "files": files}
            self._send(200, JSON, json.dumps(page).encode())
            return
        links = [
            f'<a href="{at}/{html.escape(name)}#sha256={digest}">{html.escape(name)}</a><br>'
            for name, digest in rows.items()
        ]
        self._send(
            200, "text/html", "\n".join(["<!DOCTYPE html><html><body>", *links, "</body></html>"]).encode()
        )

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def running(address: str, folder: Path, **options: Any) -> Iterator[Index]:
    """An index that answers while the block runs."""
    with Index(address, folder, **options) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()
