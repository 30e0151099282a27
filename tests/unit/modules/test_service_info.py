"""The service_info module on this machine: what it finds, and what it refuses."""

from __future__ import annotations

import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.dsprov.appliance.plugins.module_utils import builds, files, units
from ansible_collections.dsprov.appliance.plugins.modules import service_info
from tests.unit.modules.harness import ModuleFailedError, run_module

PYTHON = ".".join(map(str, sys.version_info[:2]))
VENV = {"release": "1.0-abc", "stamp": "abc", "python": sys.executable, "pythons": [PYTHON]}


@pytest.fixture
def wanted(tmp_path: Path) -> dict[str, Any]:
    """What the module is asked for, and gets."""
    return {
        "title": "Tiny 1.0",
        "role": "tiny",
        "prefix": str(tmp_path / "tiny"),
        "venv": VENV,
        "unit": "dsprov-no-such.service",
        "command": ["python", "-m", "tiny", "50%", "$HOME", "two words"],
        "ports": [1],
    }


def refusal(**options: Any) -> str:
    with pytest.raises(ModuleFailedError) as failed:
        run_module("service_info", **options)
    return str(failed.value.result["msg"])


def whole(wanted: dict[str, Any]) -> Path:
    """Put a whole environment where it is looked for."""
    folder = Path(wanted["prefix"]) / VENV["release"]
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").touch()
    (folder / ".dsprov-stamp").write_text(f"abc {PYTHON}\n", encoding="utf-8")
    return folder


def test_what_is_removed_needs_no_command(wanted: dict[str, Any]) -> None:
    found = run_module("service_info", **{**wanted, "command": [], "purpose": "remove"})
    assert found["exec_start"] == ""


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
    assert run_module("service_info", **{**wanted, "venv": {**VENV, "stamp": "def"}})["present"] is False
    (folder / "bin" / "python").unlink()
    assert run_module("service_info", **wanted)["present"] is False


