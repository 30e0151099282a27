# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Ollama and llama.cpp: whole layers on the cards, or the experts of each on the CPU. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.dsprov.appliance.plugins.module_utils import beside, commands, sizing
from ansible_collections.dsprov.appliance.plugins.module_utils.hardware import Card, branch, floor_of
from ansible_collections.dsprov.appliance.plugins.module_utils.problems import Problem, Problems
from ansible_collections.dsprov.appliance.plugins.module_utils.trials import (
    SLOW_ON_CPU,
    Situation,
    Trial,
    candidates,
    common_problems,
    plan_row,
    room_on_disk,
    sizes_by_card,
)

# Slots that are tried where as many are wanted as fit; vLLM's batch is bound by its cache alone.
SLOTS = (16, 8, 4, 2, 1)


def layer_trials(situation: Situation) -> list[Trial]:
    """One trial for each variant that the engine can load."""
    loadable = candidates(situation.request, situation.model, situation.engine)
    return [_layer_trial(situation, name, variant) for name, variant in loadable.items()]


def _layer_trial(situation: Situation, name: str, variant: Mapping[str, Any]) -> Trial:
    request, model, problems = situation.request, situation.model, situation.problems
    cache_type = situation.cache_type(variant)
    cards = situation.usable(None)
    found: list[Problem] = []
    if cache_type not in variant.get("kv_cache_types", [cache_type]):
        found.append(problems.make("kv-cache-legacy", model=request.model, variant=name, kind=cache_type))
    moe = bool(model["feed_forward"].get("experts"))
    if request.placement == "auto":
        strategies = (
            ["experts", "layers"] if moe and "experts" in situation.engine["placements"] else ["layers"]
        )
    else:
        strategies = [request.placement]

    def size(strategy: str, parallel: int) -> sizing.LayerFit:
        return sizing.fit_layers(
            model,
            variant,
            [beside.budget(card) for card in cards],
            context=request.context_length,
            parallel=parallel,
            cache_type=cache_type,
            strategy=strategy,
            flags=situation.host["cpu"].get("flags", ()),
        )

    parallel = request.parallel or 1
    for strategy in strategies:
        fit = size(strategy, parallel)
        if fit.host <= situation.host["memory_bytes"]:
            break
    if not request.parallel and fit.full:
        for parallel in SLOTS:
            more = size(strategy, parallel)
            if more.full and more.host <= situation.host["memory_bytes"]:
                fit = more
                break
    disk_bytes = room_on_disk(situation, variant["bytes"])
    used = [card for card, count in zip(cards, fit.counts, strict=True) if count]
    found += common_problems(situation, name, fit.host, disk_bytes, used)
    if not used:
        if model["parameters"] > SLOW_ON_CPU and fit.host <= situation.host["memory_bytes"]:
            found.append(problems.make("cpu-only", model=request.model, tier=request.tier))
    elif fit.ngl <= fit.total:
        found.append(problems.make("part-on-cpu", layers=fit.gpu_layers, total=fit.total))
    flash = variant.get("kv") != "mha" or not used
    files = variant.get("files", [])
    shards = variant.get("shards", {})
    first = files or ([{"name": _first(shards)}] if shards else [])
    path = commands.model_path(request.model, name, first)
    if situation.engine_name == "ollama":
        command = ["ollama", "serve"]
        environment = commands.ollama_environment(
            request.context_length, parallel, cache_type, len(used), flash
        )
    else:
        environment = {}
        command = commands.llama_server(
            path,
            request.model,
            situation.port,
            fit,
            strategy=strategy,
            context=request.context_length,
            parallel=parallel,
            cache_type=cache_type,
            flash=flash,
            threads=situation.threads,
            numa_nodes=situation.numa_nodes,
        )
    shown = "cpu" if not used else ("layers" if strategy == "experts" and not fit.cpu_experts else strategy)
    row = plan_row(
        situation,
        name,
        placement={
            "strategy": shown,
            "gpu_layers": fit.gpu_layers,
            "total_layers": fit.total,
            "cpu_expert_layers": fit.cpu_experts,
            "tensor_parallel": 1,
            "pipeline_parallel": 1,
            "nodes": 1,
        },
        parallel=parallel,
        cache_type=cache_type,
        kv_bytes=sizing.kv_bytes_per_token(model, cache_type, variant),
        devices=sizes_by_card(situation, cards, fit.devices),
        host_bytes=fit.host,
        disk_bytes=disk_bytes,
        environment=environment,
        command=command,
    )
    if "toolkits" in situation.engine:
        toolkits = situation.engine["toolkits"]
        # One that the catalogue does not know is refused by the role cuda_toolkit.
        wished = [one for one in toolkits if one["cuda"] == request.cuda_toolkit]
        row["build"] = _build(wished or toolkits, used)
        found += _newer_than_the_driver(wished, toolkits, used, problems)
    return Trial(name, tuple(found), row, fit.full)


def _build(toolkits: Sequence[Mapping[str, Any]], cards: Sequence[Card]) -> dict[str, Any]:
    """What an engine that is built on the host is built for: the cards that work, by a toolkit for them.

    Where no toolkit suits the driver too, the first that knows the cards: the driver is reported by itself.
    """
    capabilities = sorted({card.capability for card in cards if card.capability})
    if not cards:
        return {"backend": "cpu", "cuda": "", "compute_capabilities": []}
    knows = [
        row
        for row in toolkits
        if all(floor_of(row["from"]) <= one <= floor_of(row["to"]) for one in capabilities)
    ]
    drivers = [have for have in (branch(card.driver) for card in cards) if have is not None]
    suits = [row for row in knows if all(have >= row["driver"] for have in drivers)]
    return {
        "backend": "cuda",
        "cuda": (suits or knows or toolkits)[0]["cuda"],
        "compute_capabilities": [".".join(map(str, one)) for one in capabilities],
    }


def _newer_than_the_driver(
    wished: Sequence[Mapping[str, Any]],
    toolkits: Sequence[Mapping[str, Any]],
    cards: Sequence[Card],
    problems: Problems,
) -> list[Problem]:
    """A toolkit that was asked for and whose programs the driver would not run."""
    for row in wished:
        for card in cards:
            have = branch(card.driver)
            if have is not None and have < row["driver"]:
                others = ", ".join(one["cuda"] for one in toolkits if one["driver"] <= have) or "-"
                words = {"cuda": row["cuda"], "floor": row["driver"], "found": card.driver}
                return [problems.make("cuda-driver", **words, others=others)]
    return []


def _first(shards: Mapping[str, Any]) -> str:
    """Name of the first shard."""
    return str(shards["name"].format(index=1, count=shards.get("count") or 1))
