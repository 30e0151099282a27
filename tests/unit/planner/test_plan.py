"""Plans as tables: which machine, which wishes, what comes of it."""

from __future__ import annotations

import copy
import ipaddress
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from ansible_collections.dsprov.appliance.plugins.module_utils import commands, planner
from ansible_collections.dsprov.appliance.plugins.module_utils.planner import Request, digest, plan
from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import (
    catalogue,
    tier_variables,
    with_models,
)
from ansible_collections.dsprov.appliance.plugins.plugin_utils.requests import request_from
from tests.fixtures.machines import GB, GIB, cards, facts, machine
from tests.lab.artifacts import tiny


def request_for(tier: str, **overrides: Any) -> Request:
    """A tier's request, with `dsprov_*` variables over it as an inventory has them."""
    given = {f"dsprov_{key}": value for key, value in overrides.items()}
    request, found = request_from({**tier_variables(tier), **given})
    assert request is not None, found
    return request


def codes(made: dict[str, Any]) -> list[str]:
    return sorted(problem["code"] for problem in made["problems"])


def make(tier: str, host: dict[str, Any], driver: Any = (), **overrides: Any) -> dict[str, Any]:
    request = replace(request_for(tier, **overrides), driver=driver)
    return plan({"schema": 1, "hosts": {"gpu01": host}}, request, catalogue())


# -- machines ------------------------------------------------------------------------------------


def silent(error: str | None, library: str | None = None) -> dict[str, Any]:
    """A machine with one card that no driver answers for."""
    return machine(
        gpus=cards(1, driver_version=None), nvidia={"nvml_error": error, "library_version": library}
    )


MACHINES = [
    ("demo", machine(), {}, [], 0),
    ("demo", machine(memory_bytes=2 * GIB), {}, [], 0),
    ("demo", machine(memory_bytes=1 * GIB), {}, ["host-memory"], 0),
    ("demo", machine(gpus=cards(1)), {}, [], 30),
    ("basic", machine(gpus=cards(2)), {}, [], 28),
    ("basic", machine(gpus=cards(1, count=2)), {}, [], 28),
    ("basic", machine(gpus=cards(1)), {}, [], 28),
    ("basic", machine(gpus=cards(1, memory_bytes=8 * GIB)), {}, ["part-on-cpu"], None),
    ("basic", machine(), {}, ["cpu-only"], 0),
    ("basic", machine(memory_bytes=8 * GIB), {}, ["host-memory"], 0),
    ("basic", machine(memory_bytes=8 * GIB, gpus=cards(1)), {}, [], 28),
    # A card of another maker, and one whose memory nobody knows before its driver: not counted on.
    ("basic", machine(gpus=cards(2, vendor="amd")), {}, ["cpu-only", "gpu-vendor"], 0),
    ("basic", machine(gpus=[{"vendor": "nvidia", "name": "Odd"}]), {}, ["cpu-only", "gpu-unknown"], 0),
    # What PCI alone tells of a card is completed from the catalogue.
    ("basic", machine(gpus=[{"vendor": "nvidia", "name": "NVIDIA device 0x2684"}]), {}, [], 28),
    ("basic", machine(gpus=[{"vendor": "nvidia", "name": "x", "pci_id": "2684"}]), {}, [], 28),
    ("basic", machine(gpus=[{"vendor": "nvidia", "name": "x", "pci_id": "10de:2684"}]), {}, [], 28),
    ("basic", machine(gpus=cards(1, driver_version=None)), {}, ["driver-install"], 28),
    ("basic", machine(gpus=cards(1, driver_version=None)), {"nvidia_driver": "none"}, ["driver-missing"], 28),
    ("basic", machine(gpus=cards(1, driver_version="470.1")), {}, ["driver-too-old"], 28),
    # A driver that is there and does not answer is not a driver that is missing.
    (
        "basic",
        silent("Driver/library version mismatch (18)", library="13.580.95.05"),
        {},
        ["driver-broken"],
        28,
    ),
    ("basic", silent("Driver Not Loaded (9)", library="13.580.95.05"), {}, ["driver-broken"], 28),
    ("basic", silent("NVML gave no answer in 20 s"), {}, ["driver-broken"], 28),
    ("basic", silent("Driver Not Loaded (9)", library="11.470.256.02"), {}, ["driver-too-old"], 28),
    ("basic", silent("card 1: GPU is lost (15)", library="13.580.95.05"), {}, ["gpu-lost"], 28),
    ("basic", silent(None), {}, ["driver-install"], 28),
    # A lost card is said even where the plan needs only the others.
    (
        "basic",
        machine(
            gpus=[*cards(1), *cards(1, driver_version=None)],
            nvidia={"nvml_error": "card 1: GPU is lost (15)", "driver_version": "580.95.05"},
        ),
        {},
        ["gpu-lost"],
        28,
    ),
    # A library left behind on a host whose plan needs no card is nobody's trouble.
    ("demo", machine(nvidia={"nvml_error": "Driver Not Loaded (9)"}), {}, [], 0),
    ("basic", machine(gpus=cards(2), nvswitch=True), {}, ["fabric-manager"], 28),
    (
        "basic",
        machine(gpus=cards(1), secure_boot=True, nouveau=True),
        {},
        ["nouveau-loaded", "secure-boot"],
        28,
    ),
    ("demo", machine(docker={"version": "19.03.5"}), {}, ["docker-too-old"], 0),
    ("demo", machine(docker={"version": "19.03.5"}), {"web_ui": False}, [], 0),
    ("demo", machine(docker={"version": "20.10.24"}), {}, [], 0),
    ("demo", machine(disks=[]), {}, [], 0),
    ("demo", machine(disks=[{"mount": "/", "free_bytes": 3 * GB}]), {}, ["disk-space"], 0),
    ("demo", machine(disks=[{"mount": "/", "free_bytes": 5 * GB}]), {"web_ui": False}, [], 0),
    (
        "demo",
        machine(disks=[{"mount": "/", "free_bytes": 3 * GB}], delivered_bytes=20 * GB),
        {},
        [],
        0,
    ),
    # The disk that counts is the one our folder lies on.
    (
        "demo",
        machine(
            disks=[{"mount": "/", "free_bytes": 1}, {"mount": "/var/lib/dsprov", "free_bytes": 500 * GB}]
        ),
        {},
        [],
        0,
    ),
    (
        "demo",
        machine(disks=[{"mount": "/", "free_bytes": 500 * GB}, {"mount": "/var", "free_bytes": 1}]),
        {},
        ["disk-space"],
        0,
    ),
    (
        "demo",
        machine(disks=[{"mount": "/", "free_bytes": 500 * GB}, {"mount": "/var/lib/d", "free_bytes": 1}]),
        {},
        [],
        0,
    ),
    (
        "demo",
        machine(os={"id": "centos", "version_id": "7", "arch": "x86_64"}),
        {},
        ["os-unsupported"],
        0,
    ),
    (
        "demo",
        machine(os={"id": "debian", "version_id": "11", "arch": "x86_64"}),
        {},
        ["os-unsupported"],
        0,
    ),
    (
        "demo",
        machine(os={"id": "debian", "version_id": "13", "arch": "aarch64"}),
        {},
        ["arch-unsupported"],
        0,
    ),
    ("demo", machine(cpu={"cores": 4, "flags": ["avx"]}), {}, ["cpu-isa"], 0),
    ("demo", machine(cpu={"cores": 4}), {}, [], 0),
    ("demo", machine(clock_skew_seconds=-90_000), {}, ["clock-skew"], 0),
    ("demo", machine(clock_skew_seconds=86_500), {}, ["clock-skew"], 0),
    ("demo", machine(clock_skew_seconds=-80_000), {}, ["clock-drift"], 0),
    ("demo", machine(clock_skew_seconds=301), {}, ["clock-drift"], 0),
    ("demo", machine(clock_skew_seconds=-299), {}, [], 0),
]


