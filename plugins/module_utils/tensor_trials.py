# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""vLLM: equal shares of every tensor on equal cards, of one host or several, or all on one CPU. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.dsprov.appliance.plugins.module_utils import beside, commands, sizing
from ansible_collections.dsprov.appliance.plugins.module_utils.hardware import Card
from ansible_collections.dsprov.appliance.plugins.module_utils.problems import Problem, human_bytes
from ansible_collections.dsprov.appliance.plugins.module_utils.trials import (
    SLOW_ON_CPU,
    Situation,
    Trial,
    candidates,
    common_problems,
    dotted,
    nothing_usable,
    plan_row,
    room_on_disk,
    sizes_by_card,
    writes_reasoning,
)

MOST_SEQUENCES = 256


def tensor_trials(situation: Situation) -> list[Trial]:
    """One trial for each variant that the engine can load."""
    loadable = candidates(situation.request, situation.model, situation.engine)
    if not situation.usable(None):
        if situation.request.vllm_build == "cpu":
            return [_cpu_trial(situation, name, variant) for name, variant in loadable.items()]
        return nothing_usable(situation, loadable)
    return [_tensor_trial(situation, name, variant) for name, variant in loadable.items()]


def _cpu_trial(situation: Situation, name: str, variant: Mapping[str, Any]) -> Trial:
    """All of a model on the CPU, by vLLM's build for it, which computes at 16 bit."""
    request, model, problems = situation.request, situation.model, situation.problems
    if variant["precision"] != "bf16":
        problem = problems.make(
            "precision-unsupported",
            gpu=situation.host["cpu"].get("model", "CPU"),
            found="CPU",
            precision=variant["precision"].upper(),
            model=request.model,
            variant=name,
            floor="BF16",
        )
        return Trial(name, (problem,))
    found: list[Problem] = []
    if model["parameters"] > SLOW_ON_CPU:
        found.append(problems.make("cpu-only", model=request.model, tier=request.tier))
    return tensor_row(situation, name, sizing.fit_cpu(model, variant, _cpu_cache(situation)), [], found)


def _cpu_cache(situation: Situation) -> int:
    """Whole GiB of memory for the cache of vLLM's CPU build: what is wished, by the cache of one request."""
    request = situation.request
    each = sizing.kv_bytes_per_token(situation.model, "f16") * request.context_length
    return int(max(1, math.ceil(each * max(1, request.parallel) / sizing.GIB)))


def precision_problem(situation: Situation, name: str, variant: Mapping[str, Any]) -> Problem | None:
    """What is wrong where no card knows a variant's precision."""
    floor = situation.engine.get("precisions", {}).get(variant["precision"])
    if situation.usable(floor):
        return None
    best = max(situation.usable(None), key=lambda card: card.capability or (0, 0))
    return situation.problems.make(
        "precision-unsupported",
        gpu=best.name,
        found=dotted(best),
        precision=variant["precision"].upper(),
        model=situation.request.model,
        variant=name,
        floor=floor,
    )


@dataclass(frozen=True)
class _Share:
    """Equal use of some cards by vLLM: each as if it had what the smallest one has."""

    fit: sizing.TensorFit
    free: int


def _tensor_trial(situation: Situation, name: str, variant: Mapping[str, Any]) -> Trial:
    request, model, problems = situation.request, situation.model, situation.problems
    wrong = precision_problem(situation, name, variant)
    if wrong is not None:
        return Trial(name, (wrong,))
    cards = situation.usable(situation.engine.get("precisions", {}).get(variant["precision"]))

    def share(free: int, tensor: int) -> _Share:
        among = [card for card in cards if card.free >= free]
        fit = sizing.fit_tensors(
            model,
            variant,
            min(card.memory for card in among),
            tensor=tensor,
            pipeline=1,
            context=request.context_length,
            parallel=request.parallel,
            utilisation=beside.utilisation(among),
        )
        return _Share(fit, free)

    shares: list[_Share] = []
    uneven: list[int] = []
    for free in sorted({card.free for card in cards}, reverse=True):
        count = sum(card.free >= free for card in cards)
        sizes = sizing.tensor_sizes(model, variant, count)
        shares += [share(free, size) for size in sizes]
        if count not in sizes and share(free, count).fit.needed <= share(free, count).fit.budget:
            uneven.append(count)
    good = [one for one in shares if one.fit.needed <= one.fit.budget]
    found: list[Problem] = []
    best = max(good or shares, key=lambda one: (one.fit.budget - one.fit.needed, one.fit.tensor))
    if good:
        best = max(good, key=lambda one: (one.fit.tensor, one.free))
    elif uneven:
        found.append(
            problems.make(
                "tensor-parallel",
                model=request.model,
                variant=name,
                count=uneven[0],
                heads=model["attention"]["heads"],
                allowed=", ".join(str(one.fit.tensor) for one in shares),
            )
        )
    else:
        found.append(gpu_memory(situation, name, best.fit, len(cards)))
    used = [card for card in cards if card.free >= best.free][: best.fit.tensor]
    return tensor_row(situation, name, best.fit, used, found)


