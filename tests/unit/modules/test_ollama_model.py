"""The ollama_model module on real files, against a server that keeps models as Ollama's API documents it."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.dsprov.appliance.plugins.module_utils import files as disk
from ansible_collections.dsprov.appliance.plugins.module_utils import ollama as known
from tests.unit.modules.harness import ModuleFailedError, run_module

GGUF = b"GGUF" + os.urandom(4096)
SHA = hashlib.sha256(GGUF).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Holds models in a folder; `seen` lists what was asked, `fail` is said instead of making a model."""

    daemon_threads = True

    def __init__(self, models: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models = models
        self.seen: list[str] = []
        self.requests: list[dict[str, Any]] = []
        self.fail = ""
        (models / "blobs").mkdir(parents=True)

    def put(self, data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        known.blob_path(str(self.models), digest).write_bytes(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    def write(self, name: str, layers: list[dict[str, Any]]) -> None:
        path = known.manifest_path(str(self.models), name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"config": self.put(name.encode()), "layers": layers}), encoding="utf-8")


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _say(self, status: int, *rows: dict[str, Any]) -> None:
        self.send_response(status)
        self.end_headers()
        for row in rows:
            self.wfile.write(json.dumps(row).encode() + b"\n")

    def do_HEAD(self) -> None:
        digest = self.path.rsplit(":", 1)[-1]
        self._say(200 if known.blob_path(str(self.server.models), digest).exists() else 404)

    def do_DELETE(self) -> None:
        name = json.loads(self._body())["model"]
        self.server.seen.append(f"delete {name}")
        known.manifest_path(str(self.server.models), name).unlink()
        self._say(200)

    def do_POST(self) -> None:
        server, body = self.server, self._body()
        if self.path.startswith("/api/blobs/"):
            server.seen.append("blob")
            server.put(body)
            self._say(201)
            return
        request = json.loads(body)
        server.requests.append(request)
        if self.path == "/api/copy":
            source = known.manifest_path(str(server.models), request["source"])
            server.seen.append(f"copy {request['destination']}")
            target = known.manifest_path(str(server.models), request["destination"])
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
            self._say(200)
        elif self.path == "/api/pull":
            server.seen.append(f"pull {request['model']}")
            server.write(request["model"], [server.put(b"pulled")])
            self._say(200, {"status": "success"})
        elif server.fail:
            self._say(200, {"status": "parsing GGUF"}, {"error": server.fail})
        else:
            server.seen.append(f"create {request['model']}")
            text = json.dumps(request, sort_keys=True).encode()
            server.write(request["model"], [server.put(b"a copy of its own"), server.put(text)])
            self._say(200, {"status": "parsing GGUF"}, {"status": "success"})


class Host:
    """One host's folders and its server."""

    def __init__(self, root: Path) -> None:
        self.server = Server(root / "models")
        self.receipts = root / "receipts"
        self.source = root / "data" / "models" / "small.gguf"
        self.source.parent.mkdir(parents=True)
        self.source.write_bytes(GGUF)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def run(self, check: bool = False, **model: Any) -> dict[str, Any]:
        model.setdefault("name", "small:1")
        model.setdefault("keep_source", True)
        return run_module(
            "ollama_model",
            check=check,
            url=f"http://127.0.0.1:{self.server.server_port}",
            models=[model],
            models_dir=str(self.server.models),
            receipts_dir=str(self.receipts),
            timeout=5,
        )


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setattr(disk, "DATA_ROOT", str(tmp_path / "data"))
    one = Host(tmp_path)
    yield one
    one.server.shutdown()


def test_made_once_and_again_only_when_inputs_change(host: Host) -> None:
    files = [str(host.source)]
    first = host.run(files=files, parameters={"temperature": 0.2}, stop=["<end>"])
    assert first["changed"]
    assert first["made"] == ["small:1"]
    assert host.server.requests[-1]["files"] == {"small.gguf": f"sha256:{SHA}"}
    assert host.server.requests[-1]["parameters"] == {"stop": ["<end>"], "temperature": 0.2}
    again = host.run(files=files, parameters={"temperature": "0.2"}, stop=["<end>"])
    assert not again["changed"]
    changed = host.run(files=files, parameters={"temperature": 0.4}, stop=["<end>"])
    assert changed["changed"]
    assert "PARAMETER temperature 0.2" in changed["diff"]["before"]
    assert "PARAMETER temperature 0.4" in changed["diff"]["after"]
    assert host.server.seen == ["create small:1", "create small:1"]


def test_the_second_name_of_the_file_goes_when_the_server_has_its_own_copy(host: Host) -> None:
    host.run(files=[str(host.source)])
    assert not known.blob_path(str(host.server.models), SHA).exists()
    assert host.source.stat().st_nlink == 1


def test_source_that_was_removed_is_not_asked_for_again(host: Host) -> None:
    host.run(files=[str(host.source)], sha256=[SHA])
    host.source.unlink()
    assert not host.run(files=[str(host.source)], sha256=[SHA])["changed"]
    assert not host.run(files=[str(host.source)])["changed"]


@pytest.mark.parametrize(
    ("ours", "keep", "left"), [(True, False, False), (True, True, True), (False, False, True)]
)
def test_only_sources_in_our_own_folder_are_removed(
    host: Host, tmp_path: Path, ours: bool, keep: bool, left: bool
) -> None:
    source = host.source if ours else tmp_path / "weights" / "small.gguf"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_bytes(GGUF)
    host.run(files=[str(source)], keep_source=keep)
    assert source.exists() is left


def test_a_store_folder_that_held_nothing_else_goes_with_the_source(host: Host) -> None:
    models = Path(disk.data_path("models"))
    folder, beside = models / "small-1" / "Q4_1", models / "other" / "Q8_0"
    for path in (folder, beside):
        path.mkdir(parents=True)
        (path / "small.gguf").write_bytes(GGUF)
    host.run(files=[str(folder / "small.gguf")], keep_source=False)
    assert not folder.parent.exists()
    assert (beside / "small.gguf").exists()


def test_model_removed_by_hand_is_made_again(host: Host) -> None:
    host.run(files=[str(host.source)])
    known.manifest_path(str(host.server.models), "small:1").unlink()
    assert host.run(files=[str(host.source)])["made"] == ["small:1"]


def test_wrong_digest_names_both_and_makes_nothing(host: Host) -> None:
    with pytest.raises(ModuleFailedError, match=f"{SHA}, not {'0' * 64}"):
        host.run(files=[str(host.source)], sha256=["0" * 64])
    assert host.server.seen == []


def test_the_servers_reason_is_passed_on_and_the_next_run_finishes(host: Host) -> None:
    host.server.fail = "this is no GGUF"
    with pytest.raises(ModuleFailedError, match="this is no GGUF"):
        host.run(files=[str(host.source)])
    host.server.fail = ""
    assert host.run(files=[str(host.source)])["made"] == ["small:1"]
    assert host.server.seen == ["create small:1"]


def test_a_model_of_somebody_else_is_kept_aside(host: Host) -> None:
    host.server.write("small:1", [host.server.put(b"theirs")])
    host.server.write("other:1", [host.server.put(b"untouched")])
    result = host.run(files=[str(host.source)])
    assert result["kept_aside"] == ["small:1-before-dsprov"]
    assert known.manifest_state(str(host.server.models), "small:1-before-dsprov")[1]
    assert known.manifest_state(str(host.server.models), "other:1")[1]


def test_a_tag_is_pulled_once(host: Host) -> None:
    assert host.run(tag="small:1")["changed"]
    assert not host.run(tag="small:1")["changed"]
    assert host.server.seen == ["pull small:1"]


def test_a_model_made_from_another_one_follows_it(host: Host) -> None:
    host.run(files=[str(host.source)])
    derived = {"name": "terse:1", "tag": "small:1", "system": "Be brief."}
    assert host.run(**derived)["changed"]
    assert host.server.requests[-1]["from"] == "small:1"
    assert not host.run(**derived)["changed"]
    host.run(files=[str(host.source)], parameters={"seed": 1})
    assert host.run(**derived)["changed"]


def test_a_tag_that_the_user_has_pulled_is_taken_as_it_is(host: Host) -> None:
    host.server.write("small:1", [host.server.put(b"pulled by hand")])
    host.run(tag="small:1")
    assert host.server.seen == []
    assert not host.run(tag="small:1")["changed"]


def test_absent_removes_only_what_dsprov_made(host: Host) -> None:
    host.server.write("theirs:1", [host.server.put(b"theirs")])
    assert not host.run(name="theirs:1", state="absent")["changed"]
    host.run(files=[str(host.source)])
    assert host.run(state="absent")["removed"] == ["small:1"]
    assert host.server.seen == ["create small:1", "delete small:1"]
    assert not host.run(state="absent")["changed"]
    assert [path.name for path in host.receipts.iterdir()] == []


def test_check_mode_asks_nobody(host: Host) -> None:
    assert host.run(check=True, files=["/not/fetched/yet.gguf"])["made"] == ["small:1"]
    assert host.server.seen == []
    assert not host.receipts.exists()


def test_a_server_that_is_not_there_is_named(host: Host) -> None:
    host.server.shutdown()
    host.server.server_close()
    with pytest.raises(ModuleFailedError, match="does not answer"):
        host.run(files=[str(host.source)])