@pytest.mark.parametrize(("tier", "host", "overrides", "expected", "layers"), MACHINES)
def test_machine(
    tier: str, host: dict[str, Any], overrides: dict[str, Any], expected: list[str], layers: int | None
) -> None:
    made = make(tier, host, **overrides)
    assert codes(made) == expected
    known = {code: catalogue()["problems"][code] for code in expected}
    errors = [code for code, row in known.items() if "stage" not in row and row.get("severity") != "warning"]
    assert made["ok"] is not bool(errors)
    (row,) = made["hosts"]
    place = row["placement"]
    if layers is None:
        assert 0 < place["gpu_layers"] < place["total_layers"]
    else:
        assert place["gpu_layers"] == layers


def test_reference_machine_of_basic_in_numbers() -> None:
    made = make("basic", machine(gpus=cards(2)))
    (row,) = made["hosts"]
    # 28 layers x 4 KV heads x 128 x (keys and values) x 34/32 bytes.
    assert row["context"]["kv_bytes_per_token"] == 2 * 28 * 4 * 128 * 34 // 32 == 30464
    # One card holds it all, which is faster than two that wait for each other; so the finer variant is taken.
    assert row["weights"]["variant"] == "Q8_0"
    first, second = row["memory"]["gpu_bytes_per_device"]
    assert second == 0
    weights_and_cache = 8098524896 - 579059712 + 30464 * 8192 * 16
    assert weights_and_cache < first < weights_and_cache + 2 * GIB
    assert row["capacity"] == {"concurrent_requests": 16, "named_users": 160, "estimated": True}
    assert row["environment"] == {
        "OLLAMA_CONTEXT_LENGTH": "8192",
        "OLLAMA_FLASH_ATTENTION": "1",
        "OLLAMA_KV_CACHE_TYPE": "q8_0",
        "OLLAMA_NUM_PARALLEL": "16",
    }
    assert row["placement"]["cpu_threads"] == 16


def test_cards_of_different_size_each_take_their_share() -> None:
    """A small second card must never push layers off the first."""
    alone = make("basic", machine(gpus=cards(1)))["hosts"][0]
    with_small = make("basic", machine(gpus=[*cards(1), *cards(1, memory_bytes=3 * GIB)]))["hosts"][0]
    assert alone["placement"]["gpu_layers"] == with_small["placement"]["gpu_layers"] == 28


# -- wishes --------------------------------------------------------------------------------------

OVERRIDES = [
    ({"model": "llama:7b"}, ["model-unknown"]),
    ({"variant": "Q9"}, ["variant-unknown"]),
    ({"variant": "Q4_1"}, []),
    ({"engine": "ollama"}, []),
    ({"engine": "vllm"}, ["format-unsupported"]),
    ({"placement": "experts"}, ["placement-unsupported"]),
    ({"placement": "layers"}, []),
    ({"kv_cache_type": "q4_0"}, []),
    ({"context_length": 8193}, ["context-too-long"]),
    ({"context_length": 8}, ["value-out-of-range"]),
    ({"context_length": "8192"}, []),
    ({"parallel": -1}, ["value-out-of-range"]),
    ({"parallel": 5000}, ["value-out-of-range"]),
    ({"placement": "fit", "context_length": 9000, "parallel": -1}, None),
]


@pytest.mark.parametrize(("overrides", "expected"), OVERRIDES)
def test_override_is_honoured_or_refused(overrides: dict[str, Any], expected: list[str] | None) -> None:
    made = make("demo", machine(), **overrides)
    if expected is None:  # Several at once are all said.
        assert codes(made) == ["context-too-long", "placement-unsupported", "value-out-of-range"]
        return
    assert codes(made) == expected
    if made["ok"]:
        (row,) = made["hosts"]
        assert made["engine"] == "ollama"
        if "kv_cache_type" in overrides:
            assert row["context"]["kv_cache_type"] == overrides["kv_cache_type"]
            assert row["environment"]["OLLAMA_KV_CACHE_TYPE"] == overrides["kv_cache_type"]
        if "context_length" in overrides:
            assert row["context"]["length"] == int(overrides["context_length"])
    else:
        assert made["hosts"] == []


def test_formats_an_engine_cannot_load_are_refused() -> None:
    request = request_for("basic", engine="vllm", variant="Q4_K_M", kv_cache_type="q8_0")
    made = plan(facts(), request, catalogue())
    assert codes(made) == ["format-unsupported", "kv-cache-unsupported"]
    assert made["engine"] == "vllm"


def own_mixture(*names: str) -> dict[str, Any]:
    """DeepSeek-R1 671B with these variants alone, as somebody's own model."""
    row = copy.deepcopy(catalogue()["models"]["deepseek-r1:671b"])
    row["variants"] = {name: row["variants"][name] for name in names}
    return {**catalogue(), "models": {"mine": row}}


@pytest.mark.parametrize(
    ("names", "engine", "expected"),
    [
        (("Q4_K_M",), "ktransformers", ["checkpoint-missing"]),
        # Nobody named the engine: another one that reads GGUF files is taken.
        (("Q4_K_M",), "auto", "llama_cpp"),
        (("Q4_K_M", "BF16"), "ktransformers", "BF16"),
        (("Q4_K_M", "FP8", "BF16"), "ktransformers", "FP8"),
    ],
)
def test_experts_in_gguf_files_want_a_checkpoint_beside_them(
    names: tuple[str, ...], engine: str, expected: Any
) -> None:
    host = machine(
        memory_bytes=600 * GIB,
        disks=[{"mount": "/", "free_bytes": 9000 * GB}],
        gpus=cards(1, memory_bytes=96 * GIB),
    )
    request = replace(request_for("flagship"), model="mine", engine=engine, parallel=1, kv_cache_type="auto")
    made = plan({"schema": 1, "hosts": {"h": host}}, request, own_mixture(*names))
    if isinstance(expected, list):
        assert codes(made) == expected
        assert "dsprov_engine=llama_cpp" in made["problems"][0]["remedy"]["en"]
    elif engine == "auto":
        assert made["engine"] == expected
    else:
        command = made["hosts"][0]["command"]
        assert command[command.index("--model") + 1].endswith(f"/{expected}")


def test_a_request_that_all_hosts_share_is_refused_once() -> None:
    document = {"schema": 1, "hosts": {name: machine() for name in ("a", "b", "c")}}
    made = plan(document, request_for("demo", variant="Q9"), catalogue())
    assert codes(made) == ["variant-unknown"]
    assert made["problems"][0]["host"] is None


def test_hosts_may_wish_differently() -> None:
    document = {"schema": 1, "hosts": {"a": machine(), "b": machine()}}
    request = request_for("demo")
    made = plan(document, request, catalogue(), {"b": request_for("demo", context_length=2048)})
    assert [row["context"]["length"] for row in made["hosts"]] == [4096, 2048]


def test_a_wish_that_cannot_be_refuses_its_own_host_alone() -> None:
    document = {"schema": 1, "hosts": {"a": machine(), "b": machine()}}
    wishes = {"a": request_for("demo"), "b": request_for("demo", context_length=9000)}
    made = plan(document, wishes["a"], catalogue(), wishes)
    assert [(problem["code"], problem["host"]) for problem in made["problems"]] == [("context-too-long", "b")]
    assert [row["name"] for row in made["hosts"]] == ["a"]


# -- ports ---------------------------------------------------------------------------------------

