"""Serves an opened bundle to the hosts of a run: files by digest, apt, a Python index, an image registry.

Read-only, and only rows of the manifest. It listens on a Unix socket of the user's own, to which ssh leads a
loopback port of each host (`-R`), and on the same loopback port of this machine for hosts that are this
machine. So nothing new listens on a network, and whoever reaches it has logged in.
"""

from __future__ import annotations

import contextlib
import hashlib
import html
import http.server
import json
import os
import posixpath
import re
import shlex
import socketserver
import threading
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ansible_collections.dsprov.appliance.plugins.module_utils.problems import ProblemError
from ansible_collections.dsprov.appliance.plugins.plugin_utils.bundle import MANIFEST, Bundle, Row
from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import problems
from dsprov.paths import socket_dir

SIMPLE_JSON = "application/vnd.pypi.simple.v1+json"
# Seconds without a request after which a connection is closed.
IDLE_SECONDS = 120
_REGISTRY = re.compile(r"/v2/(?P<name>[a-z0-9._/:-]+)/(?:manifests|blobs)/sha256:(?P<digest>[0-9a-f]{64})")


class _Handler(http.server.BaseHTTPRequestHandler):
    """One request. The server's `bundle` says what there is."""

    protocol_version = "HTTP/1.1"
    server_version = "dsprov-bundle"
    timeout = IDLE_SECONDS
    server: Any

    def do_GET(self) -> None:
        """Answers with bytes."""
        self._answer()

    def do_HEAD(self) -> None:
        """Answers without."""
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Hosts say themselves what went wrong; the terminal belongs to the run."""

    def _answer(self) -> None:
        bundle: Bundle = self.server.bundle
        path = posixpath.normpath("/" + unquote(urlsplit(self.path).path).lstrip("/"))
        try:
            if path == f"/{MANIFEST}":
                self._send_bytes(self.server.manifest, "application/json")
            elif path == "/digest":
                self._send_bytes(f"{bundle.digest}\n".encode(), "text/plain")
            elif path == "/v2":
                self._send_bytes(b"{}", "application/json")
            elif found := _REGISTRY.fullmatch(path):
                self._send_image_part(found["digest"])
            elif path.startswith("/blobs/"):
                self._send_row(bundle.by_digest.get(path.split("/")[2]))
            elif path.startswith("/simple/"):
                self._send_index(path.removeprefix("/simple/").strip("/"))
            else:
                self._send_row(bundle.by_path.get(path.lstrip("/")))
        except ProblemError as error:
            # A file went away, or changed its size, since it was verified.
            self._send_bytes(str(error).encode(), "text/plain", HTTPStatus.INTERNAL_SERVER_ERROR)
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True

    def _send_bytes(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_image_part(self, digest: str) -> None:
        """A manifest or a blob of an image; a manifest says itself what it is."""
        row = self.server.bundle.by_digest.get(digest)
        kind = "application/octet-stream"
        if row and "/manifests/" in self.path:
            (segment,) = self.server.bundle.segments(row)
            content = json.loads(segment.file.read_bytes())
            kind = content.get("mediaType") or "application/vnd.oci.image.manifest.v1+json"
        self._send_row(row, kind, {"Docker-Content-Digest": f"sha256:{digest}"})

    def _send_index(self, project: str) -> None:
        """A project's page: PEP 691 for who asks for it, else PEP 503."""
        prefix = f"wheels/{re.sub(r'[-_.]+', '-', project).lower()}/"
        rows = [row for row in self.server.bundle.rows if row.path.startswith(prefix)]
        if not rows:
            self._send_row(None)
        elif SIMPLE_JSON in self.headers.get("Accept", ""):
            files = [
                {
                    "filename": row.path.removeprefix(prefix),
                    "url": f"/blobs/{row.sha256}/{row.path.removeprefix(prefix)}",
                    "hashes": {"sha256": row.sha256},
                    "size": row.bytes,
                }
                for row in rows
            ]
            page = {"meta": {"api-version": "1.1"}, "name": project, "files": files, "versions": []}
            self._send_bytes(json.dumps(page).encode(), SIMPLE_JSON)
        else:
            links = ""
            for row in rows:
                name = html.escape(row.path.removeprefix(prefix))
                links += f'<a href="/blobs/{row.sha256}/{name}#sha256={row.sha256}">{name}</a>\n'
            self._send_bytes(f"<!DOCTYPE html>\n<body>\n{links}</body>\n".encode(), "text/html")

    def _send_row(
        self, row: Row | None, kind: str = "application/octet-stream", more: dict[str, str] | None = None
    ) -> None:
        if row is None:
            body = b"not in the bundle\n"
            self._send_bytes(body, "text/plain", HTTPStatus.NOT_FOUND)
            return
        segments = self.server.bundle.segments(row)
        tag = f'"{row.sha256}"'
        wanted = self._range(row.bytes, tag)
        if wanted is None:
            self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
            self.send_header("Content-Range", f"bytes */{row.bytes}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        first, end, part = wanted
        self.send_response(HTTPStatus.PARTIAL_CONTENT if part else HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(end - first))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", tag)
        if part:
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{row.bytes}")
        for name, value in (more or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.flush()
        for segment in segments:
            start, stop = max(first, segment.offset), min(end, segment.offset + segment.length)
            if start < stop:
                with segment.file.open("rb") as file:
                    sent = self.connection.sendfile(file, start - segment.offset, stop - start)
                if sent != stop - start:  # The file shrank: what is promised cannot be kept.
                    self.close_connection = True
                    return

    def _range(self, size: int, tag: str) -> tuple[int, int, bool] | None:
        """First byte, end, and whether it is a part; None for a range that cannot be had."""
        given = self.headers.get("Range", "")
        condition = self.headers.get("If-Range")
        found = re.fullmatch(r"bytes=(\d*)-(\d*)", given.strip())
        if not found or not any(found.groups()) or (condition and condition != tag):
            return 0, size, False
        if not found[1]:
            return max(0, size - int(found[2])), size, True
        first = int(found[1])
        end = min(size, int(found[2]) + 1) if found[2] else size
        return (first, end, True) if first < end else None


class _Threads(socketserver.ThreadingMixIn):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A host that goes away in the middle is the run's to tell."""


class _UnixServer(_Threads, socketserver.UnixStreamServer):
    def get_request(self) -> tuple[Any, Any]:
        """The handler wants an address that a Unix socket's peer has not."""
        connection, _address = super().get_request()
        return connection, ("ssh", 0)


class _LoopbackServer(_Threads, socketserver.TCPServer):
    allow_reuse_address = True


def socket_path(name: str) -> Path:
    """Where the server for runs of this name listens; the same name gives the same path, so that an ssh
    connection left over from an earlier run still leads to the right place.

    Raises:
        ProblemError: system-error.
    """
    try:
        return socket_dir() / f"{hashlib.sha256(name.encode()).hexdigest()[:12]}.sock"
    except OSError as error:
        raise problems().error("system-error", file=error.filename, detail=error.strerror) from error


@contextlib.contextmanager
def serve(bundle: Bundle, path: Path, port: int) -> Iterator[None]:
    """Serves a bundle while the block runs.

    Args:
        path: the socket's.
        port: the loopback port for hosts that are this machine.

    Raises:
        ProblemError: system-error.
    """
    raw = (bundle.folders[0] / MANIFEST).read_bytes()
    servers: list[Any] = []
    try:
        path.unlink(missing_ok=True)
        servers.append(_UnixServer(str(path), _Handler))
        path.chmod(0o600)
    except OSError as error:
        raise problems().error("system-error", file=path, detail=error.strerror or error) from error
    # Another bundle may be served here; who asks that one finds by its digest that it is not ours.
    with contextlib.suppress(OSError):
        servers.append(_LoopbackServer(("127.0.0.1", port), _Handler))
    for server in servers:
        server.bundle, server.manifest = bundle, raw
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True).start()
    try:
        yield
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
        path.unlink(missing_ok=True)


def ssh_arguments(path: Path, port: int) -> str:
    """What ssh needs so that a loopback port of the host leads to the socket."""
    own = os.environ.get("ANSIBLE_SSH_EXTRA_ARGS", "")
    return f"{own} -R {shlex.quote(f'127.0.0.1:{port}:{path}')}".strip()
