"""The service_info module on this machine: what it finds, and what it refuses."""

from __future__ import annotations

import platform
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.modules.harness import ModuleFailedError, run_module

PYTHON = ".".join(map(str, sys.version_info[:2]))


@pytest.fixture
def wanted(tmp_path: Path) -> dict[str, Any]:
    """What the module is asked for, and gets."""
    return {
        "title": "Tiny 1.0",
        "role": "tiny",
        "prefix": str(tmp_path / "tiny"),
        "release": "1.0-abc",
        "stamp": "abc",
        "python": sys.executable,
        "pythons": [PYTHON],
        "unit": "dsprov-no-such.service",
        "command": ["python", "-m", "tiny", "50%", "$HOME", "two words"],
        "port": 1,
    }


def refusal(**options: Any) -> str:
    with pytest.raises(ModuleFailedError) as failed:
        run_module("service_info", **options)
    return str(failed.value.result["msg"])


def whole(wanted: dict[str, Any]) -> Path:
    """Put a whole environment where it is looked for."""
    folder = Path(wanted["prefix"]) / wanted["release"]
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").touch()
    (folder / ".dsprov-stamp").write_text(f"abc {PYTHON}\n", encoding="utf-8")
    return folder


def test_a_bare_host(wanted: dict[str, Any]) -> None:
    found = run_module("service_info", **wanted)
    assert found["present"] is False
    assert found["python"] == {
        "path": sys.executable,
        "version": platform.python_version(),
        "seen": [platform.python_version()],
    }
    assert found["stamp"] == f"abc {PYTHON}"
    assert found["releases"] == []
    assert found["exec_start"] == f'{wanted["prefix"]}/current/bin/python -m tiny 50%% "$$HOME" "two words"'


def test_a_whole_environment_is_known_by_its_stamp(wanted: dict[str, Any]) -> None:
    folder = whole(wanted)
    (folder.parent / ".cache").mkdir()
    (folder.parent / "current").symlink_to("1.0-abc")
    found = run_module("service_info", **wanted)
    assert found["present"] is True
    assert found["releases"] == ["1.0-abc"]
    assert found["current"] == "1.0-abc"
    # Of another list, or with its Python gone, it is none.
    assert run_module("service_info", **{**wanted, "stamp": "def"})["present"] is False
    (folder / "bin" / "python").unlink()
    assert run_module("service_info", **wanted)["present"] is False


def test_all_that_stands_in_the_way_is_named_at_once(wanted: dict[str, Any], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = refusal(
            **{
                **wanted,
                "pythons": ["3.98", "3.99"],
                "glibc": "2.999",
                "install_bytes": 10**18,
                "port": port,
                "folders": [str(tmp_path), str(tmp_path / "weights")],
            }
        )
    assert message.startswith(
        f"tiny: Tiny 1.0 has packages for Python 3.98 and 3.99 only, and the host has {PYTHON}"
    )
    assert "name it in tiny_python" in message
    assert "needs glibc 2.999 and the host has 2." in message
    assert f"takes 1000000000.0 GB while it is installed and {tmp_path} has" in message
    assert f"port {port} is taken by" in message
    assert message.count("this folder is not there") == 1
    assert f"{tmp_path / 'weights'}: this folder" in message


def test_what_is_there_needs_no_room(wanted: dict[str, Any]) -> None:
    whole(wanted)
    assert run_module("service_info", **wanted, install_bytes=10**18)["present"] is True


def test_a_python_that_comes_with_this_run_is_not_refused(wanted: dict[str, Any]) -> None:
    found = run_module("service_info", **{**wanted, "pythons": ["3.99"], "python_follows": True})
    assert found["python"]["path"] == ""
    assert found["stamp"] == ""
    assert found["present"] is False


def test_verify_wants_the_release_in_use_and_running(wanted: dict[str, Any]) -> None:
    assert "1.0-abc is not what is in use" in refusal(**wanted, purpose="verify")
    (whole(wanted).parent / "current").symlink_to("1.0-abc")
    assert "dsprov-no-such.service does not run" in refusal(**wanted, purpose="verify")
    assert run_module("service_info", **wanted, purpose="remove")["present"] is True
