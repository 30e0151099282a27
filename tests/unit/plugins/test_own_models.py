"""Models of a user's own (`dsprov_models`): planned like the catalogue's, or refused in one line."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from ansible_collections.dsprov.appliance.plugins.module_utils.planner import plan
from ansible_collections.dsprov.appliance.plugins.module_utils.problems import ProblemError
from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import catalogue, with_models
from ansible_collections.dsprov.appliance.plugins.plugin_utils.requests import request_from
from tests.fixtures.machines import machine
from tests.lab.artifacts import tiny

Row = dict[str, Any]


def own() -> Row:
    sizes = {name: (len(data), "0" * 64) for name, data in tiny.files("tiny-llama").items()}
    return {"mine": tiny.row("tiny-llama", sizes, "https://weights.example.org/mine")}


def test_a_model_of_ones_own_is_planned_with_its_files() -> None:
    variables = {"dsprov_tier": "demo", "dsprov_model": "mine", "dsprov_engine": "vllm"}
    request, found = request_from({**variables, "dsprov_vllm_build": "cpu", "dsprov_models": own()})
    assert request is not None, found
    made = plan({"schema": 1, "hosts": {"a": machine()}}, request, with_models(own()))
    assert made["ok"], made["problems"]
    (row,) = made["hosts"]
    assert row["command"][2] == "/var/lib/dsprov/models/mine/BF16"
    addresses = [file["sources"][0]["url"] for file in row["weights"]["artifacts"]]
    assert "https://weights.example.org/mine/model.safetensors" in addresses


def test_a_row_of_the_same_name_replaces_the_catalogues() -> None:
    rows = with_models({"smollm2:135m": own()["mine"]})["models"]
    assert rows["smollm2:135m"]["title"] == "tiny-llama, random weights"
    assert catalogue()["models"]["smollm2:135m"]["title"] != rows["smollm2:135m"]["title"]
    assert len(rows) == len(catalogue()["models"])


def test_no_models_of_ones_own() -> None:
    assert with_models({}) is catalogue()


def first_file(row: Row) -> Row:
    file: Row = row["variants"]["BF16"]["files"][0]
    return file


def renamed(row: Row, name: str) -> None:
    row["variants"][name] = row["variants"].pop("BF16")


BROKEN: list[tuple[str, Callable[[Row], Any], str]] = [
    ("misspelt", lambda r: r.update(paramters=1), "unknown key 'paramters'"),
    ("missing", lambda r: r.pop("license"), "'license' is missing"),
    ("no weights", lambda r: r["variants"]["BF16"].pop("weights"), "'weights' is missing"),
    ("digest", lambda r: first_file(r).update(sha256="abc"), "sha256"),
    ("path in a name", lambda r: first_file(r).update(name="../../etc/passwd"), "name"),
    ("path in a variant", lambda r: renamed(r, "../../../etc"), "variants"),
    ("ftp", lambda r: first_file(r).update(sources=[{"url": "ftp://example.org/x"}]), "sources"),
    ("no host", lambda r: first_file(r).update(sources=[{"url": "http:///x"}]), "sources"),
    ("no source", lambda r: first_file(r).update(sources=[]), "sources"),
    ("layer missing", lambda r: r["attention"].update(layers=3), "each layer 0-2"),
    ("layer too many", lambda r: r["attention"].update(layers=1), "each layer 0-0"),
    (
        "a billion layers",
        lambda r: r["variants"]["BF16"]["weights"]["layers"][0].update(at="0-999999999999"),
        "each layer",
    ),
    (
        "the catalogue's lists",
        lambda r: (
            r["variants"]["BF16"].pop("files"),
            r["variants"]["BF16"].update(list="deepseek-r1-671b.FP8", sources=[{"huggingface": "a/b"}]),
        ),
        "lists are the catalogue's own",
    ),
    ("a list", lambda r: r.update(variants=[1]), "type object"),
]


@pytest.mark.parametrize(("spoil", "says"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
def test_a_wrong_row_is_named_in_one_line(spoil: Callable[[Row], Any], says: str) -> None:
    rows = copy.deepcopy(own())
    spoil(rows["mine"])
    with pytest.raises(ProblemError) as caught:
        request_from({"dsprov_model": "mine", "dsprov_models": rows})
    assert caught.value.exit_code == 2
    message = caught.value.problem["message"]["en"]
    assert message.startswith("dsprov_models: models.mine")
    assert says in message
    assert "\n" not in message


def test_what_is_no_mapping_is_a_wrong_variable() -> None:
    request, found = request_from({"dsprov_model": "mine", "dsprov_models": "mine.yml"})
    assert request is None
    assert [problem["code"] for problem in found] == ["variable-invalid"]


def test_the_engine_follows_the_weights_that_there_are() -> None:
    variables = {"dsprov_tier": "demo", "dsprov_model": "mine", "dsprov_vllm_build": "cpu"}
    request, found = request_from({**variables, "dsprov_models": own()})
    assert request is not None, found
    made = plan({"schema": 1, "hosts": {"a": machine()}}, request, with_models(own()))
    assert made["ok"], made["problems"]
    assert made["engine"] == "vllm"
