"""What a probe makes of the record that an install left, whichever release wrote it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.dsprov.appliance.plugins.modules import probe
from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import check, facts_schema
from tests.fixtures.machines import facts

ROW = {
    "model": "smollm2:135m",
    "base_url": "http://127.0.0.1:11435/v1",
    "api_key_file": "/etc/dsprov/secrets/llama-server-api-key",
    "service": {"name": "llama_cpp", "unit": "dsprov-llama-server.service"},
    "gpu_bytes_per_device": [],
    "host_bytes": 1590908160,
}
GONE = {**ROW, "service": {"name": "ollama", "unit": "ollama.service"}}


@pytest.mark.parametrize(
    ("record", "engines"),
    [
        (
            {"engine": "llama_cpp", "engines": {"llama_cpp": ROW, "ollama": ROW}},
            {"llama_cpp": ROW, "ollama": ROW},
        ),
        # Taken away by hand, or by its role: nobody writes that down.
        ({"engine": "llama_cpp", "engines": {"llama_cpp": ROW, "ollama": GONE}}, {"llama_cpp": ROW}),
        # A release that knew of one engine alone.
        ({"engine": "ollama", "model": "smollm2:135m", "disk_bytes": 7}, {"ollama": {}}),
        ({}, None),
        ({"engine": "ollama", "engines": ["ollama"]}, None),
        (["no", "record"], None),
    ],
)
def test_engines_of_a_record(
    record: Any, engines: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.json"
    path.write_text(json.dumps(record), encoding="utf-8")
    (tmp_path / "dsprov-llama-server.service").touch()
    monkeypatch.setattr(probe, "UNIT_ROOTS", (str(tmp_path),))
    monkeypatch.setattr(probe, "STATE", str(path))
    monkeypatch.setattr(probe, "MODELS", str(tmp_path / "models"))
    found = probe.recorded()
    assert found.get("installed_engines") == engines
    # What is read of a host can be written to a file and planned from.
    check(facts(**found), facts_schema(), None, "facts.yml")