PORTS = [
    ([{"port": 8080, "process": "nginx", "pid": 7}], {}, ["open_webui_port"]),
    ([{"port": 11434, "process": "ollama", "pid": 7}], {}, ["ollama_host"]),
    ([{"port": 11434, "owner": "dsprov", "process": "ollama", "pid": 7}], {}, []),
    ([{"port": 8080, "process": "nginx"}], {"dsprov_web_ui": False}, []),
    ([{"port": 8080, "process": "nginx"}], {"open_webui_port": 8081}, []),
    ([{"port": 8081, "process": "nginx"}], {"open_webui_port": 8081}, ["open_webui_port"]),
    ([{"port": 11500}], {"ollama_host": "127.0.0.1:11500"}, ["ollama_host"]),
    ([{"port": 22, "process": "sshd"}], {}, []),
    # The same process on IPv4 and IPv6 is one problem.
    (
        [
            {"port": 8080, "process": "nginx", "pid": 7, "address": "0.0.0.0"},
            {"port": 8080, "process": "nginx", "pid": 7, "address": "::"},
        ],
        {},
        ["open_webui_port"],
    ),
]


@pytest.mark.parametrize(("listeners", "variables", "expected"), PORTS)
def test_ports(listeners: list[dict[str, Any]], variables: dict[str, Any], expected: list[str]) -> None:
    request, found = request_from({**tier_variables("demo"), **variables})
    assert request is not None, found
    made = plan(facts(listeners=listeners), request, catalogue())
    taken = [problem for problem in made["problems"] if problem["code"] == "port-in-use"]
    assert [problem["remedy"]["en"].split("set ")[1].split()[0] for problem in taken] == expected
    for problem in taken:
        assert str(listeners[0].get("process", "?")) in problem["message"]["en"]


@pytest.mark.parametrize("engine", ["llama_cpp", "vllm", "ktransformers"])
def test_an_engine_listens_where_it_is_told_to(engine: str) -> None:
    model = {"llama_cpp": "deepseek-r1:7b", "vllm": "deepseek-r1:7b", "ktransformers": "deepseek-r1:671b"}[
        engine
    ]
    request, found = request_from({"dsprov_model": model, "dsprov_engine": engine, f"{engine}_port": 12345})
    assert request is not None, found
    (row,) = plan(facts(gpus=cards(1), memory_bytes=1000 * GIB), request, catalogue())["hosts"]
    assert row["command"][row["command"].index("--port") + 1] == "12345"


@pytest.mark.parametrize("value", ["", "abc", "127.0.0.1:", "0", 70000, "127.0.0.1:99999"])
def test_a_port_that_is_none_is_refused(value: Any) -> None:
    request, found = request_from({**tier_variables("demo"), "open_webui_port": value})
    assert request is None
    assert [problem["code"] for problem in found] == ["variable-invalid"]


# -- channels ------------------------------------------------------------------------------------

PYPI = "https://pypi.org/simple"
TUNA = "https://pypi.tuna.tsinghua.edu.cn/simple"
ALIYUN = "https://mirrors.aliyun.com/pypi/simple"

CHANNELS = [
    ("upstream", {}, PYPI, []),
    ("cn", {}, TUNA, []),
    ("auto", {PYPI: 300.0, TUNA: 20.0}, TUNA, []),
    ("auto", {PYPI: 20.0, TUNA: None}, PYPI, []),
    # One that no channel names, but that is known beside them.
    ("auto", {PYPI: None, TUNA: 90.0, ALIYUN: 10.0}, ALIYUN, []),
    ("auto", {PYPI: None, TUNA: None}, PYPI, ["no-channel"]),
    ("auto", {}, PYPI, []),
    ("cn", {TUNA: 5.0}, TUNA, []),
    # A named channel is kept, but one that was asked and is silent is said.
    ("cn", {TUNA: None}, TUNA, ["no-channel"]),
    # Facts written by hand may name a place that this release does not have.
    ("auto", {"https://moon.example.org": 1.0, TUNA: 20.0}, TUNA, []),
]


@pytest.mark.parametrize(("asked", "answers", "taken", "expected"), CHANNELS)
def test_channel(asked: str, answers: dict[str, Any], taken: str, expected: list[str]) -> None:
    made = make("demo", machine(places={"pypi_index": answers}), channel=asked)
    assert codes(made) == expected
    (row,) = made["hosts"]
    assert row["channel"] == asked
    assert row["sources"]["pypi_index"] == taken


def test_auto_chooses_each_kind_by_itself_and_says_why() -> None:
    answers = {
        "pypi_index": {PYPI: 300.0, TUNA: 20.0},
        "huggingface": {"https://huggingface.co": None, "https://hf-mirror.com": 800.0},
        "modelscope": {"https://modelscope.cn": 50.0},
        "ghcr.io": {"ghcr.io": 40.0, "m.daocloud.io/ghcr.io": 90.0},
        "registry_mirrors": {"https://docker.m.daocloud.io": 9.0, "https://docker.nju.edu.cn": 7.0},
        "docker_apt": {"https://download.docker.com/linux": None},
    }
    made = make("basic", machine(gpus=cards(1), places=answers), channel="auto")
    (row,) = made["hosts"]
    places = row["sources"]
    assert (places["pypi_index"], places["huggingface"]) == (TUNA, "https://hf-mirror.com")
    assert places["registries"]["ghcr.io"] == "ghcr.io"
    assert places["registry_mirrors"] == ["https://docker.nju.edu.cn", "https://docker.m.daocloud.io"]
    assert places["hubs"] == ["modelscope", "huggingface"]
    assert row["weights"]["artifacts"][0]["sources"][0]["url"].startswith("https://modelscope.cn/")
    assert row["chosen"]["pypi_index"] == {"address": TUNA, "ms": 20.0, "others": {PYPI: 300.0}}
    assert made["ok"]
    (silent,) = [problem for problem in made["problems"] if problem["code"] == "place-silent"]
    assert "docker_apt" in silent["message"]["en"]


def test_places_for_cards_are_missed_by_hosts_with_cards_alone() -> None:
    """All places are asked before the host's cards are known."""
    answers = {
        "pypi_index": {PYPI: 300.0},
        "nvidia_apt": {"https://developer.download.nvidia.cn/compute/cuda/repos": None},
        "nvidia_container_apt": {
            "https://nvidia.github.io/libnvidia-container": 30.0,
            "https://mirrors.ustc.edu.cn/libnvidia-container": 20.0,
        },
    }
    without = make("demo", machine(places=answers), channel="auto")
    assert codes(without) == []
    (row,) = without["hosts"]
    assert row["sources"]["nvidia_container_apt"].startswith("https://mirrors.ustc.edu.cn/")
    (silent,) = make("basic", machine(gpus=cards(1), places=answers), channel="auto")["problems"]
    assert silent["code"] == "place-silent"
    assert "for nvidia_apt;" in silent["message"]["en"]


def test_mirrors_lie_over_the_channel() -> None:
    mirrors = {"huggingface": "http://mirror/hf/", "registries": {"ghcr.io": "mirror:5000"}}
    (row,) = make("basic", machine(gpus=cards(1)), channel="cn", mirrors=mirrors)["hosts"]
    first, second = row["weights"]["artifacts"][0]["sources"]
    assert first["url"].startswith("https://modelscope.cn/models/unsloth/")
    assert second["url"].startswith("http://mirror/hf/unsloth/")
    assert row["sources"]["registries"]["ghcr.io"] == "mirror:5000"
    assert row["sources"]["registries"]["nvcr.io"] == "m.daocloud.io/nvcr.io"


# -- variants ------------------------------------------------------------------------------------


