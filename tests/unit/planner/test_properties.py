"""What must hold for every machine, not only for those somebody thought of."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.dsprov.appliance.plugins.module_utils import beside
from ansible_collections.dsprov.appliance.plugins.module_utils.planner import Request, plan
from ansible_collections.dsprov.appliance.plugins.module_utils.problems import ProblemError
from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import (
    catalogue,
    check,
    facts_schema,
)
from tests.fixtures.machines import GB, GIB, machine

MEMORY = st.integers(min_value=1, max_value=2048 * GIB)
gpus = st.lists(
    st.fixed_dictionaries(
        {
            "vendor": st.sampled_from(["nvidia", "nvidia", "nvidia", "amd"]),
            "name": st.just("card"),
        },
        optional={
            "memory_bytes": st.integers(0, 200 * GIB) | st.sampled_from([24 * GIB, 80 * GIB, 141 * GIB]),
            "count": st.integers(1, 8),
            "compute_capability": st.sampled_from(["7.0", "8.0", "8.9", "9.0"]),
            "driver_version": st.sampled_from([None, "580.95.05"]),
        },
    ),
    max_size=4,
)
hosts = st.builds(
    lambda **keys: machine(**keys),
    memory_bytes=MEMORY,
    gpus=gpus,
    disks=st.just([]) | st.integers(0, 9000 * GB).map(lambda free: [{"mount": "/", "free_bytes": free}]),
    delivered_bytes=st.integers(0, 30 * GB),
    # What stands there counts where it is to stay.
    installed_engines=st.just({})
    | st.dictionaries(
        st.sampled_from(sorted(catalogue()["engines"])),
        st.fixed_dictionaries(
            {"model": st.just("other"), "host_bytes": st.integers(0, 64 * GIB)},
            optional={"gpu_bytes_per_device": st.lists(st.integers(0, 80 * GIB), max_size=4)},
        ),
        max_size=2,
    ),
)
WISHES = [
    (name, variant)
    for name, row in sorted(catalogue()["models"].items())
    for variant in ("auto", *row["variants"])
]
requests = st.builds(
    lambda wish, **keys: Request(model=wish[0], variant=wish[1], **keys),
    st.sampled_from(WISHES),
    tier=st.just("custom"),
    engine=st.sampled_from(["auto", *catalogue()["engines"]]),
    placement=st.sampled_from(["auto", "auto", "layers", "experts", "fit"]),
    context_length=st.sampled_from([2048, 8192, 131072]) | st.integers(256, 140_000),
    parallel=st.integers(0, 64),
    kv_cache_type=st.sampled_from(["auto", "auto", "f16", "q8_0", "q4_0"]),
    require_gpu=st.booleans(),
    beside=st.booleans(),
    web_ui=st.booleans(),
)
EXAMPLES = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@EXAMPLES
@given(host=hosts, request=requests)
def test_a_run_again_plans_what_the_first_one_did(host: dict[str, Any], request: Request) -> None:
    """What a plan adds to the engines of a host does not count against itself."""
    first = plan_one(host, request)
    if not first["ok"]:
        return
    (row,) = first["hosts"]
    stays = {**row["beside"], row["engine"]: {"model": row["model"], **row["memory"]}}
    assert plan_one({**host, "installed_engines": stays}, request)["hosts"] == first["hosts"]


@EXAMPLES
@given(
    host=hosts,
    engines=st.permutations(["ollama", "llama_cpp", "vllm"]),
    models=st.tuples(*[st.sampled_from(["deepseek-r1:1.5b", "deepseek-r1:7b", "deepseek-r1:32b"])] * 2),
)
def test_engines_that_share_a_host_take_nothing_from_each_other(
    host: dict[str, Any], engines: list[str], models: tuple[str, str]
) -> None:
    """One, another beside it, then each of them again: both stay what they were."""
    wishes = [
        Request(tier="basic", engine=engine, model=model, parallel=parallel, beside=True)
        for engine, model, parallel in zip(engines, models, (0, 1), strict=False)
    ]
    stays: dict[str, Any] = {}
    made = []
    for wish in [*wishes, *wishes]:
        planned = plan_one({**host, "delivered_bytes": 0, "disks": [], "installed_engines": stays}, wish)
        if not planned["ok"]:
            assert len(made) < 2, planned["problems"]
            return
        (row,) = planned["hosts"]
        made.append([row[key] for key in ("engine", "weights", "placement", "context", "memory", "command")])
        stays = {**row["beside"], row["engine"]: {"model": row["model"], **row["memory"]}}
    assert made[2:] == made[:2]


def plan_one(host: dict[str, Any], request: Request) -> dict[str, Any]:
    return plan({"schema": 1, "hosts": {"h": host}}, request, catalogue())


@EXAMPLES
@given(host=hosts, request=requests)
def test_a_plan_that_is_ok_stays_within_the_machine(host: dict[str, Any], request: Request) -> None:
    made = plan_one(host, request)
    if not made["ok"]:
        assert any(problem["severity"] == "error" for problem in made["problems"])
        return
    (row,) = made["hosts"]
    memory, stays = row["memory"], row["beside"]
    assert set(stays) == (host["installed_engines"].keys() - {row["engine"]} if request.beside else set())
    assert memory["host_bytes"] + beside.taken_on_host(stays) <= host["memory_bytes"]
    for disk in host["disks"]:
        assert memory["disk_bytes"] - host["delivered_bytes"] <= disk["free_bytes"]
    cards = [
        card["memory_bytes"]
        for card in host["gpus"]
        for _ in range(card.get("count", 1))
        if card["vendor"] == "nvidia" and card.get("memory_bytes")
    ]
    assert len(memory["gpu_bytes_per_device"]) == len(cards)
    needs = [
        sum(sizes)
        for sizes in zip_longest(memory["gpu_bytes_per_device"], beside.taken_on_cards(stays), fillvalue=0)
    ]
    used = [size > 0 for size in memory["gpu_bytes_per_device"]]
    assert all(need <= have for need, have, use in zip(needs, cards, used, strict=False) if use)
    place = row["placement"]
    assert 0 <= place["gpu_layers"] <= place["total_layers"]
    assert row["context"]["parallel"] >= max(1, request.parallel)
    if row["engine"] in ("ollama", "llama_cpp"):
        # What is not on the cards is in memory: nothing of the model is lost.
        weights, cache = row["weights"]["bytes"], row["context"]["kv_bytes_per_token"]
        total = weights + cache * request.context_length * row["context"]["parallel"]
        assert memory["host_bytes"] + sum(memory["gpu_bytes_per_device"]) >= total


@EXAMPLES
@given(host=hosts, request=requests, more=st.integers(0, 512 * GIB), card=st.integers(0, 80 * GIB))
def test_more_never_makes_a_plan_infeasible(
    host: dict[str, Any], request: Request, more: int, card: int
) -> None:
    if not plan_one(host, request)["ok"]:
        return
    richer = {**host, "memory_bytes": host["memory_bytes"] + more}
    assert plan_one(richer, request)["ok"]
    another = {"vendor": "nvidia", "name": "card", "memory_bytes": card}
    assert plan_one({**host, "gpus": [*host["gpus"], another]}, request)["ok"]
    larger = [
        {**gpu, "memory_bytes": gpu["memory_bytes"] + card} if gpu.get("memory_bytes") else gpu
        for gpu in host["gpus"]
    ]
    assert plan_one({**host, "gpus": larger}, request)["ok"]
    roomier = [{**disk, "free_bytes": disk["free_bytes"] + more} for disk in host["disks"]]
    assert plan_one({**host, "disks": roomier}, request)["ok"]


@EXAMPLES
@given(host=hosts, request=requests)
def test_a_remedy_that_names_settings_helps(host: dict[str, Any], request: Request) -> None:
    for problem in plan_one(host, request)["problems"]:
        found = re.findall(r"dsprov_(\w+)=([\w.-]+)", problem["remedy"]["en"])
        if problem["severity"] != "error" or not found:
            continue
        change: dict[str, Any] = {
            key: int(value) if value.isdecimal() else {"true": True, "false": False}.get(value, value)
            for key, value in found
        }
        if any(key not in Request.__dataclass_fields__ for key in change):
            continue
        mended = plan_one(host, replace(request, **change))
        assert mended["ok"], (problem["remedy"]["en"], mended["problems"])


@EXAMPLES
@given(rows=st.dictionaries(st.text(min_size=1, max_size=8), hosts, min_size=1, max_size=4), request=requests)
def test_same_input_same_bytes(rows: dict[str, Any], request: Request) -> None:
    def text(document: dict[str, Any]) -> str:
        return json.dumps(plan({"schema": 1, "hosts": document}, request, catalogue()), ensure_ascii=False)

    backwards = dict(reversed(rows.items()))
    assert text(rows) == text(backwards) == text(json.loads(json.dumps(rows)))


# -- broken facts --------------------------------------------------------------------------------

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["x86_64", "nvidia", "debian", 10**400, -1, 8.0, "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


def paths(document: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document."""
    rows: Any = ()
    if isinstance(document, dict):
        rows = document.items()
    elif isinstance(document, list):
        rows = enumerate(document)
    return [here, *(path for key, value in rows for path in paths(value, (*here, key)))]


