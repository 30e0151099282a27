"""The server that hosts take a bundle from, asked over its real socket."""

from __future__ import annotations

import hashlib
import http.client
import json
import random
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.dsprov.appliance.plugins.module_utils.fetch import Fetcher
from ansible_collections.dsprov.appliance.plugins.plugin_utils import bundle as bundles
from dsprov.bundle import split
from dsprov.bundle.server import serve, socket_path, ssh_arguments
from tests.unit.bundle.conftest import CONTENT, Make

BIG = "weights/tiny/Q4/tiny.gguf"
SHA = hashlib.sha256(CONTENT[BIG]).hexdigest()
IMAGE = json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json"}).encode()
IMAGE_SHA = hashlib.sha256(IMAGE).hexdigest()
FILES = {**CONTENT, f"images/blobs/sha256/{IMAGE_SHA}": IMAGE}


class Link(http.client.HTTPConnection):
    """HTTP over the server's Unix socket, as ssh hands it on."""

    def __init__(self, path: Path) -> None:
        super().__init__("host")
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(str(self.path))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(params=["one folder", "media"])
def served(request: pytest.FixtureRequest, make: Make, tmp_path: Path) -> Iterator[tuple[Path, int, str]]:
    """Socket, port and digest of a served bundle; whole, or cut to media."""
    folder = make(FILES)
    opened = bundles.open_bundle([folder])
    if request.param == "media":
        media = split.lay_out(opened, 2_000_000)
        split.write(opened, media, tmp_path / "media")
        opened = bundles.open_bundle([tmp_path / "media" / one.name for one in media])
    path, port = socket_path(str(tmp_path)), free_port()
    with serve(opened, path, port):
        yield path, port, opened.digest
    assert not path.exists()