CARD_16 = {"memory_bytes": 16 * GIB}


@pytest.mark.parametrize(
    ("host", "parallel", "taken"),
    [
        # On GPUs the most precise one that fits.
        ({"gpus": cards(1)}, 1, "Q8_0"),
        ({"gpus": cards(1, **CARD_16)}, 16, "Q8_0"),
        ({"gpus": cards(1, **CARD_16)}, 32, "Q4_K_M"),
        # A CPU's speed goes by bytes: not more than about five bits a weight.
        ({}, 1, "Q4_K_M"),
        ({"memory_bytes": 8 * GIB}, 1, "Q4_K_M"),
        # The disk counts as much as the memory does.
        ({"gpus": cards(1), "disks": [{"mount": "/", "free_bytes": 25 * GB}]}, 1, "Q4_K_M"),
        ({"gpus": cards(1), "disks": [{"mount": "/", "free_bytes": 2 * GB}]}, 1, "Q4_K_M"),
    ],
)
def test_auto_takes_the_best_variant_that_fits(host: dict[str, Any], parallel: int, taken: str) -> None:
    made = make("basic", machine(**host), parallel=parallel)
    assert made["hosts"][0]["weights"]["variant"] == taken
    assert made["ok"] is (machine(**host)["disks"][0]["free_bytes"] > 20 * GB)


def test_a_named_variant_is_never_changed() -> None:
    made = make("basic", machine(memory_bytes=8 * GIB), variant="Q8_0")
    assert made["hosts"][0]["weights"]["variant"] == "Q8_0"
    assert codes(made) == ["host-memory"]
    assert "set dsprov_variant=Q4_K_M dsprov_parallel=1" in made["problems"][0]["remedy"]["en"]


def test_as_many_requests_as_fit() -> None:
    row = make("basic", machine(gpus=cards(1)), parallel=0)["hosts"][0]
    assert row["context"]["parallel"] == 16
    assert make("basic", machine(), parallel=0)["hosts"][0]["context"]["parallel"] == 1


# -- engines -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tier", "host", "engine"),
    [
        ("demo", machine(), "ollama"),
        ("demo", machine(gpus=cards(8)), "ollama"),
        ("basic", machine(gpus=cards(2)), "ollama"),
        ("standard", machine(gpus=cards(4)), "vllm"),
        # vLLM would have to take a variant that nobody can bring.
        ("standard", machine(gpus=cards(1)), "ollama"),
        ("standard", machine(gpus=cards(1, memory_bytes=12 * GIB)), "ollama"),
    ],
)
def test_auto_engine_follows_the_hardware(tier: str, host: dict[str, Any], engine: str) -> None:
    made = make(tier, host)
    assert made["ok"]
    assert made["engine"] == made["hosts"][0]["engine"] == engine


def test_what_only_an_install_stops_at_is_a_warning_with_a_way_out() -> None:
    engines = copy.deepcopy(catalogue()["engines"])
    engines["vllm"]["provisioned"] = False
    document = {"schema": 1, "hosts": {"gpu01": machine(gpus=cards(4))}}
    made = plan(document, request_for("standard"), {**catalogue(), "engines": engines})
    assert made["ok"]
    stopped = {p["code"]: p for p in made["problems"]}
    assert stopped["engine-unavailable"]["severity"] == "warning"
    assert "set dsprov_engine=ollama" in stopped["engine-unavailable"]["remedy"]["en"]
    mended = make("standard", machine(gpus=cards(4)), engine="ollama")
    assert mended["ok"]
    assert codes(mended) == []
    assert mended["hosts"][0]["weights"]["artifacts"]


def test_considered_says_why() -> None:
    (row,) = make("standard", machine(gpus=cards(4)))["hosts"]
    taken = [one for one in row["considered"] if one["outcome"] == "taken"]
    assert [(one["engine"], one["variant"]) for one in taken] == [("vllm", "BF16")]
    assert all(one["reason"]["en"] and one["reason"]["zh"] for one in row["considered"])
    assert {one["variant"] for one in row["considered"]} >= {"BF16", "FP8", "AWQ"}


def test_hosts_of_one_model_talk_over_the_fastest_network() -> None:
    h20 = {"vendor": "nvidia", "name": "NVIDIA H20-3e", "memory_bytes": 150_754_820_096, "count": 8}
    nics = [
        {"name": "eno1", "address": "10.0.0.{}", "speed_mbps": 1000},
        {"name": "ib0", "address": "10.1.0.{}", "speed_mbps": 400_000, "rdma": True},
        {"name": "ib1", "speed_mbps": 800_000, "rdma": True},
    ]
    hosts = {
        name: machine(
            memory_bytes=1536 * GIB,
            disks=[{"mount": "/", "free_bytes": 15_000 * GB}],
            gpus=[h20],
            nics=[
                {**nic, **({"address": nic["address"].format(n)} if "address" in nic else {})} for nic in nics
            ],
        )
        for n, name in enumerate(("a", "b"), 1)
    }
    document = {"schema": 1, "hosts": hosts}
    made = plan(document, request_for("flagship", engine="vllm", variant="BF16"), catalogue())
    head, worker = made["hosts"]
    assert (head["role"], worker["role"]) == ("head", "worker")
    for rank, row in enumerate((head, worker)):
        line = " ".join(row["command"])
        assert f"--nnodes 2 --node-rank {rank} --master-addr 10.1.0.1" in line
        assert ("--headless" in line) is bool(rank)
        assert row["environment"]["NCCL_SOCKET_IFNAME"] == row["environment"]["GLOO_SOCKET_IFNAME"] == "ib0"
        assert row["environment"]["VLLM_HOST_IP"] == f"10.1.0.{rank + 1}"
    assert "rdma-down" not in {problem["code"] for problem in made["problems"]}
    hosts["b"]["nics"][1] |= {"rdma": False, "rdma_fault": "mlx5_0 port 1 is DOWN"}
    made = plan(document, request_for("flagship", engine="vllm", variant="BF16"), catalogue())
    assert made["ok"]
    (said,) = [problem for problem in made["problems"] if problem["code"] == "rdma-down"]
    assert (said["code"], said["host"], said["severity"]) == ("rdma-down", "b", "warning")
    assert "ib0: RDMA does not work (mlx5_0 port 1 is DOWN)" in said["message"]["en"]


@pytest.mark.parametrize(
    ("a", "b", "taken"),
    [
        # One network of both wins over a faster one that the other host is not on.
        (
            "lan:10.0.0.1/24:1000 ib:10.1.0.1/24:400000:r",
            "lan:10.0.0.2/24:1000 ib:10.2.0.2/24:400000:r",
            "lan lan",
        ),
        # RDMA on one side alone is none; the slowest card counts.
        ("x:10.0.0.1/24:10000 y:10.1.0.1/24:25000:r", "x:10.0.0.2/24:10000 y:10.1.0.2/24:1000", "x x"),
        ("x:10.0.0.1/24:100000 y:10.1.0.1/24:25000:r", "x:10.0.0.2/24:100000 z:10.1.0.2/24:25000:r", "y z"),
        # What leads into the machine itself is no way between machines; routers join the rest.
        ("usb:169.254.3.1/16:1000 x:10.0.0.1/24:1000", "usb:169.254.3.1/16:1000 y:10.9.0.1/24:1000", "x y"),
        ("x", "y:10.0.0.2/24:1000", "- y"),
    ],
)
def test_hosts_meet_on_a_network_that_all_of_them_have(a: str, b: str, taken: str) -> None:
    def nics(words: str) -> Iterator[dict[str, Any]]:
        for word in words.split():
            name, *rest = word.split(":")
            nic: dict[str, Any] = {"name": name, "rdma": rest[2:] == ["r"]}
            if rest:
                address = ipaddress.ip_interface(rest[0])
                nic |= {
                    "address": str(address.ip),
                    "network": str(address.network),
                    "speed_mbps": int(rest[1]),
                }
            yield nic

    chosen = commands.shared_nics([{"nics": list(nics(words))} for words in (a, b)])
    assert [nic["name"] if nic else "-" for nic in chosen] == taken.split()


