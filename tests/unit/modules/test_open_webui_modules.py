"""open_webui_check against a real server, sqlite_backup on real databases, open_webui_info here."""

from __future__ import annotations

import http.server
import json
import sqlite3
import stat
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.dsprov.appliance.plugins.modules import (
    open_webui_check,
    open_webui_info,
    sqlite_backup,
)

GOOD: dict[str, tuple[int, Any]] = {
    "/health": (200, {"status": True}),
    "/api/version": (200, {"version": "0.11.3"}),
    "/api/models": (401, {"detail": "Not authenticated"}),
    "/api/config": (200, {"features": {"auth": True, "enable_signup": False}}),
    "/api/v1/auths/signin": (200, {"token": "t"}),
    "token:/api/models": (200, {"data": [{"id": "smollm2:135m"}]}),
}


@pytest.fixture
def server() -> Iterator[Any]:
    """Serve a table of answers; `answers` may be changed by the test."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            key = f"token:{self.path}" if self.headers.get("Authorization") == "Bearer t" else self.path
            status, body = self.server.answers[key]  # type: ignore[attr-defined]
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def do_POST(self) -> None:
            size = int(self.headers["Content-Length"])
            self.server.posted.append(json.loads(self.rfile.read(size)))  # type: ignore[attr-defined]
            self.do_GET()

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http_server:
        http_server.answers = dict(GOOD)  # type: ignore[attr-defined]
        http_server.posted = []  # type: ignore[attr-defined]
        threading.Thread(target=http_server.serve_forever, daemon=True).start()
        yield http_server
        http_server.shutdown()


def prove(server: Any, tmp_path: Path, **changes: Any) -> open_webui_check.Proof:
    """Check the served table."""
    file = tmp_path / "password"
    if not file.exists():
        file.write_text("canary-password\n")
    params = {
        "url": f"http://127.0.0.1:{server.server_port}/",
        "wait": 0,
        "version": "0.11.3",
        "email": "admin@localhost",
        "password_file": str(file),
        "signin_required": True,
        "models": ["smollm2:135m"],
        "wait_model": 0,
        "hint": "docker logs x",
    }
    return open_webui_check.OpenWebuiCheck({**params, **changes}, pause=0.01).prove()


def test_all_is_well(server: Any, tmp_path: Path) -> None:
    proof = prove(server, tmp_path)
    assert (proof.version, proof.models, proof.signed_in) == ("0.11.3", ["smollm2:135m"], True)
    assert server.posted == [{"email": "admin@localhost", "password": "canary-password"}]


def test_a_proxy_of_the_host_is_not_asked(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert prove(server, tmp_path).signed_in


@pytest.mark.parametrize(
    ("path", "answer", "says"),
    [
        ("/health", (503, {}), "answered 503 after 0 s; see: docker logs x"),
        ("/health", (200, b"<html>somebody else</html>"), "answered 200 after 0 s"),
        ("/api/version", (200, {"version": "0.9.5"}), "version '0.9.5', not 0.11.3"),
        ("/api/models", (200, {"data": []}), "without a token; set WEBUI_AUTH"),
        ("/api/config", (200, {"onboarding": True, "features": {}}), "no administrator"),
        ("/api/config", (200, {"features": {"enable_signup": True}}), "strangers sign up"),
        ("/api/config", (200, {}), "strangers sign up"),
        ("/api/v1/auths/signin", (400, {"detail": "no"}), "answers 400 to admin@localhost"),
        ("token:/api/models", (200, {"data": [{"id": "other"}]}), "it offers: other"),
    ],
)
def test_what_does_not_hold_is_said(server: Any, tmp_path: Path, path: str, answer: Any, says: str) -> None:
    server.answers[path] = answer
    with pytest.raises(open_webui_check.CheckError) as raised:
        prove(server, tmp_path)
    assert says in str(raised.value)
    assert "canary" not in str(raised.value)


def test_a_password_changed_in_the_browser_is_a_warning(server: Any, tmp_path: Path) -> None:
    server.answers["/api/v1/auths/signin"] = (400, {})
    proof = prove(server, tmp_path, signin_required=False)
    assert not proof.signed_in
    assert "changed in the browser" in proof.warnings[0]


def test_nothing_listens(server: Any, tmp_path: Path) -> None:
    with pytest.raises(open_webui_check.CheckError, match="does not answer after 0 s"):
        prove(server, tmp_path, url="http://127.0.0.1:9")


def test_no_password_file(server: Any, tmp_path: Path) -> None:
    with pytest.raises(open_webui_check.CheckError, match="cannot be read"):
        prove(server, tmp_path, password_file=str(tmp_path / "none"))


def rows(path: Path) -> list[int]:
    """Return what the database holds."""
    with closing(sqlite3.connect(path)) as database:
        return [row[0] for row in database.execute("SELECT x FROM t ORDER BY x")]


def insert(database: sqlite3.Connection, value: int) -> None:
    """Add a row."""
    database.execute("INSERT INTO t VALUES (?)", (value,))
    database.commit()


def test_a_database_in_use_is_copied_and_put_back(tmp_path: Path) -> None:
    path = tmp_path / "webui.db"
    folder = tmp_path / "copies"
    keeper = sqlite_backup.SqliteBackup(str(path), str(folder), label="before 0.11.3")
    with closing(sqlite3.connect(path)) as user:
        user.execute("PRAGMA journal_mode=WAL")
        user.execute("CREATE TABLE t (x INTEGER)")
        insert(user, 1)
        made = keeper.make()
        assert "before-0.11.3" in Path(made.copy).name
        assert rows(Path(made.copy)) == [1]
        assert stat.S_IMODE(Path(made.copy).stat().st_mode) == 0o600
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        insert(user, 2)
    # A log left by a killed program must not be played into the database that comes back.
    Path(f"{path}-wal").write_bytes(b"left over")
    assert keeper.restore(made.copy).changed
    assert rows(path) == [1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copies", "webui.db"]
    assert [p for p in folder.iterdir() if p.name.startswith(".")] == []


def test_old_copies_go(tmp_path: Path) -> None:
    path = tmp_path / "webui.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE t (x INTEGER)")
    names = [
        sqlite_backup.SqliteBackup(str(path), str(tmp_path / "c"), label=str(i), keep=2).make()
        for i in range(4)
    ]
    assert [Path(name.copy).exists() for name in names] == [False, False, True, True]
    assert names[3].removed == [names[1].copy]


def test_no_database_is_nothing_to_do(tmp_path: Path) -> None:
    result = sqlite_backup.SqliteBackup(str(tmp_path / "none.db"), str(tmp_path / "c")).make()
    assert (result.changed, result.copy) == (False, "")
    assert list(tmp_path.iterdir()) == []


def test_check_mode_copies_nothing(tmp_path: Path) -> None:
    path = tmp_path / "webui.db"
    path.write_bytes(b"")
    assert sqlite_backup.SqliteBackup(str(path), str(tmp_path / "c"), check=True).make().changed
    assert [p.name for p in tmp_path.iterdir()] == ["webui.db"]


def test_what_is_no_database_is_refused_and_left(tmp_path: Path) -> None:
    path = tmp_path / "webui.db"
    path.write_text("this is no database, however long it may be " * 50)
    with pytest.raises(sqlite_backup.BackupError, match=r"webui\.db"):
        sqlite_backup.SqliteBackup(str(path), str(tmp_path / "c")).make()
    assert list((tmp_path / "c").iterdir()) == []


def info(tmp_path: Path, **changes: Any) -> open_webui_info.OpenWebuiInfo:
    """Look at a made-up host tree."""
    params = {
        "container": "dsprov-unit-test-none",
        "image": "",
        "unit": "dsprov-unit-test-none.service",
        "prefix": str(tmp_path / "prefix"),
        "data": str(tmp_path / "data"),
        "python": None,
        "python_minimum": "3.11",
        "python_below": "3.13",
    }
    return open_webui_info.OpenWebuiInfo({**params, **changes})


def test_a_bare_host(tmp_path: Path) -> None:
    look = info(tmp_path)
    assert look.data() == {"database": False, "owner": -1}
    assert look.venv() == {"unit": False, "active": False, "version": "", "stamp": ""}
    assert look.docker()["container"] is False


def test_an_installed_version_is_found(tmp_path: Path) -> None:
    release = tmp_path / "prefix" / "0.11.3"
    release.mkdir(parents=True)
    (release / ".dsprov-stamp").write_text("abc\n")
    (tmp_path / "prefix" / "current").symlink_to("0.11.3")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "webui.db").touch()
    look = info(tmp_path)
    assert (look.venv()["version"], look.venv()["stamp"]) == ("0.11.3", "abc")
    assert look.data()["database"] is True


@pytest.mark.parametrize(
    ("said", "found"),
    [("3.11.2", True), ("3.12.9", True), ("3.13.5", False), ("3.10.12", False), ("nonsense", False)],
)
def test_pythons_that_will_do(tmp_path: Path, said: str, found: bool) -> None:
    interpreter = tmp_path / "python"
    interpreter.write_text(f"#!/bin/sh\necho {said}\n")
    interpreter.chmod(0o755)
    answer = info(tmp_path, python=str(interpreter)).python()
    assert (answer["path"] == str(interpreter)) is found
    assert answer["seen"] == [said]