def test_all_that_stands_in_the_way_is_named_at_once(wanted: dict[str, Any], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = refusal(
            **{
                **wanted,
                "venv": {
                    **VENV,
                    "pythons": ["3.98", "3.99"],
                    "glibc": "2.999",
                    "install_bytes": 10**18,
                },
                "ports": [1, port],
                "folders": [str(tmp_path), str(tmp_path / "weights")],
                "files": [str(tmp_path), __file__],
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
    assert message.count("this file is not there") == 1
    assert run_module("service_info", **{**wanted, "purpose": "remove", "ports": [port]})


def test_units_beside_the_service_are_told(wanted: dict[str, Any]) -> None:
    found = run_module("service_info", **wanted, beside=["dsprov-neither.service"])
    assert list(found["beside"]) == ["dsprov-neither.service"]
    assert found["beside"]["dsprov-neither.service"]["exists"] is False


def test_what_is_there_needs_no_room(wanted: dict[str, Any]) -> None:
    whole(wanted)
    venv = {**VENV, "install_bytes": 10**18}
    assert run_module("service_info", **{**wanted, "venv": venv})["present"] is True


def test_a_python_that_comes_with_this_run_is_not_refused(wanted: dict[str, Any]) -> None:
    venv = {**VENV, "pythons": ["3.99"], "python_follows": True}
    found = run_module("service_info", **{**wanted, "venv": venv})
    assert found["python"]["path"] == ""
    assert found["stamp"] == ""
    assert found["present"] is False


def test_a_service_that_does_not_run_is_not_verified(wanted: dict[str, Any]) -> None:
    (whole(wanted).parent / "current").symlink_to("1.0-abc")
    assert "dsprov-no-such.service does not run" in refusal(**wanted, purpose="verify")
    assert run_module("service_info", **wanted, purpose="remove")["present"] is True


@pytest.mark.parametrize("more", [{}, {"venv": VENV, "build": {"version": "1", "inputs": {}, "root": "/x"}}])
def test_software_is_of_one_kind(wanted: dict[str, Any], more: dict[str, Any]) -> None:
    del wanted["venv"]
    assert "venv" in refusal(**wanted, **more)


class Served:
    """A process that stands in for a service's, with systemd's answers about it."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(command, env=environment)

    def unit(self, name: str) -> units.Unit:
        return units.Unit(exists=True, ours=True, active=True, pid=self.process.pid)


@pytest.fixture
def built(tmp_path: Path) -> dict[str, Any]:
    """What is asked of software that is built on the host, whose only program sleeps."""
    build = {"version": "b1", "inputs": {"sha256": "0" * 64}, "root": str(tmp_path / "build")}
    wanted = {
        "title": "Sleep b1",
        "role": "sleep",
        "prefix": str(tmp_path / "opt"),
        "build": build,
        "unit": "dsprov-no-such.service",
        "command": ["sleep", "600"],
        "environment": {"MODE": 1},
        "key_file": str(tmp_path / "key.env"),
    }
    found = run_module("service_info", **wanted)
    folder = Path(found["build"]["path"])
    (folder / "bin").mkdir(parents=True)
    shutil.copy2("/bin/sleep", folder / "bin" / "sleep")
    stamp = {"digest": found["build"]["digest"], "files": files.list_tree(str(folder), builds.STAMP)}
    files.dump_json(str(folder / builds.STAMP), stamp)
    (folder.parent / "current").symlink_to(folder.name)
    (tmp_path / "key.env").write_text("KEY=abc\n", encoding="utf-8")
    return wanted


def test_a_build_is_known_by_all_that_it_depends_on(built: dict[str, Any]) -> None:
    def look(**more: Any) -> dict[str, Any]:
        return run_module("service_info", **{**built, "build": {**built["build"], **more}})

    first = look()
    assert first["present"]
    assert first["release"].startswith("b1-")
    assert (first["release"], [first["release"]]) == (first["current"], first["releases"])
    others = [look(version="b2"), look(inputs={"sha256": "1" * 64}), look(native=False)]
    assert len({row["build"]["digest"] for row in [first, *others]}) == 4
    assert not any(row["present"] for row in others)


def test_the_cpu_counts_where_code_is_made_for_it(
    built: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    both = []
    for flags in ("avx2 fma", "avx2 avx512f fma"):
        monkeypatch.setattr(service_info.builds, "isa", lambda _text, flags=flags: flags)
        portable = {**built, "build": {**built["build"], "native": False}}
        rows = [run_module("service_info", **one)["build"] for one in (built, portable)]
        both.append((rows[0]["digest"], rows[1]["digest"], rows[1]["isa"]))
    assert both[0][0] != both[1][0]
    assert both[0][1:] == both[1][1:]
    assert both[0][2] == ""


def test_a_build_that_was_touched_is_none(built: dict[str, Any]) -> None:
    (Path(built["build"]["root"]) / "b1-00000000").mkdir(parents=True)
    found = run_module("service_info", **built)
    assert found["present"]
    assert found["build"]["leftovers"] == [f"{built['build']['root']}/b1-00000000"]
    with Path(found["build"]["path"], "bin", "sleep").open("ab") as file:
        file.write(b"x")
    found = run_module("service_info", **built)
    assert not found["present"]
    # What a build may go on from is nothing to clear up.
    assert found["build"]["leftovers"] == []


@pytest.fixture
def serve(built: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Makes a process the service's own: the built program with other words or settings."""
    running: list[Served] = []
    release = run_module("service_info", **built)["build"]["path"]

    def start(program: str = f"{release}/bin/sleep", words: str = "600", **environment: str) -> None:
        served = Served([program, words], {"MODE": "1", "KEY": "abc", "DSPROV_DIGEST": "d", **environment})
        running.append(served)
        monkeypatch.setattr(service_info.units.Unit, "read", served.unit)

    yield start
    for served in running:
        served.process.kill()
        served.process.wait()


def test_what_runs_as_wanted_is_verified(built: dict[str, Any], serve: Callable[..., None]) -> None:
    serve()
    found = run_module("service_info", **built, purpose="verify")
    assert (found["key_current"], found["process_digest"]) == (True, "d")
    assert found["exe"] == f"{found['build']['path']}/bin/sleep"


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"program": "/bin/sleep"}, "not the build"),
        ({"words": "599"}, "runs as '599' and not as planned"),
        ({"MODE": "2"}, "MODE is '2', not 1"),
    ],
)
def test_what_runs_otherwise_is_named(
    built: dict[str, Any], serve: Callable[..., None], other: dict[str, str], says: str
) -> None:
    serve(**other)
    assert says in refusal(**built, purpose="verify")


def test_a_release_that_is_not_in_use_is_not_verified(
    built: dict[str, Any], serve: Callable[..., None]
) -> None:
    serve()
    Path(built["prefix"], "current").unlink()
    assert "is not what is in use" in refusal(**built, purpose="verify")


def test_a_key_that_changed_since_the_start_is_seen(
    built: dict[str, Any], serve: Callable[..., None]
) -> None:
    serve()
    Path(built["key_file"]).write_text("KEY=other\n", encoding="utf-8")
    assert not run_module("service_info", **built)["key_current"]
    Path(built["key_file"]).unlink()
    assert not run_module("service_info", **built)["key_current"]
    del built["key_file"]
    assert run_module("service_info", **built)["key_current"]


def test_texts_are_told_for_the_way_back(built: dict[str, Any], tmp_path: Path) -> None:
    there, away = tmp_path / "there", tmp_path / "away"
    there.write_text("so\n", encoding="utf-8")
    found = run_module("service_info", **built, texts=[str(there), str(away)])
    assert found["texts"] == {str(there): "so\n", str(away): ""}