# -- digest --------------------------------------------------------------------------------------


def test_digest_goes_by_content_not_by_order() -> None:
    assert digest({"a": 1, "b": "中"}) == digest({"b": "中", "a": 1}) != digest({"a": 2, "b": "中"})


def test_catalogue_is_left_as_it_was() -> None:
    before = copy.deepcopy(catalogue())
    made = make("demo", machine(), mirrors={"registries": {"ghcr.io": "x"}})
    made["hosts"][0]["sampling"]["temperature"] = 5
    made["hosts"][0]["sources"]["registries"]["ghcr.io"] = "y"
    assert catalogue() == before


def test_every_engine_that_is_provisioned_has_a_cache_size_for_each_type() -> None:
    for row in catalogue()["engines"].values():
        assert set(row["kv_cache_types"]) <= set(planner.KV_BYTES)


UBUNTU = {"id": "ubuntu", "version_id": "22.04", "arch": "x86_64"}
BARE = {"driver_version": None}
DRIVERS = [
    # host, overrides -> action, what else the row says, problems
    (machine(gpus=cards(2, **BARE)), {}, "install", {"branch": 580, "flavour": "open", "source": "nvidia"},
     ["driver-install"]),
    (machine(os=UBUNTU, gpus=cards(2, **BARE)), {}, "install", {"branch": 580, "source": "distribution"},
     ["driver-install"]),
    (machine(gpus=cards(2, **BARE)), {"driver": (("source", "distribution"),)}, "install", {"branch": None},
     ["driver-source"]),
    (machine(gpus=cards(2, **BARE)), {"nvidia_driver": "none"}, "none", {}, ["driver-missing"]),
    (machine(gpus=cards(2, driver_version="580.95.05")), {}, "keep", {"version": "580.95.05"}, []),
    (machine(gpus=cards(2, driver_version="535.1")), {}, "keep", {"version": "535.1"}, ["driver-too-old"]),
    (machine(gpus=cards(2, driver_version="535.1.2")), {"driver": (("existing", "replace"),)}, "install",
     {"branch": 580}, ["driver-install"]),
    # One that an earlier run installed is ours to exchange, and to look after.
    (machine(gpus=cards(2, driver_version="535.1.2"), nvidia={"managed": True}), {}, "install",
     {"branch": 580}, ["driver-install"]),
    (machine(gpus=cards(2, driver_version="580.95.05"), nvidia={"managed": True}), {}, "install", {}, []),
    # Fabric manager comes with the driver, so nobody needs to be told of it.
    (machine(gpus=cards(2, **BARE), nvswitch=True), {}, "install", {"fabric_manager": True},
     ["driver-install"]),
    (machine(gpus=cards(2, **BARE), secure_boot=True), {}, "install", {}, ["driver-install", "secure-boot"]),
    (machine(os=UBUNTU, gpus=cards(2, **BARE), secure_boot=True), {}, "install", {}, ["driver-install"]),
    (machine(gpus=cards(2, **BARE), secure_boot=True, nvidia={"key_enrolled": True}), {}, "install", {},
     ["driver-install"]),
    # People who write facts and say nothing of drivers mean nothing by it.
    (machine(gpus=cards(2)), {}, "none", {}, []),
    (machine(), {}, "none", {}, ["cpu-only"]),
]  # fmt: skip


@pytest.mark.parametrize(("host", "overrides", "action", "more", "expected"), DRIVERS)
def test_driver(
    host: dict[str, Any], overrides: dict[str, Any], action: str, more: dict[str, Any], expected: list[str]
) -> None:
    made = make("basic", host, **overrides)
    row = made["hosts"][0]["driver"]
    assert codes(made) == expected
    assert row["action"] == action
    assert row | more == row
    assert row["floor"] == catalogue()["engines"][made["engine"]]["driver"]


# -- vLLM: the CPU build, and hosts that share a model by wish --------------------------------------


def own_models() -> dict[str, Any]:
    """Tiny models as a user's own rows."""
    return {name: tiny.row(name, {"config.json": (1, "0" * 64)}, "http://m") for name in tiny.CONFIGS}


def make_own(model: str, hosts: dict[str, Any], **overrides: Any) -> dict[str, Any]:
    """A plan for one of the tiny models, by vLLM."""
    wishes = {"model": model, "models": own_models(), "engine": "vllm", "require_gpu": False, **overrides}
    request = request_for("flagship", **wishes)
    return plan({"schema": 1, "hosts": hosts}, request, with_models(own_models()))


def large_hosts(count: int, memory: int) -> dict[str, Any]:
    """n0, n1 and so on: hosts of 8 x H20 with so many GB each."""
    card = {"vendor": "nvidia", "name": "NVIDIA H20", "memory_bytes": memory * 1_069_000_000, "count": 8}
    disk = {"mount": "/", "free_bytes": 15_000 * GB}
    return {
        f"n{number}": machine(memory_bytes=1536 * GIB, disks=[disk], gpus=[card]) for number in range(count)
    }


def h20s(*names: str) -> dict[str, Any]:
    """Hosts with eight large cards each."""
    card = {"vendor": "nvidia", "name": "NVIDIA H20-3e", "memory_bytes": 150_754_820_096, "count": 8}
    card |= {"compute_capability": "9.0", "driver_version": "580.95.05"}
    nics = [{"name": "eth0", "address": "10.0.0.{}"}]
    return {
        name: machine(
            gpus=[card],
            memory_bytes=2_000_000_000_000,
            nics=[{**nics[0], "address": f"10.0.0.{index + 1}"}],
        )
        for index, name in enumerate(names)
    }


