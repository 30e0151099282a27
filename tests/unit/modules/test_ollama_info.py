"""The ollama_info module on this machine, which has no unit of the name it is asked about."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.dsprov.appliance.plugins.modules import ollama_info
from tests.unit.modules.harness import ModuleFailedError, run_module

UNIT = "dsprov-no-such-unit.service"


def look(tmp_path: Path, **more: Any) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"OLLAMA_HOST": f"127.0.0.1:{port}", **more.pop("environment", {})}
    options: dict[str, Any] = {
        "version": "0.32.7",
        "arch": os.uname().machine,
        "user": "dsprov-no-such-user",
        "unit": UNIT,
        "home": str(tmp_path / "home"),
        "new_models_dir": str(tmp_path / "models"),
        "prefix": str(tmp_path / "prefix"),
        "receipts_dir": str(tmp_path / "receipts"),
        "sources_dir": str(tmp_path / "sources"),
        "environment": environment,
    }
    return run_module("ollama_info", **options, **more)


def test_a_bare_host(tmp_path: Path) -> None:
    found = look(tmp_path, environment={"OLLAMA_FLASH_ATTENTION": True, "OLLAMA_ORIGINS": []})
    assert not found["changed"]
    assert found["unit"]["exists"] is False
    assert found["models_dir"] == str(tmp_path / "models")
    assert found["home"] == str(tmp_path / "home")
    assert found["versions"] == []
    assert found["environment"]["OLLAMA_FLASH_ATTENTION"] == "1"
    assert '"OLLAMA_FLASH_ATTENTION=1"' in found["assignments"]
    assert "OLLAMA_ORIGINS" not in found["environment"]


def test_versions_in_their_order(tmp_path: Path) -> None:
    for name in ("0.9.6", "0.32.7", "0.10.0", "not-a-version"):
        (tmp_path / "prefix" / name).mkdir(parents=True)
    (tmp_path / "prefix" / "current").symlink_to("0.10.0")
    found = look(tmp_path)
    assert found["versions"] == ["0.9.6", "0.10.0", "0.32.7"]
    assert found["current"] == "0.10.0"


def test_models_to_be_made_and_their_files(tmp_path: Path) -> None:
    artifact = {"name": "a.gguf", "sha256": "ab", "sources": ["https://x/a.gguf"]}
    found = look(tmp_path, models=[{"name": "a:1", "artifacts": [artifact]}, {"name": "b", "tag": "a:1"}])
    assert found["wanting"] == ["a:1", "b:latest"]
    assert [row["dest"] for row in found["fetch"]] == [str(tmp_path / "sources" / "a.gguf")]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"environment": {"OLLAMA_KEEPALIVE": "1h"}}, "did you mean OLLAMA_KEEP_ALIVE?"),
        ({"arch": "s390x"}, "the archive is for s390x"),
        (
            {"models": [{"name": "a", "tag": "b", "parameters": {"temprature": 1}}]},
            "did you mean temperature?",
        ),
    ],
)
def test_refused_before_anything_changes(tmp_path: Path, more: dict[str, Any], words: str) -> None:
    if "arch" in more:
        with pytest.raises(ModuleFailedError) as failed:
            run_module("ollama_info", version="0.32.7", unit=UNIT, user="dsprov-no-such-user", **more)
    else:
        with pytest.raises(ModuleFailedError) as failed:
            look(tmp_path, **more)
    assert words in str(failed.value)


def test_a_port_that_is_taken_is_named_with_its_process(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert ollama_info.listener(port)[0] == os.getpid()
        with pytest.raises(ModuleFailedError, match=rf"port {port} is taken by .*process {os.getpid()}"):
            look(tmp_path, environment={"OLLAMA_HOST": f"127.0.0.1:{port}"})
