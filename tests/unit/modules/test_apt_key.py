"""A repository's key from a real server: taken by its fingerprint, whoever serves it."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.module_utils.test_openpgp import FINGERPRINT, KEY, armoured
from tests.unit.modules.harness import ModuleFailedError, run_module

FILES = {
    "/key.pub": armoured(KEY),
    "/key.gpg": KEY,
    "/page": b"<html>sign in</html>",
    "/two": KEY + KEY[:-1] + b"\7",
}


@pytest.fixture
def server() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = FILES.get(self.path)
            self.send_response(200 if data else 404)
            self.end_headers()
            self.wfile.write(data or b"")

        def log_message(self, *_words: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_port}"
        made.shutdown()


@pytest.mark.parametrize("name", ["key.pub", "key.gpg"])
def test_a_key_is_written_as_apt_wants_it_and_asked_for_once(server: str, tmp_path: Path, name: str) -> None:
    options = {"dest": str(tmp_path / "keys" / "k.gpg"), "fingerprints": [FINGERPRINT.lower()]}
    made = run_module("apt_key", sources=[f"{server}/{name}"], **options)
    assert (made["changed"], made["source"]) == (True, f"{server}/{name}")
    assert Path(options["dest"]).read_bytes() == KEY
    again = run_module("apt_key", sources=["http://127.0.0.1:1/nobody"], **options)
    assert (again["changed"], again["source"]) == (False, "")


def test_the_next_source_is_asked(server: str, tmp_path: Path) -> None:
    sources = [f"{server}/missing", f"{server}/page", "http://127.0.0.1:1/nobody", f"{server}/key.pub"]
    made = run_module("apt_key", dest=str(tmp_path / "k"), sources=sources, fingerprints=[FINGERPRINT])
    assert made["source"] == sources[-1]


@pytest.mark.parametrize(
    ("name", "wanted", "says"),
    [
        ("key.pub", "0" * 40, FINGERPRINT),
        ("two", FINGERPRINT, "wanted"),
        ("page", FINGERPRINT, "no OpenPGP"),
        ("missing", FINGERPRINT, "404"),
    ],
)
def test_what_is_wrong_is_refused_and_nothing_written(
    server: str, tmp_path: Path, name: str, wanted: str, says: str
) -> None:
    with pytest.raises(ModuleFailedError, match=says):
        run_module("apt_key", dest=str(tmp_path / "k"), sources=[f"{server}/{name}"], fingerprints=[wanted])
    assert list(tmp_path.iterdir()) == []


def test_a_key_of_somebody_else_is_replaced(server: str, tmp_path: Path) -> None:
    (tmp_path / "k").write_bytes(KEY[:-1] + b"\7")
    options = {"dest": str(tmp_path / "k"), "sources": [f"{server}/key.pub"], "fingerprints": [FINGERPRINT]}
    assert run_module("apt_key", check=True, **options)["changed"]
    assert (tmp_path / "k").read_bytes() != KEY, "check mode writes nothing"
    assert run_module("apt_key", **options)["changed"]
    assert (tmp_path / "k").read_bytes() == KEY
