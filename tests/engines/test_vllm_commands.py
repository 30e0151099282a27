"""vLLM's own argument parser, and Ray's, accept every command that the planner can emit for them."""

from __future__ import annotations

import copy
import json
import subprocess
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import yaml

from ansible_collections.dsprov.appliance.plugins.module_utils.planner import plan
from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import (
    catalogue,
    tier_names,
    tier_variables,
)
from ansible_collections.dsprov.appliance.plugins.plugin_utils.requests import request_from
from tests.conftest import ROOT
from tests.lab.artifacts import vllm
from tests.lab.artifacts.common import cache_root

pytestmark = pytest.mark.slow
WISHES: list[dict[str, Any]] = [
    {},
    {"dsprov_parallel": 0},
    {"dsprov_vllm_build": "cpu"},
    {"dsprov_nodes": 2},
    {"dsprov_nodes": 2, "dsprov_placement": "tensor"},
    {"dsprov_nodes": 2, "dsprov_vllm_executor": "ray"},
]


def commands() -> Iterator[tuple[str, ...]]:
    """All machines, alone and in pairs, all tiers and their models' variants; refused plans too."""
    document = yaml.safe_load((ROOT / "tests" / "fixtures" / "cases.yml").read_text(encoding="utf-8"))
    for machine, tier, wish in product(document["machines"].values(), tier_names(), WISHES):
        variables = {**tier_variables(tier), "dsprov_engine": "vllm", "dsprov_require_gpu": False, **wish}
        for variant in catalogue()["models"][variables["dsprov_model"]]["variants"]:
            request, found = request_from({**variables, "dsprov_variant": variant})
            assert request is not None, found
            hosts = {name: copy.deepcopy(machine) for name in "ab"[: 2 if "dsprov_nodes" in wish else 1]}
            made = plan({"schema": 1, "hosts": hosts}, request, catalogue())
            yield from (tuple(row["command"]) for row in made["hosts"] if row["engine"] == "vllm")


def test_vllm_reads_every_command_that_can_be_planned() -> None:
    emitted = [list(words) for words in dict.fromkeys(commands())]
    assert len(emitted) > 30
    flags = {word for words in emitted for word in words if word.startswith("--")}
    assert {"--headless", "--enforce-eager", "--enable-expert-parallel", "--reasoning-parser"} <= flags
    ray = next(words for words in emitted if words[0] == "ray")
    at = ray.index("--")
    # Some that older releases knew, as a proof that it is the parsers which say yes to the others.
    wrong = [
        ["vllm", "serve", "/m", "--served-model-name", "m", "--swap-space", "4"],
        [*ray[: at + 1], "vllm", "serve", "/m", "--served-model-name", "m", "--swap-space", "4"],
        [*ray[:at], "--redis-max-memory", "1", *ray[at:]],
    ]
    python = vllm.build(cache_root(), print).path / "venv" / "bin" / "python"
    done = subprocess.run(
        [python, ROOT / "tests" / "engines" / "parse_vllm.py"],
        input=json.dumps([*emitted, *wrong]),
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "VLLM_NO_USAGE_STATS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert [row["command"] for row in json.loads(done.stdout.splitlines()[-1])] == wrong