def whole() -> dict[str, Any]:
    """A facts document with every key the schema knows."""
    host = machine(
        os={"id": "debian", "version_id": "12", "codename": "bookworm", "arch": "x86_64", "kernel": "6.1"},
        gpus=[
            {
                "vendor": "nvidia",
                "name": "card",
                "memory_bytes": 24 * GIB,
                "compute_capability": "8.9",
                "driver_version": None,
                "pci_id": "2684",
                "count": 2,
            }
        ],
        docker={"version": None},
        nvswitch=False,
        secure_boot=None,
        nouveau=False,
        python="3.11.2",
        clock_skew_seconds=0.5,
        places={
            "pypi_index": {"https://pypi.org/simple": None, "https://mirrors.aliyun.com/pypi/simple": 3.0}
        },
        listeners=[{"port": 22, "address": "::", "process": "sshd", "pid": 1, "owner": None}],
        delivered_bytes=0,
        installed_engines={
            "vllm": {
                "model": "other",
                "gpu_bytes_per_device": [GIB],
                "host_bytes": GIB,
                "base_url": "http://127.0.0.1:11436/v1",
                "api_key_file": "/etc/key",
                "service": {"name": "vllm"},
            }
        },
    )
    return {"schema": 1, "hosts": {"gpu01": host}}