def ask(path: Path, url: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    link = Link(path)
    link.request(method, url, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = link.getresponse()
    return answer.status, {key.lower(): value for key, value in answer.headers.items()}, answer.read()


def test_what_a_host_asks_first(served: tuple[Path, int, str]) -> None:
    path, _port, digest = served
    assert ask(path, "/digest")[2].decode().strip() == digest
    assert hashlib.sha256(ask(path, "/manifest.json")[2]).hexdigest() == digest
    assert ask(path, "/v2/")[0] == 200


def test_a_file_by_its_digest_whole_and_in_ranges(served: tuple[Path, int, str]) -> None:
    path, _port, _digest = served
    body = CONTENT[BIG]
    assert ask(path, f"/blobs/{SHA}/any-name")[2] == body
    status, headers, nothing = ask(path, f"/blobs/{SHA}", "HEAD")
    assert (status, headers["content-length"], nothing) == (200, str(len(body)), b"")
    dice = random.Random(1)
    for _ in range(30):
        first = dice.randrange(len(body))
        last = dice.randrange(first, len(body))
        status, headers, got = ask(path, f"/blobs/{SHA}", Range=f"bytes={first}-{last}")
        assert (status, got) == (206, body[first : last + 1])
        assert headers["content-range"] == f"bytes {first}-{last}/{len(body)}"
    assert ask(path, f"/blobs/{SHA}", Range="bytes=-5")[2] == body[-5:]
    assert ask(path, f"/blobs/{SHA}", Range="bytes=5-")[2] == body[5:]
    assert ask(path, f"/blobs/{SHA}", Range=f"bytes=5-{10**12}")[2] == body[5:]
    assert ask(path, f"/blobs/{SHA}", Range=f"bytes={len(body)}-")[0] == 416
    assert ask(path, f"/blobs/{SHA}", Range="bytes=5-", If_Range='"other"')[0] == 200
    assert ask(path, f"/blobs/{SHA}", Range="bytes=5-", If_Range=f'"{SHA}"')[0] == 206
    for odd in ("bytes=a-b", "bytes=-", "lines=1-2", "bytes=1-2,4-5", "bytes=9-3"):
        assert ask(path, f"/blobs/{SHA}", Range=odd)[0] in (200, 416)


def test_one_connection_answers_again_and_again(served: tuple[Path, int, str]) -> None:
    link = Link(served[0])
    for url in (f"/blobs/{SHA}", "/nothing", "/digest", f"/blobs/{SHA}"):
        link.request("GET", url)
        answer = link.getresponse()
        assert answer.read()
    assert answer.status == 200


def test_nothing_but_the_manifests_rows(served: tuple[Path, int, str], make: Make) -> None:
    path, _port, _digest = served
    for url in (
        "/", "/etc/passwd", "/../manifest.json.part", "/apt/../../../../etc/passwd",
        "/apt/%2e%2e/%2e%2e/etc/passwd", "/blobs/", f"/blobs/{'0' * 64}", "/blobs/../manifest",
        "/v2/x/y/blobs/sha256:zz", "/simple/", "/simple/other/", f"/{'a' * 5000}", "/apt/debian-12",
    ):  # fmt: skip
        assert ask(path, url)[0] == 404, url
    for method in ("POST", "PUT", "DELETE"):
        assert ask(path, "/digest", method)[0] == 501


def test_apt_reads_paths_as_it_writes_them(served: tuple[Path, int, str]) -> None:
    for url in ("/apt/debian-12/pool/a_1_amd64.deb", "/apt/debian-12/./pool/a_1_amd64.deb"):
        assert ask(served[0], url)[2] == b"package"


def test_an_image(served: tuple[Path, int, str]) -> None:
    url = f"/v2/ghcr.io/owner/name/manifests/sha256:{IMAGE_SHA}"
    status, headers, body = ask(served[0], url)
    assert (status, body) == (200, IMAGE)
    assert headers["content-type"] == "application/vnd.oci.image.manifest.v1+json"
    assert headers["docker-content-digest"] == f"sha256:{IMAGE_SHA}"
    assert ask(served[0], url.replace("manifests", "blobs"))[2] == IMAGE
    assert ask(served[0], "/v2/ghcr.io/owner/name/manifests/latest")[0] == 404


def test_a_python_index(served: tuple[Path, int, str]) -> None:
    path, _port, _digest = served
    status, _headers, page = ask(path, "/simple/Thing/")
    assert status == 200
    assert b"thing-1.0-py3-none-any.whl" in page
    accept = "application/vnd.pypi.simple.v1+json"
    rows = json.loads(ask(path, "/simple/thing/", Accept=accept)[2])["files"]
    for row in rows:
        assert ask(path, row["url"])[2] == CONTENT[f"wheels/thing/{row['filename']}"]
    assert len(rows) == 2


def test_our_own_fetcher_takes_it_from_the_port(served: tuple[Path, int, str], tmp_path: Path) -> None:
    _path, port, _digest = served
    got = Fetcher(name="weights", part=str(tmp_path / "got.part"), sha256=SHA, size=len(CONTENT[BIG]))
    got.fetch([f"http://127.0.0.1:{port}/blobs/{SHA}/tiny.gguf"])
    got.place(str(tmp_path / "got"))
    assert (tmp_path / "got").read_bytes() == CONTENT[BIG]


def test_a_file_that_shrinks_under_the_server(make: Make, tmp_path: Path) -> None:
    folder = make()
    path = socket_path(str(tmp_path))
    with serve(bundles.open_bundle([folder]), path, free_port()):
        (folder / BIG).write_bytes(b"short")
        status, _headers, body = ask(path, f"/blobs/{SHA}")
        assert status == 500
        assert BIG in body.decode()
        shutil.rmtree(folder)
        assert ask(path, "/apt/debian-12/pool/a_1_amd64.deb")[0] == 500


def test_the_same_name_gives_the_same_socket_and_only_its_owner_may_use_it(tmp_path: Path) -> None:
    path = socket_path("/home/x/hosts.ini")
    assert path == socket_path("/home/x/hosts.ini") != socket_path("/home/y/hosts.ini")
    assert path.parent.stat().st_mode & 0o077 == 0
    assert len(str(path)) < 100
    assert f"-R 127.0.0.1:4870:{path}" in ssh_arguments(path, 4870)


def test_own_arguments_of_ssh_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANSIBLE_SSH_EXTRA_ARGS", "-o Ciphers=aes128-gcm@openssh.com")
    assert ssh_arguments(Path("/run/x.sock"), 1).startswith("-o Ciphers=aes128-gcm@openssh.com -R ")
