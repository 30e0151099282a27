"""The planner against the real llama-server, and the catalogue against the header of a real model."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ansible_collections.dsprov.appliance.plugins.module_utils import gguf, sizing
from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import catalogue
from tests.conftest import ROOT
from tests.lab.artifacts import cache_root, measuring

pytestmark = pytest.mark.slow


def test_what_is_planned_is_what_llama_server_reports() -> None:
    done = subprocess.run([ROOT / "bench" / "plan_accuracy", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "DeepSeek-R1-Distill-Qwen" in done.stdout
    assert "refuses" not in done.stdout


def test_the_catalogues_7b_is_the_real_one_to_the_byte(tmp_path: Path) -> None:
    header = measuring.real_header(cache_root(), print)
    path = measuring.with_a_hole(header, tmp_path)
    _name, variant_name, model = gguf.model_of(gguf.read(str(path)), str(path))
    known = catalogue()["models"]["deepseek-r1:7b"]
    for key in ("parameters", "attention", "feed_forward", "vocabulary", "context_limit", "tied_embeddings"):
        assert model[key] == known[key], key
    real, ours = model["variants"][variant_name], known["variants"][variant_name]
    assert sizing.weights_of(real) == sizing.weights_of(ours)
    # unsloth's header is 256 bytes shorter than that of the catalogue's file.
    assert ours["bytes"] - real["bytes"] == 256
