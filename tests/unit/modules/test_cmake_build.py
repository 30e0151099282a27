"""The cmake_build module with real CMake, Ninja and compiler: finished, failed, killed, abandoned."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.dsprov.appliance.plugins.module_utils import builds, files
from tests.unit.modules.harness import ModuleFailedError, run_module

TOOLS = ("cmake", "ninja", "cc", "strip")
MISSING = [tool for tool in TOOLS if not shutil.which(tool)]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not on this machine: {', '.join(MISSING)}")

PROJECT = """
cmake_minimum_required(VERSION 3.18)
project(hello C)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
add_executable(hello main.c)
if(SLOW)
  add_custom_target(quick COMMAND true)
  add_custom_target(nap COMMAND sleep ${SLOW})
  add_dependencies(nap quick)
  add_dependencies(hello nap)
endif()
"""
MAIN = '#include <stdio.h>\nint main(int n, char **v) { puts("hello " WORD); return n > 1 ? 0 : 3; }\n'


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sources; dsprov's own folder is here, too."""
    monkeypatch.setattr(files, "DATA_ROOT", str(tmp_path / "data"))
    source = tmp_path / "source"
    source.mkdir()
    (source / "CMakeLists.txt").write_text(PROJECT)
    (source / "main.c").write_text(MAIN)
    return tmp_path


def names(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(path.name for path in folder.iterdir())


def ask(tree: Path, **more: Any) -> dict[str, Any]:
    """One call."""
    options: dict[str, Any] = {
        "name": "hello 1",
        "source": str(tree / "source"),
        "build": str(tree / "build" / "hello"),
        "dest": str(tree / "opt" / "1-abc"),
        "digest": "abc",
        "inputs": {"version": "1"},
        "options": {"CMAKE_C_FLAGS": '-DWORD=\\"there\\"'},
        "targets": ["hello"],
        "wait": 60,
        "niceness": 0,
        **more,
    }
    return run_module("cmake_build", **options)


def test_it_is_built_put_in_place_and_then_left_alone(tree: Path) -> None:
    first = ask(tree)
    assert (first["changed"], first["finished"]) == (True, True)
    said = subprocess.run([tree / "opt/1-abc/bin/hello", "x"], capture_output=True, text=True, check=True)
    assert said.stdout == "hello there\n"
    stamp = files.load_json(str(tree / "opt/1-abc" / builds.STAMP))
    assert (stamp["digest"], stamp["inputs"], list(stamp["files"])) == (
        "abc",
        {"version": "1"},
        ["bin/hello"],
    )
    assert not (tree / "build/hello").exists()
    assert names(tree / "opt") == ["1-abc"]
    again = ask(tree)
    assert (again["changed"], again["finished"]) == (False, True)


def test_a_program_that_somebody_cut_short_is_built_again(tree: Path) -> None:
    ask(tree)
    (tree / "opt/1-abc/bin/hello").write_bytes(b"")
    assert ask(tree, check=True)["changed"]
    assert (tree / "opt/1-abc/bin/hello").stat().st_size == 0
    assert ask(tree)["changed"]
    assert (tree / "opt/1-abc/bin/hello").stat().st_size > 0
    assert not ask(tree)["changed"]


def test_check_mode_builds_nothing(tree: Path) -> None:
    assert ask(tree, check=True)["changed"]
    assert not (tree / "build").exists()
    assert not (tree / "opt").exists()


def test_the_first_error_is_named_and_what_is_there_stays(tree: Path) -> None:
    (tree / "opt" / "0-old").mkdir(parents=True)
    (tree / "source" / "main.c").write_text("int main(void) { return nope; }\n")
    with pytest.raises(ModuleFailedError) as caught:
        ask(tree)
    assert "main.c:1:25: error: " in caught.value.result["msg"]
    assert "nope" in caught.value.result["msg"]
    assert "\n" not in caught.value.result["msg"]
    assert Path(caught.value.result["log"]).is_file()
    assert names(tree / "opt") == ["0-old"]
    (tree / "source" / "main.c").write_text(MAIN)
    assert ask(tree)["finished"]


def test_a_program_that_does_not_run_is_not_put_in_place(tree: Path) -> None:
    (tree / "opt" / "0-old").mkdir(parents=True)
    with pytest.raises(ModuleFailedError):
        ask(tree, try_with=[])
    assert "1-abc" not in names(tree / "opt")


def test_a_full_disk_is_said_before_anything_begins(tree: Path) -> None:
    with pytest.raises(ModuleFailedError, match="are free"):
        ask(tree, needs_bytes=1 << 60)
    assert not (tree / "build/hello/build.log").exists()


def slow(tree: Path, **more: Any) -> dict[str, Any]:
    options = {"CMAKE_C_FLAGS": '-DWORD=\\"there\\"', "SLOW": "4"}
    return ask(tree, options=options, **more)


def test_a_call_returns_while_it_goes_on_and_the_last_one_says_changed(tree: Path) -> None:
    calls = [slow(tree, wait=1)]
    while not calls[-1]["finished"]:
        assert len(calls) < 60
        calls.append(slow(tree, wait=1))
    assert len(calls) > 2
    assert any(" of " in call["progress"] for call in calls)
    assert calls[-1]["changed"]
    assert not slow(tree)["changed"]


def workers(tree: Path) -> list[int]:
    """Processes that hold the build's lock or work in its folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode()
            held = [str(handle.readlink()) for handle in (process / "fd").iterdir()]
        except OSError:
            continue
        if int(process.name) != os.getpid() and (
            str(tree / "build") in words or str(tree / "build/hello/lock") in held
        ):
            found.append(int(process.name))
    return found


def test_whatever_is_killed_the_next_call_goes_on(tree: Path) -> None:
    assert not slow(tree, wait=1)["finished"]
    victims = workers(tree)
    assert victims
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    calls = 0
    while not slow(tree, wait=10)["finished"]:
        calls += 1
        assert calls < 10
    assert (tree / "opt/1-abc/bin/hello").exists()


def test_it_ends_itself_when_nobody_asks(tree: Path) -> None:
    options = {"CMAKE_C_FLAGS": '-DWORD=\\"there\\"', "SLOW": "600"}
    assert not ask(tree, options=options, wait=2, patience=2)["finished"]
    end = time.monotonic() + 20
    while workers(tree) and time.monotonic() < end:
        time.sleep(0.2)
    assert workers(tree) == []
    assert not (tree / "opt/1-abc").exists()