def replaced(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with one place holding something else."""
    if not path:
        return value
    copied = dict(document) if isinstance(document, dict) else list(document)
    copied[path[0]] = replaced(document[path[0]], path[1:], value)
    return copied


def plan_or_refuse(document: Any) -> None:
    """As `dsprov plan --facts` does: the schema, then the planner. Anything but a named problem fails."""
    try:
        check(document, facts_schema(), None, "facts.yml")
    except ProblemError as error:
        assert error.exit_code == 2
        assert "facts.yml" in error.problem["message"]["en"]
        return
    if document["hosts"]:
        made = plan(document, Request("demo", "smollm2:135m", channel="auto", beside=True), catalogue())
        json.dumps(made)


@settings(max_examples=400, deadline=None)
@given(path=st.sampled_from(paths(whole())), value=values)
def test_facts_with_one_wrong_value_end_in_words(path: tuple[Any, ...], value: Any) -> None:
    plan_or_refuse(replaced(whole(), path, value))


@settings(max_examples=150, deadline=None)
@given(document=values)
def test_facts_of_any_shape_end_in_words(document: Any) -> None:
    plan_or_refuse(document)


@pytest.mark.parametrize("path", [path for path in paths(whole()) if path], ids=str)
@pytest.mark.parametrize(
    "value",
    [None, 8.0, "8", -1, [], {}, True, float("nan"), 10**400],
    ids=lambda value: str(value)[:8],
)
def test_facts_with_a_value_of_the_wrong_kind_end_in_words(path: tuple[Any, ...], value: Any) -> None:
    plan_or_refuse(replaced(whole(), path, value))