def gpu_memory(situation: Situation, name: str, fit: sizing.TensorFit, count: int) -> Problem:
    """The words for a variant that does not fit."""
    return situation.problems.make(
        "gpu-memory",
        model=situation.request.model,
        variant=name,
        parallel=situation.request.parallel or 1,
        context=situation.request.context_length,
        needed=human_bytes(fit.needed),
        count=count,
        available=human_bytes(fit.budget),
    )


def tensor_row(
    situation: Situation,
    name: str,
    fit: sizing.TensorFit,
    used: Sequence[Card],
    found: list[Problem],
    node: tuple[int, int, str] | None = None,
    nic: Mapping[str, Any] | None = None,
) -> Trial:
    """A row for vLLM, on one host or as one of several.

    Args:
        node: rank, number of hosts, and address of the first.
        nic: the network card that they talk over.
    """
    request, model = situation.request, situation.model
    variant = model["variants"][name]
    parallel = request.parallel or max(1, min(MOST_SEQUENCES, fit.tokens // request.context_length))
    disk_bytes = room_on_disk(situation, variant["bytes"])
    found = [*found, *common_problems(situation, name, fit.host, disk_bytes, used)]
    capabilities = [card.capability for card in used if card.capability]
    hopper = variant["precision"] == "fp8" and all(capability[0] == 9 for capability in capabilities)
    moe = bool(model["feed_forward"].get("experts"))
    on_cpu = request.vllm_build == "cpu"
    ray = node is not None and request.vllm_executor == "ray"
    environment = commands.vllm_environment(
        nic,
        node is not None,
        hopper and moe and bool(capabilities),
        _cpu_cache(situation) if on_cpu else 0,
        ray=ray,
    )
    # It takes its whole share, whatever weights leave of it for the cache; what is refused shows its need.
    fits = fit.needed <= fit.budget
    share = beside.utilisation(used) if used else None
    takes = [int(card.memory * share) if fits and share else fit.needed for card in used]
    sizes = sizes_by_card(situation, used, takes)
    if len(used) < len(sizes):
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(str(index) for index, size in enumerate(sizes) if size)
    if on_cpu and not ray:
        # It would ask the driver of cards that it can do nothing with. Ray counts what it is shown.
        environment["CUDA_VISIBLE_DEVICES"] = ""
    command = commands.vllm_serve(
        commands.model_path(request.model, name),
        request.model,
        situation.port,
        fit,
        utilisation=share,
        context=request.context_length,
        parallel=parallel,
        half=variant["precision"] == "int4_awq" and any(c < (8, 0) for c in capabilities),
        experts=moe,
        reasoning=writes_reasoning(situation),
        eager=on_cpu,
        node=node,
        ray=len(used) if ray else 0,
    )
    layers = model["attention"]["layers"]
    row = plan_row(
        situation,
        name,
        placement={
            "strategy": "tensor",
            "gpu_layers": layers if used else 0,
            "total_layers": layers,
            "tensor_parallel": fit.tensor,
            "pipeline_parallel": fit.pipeline,
            "nodes": node[1] if node else 1,
        },
        parallel=parallel,
        cache_type="f16",
        kv_bytes=sizing.kv_bytes_per_token(model, "f16"),
        devices=sizes,
        host_bytes=fit.host,
        disk_bytes=disk_bytes,
        environment=environment,
        command=command,
    )
    row["context"]["kv_cache_tokens"] = fit.tokens
    return Trial(name, tuple(found), row, bool(used))
