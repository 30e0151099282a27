"""What is known to work plans ok, as it was seen to; what is known to fail is refused, with a way out."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import yaml

from ansible_collections.dsprov.appliance.plugins.module_utils.planner import plan
from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import (
    catalogue,
    check,
    facts_schema,
    tier_variables,
)
from ansible_collections.dsprov.appliance.plugins.plugin_utils.requests import request_from
from tests.conftest import ROOT

DOCUMENT = yaml.safe_load((ROOT / "tests" / "fixtures" / "cases.yml").read_text(encoding="utf-8"))
CASES: list[dict[str, Any]] = DOCUMENT["cases"]
WORKING = [case for case in CASES if case["expect"]["ok"]]
REFUSED = [case for case in CASES if not case["expect"]["ok"]]


def facts_of(case: dict[str, Any], patches: dict[str, Any] | None = None) -> dict[str, Any]:
    hosts = {}
    for name, row in case["hosts"].items():
        host = copy.deepcopy(DOCUMENT["machines"][row["machine"]])
        hosts[name] = {**host, **row.get("patch", {}), **(patches or {}).get(name, {})}
    facts = {"schema": 1, "hosts": hosts}
    check(facts, facts_schema(), None, case["name"])
    return facts


def plan_case(
    case: dict[str, Any], patches: dict[str, Any] | None = None, tier: str | None = None, **overrides: Any
) -> dict[str, Any]:
    variables = {**tier_variables(tier or case["tier"]), **({} if tier else case["overrides"]), **overrides}
    request, found = request_from(variables)
    assert request is not None, found
    return plan(facts_of(case, patches), request, catalogue())


def errors(made: dict[str, Any]) -> list[dict[str, Any]]:
    return [problem for problem in made["problems"] if problem["severity"] == "error"]


def capacity(facts: dict[str, Any], name: str) -> list[int]:
    return [gpu["memory_bytes"] for gpu in facts["hosts"][name].get("gpus", []) for _ in range(gpu["count"])]


@pytest.mark.parametrize("case", WORKING, ids=lambda case: case["name"])
def test_what_works_plans_ok(case: dict[str, Any]) -> None:
    expect = case["expect"]
    made = plan_case(case)
    assert made["ok"], errors(made)
    facts = facts_of(case)
    assert [row["name"] for row in made["hosts"]] == sorted(case["hosts"])
    for row in made["hosts"]:
        place, memory, context = row["placement"], row["memory"], row["context"]
        host = facts["hosts"][row["name"]]
        assert memory["host_bytes"] <= host["memory_bytes"]
        assert memory["disk_bytes"] <= host["disks"][0]["free_bytes"]
        for used, there in zip(memory["gpu_bytes_per_device"], capacity(facts, row["name"]), strict=True):
            assert used <= there
        assert row["model"] == expect.get("model", row["model"])
        assert row["engine"] in expect.get("engine_in", [expect.get("engine", row["engine"])])
        assert row["weights"]["variant"] == expect.get("variant", row["weights"]["variant"])
        for key in (
            "strategy",
            "gpu_layers",
            "total_layers",
            "tensor_parallel",
            "pipeline_parallel",
            "nodes",
        ):
            assert place[key] == expect.get(key, place[key]), key
        assert place["gpu_layers"] >= expect.get("gpu_layers_min", 0)
        assert context["parallel"] >= expect.get("parallel_min", 1)
        assert context["kv_bytes_per_token"] == expect.get(
            "kv_bytes_per_token", context["kv_bytes_per_token"]
        )
        assert max(memory["gpu_bytes_per_device"], default=0) >= expect.get("gpu_bytes_min", 0)
        assert max(memory["gpu_bytes_per_device"], default=0) <= expect.get("gpu_bytes_max", 1 << 60)
        assert memory["host_bytes"] >= expect.get("host_bytes_min", 0)
        assert row["role"] == expect.get("roles", {}).get(row["name"], "single")
        assert row["command"]
    if "devices_total" in expect:
        used = [size for row in made["hosts"] for size in row["memory"]["gpu_bytes_per_device"] if size]
        assert len(used) == expect["devices_total"]
    if "warning" in expect:
        assert expect["warning"] in [problem["code"] for problem in made["problems"]]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case["name"])
def test_what_fails_is_refused_and_its_remedy_plans_ok(case: dict[str, Any]) -> None:
    made = plan_case(case)
    assert not made["ok"]
    assert case["expect"]["code"] in [problem["code"] for problem in errors(made)]
    remedy = case["remedy"]
    mended = plan_case(case, remedy.get("patch"), remedy.get("tier"), **remedy.get("overrides", {}))
    assert mended["ok"], errors(mended)


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case["name"])
def test_the_remedy_that_is_said_plans_ok(case: dict[str, Any]) -> None:
    """Where a remedy says "set dsprov_x=y", doing just that helps."""
    made = plan_case(case)
    said = 0
    for problem in errors(made):
        for language in ("en", "zh"):
            settings = dict(re.findall(r"(dsprov_\w+)=([\w.-]+)", problem["remedy"][language]))
            if settings:
                said += 1
                mended = plan_case(case, **settings)
                assert mended["ok"], (settings, errors(mended))
    wanted = "patch" not in case["remedy"]
    assert said or not wanted
