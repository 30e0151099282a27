"""The openai_check module against a server that answers as engines do."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.dsprov.appliance.plugins.module_utils.units import Unit
from ansible_collections.dsprov.appliance.plugins.modules import openai_check
from tests.unit.modules.harness import ModuleFailedError, run_module

KEY = "canary-0123456789abcdef"


class Engine(BaseHTTPRequestHandler):
    """A model named m, behind a key."""

    key = KEY
    text: str | None = "Paris."
    thought: tuple[str, str] | None = None
    ids = ("m",)

    def _say(self, status: int, body: Any) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def _known(self) -> bool:
        if self.key and self.headers.get("Authorization") != f"Bearer {self.key}":
            self._say(401, {"error": {"message": "Invalid API Key"}})
            return False
        return True

    def do_GET(self) -> None:
        if self._known():
            self._say(200, {"data": [{"id": one} for one in self.ids]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self._known():
            choice = {"message": {"content": self.text, **dict([self.thought] if self.thought else [])}}
            usage = {"completion_tokens": 2}
            self._say(200, {"choices": [choice], "usage": usage, "system_fingerprint": "b7-x"})

    def log_message(self, *_words: Any) -> None:
        """Say nothing."""


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Engine]]:
    handler = type("Handler", (Engine,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    handler.url = f"http://127.0.0.1:{server.server_port}/v1"  # type: ignore[attr-defined]
    monkeypatch.setattr(openai_check.Unit, "read", lambda _name: Unit(exists=True, active=True, pid=1))
    yield handler
    server.shutdown()
    server.server_close()


def ask(engine: type[Engine], tmp_path: Path, key: str = KEY, **more: Any) -> dict[str, Any]:
    file = tmp_path / "key"
    file.write_text(key + "\n")
    options = {"url": engine.url, "model": "m", "unit": "x.service", "key_file": str(file), "wait": 0}  # type: ignore[attr-defined]
    return run_module("openai_check", **{**options, **more})


def test_an_engine_that_answers(engine: type[Engine], tmp_path: Path) -> None:
    said = ask(engine, tmp_path, fingerprint="b7")
    assert (said["models"], said["answer"], said["tokens"]) == (["m"], "Paris.", 2)
    assert KEY not in json.dumps(said)


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content"])
def test_an_engine_that_is_still_thinking_answers_too(engine: type[Engine], tmp_path: Path, key: str) -> None:
    engine.text, engine.thought = None, (key, "\nOkay, so")
    assert ask(engine, tmp_path)["answer"] == "Okay, so"


@pytest.mark.parametrize(
    ("change", "more", "words"),
    [
        ({"key": "another"}, {}, "refuses the key"),
        ({"key": ""}, {}, "to a caller without its key"),
        ({"ids": ("other",)}, {}, "serves other, not m"),
        ({"text": " "}, {}, "gives no answer"),
        ({}, {"fingerprint": "b8"}, "is answered by b7-x, not b8"),
    ],
)
def test_what_does_not_hold_is_named(
    engine: type[Engine], tmp_path: Path, change: dict[str, Any], more: dict[str, Any], words: str
) -> None:
    for name, value in change.items():
        setattr(engine, name, value)
    with pytest.raises(ModuleFailedError, match=words) as caught:
        ask(engine, tmp_path, **more)
    assert KEY not in json.dumps(caught.value.result)
    assert "\n" not in caught.value.result["msg"]


def test_a_service_that_falls_over_is_not_waited_for(
    engine: type[Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_check.Unit, "read", lambda _name: Unit(exists=True, failed=True))
    with pytest.raises(ModuleFailedError, match="falls over"):
        ask(engine, tmp_path, url="http://127.0.0.1:9/v1", wait=600)


def test_a_missing_key_file_is_named(engine: type[Engine], tmp_path: Path) -> None:
    with pytest.raises(ModuleFailedError, match="/none: cannot be read"):
        ask(engine, tmp_path, key_file=str(tmp_path / "none"))