def test_the_cpu_build_serves_from_a_host_without_gpus() -> None:
    made = make_own("tiny-llama", {"a": machine()}, vllm_build="cpu", parallel=2)
    assert made["ok"], made["problems"]
    (row,) = made["hosts"]
    assert "--gpu-memory-utilization" not in row["command"]
    assert "--enforce-eager" in row["command"]
    assert row["environment"]["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert row["placement"]["gpu_layers"] == 0
    assert row["memory"]["gpu_bytes_per_device"] == []
    refused = make_own("tiny-llama", {"a": machine()})
    assert codes(refused) == ["no-gpu"]


def test_the_cpu_build_keeps_the_plan_of_cards_that_it_stands_in_for() -> None:
    real, tried = (make_own("tiny-v3", h20s("a"), vllm_build=build)["hosts"][0] for build in ("cuda", "cpu"))
    assert [word for word in tried["command"] if word != "--enforce-eager"] == real["command"]
    assert tried["environment"].pop("VLLM_CPU_KVCACHE_SPACE") == "1"
    assert tried["environment"].pop("TORCH_COMPILE_DISABLE") == "1"
    assert tried["environment"].pop("CUDA_VISIBLE_DEVICES") == ""
    assert real["environment"].pop("CUDA_VISIBLE_DEVICES") == "0,1"
    assert tried["environment"] == real["environment"]
    assert tried["memory"] == real["memory"]


def test_the_cpu_build_has_the_cache_that_is_wished() -> None:
    hosts = {"a": machine(memory_bytes=2_000_000_000_000)}
    made = plan(
        {"schema": 1, "hosts": hosts},
        request_for("standard", engine="vllm", vllm_build="cpu", require_gpu=False, parallel=16),
        catalogue(),
    )
    (row,) = made["hosts"]
    assert row["weights"]["variant"] == "BF16"
    # 256 KiB a token, 8192 tokens, 16 requests.
    assert row["environment"]["VLLM_CPU_KVCACHE_SPACE"] == "32"
    assert "cpu-only" in codes(made)


def test_hosts_share_a_model_that_one_could_hold_when_told_to() -> None:
    alone = make_own("tiny-v3", h20s("a", "b"))
    assert [row["role"] for row in alone["hosts"]] == ["single", "single"]
    made = make_own("tiny-v3", h20s("a", "b"), nodes=2)
    assert made["ok"], made["problems"]
    head, worker = made["hosts"]
    assert (head["role"], worker["role"]) == ("head", "worker")
    assert head["placement"]["pipeline_parallel"] == 2
    assert "--headless" in worker["command"] and "--headless" not in head["command"]
    for rank, row in enumerate(made["hosts"]):
        words = " ".join(row["command"])
        assert f"--nnodes 2 --node-rank {rank} --master-addr 10.0.0.1" in words
        assert row["environment"]["VLLM_HOST_IP"] == f"10.0.0.{rank + 1}"
        assert row["environment"]["GLOO_SOCKET_IFNAME"] == "eth0"


def test_ray_runs_what_hosts_share_when_told_to() -> None:
    made = make_own("tiny-v3", h20s("a", "b"), nodes=2, placement="tensor", vllm_executor="ray")
    assert made["ok"], made["problems"]
    assert [row["role"] for row in made["hosts"]] == ["head", "worker"]
    ours = make_own("tiny-v3", h20s("a", "b"), nodes=2, placement="tensor")
    assert [made["problems"], ours["problems"]] == [[], []]
    for row, own in zip(made["hosts"], ours["hosts"], strict=True):
        at = row["command"].index("--")
        ray, serve = row["command"][:at], row["command"][at + 1 :]
        assert ray[:6] == ["ray", "symmetric-run", "--address", "10.0.0.1:29500", "--min-nodes", "2"]
        said = dict(pairwise(ray))
        # One card of each host, as without Ray.
        assert said["--num-gpus"] == "1"
        assert row["memory"] == own["memory"]
        # Only a first host knows the flag.
        assert ("--include-dashboard" in ray) is (row["role"] == "head")
        assert serve == [
            *own["command"][: own["command"].index("--nnodes")],
            "--distributed-executor-backend",
            "ray",
        ]
        added = row["environment"].items() - own["environment"].items()
        assert all(name.startswith("RAY_") for name, _ in added) and added
        # What can be reached lies in one range, which the rules of the group name.
        ports = [int(said[word]) for word in said if word.endswith("-port")]
        assert sorted(set(ports)) == sorted(ports)
        assert all(29500 < port <= int(said["--max-worker-port"]) for port in ports)


def test_ray_on_the_cpu_build_has_a_share_for_each_card_that_it_stands_in_for() -> None:
    for build in ("cuda", "cpu"):
        made = make_own("tiny-v3", h20s("a", "b"), nodes=2, vllm_executor="ray", vllm_build=build)
        for row in made["hosts"]:
            shares = row["command"][row["command"].index("--num-gpus") + 1]
            # Ray refuses to count more than it is shown.
            assert len(row["environment"]["CUDA_VISIBLE_DEVICES"].split(",")) == int(shares)


def test_one_host_needs_no_ray() -> None:
    (row,) = make_own("tiny-v3", h20s("a"), vllm_executor="ray")["hosts"]
    assert row == make_own("tiny-v3", h20s("a"))["hosts"][0]
    assert row["command"][0] == "vllm"


def test_layers_may_be_shared_over_hosts() -> None:
    made = make_own("tiny-v3", h20s("a", "b"), nodes=2, placement="tensor")
    assert made["ok"], made["problems"]
    for row in made["hosts"]:
        assert (row["placement"]["tensor_parallel"], row["placement"]["pipeline_parallel"]) == (2, 1)
        # Two heads over two hosts: one card of each.
        assert sum(size > 0 for size in row["memory"]["gpu_bytes_per_device"]) == 1


@pytest.mark.parametrize(
    ("names", "wishes", "groups"),
    [
        ("abcd", {"nodes": 2}, ["ab", "ab", "cd", "cd"]),
        ("abcd", {"nodes": 4, "placement": "auto"}, None),
        ("ab", {"nodes": 1}, ["", ""]),
    ],
)
def test_hosts_go_in_groups_as_large_as_is_wished(
    names: str, wishes: dict[str, Any], groups: list[str] | None
) -> None:
    made = make_own("tiny-v3", h20s(*names), **{"placement": "tensor", **wishes})
    if groups is None:
        assert codes(made) == ["nodes-uneven"] * len(names)
        return
    assert made["ok"], made["problems"]
    assert ["".join(row["group"]) for row in made["hosts"]] == groups
    heads = [row for row in made["hosts"] if row["role"] == "head"]
    assert len(heads) == len({group for group in groups if group})


@pytest.mark.parametrize(
    ("count", "memory", "size", "variant"),
    [(2, 96, 2, "FP8"), (4, 96, 2, "FP8"), (3, 96, 3, "FP8"), (2, 141, 0, "FP8"), (1, 96, 0, "")],
)
def test_unasked_the_smallest_group_is_made_that_serves_what_can_be_brought(
    count: int, memory: int, size: int, variant: str
) -> None:
    made = plan({"schema": 1, "hosts": large_hosts(count, memory)}, request_for("flagship"), catalogue())
    assert made["ok"], made["problems"]
    assert [len(row["group"]) for row in made["hosts"]] == [size] * count
    assert "weights-unverified" not in codes(made)
    if variant:
        assert {(row["engine"], row["weights"]["variant"]) for row in made["hosts"]} == {("vllm", variant)}


def test_a_living_group_is_not_taken_apart_unasked() -> None:
    hosts = h20s("a", "b")
    shared = make_own("tiny-v3", hosts, nodes=2, placement="tensor")
    assert [row["group"] for row in shared["hosts"]] == [["a", "b"], ["a", "b"]]
    left = {**h20s("a")["a"], "installed_group": ["a", "b"]}
    alone = make_own("tiny-v3", {"a": left})
    assert [problem["code"] for problem in alone["problems"]] == ["group-parted"]
    assert "with b," in alone["problems"][0]["message"]["en"]
    assert make_own("tiny-v3", {"a": left}, nodes=1)["ok"]
    # Under a name that the record does not know it is somebody else.
    assert make_own("tiny-v3", {"new": left})["ok"]


def living(*groups: tuple[str, ...], model: str = "tiny-v3") -> dict[str, Any]:
    """Hosts that share a model since an earlier run, in these groups."""
    return {
        name: {**host, "installed_group": list(group), "installed_model": model}
        for group in groups
        for name, host in h20s(*group).items()
    }


@pytest.mark.parametrize("nodes", [0, 2])
def test_living_groups_stay_beside_new_hosts(nodes: int) -> None:
    hosts = living(("gpu1", "gpu2"), ("gpu3", "gpu4")) | h20s("gpu10", "gpu11")
    # Each of them could hold the model alone, too: unasked, the new ones do.
    made = make_own("tiny-v3", hosts, nodes=nodes, placement="tensor")
    assert made["ok"], made["problems"]
    pairs = [["gpu1", "gpu2"]] * 2 + [["gpu3", "gpu4"]] * 2
    assert [row["group"] for row in made["hosts"]] == [
        *pairs,
        *([["gpu10", "gpu11"]] * 2 if nodes else [[], []]),
    ]
    assert [row["role"] for row in made["hosts"]][:4] == ["head", "worker"] * 2


def test_a_host_that_comes_later_leaves_a_living_pair_as_it_is() -> None:
    hosts = large_hosts(3, 96)
    for name in ("n0", "n1"):
        hosts[name] |= {"installed_group": ["n0", "n1"], "installed_model": "deepseek-r1:671b"}
    made = plan({"schema": 1, "hosts": hosts}, request_for("flagship"), catalogue())
    assert made["ok"], made["problems"]
    assert [row["group"] for row in made["hosts"]] == [["n0", "n1"], ["n0", "n1"], []]


@pytest.mark.parametrize(
    ("known", "wishes"),
    [
        ({"model": "tiny-v3"}, {"nodes": 1}),
        # Another model is planned anew.
        ({"model": "tiny-llama"}, {"nodes": 0}),
    ],
)
def test_a_living_group_parts_when_told_to(known: dict[str, str], wishes: dict[str, int]) -> None:
    made = make_own("tiny-v3", living(("a", "b"), **known), **wishes)
    assert made["ok"], made["problems"]
    assert [row["role"] for row in made["hosts"]] == ["single", "single"]


def test_an_engine_that_knows_no_groups_takes_one_apart() -> None:
    hosts = living(("a", "b"), model="deepseek-r1:7b")
    made = plan({"schema": 1, "hosts": hosts}, request_for("basic", engine="llama_cpp"), catalogue())
    assert made["ok"], made["problems"]
    assert [row["role"] for row in made["hosts"]] == ["single", "single"]


def test_records_that_do_not_agree_bind_nobody() -> None:
    hosts = living(("a", "b"))
    hosts["b"]["installed_group"] = ["b", "c"]
    assert [row["role"] for row in make_own("tiny-v3", {"a": hosts["a"]} | h20s("b"))["hosts"]] == [
        "single"
    ] * 2


@pytest.mark.parametrize(
    ("names", "wishes", "code"),
    [
        (("a",), {"nodes": 2}, "nodes-count"),
        (("a", "b", "c"), {"nodes": 2}, "nodes-count"),
        (("a", "b", "c"), {"nodes": 3, "placement": "tensor"}, "nodes-uneven"),
        (("a", "b", "c", "d"), {"nodes": 4}, "nodes-uneven"),
        (("a", "b"), {"nodes": 9}, "value-out-of-range"),
        (("a", "b"), {"nodes": -1}, "value-out-of-range"),
    ],
)
def test_hosts_that_cannot_share_are_refused(
    names: tuple[str, ...], wishes: dict[str, Any], code: str
) -> None:
    made = make_own("tiny-v3", h20s(*names), **wishes)
    assert not made["ok"]
    assert set(codes(made)) == {code}


def test_an_engine_of_one_host_does_not_take_two() -> None:
    hosts = {name: machine() for name in ("a", "b")}
    made = plan({"schema": 1, "hosts": hosts}, request_for("demo", nodes=2, engine="ollama"), catalogue())
    assert codes(made) == ["nodes-unsupported"]
    assert made["hosts"] == []


@pytest.mark.parametrize(
    ("gpus", "build"),
    [
        ([], {"backend": "cpu", "cuda": "", "compute_capabilities": []}),
        (
            cards(2, compute_capability="8.9", driver_version="580.95.05"),
            {"backend": "cuda", "cuda": "13.0", "compute_capabilities": ["8.9"]},
        ),
        # CUDA 13 wants driver 580; for a card that has no driver yet, the newest is planned.
        (
            cards(1, compute_capability="8.9", driver_version="570.86.15"),
            {"backend": "cuda", "cuda": "12.8", "compute_capabilities": ["8.9"]},
        ),
        (
            cards(1, compute_capability="8.9", driver_version=None),
            {"backend": "cuda", "cuda": "13.0", "compute_capabilities": ["8.9"]},
        ),
        # CUDA 12.8 is the last that knows Volta.
        (
            cards(2, name="Tesla V100-PCIE-32GB", compute_capability="7.0", driver_version="580.95.05"),
            {"backend": "cuda", "cuda": "12.8", "compute_capabilities": ["7.0"]},
        ),
        # Cards that llama.cpp has no code for are left alone.
        (
            cards(1, compute_capability="6.1", driver_version="580.95.05"),
            {"backend": "cpu", "cuda": "", "compute_capabilities": []},
        ),
    ],
)
def test_what_is_built_suits_cards_and_driver(gpus: list[dict[str, Any]], build: dict[str, Any]) -> None:
    made = make("demo", machine(gpus=gpus), engine="llama_cpp")
    assert made["hosts"][0]["build"] == build


def test_a_toolkit_that_is_asked_for_is_taken_or_refused() -> None:
    def asked(host: dict[str, Any], engine: str, toolkit: Any) -> dict[str, Any]:
        wishes = {"dsprov_engine": engine, "cuda_toolkit_version": toolkit}
        request, _found = request_from({**tier_variables("demo"), **wishes})
        assert request is not None
        return plan({"schema": 1, "hosts": {"gpu01": host}}, request, catalogue())

    old = machine(gpus=cards(2, compute_capability="8.9", driver_version="570.86.15"))
    made = asked(old, "llama_cpp", 13.0)  # as YAML reads it without quotes
    assert codes(made) == ["cuda-driver"]
    (trouble,) = made["problems"]
    assert all(word in trouble["message"]["en"] for word in ("13.0", "580", "570.86.15"))
    assert "12.8" in trouble["remedy"]["en"]
    assert asked(old, "ollama", "13.0")["ok"], "Ollama is not built here"
    new = machine(gpus=cards(2, compute_capability="8.9", driver_version="580.95.05"))
    made = asked(new, "llama_cpp", "12.8")
    assert made["ok"]
    assert made["hosts"][0]["build"]["cuda"] == "12.8"


# -- engines side by side --------------------------------------------------------------------------


def standing(made: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """What the host's record says after an install of this plan, as `probe` reads it."""
    (row,) = made["hosts"]
    memory = {key: row["memory"][key] for key in ("gpu_bytes_per_device", "host_bytes", "disk_bytes")}
    return {**row["beside"], row["engine"]: {"model": row["model"], **memory, **changes}}


def test_an_engine_is_planned_in_the_memory_that_another_leaves() -> None:
    host = machine(gpus=cards(2))
    first = make("basic", host, engine="ollama")
    host["installed_engines"] = standing(first)
    made = make("basic", host, engine="llama_cpp", beside=True)
    assert made["ok"], made["problems"]
    (row,) = made["hosts"]
    assert row["beside"] == host["installed_engines"]
    # Ollama has the first card; where nothing stood, llama.cpp would take it too.
    assert [size > 0 for size in first["hosts"][0]["memory"]["gpu_bytes_per_device"]] == [True, False]
    assert [size > 0 for size in row["memory"]["gpu_bytes_per_device"]] == [False, True]
    assert "--main-gpu 1" in " ".join(row["command"])
    # Whoever does not ask for it gets the whole host.
    (alone,) = make("basic", host, engine="llama_cpp")["hosts"]
    assert alone == make("basic", machine(gpus=cards(2)), engine="llama_cpp")["hosts"][0]
    assert alone["beside"] == {}


def test_a_run_again_of_either_engine_plans_the_same() -> None:
    host = machine(gpus=cards(1, memory_bytes=20 * GIB))
    first = make("basic", host, engine="ollama")
    wishes: dict[str, Any] = {"engine": "vllm", "model": "deepseek-r1:1.5b", "parallel": 1, "beside": True}
    second = make("basic", {**host, "installed_engines": standing(first)}, **wishes)
    assert second["ok"], second["problems"]
    both = {**host, "installed_engines": standing(second)}
    assert sorted(both["installed_engines"]) == ["ollama", "vllm"]
    assert make("basic", both, **wishes) == second
    # The first one, asked for again, has no more and no less room than vLLM leaves.
    assert make("basic", both, engine="ollama", beside=True)["ok"]


def test_engines_that_do_not_fit_together_are_refused_with_figures() -> None:
    host = machine(memory_bytes=1_600_000_000)
    first = make("demo", host, engine="ollama")
    host["installed_engines"] = standing(first)
    made = make("demo", host, engine="llama_cpp", beside=True)
    assert codes(made) == ["engines-together"]
    (trouble,) = made["problems"]
    for words in ("ollama (smollm2:135m)", "needs RAM 1.6 GB", "has RAM 517.2 MB", "leaves RAM 1.1 GB"):
        assert words in trouble["message"]["en"]
    assert "dsprov_beside=false" in trouble["remedy"]["en"]
    assert make("demo", host, engine="llama_cpp")["ok"]
    # What does not fit alone either is not the other engine's fault.
    assert codes(make("basic", host, engine="llama_cpp", beside=True)) == ["host-memory"]


@pytest.mark.parametrize(("taken", "share"), [(0, "0.92"), (GIB, "0.878"), (12 * GIB, "0.419")])
def test_vllm_takes_the_share_of_a_card_that_is_left(taken: int, share: str) -> None:
    stays = {"ollama": {"model": "other", "host_bytes": 2 * GIB, "gpu_bytes_per_device": [taken]}}
    host = machine(gpus=cards(1), installed_engines=stays)
    made = make("basic", host, engine="vllm", model="deepseek-r1:1.5b", beside=True)
    assert made["ok"], made["problems"]
    (row,) = made["hosts"]
    command = row["command"]
    assert command[command.index("--gpu-memory-utilization") + 1] == share
    (claim,) = row["memory"]["gpu_bytes_per_device"]
    card = host["gpus"][0]["memory_bytes"]
    assert claim == int(card * float(share))
    # As much as it leaves to everybody where it is alone.
    assert claim + taken <= card * 0.92


def test_vllm_shares_cards_by_what_is_left_on_the_fullest() -> None:
    stays = {"ollama": {"host_bytes": 2 * GIB, "gpu_bytes_per_device": [0, 10 * GIB]}}
    host = machine(gpus=cards(2), installed_engines=stays)
    both = make("basic", host, engine="vllm", beside=True)["hosts"][0]
    assert both["placement"]["tensor_parallel"] == 2
    assert len(set(both["memory"]["gpu_bytes_per_device"])) == 1
    stays["ollama"]["gpu_bytes_per_device"] = [20 * GIB, 0]
    one = make("basic", host, engine="vllm", beside=True)["hosts"][0]
    assert one["environment"]["CUDA_VISIBLE_DEVICES"] == "1"
    assert one["command"][one["command"].index("--gpu-memory-utilization") + 1] == "0.92"


def test_vllm_that_stands_has_its_share_of_the_whole_card() -> None:
    host = machine(gpus=cards(1))
    first = make("basic", host, engine="vllm", model="deepseek-r1:1.5b")
    host["installed_engines"] = standing(first)
    card = host["gpus"][0]["memory_bytes"]
    assert host["installed_engines"]["vllm"]["gpu_bytes_per_device"] == [int(card * 0.92)]
    made = make("basic", host, engine="llama_cpp", beside=True)
    # What vLLM leaves of a card is nobody's: the next run for vLLM would miss it.
    assert "cpu-only" in codes(made)
    assert made["hosts"][0]["memory"]["gpu_bytes_per_device"] == [0]
    refused = make("basic", {**host, "memory_bytes": 16 * GIB}, engine="llama_cpp", beside=True)
    assert "engines-together" in codes(refused)


def test_what_came_for_another_engine_is_no_room_for_this_one() -> None:
    host = machine(gpus=cards(1), disks=[{"mount": "/", "free_bytes": GIB}], delivered_bytes=60 * GIB)
    first = make("basic", {**host, "disks": []}, engine="ollama")
    host["installed_engines"] = standing(first)
    host["delivered_bytes"] = first["hosts"][0]["memory"]["disk_bytes"]
    assert make("basic", host, engine="ollama", beside=True)["ok"]
    assert codes(make("basic", host, engine="llama_cpp", beside=True)) == ["disk-space"]


def test_an_engine_that_comes_beside_others_is_named() -> None:
    assert codes(make("basic", machine(gpus=cards(1)), beside=True)) == ["engine-unnamed"]


def test_what_a_record_does_not_say_is_not_guessed() -> None:
    host = machine(installed_engines={"ollama": {}})
    assert codes(make("demo", host, engine="llama_cpp", beside=True)) == ["engines-unrecorded"]
    assert make("demo", host, engine="llama_cpp")["ok"]
    assert make("demo", host, engine="ollama", beside=True)["ok"]


def test_hosts_that_share_a_model_serve_nothing_beside_it() -> None:
    stays = {"installed_engines": {"ollama": {"host_bytes": GIB}}}
    hosts = {name: {**host, **stays} for name, host in h20s("a", "b").items()}
    made = make_own("tiny-v3", hosts, nodes=2, placement="tensor", beside=True)
    assert set(codes(made)) == {"engines-group"}
    assert make_own("tiny-v3", hosts, nodes=1, beside=True)["ok"]
    shared = {"installed_engines": {"vllm": {"host_bytes": GIB, "gpu_bytes_per_device": [GIB]}}}
    pair = {name: {**host, **shared} for name, host in living(("a", "b")).items()}
    beside = plan(
        {"schema": 1, "hosts": pair}, request_for("basic", engine="ollama", beside=True), catalogue()
    )
    assert set(codes(beside)) == {"engines-group"}
    # The group itself, run again, stands beside nobody.
    assert make_own("tiny-v3", pair, nodes=2, placement="tensor", beside=True)["ok"]


def test_a_port_of_an_engine_that_stays_is_taken() -> None:
    stays = {"ollama": {"host_bytes": GIB, "base_url": "http://127.0.0.1:11500/v1"}}
    host = machine(
        installed_engines=stays,
        listeners=[{"port": 11500, "owner": "dsprov", "process": "ollama", "pid": 7}],
    )

    def asked(**variables: Any) -> list[str]:
        request, _found = request_from({**tier_variables("demo"), "dsprov_engine": "llama_cpp", **variables})
        assert request is not None
        return codes(plan({"schema": 1, "hosts": {"gpu01": host}}, request, catalogue()))

    assert asked(llama_cpp_port=11500, dsprov_beside=True) == ["port-in-use"]
    assert asked(open_webui_port=11500, dsprov_beside=True) == ["port-in-use"]
    assert asked(dsprov_beside=True) == asked(llama_cpp_port=11434, dsprov_beside=True) == []
    # It makes room where it does not stay.
    assert asked(llama_cpp_port=11500) == []
    # Without an address of its own it has the catalogue's port.
    del stays["ollama"]["base_url"]
    assert asked(llama_cpp_port=11434, dsprov_beside=True) == ["port-in-use"]


def test_a_remedy_takes_nobody_elses_model_away() -> None:
    stays = {"ollama": {"model": "other", "host_bytes": 2 * GIB, "gpu_bytes_per_device": [13 * GIB]}}
    made = make("basic", machine(gpus=cards(1), installed_engines=stays), engine="vllm", beside=True)
    assert "engines-together" in codes(made)
    assert all("dsprov_engine=ollama" not in problem["remedy"]["en"] for problem in made["problems"])
