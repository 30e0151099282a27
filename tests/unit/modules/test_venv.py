"""The venv module with the real uv, a small package and an index of its own."""

from __future__ import annotations

import functools
import hashlib
import shutil
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.unit.modules.harness import ModuleFailedError, run_module

UV = shutil.which("uv", path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin") or ""
WHEEL = "tiny-1.0-py3-none-any.whl"


class Handler(SimpleHTTPRequestHandler):
    """Files, without a word about it."""

    def log_message(self, *_words: Any) -> None:
        """Say nothing."""


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    """An index that has one package."""
    folder = tmp_path / "index" / "tiny"
    folder.mkdir(parents=True)
    metadata = "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n"
    wheel = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(folder / WHEEL, "w") as archive:
        archive.writestr("tiny.py", "WORD = 'tiny works'\n")
        archive.writestr("tiny-1.0.dist-info/METADATA", metadata)
        archive.writestr("tiny-1.0.dist-info/WHEEL", wheel)
        archive.writestr("tiny-1.0.dist-info/RECORD", "")
    (folder / "index.html").write_text(f'<a href="{WHEEL}">{WHEEL}</a>\n', encoding="utf-8")
    handler = functools.partial(Handler, directory=str(tmp_path / "index"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


@pytest.fixture
def wanted(tmp_path: Path, index: str) -> dict[str, Any]:
    """What the module is asked for."""
    digest = hashlib.sha256((tmp_path / "index" / "tiny" / WHEEL).read_bytes()).hexdigest()
    listed = tmp_path / "requirements.txt"
    listed.write_text(f"tiny==1.0 --hash=sha256:{digest}\n", encoding="utf-8")
    return {
        "title": "Tiny 1.0",
        "path": str(tmp_path / "venvs" / "1.0"),
        "python": sys.executable,
        "uv": UV,
        "requirements": str(listed),
        "stamp": "abc 3",
        "index": index,
        "cache": str(tmp_path / "venvs" / ".cache"),
        "proof": ["-c", "import tiny; print(tiny.WORD)"],
    }


def stamp_of(wanted: dict[str, Any]) -> Path:
    return Path(wanted["path"]) / ".dsprov-stamp"


def test_it_is_made_once(wanted: dict[str, Any]) -> None:
    first = run_module("venv", **wanted)
    assert first["changed"]
    assert first["proof"] == "tiny works"
    assert stamp_of(wanted).read_text(encoding="utf-8") == "abc 3\n"
    assert not Path(wanted["cache"]).exists()
    made = stamp_of(wanted).stat().st_ino
    assert run_module("venv", **wanted)["changed"] is False
    assert stamp_of(wanted).stat().st_ino == made


def test_another_list_makes_it_anew(wanted: dict[str, Any]) -> None:
    run_module("venv", **wanted)
    left = Path(wanted["path"]) / "left-over"
    left.touch()
    assert run_module("venv", **{**wanted, "stamp": "def 3"})["changed"]
    assert not left.exists()


def test_an_interrupted_one_is_made_anew(wanted: dict[str, Any]) -> None:
    run_module("venv", **wanted)
    stamp_of(wanted).unlink()
    (Path(wanted["path"]) / "bin" / "python").unlink()
    assert run_module("venv", **wanted)["proof"] == "tiny works"


def test_check_mode_only_says_so(wanted: dict[str, Any]) -> None:
    assert run_module("venv", check=True, **wanted)["changed"]
    assert not Path(wanted["path"]).exists()


def test_a_wrong_digest_is_refused_and_no_password_is_told(wanted: dict[str, Any]) -> None:
    Path(wanted["requirements"]).write_text(f"tiny==1.0 --hash=sha256:{'0' * 64}\n", encoding="utf-8")
    index = wanted["index"].replace("//", "//someone:canary@")
    with pytest.raises(ModuleFailedError) as failed:
        run_module("venv", **{**wanted, "index": index})
    message = failed.value.result["msg"]
    assert message.startswith("uv cannot install Tiny 1.0 from http://127.0.0.1:")
    assert "0" * 64 in message
    assert "canary" not in message
    assert not stamp_of(wanted).exists()


def test_it_is_known_by_another_name_too(wanted: dict[str, Any]) -> None:
    proof = ["-c", "from importlib.metadata import version; print(version('tiny'), version('big'))"]
    assert (
        run_module("venv", **{**wanted, "known_as": {"big": "1.0+x"}, "proof": proof})["proof"] == "1.0 1.0+x"
    )


def test_one_that_does_not_work_is_never_whole(wanted: dict[str, Any]) -> None:
    with pytest.raises(ModuleFailedError, match=r"Tiny 1\.0 was installed but does not work: .*no_such"):
        run_module("venv", **{**wanted, "proof": ["-c", "import no_such"]})
    assert not stamp_of(wanted).exists()
    assert run_module("venv", **wanted)["changed"]


def test_without_uv_it_says_so(wanted: dict[str, Any]) -> None:
    with pytest.raises(ModuleFailedError, match=r"/nowhere/uv cannot be run \(No such file or directory\)"):
        run_module("venv", **{**wanted, "uv": "/nowhere/uv"})
