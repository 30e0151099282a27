"""The look at vLLM on a host: whether the environment is whole, and what stands in the way."""

from __future__ import annotations

import platform
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.modules.harness import ModuleFailedError, run_module

RELEASE = "0.33.0-cuda-12345678"
COMMAND = ["vllm", "serve", "/nonexistent/model", "--port", "1"]
MINOR = ".".join(platform.python_version_tuple()[:2])


def look(prefix: Path, **more: Any) -> dict[str, Any]:
    """The module's answer, with this very interpreter."""
    wishes = {"release": RELEASE, "stamp": "abc", "prefix": str(prefix), "command": COMMAND}
    wishes |= {"key_file": str(prefix / "key"), "python": sys.executable, "python_below": "3.99"}
    return run_module("vllm_info", unit="dsprov-no-such.service", **{**wishes, **more})


def whole(prefix: Path, said: str = f"abc {MINOR}\n") -> None:
    """An environment as an install leaves it."""
    (prefix / RELEASE / "bin").mkdir(parents=True)
    (prefix / RELEASE / "bin" / "python").symlink_to(sys.executable)
    (prefix / RELEASE / ".dsprov-stamp").write_text(said, encoding="utf-8")
    (prefix / "current").symlink_to(RELEASE)


def test_a_bare_host(tmp_path: Path) -> None:
    found = look(tmp_path)
    assert not found["present"]
    assert (found["current"], found["releases"], found["grouped"]) == ("", [], False)
    assert found["python"]["version"] == platform.python_version()
    assert found["site"] == f"lib/python{MINOR}/site-packages"


def test_a_whole_environment(tmp_path: Path) -> None:
    whole(tmp_path)
    found = look(tmp_path)
    assert found["present"]
    assert (found["current"], found["releases"]) == (RELEASE, [RELEASE])
    assert found["exec_start"].startswith(f"{tmp_path}/current/bin/vllm serve /nonexistent/model")


@pytest.mark.parametrize("said", ["", "abc 2.7\n", f"other {MINOR}\n", f"abc {MINOR} and more\n"])
def test_one_that_was_cut_off_or_made_for_another_python_is_not_whole(tmp_path: Path, said: str) -> None:
    whole(tmp_path, said)
    assert not look(tmp_path)["present"]


def test_one_whose_python_is_gone_is_not_whole(tmp_path: Path) -> None:
    whole(tmp_path)
    link = tmp_path / RELEASE / "bin" / "python"
    link.unlink()
    link.symlink_to("/nonexistent/python")
    assert not look(tmp_path)["present"]


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({"python": "/nonexistent/python"}, "the host has none"),
        ({"python_minimum": "3.98"}, f"needs Python 3.98 or later, below 3.99, and the host has {MINOR}"),
        ({"weights_follow": False}, "/nonexistent/model: the model's folder is not there"),
        ({"purpose": "verify"}, "dsprov-no-such.service does not run"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, wish: dict[str, Any], says: str) -> None:
    with pytest.raises(ModuleFailedError) as caught:
        look(tmp_path, **wish)
    assert says in caught.value.result["msg"]
    assert "\n" not in caught.value.result["msg"]


def test_a_port_of_somebody_else_is_refused_with_its_program(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ModuleFailedError) as caught:
            look(tmp_path, ports=[port])
    assert f"port {port} is taken by " in caught.value.result["msg"]
