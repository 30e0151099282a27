"""Which places answer a host, asked of a real server that answers well, badly and not at all."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator

import pytest

from ansible_collections.dsprov.appliance.plugins.modules import probe


class Mirror(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/silent":
            time.sleep(1.5)
            return
        if self.path == "/trickle":
            self.send_response(200)
            self.end_headers()
            for _ in range(30):
                self.wfile.write(b"x")
                time.sleep(0.1)
            return
        self.send_response({"/v2/": 401, "/blocked": 403, "/broken": 502}.get(self.path, 200))
        self.end_headers()
        self.wfile.write(b"x" * (2 * probe.ASK_BYTES))

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(probe, "ASK_SECONDS", 0.7)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def test_only_a_proof_counts_as_an_answer(mirror: str) -> None:
    urls = {path: mirror + path for path in ("/file", "/v2/", "/blocked", "/broken", "/silent", "/trickle")}
    urls["closed"] = "http://127.0.0.1:9/"
    urls["nonsense"] = "nonsense"
    began = time.monotonic()
    answers = probe.answer_times({"kind": urls})["kind"]
    assert time.monotonic() - began < 2
    assert {path for path, ms in answers.items() if ms is not None} == {"/file", "/v2/"}
    assert list(answers) == list(urls)


def test_nothing_asked_is_nothing_answered() -> None:
    assert probe.answer_times({}) == {}
