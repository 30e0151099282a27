"""The status module against a service that wants a key."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.unit.modules.harness import run_module

KEY = "canary-0123456789abcdef"
ANSWERS = {"/props": {"build_info": "b11434-dsprov"}, "/v1/models": {"data": [{"id": "m:1b"}]}}


class Engine(BaseHTTPRequestHandler):
    """Two answers, for those who have the key."""

    def do_GET(self) -> None:
        known = self.headers.get("Authorization") == f"Bearer {KEY}"
        raw = json.dumps(ANSWERS[self.path] if known else {}).encode()
        self.send_response(200 if known else 401)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_words: Any) -> None:
        """Say nothing."""


@pytest.fixture
def base() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def look(tmp_path: Path, base: str, key: str | None, model: str = "m:1b") -> dict[str, Any]:
    service: dict[str, Any] = {
        "name": "llama_cpp",
        "version_url": f"{base}/props",
        "models_url": f"{base}/v1/models",
        "model": model,
    }
    if key is not None:
        (tmp_path / "key").write_text(f"{key}\n")
        service["key_file"] = str(tmp_path / "key")
    (tmp_path / "state.json").write_text(json.dumps({"services": [service]}))
    said = run_module("status", path=str(tmp_path / "state.json"))
    assert KEY not in json.dumps(said)
    row: dict[str, Any] = said["status"]["services"][0]
    return row


def test_a_service_is_asked_with_its_key(tmp_path: Path, base: str) -> None:
    row = look(tmp_path, base, KEY)
    assert (row["healthy"], row["version"], row["detail"]) == (True, "b11434", "")
    assert row["model"] == "m:1b"


@pytest.mark.parametrize("key", [None, "another"])
def test_a_key_that_does_not_open_is_no_health(tmp_path: Path, base: str, key: str | None) -> None:
    row = look(tmp_path, base, key)
    assert not row["healthy"]
    assert "401" in row["detail"]


def test_a_model_that_is_not_served_is_named(tmp_path: Path, base: str) -> None:
    row = look(tmp_path, base, KEY, model="other:1b")
    assert not row["healthy"]
    assert "other:1b is not served" in row["detail"]
