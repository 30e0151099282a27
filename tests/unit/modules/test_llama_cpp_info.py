"""The llama_cpp_info module on this machine, which has no unit of the name it is asked about."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.dsprov.appliance.plugins.module_utils import builds, files
from ansible_collections.dsprov.appliance.plugins.modules import llama_cpp_info
from tests.unit.modules.harness import ModuleFailedError, run_module

COMMAND = ["llama-server", "--model", "/m/a.gguf", "--alias", "a:1b", "--host", "127.0.0.1", "--port", "1"]
COMMAND += ["--ctx-size", "4096", "--metrics", "--offline"]
CUDA = {"version": "13.0.2", "path": "/opt/dsprov/cuda/13.0.2"}


def look(tmp_path: Path, **more: Any) -> dict[str, Any]:
    options: dict[str, Any] = {
        "version": "b1",
        "sha256": "0" * 64,
        "targets": ["llama-server"],
        "prefix": str(tmp_path / "opt"),
        "build_root": str(tmp_path / "build"),
        "unit": "dsprov-no-such.service",
        "command": COMMAND,
        "key_file": str(tmp_path / "key.env"),
    }
    return run_module("llama_cpp_info", **{**options, **more})


def test_a_bare_host_needs_everything(tmp_path: Path) -> None:
    found = look(tmp_path)
    assert not found["build"]["present"]
    assert found["build"]["path"].startswith(f"{tmp_path}/opt/b1-")
    assert found["exec_start"] == f"{tmp_path}/opt/current/bin/{' '.join(COMMAND)}"
    assert (found["builds"], found["leftovers"], found["current"]) == ([], [], "")
    assert (found["unit"]["exists"], found["key_current"], found["preset_text"]) == (False, False, "")


def test_the_digest_is_of_all_that_the_build_depends_on(tmp_path: Path) -> None:
    rows = [
        look(tmp_path),
        look(tmp_path, version="b2"),
        look(tmp_path, sha256="1" * 64),
        look(tmp_path, options={"GGML_OPENMP": "OFF"}),
        look(tmp_path, targets=["llama-server", "llama-bench"]),
        look(tmp_path, cuda=CUDA, capabilities=["8.9"]),
        look(tmp_path, cuda=CUDA, capabilities=["9.0"]),
        look(tmp_path, cuda={**CUDA, "version": "13.1.0"}, capabilities=["8.9"]),
    ]
    assert len({row["build"]["digest"] for row in rows}) == len(rows)
    assert look(tmp_path)["build"]["digest"] == rows[0]["build"]["digest"]


def test_the_cpu_counts_where_code_is_made_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = []
    for flags in ("avx2 fma", "avx2 avx512f fma"):
        monkeypatch.setattr(llama_cpp_info, "isa", lambda flags=flags: flags)
        portable = look(tmp_path, options={"GGML_NATIVE": "OFF"})
        both.append((look(tmp_path)["build"]["digest"], portable["build"]["digest"]))
    assert both[0][0] != both[1][0]
    assert both[0][1] == both[1][1]


def test_code_is_made_for_the_hosts_own_cards_and_no_other(tmp_path: Path) -> None:
    options = look(tmp_path, cuda=CUDA, capabilities=["8.9", "6.1", "12.0"])["build"]["options"]
    assert options["CMAKE_CUDA_ARCHITECTURES"] == "89-real;120-real"
    assert options["CMAKE_CUDA_COMPILER"] == "/opt/dsprov/cuda/13.0.2/bin/nvcc"
    assert options["CMAKE_INSTALL_RPATH"] == "$ORIGIN;/opt/dsprov/cuda/13.0.2/lib"
    assert "GGML_CUDA" not in look(tmp_path)["build"]["options"]


@pytest.mark.parametrize("capabilities", [["6.1"], []])
def test_cards_that_are_too_old_are_refused(tmp_path: Path, capabilities: list[str]) -> None:
    with pytest.raises(ModuleFailedError, match=r"compute capability 7\.0 and later") as caught:
        look(tmp_path, cuda=CUDA, capabilities=capabilities)
    assert "set llama_cpp_backend to cpu" in caught.value.result["msg"]


def test_a_taken_port_names_the_process(tmp_path: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        command = [*COMMAND, "--port", str(port)]  # The last one counts, as for the server.
        with pytest.raises(ModuleFailedError, match=f"port {port} is taken by py"):
            look(tmp_path, command=command)
        assert look(tmp_path, command=command, purpose="remove")["changed"] is False


def test_a_missing_model_is_named_unless_it_is_still_to_come(tmp_path: Path) -> None:
    assert look(tmp_path, weights_follow=True)
    with pytest.raises(ModuleFailedError, match=r"/m/a\.gguf: the model's file is not there"):
        look(tmp_path, weights_follow=False)


def test_a_service_that_does_not_run_is_not_verified(tmp_path: Path) -> None:
    with pytest.raises(ModuleFailedError, match="does not run"):
        look(tmp_path, purpose="verify")


def test_a_build_that_was_touched_is_none(tmp_path: Path) -> None:
    build = look(tmp_path)["build"]
    program = Path(build["path"], "bin", "llama-server")
    program.parent.mkdir(parents=True)
    program.write_text("x")
    stamp = {"digest": build["digest"], "files": files.list_tree(build["path"], builds.STAMP)}
    files.dump_json(str(Path(build["path"], builds.STAMP)), stamp)
    (tmp_path / "build" / "b1-00000000").mkdir(parents=True)
    found = look(tmp_path)
    assert found["build"]["present"]
    assert found["leftovers"] == [f"{tmp_path}/build/b1-00000000"]
    program.write_text("xx")
    found = look(tmp_path)
    assert not found["build"]["present"]
    # What a build may go on from is nothing to clear up.
    assert found["leftovers"] == []


def test_several_models_are_described_in_a_file_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    other = {"name": "b:2b", "path": str(tmp_path / "b.gguf"), "settings": {"ctx-size": 1024}}
    found = look(tmp_path, models=[other], preset="/etc/x.ini", models_max=3)
    assert found["command"] == [
        *("llama-server", "--host", "127.0.0.1", "--port", "1", "--metrics", "--offline"),
        *("--models-preset", "/etc/x.ini", "--models-max", "3"),
    ]
    sections = [part.splitlines() for part in found["preset_text"].split("\n\n")[1:]]
    assert sections == [
        ["[a-1b]", "alias = a:1b", "load-on-startup = true", "model = /m/a.gguf", "ctx-size = 4096"],
        ["[b-2b]", "alias = b:2b", f"model = {tmp_path}/b.gguf", "ctx-size = 1024"],
    ]


@pytest.mark.parametrize(
    ("name", "path", "words"),
    [("a:1b", "b.gguf", "a:1b is there twice"), ("c:1b", "none.gguf", "none.gguf: the model's file")],
)
def test_models_that_cannot_be_served_are_refused(tmp_path: Path, name: str, path: str, words: str) -> None:
    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModuleFailedError, match=words):
        look(tmp_path, models=[{"name": name, "path": str(tmp_path / path)}])
