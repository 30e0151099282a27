# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""KTransformers: attention on the cards, experts in the memory of the CPU's nodes. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ansible_collections.dsprov.appliance.plugins.module_utils import beside, commands, sizing
from ansible_collections.dsprov.appliance.plugins.module_utils.problems import Problem, human_bytes
from ansible_collections.dsprov.appliance.plugins.module_utils.trials import (
    KNEE_BITS,
    Situation,
    Trial,
    bits,
    candidates,
    common_problems,
    nothing_usable,
    plan_row,
    room_on_disk,
    sizes_by_card,
    writes_reasoning,
)


def expert_trials(situation: Situation) -> list[Trial]:
    """One trial for each variant, by the first method that works."""
    request, model, problems = situation.request, situation.model, situation.problems
    loadable = candidates(request, model, situation.engine)
    if not model["feed_forward"].get("experts"):
        title = situation.engine["title"]
        problem = problems.make("model-unsupported", engine=title, model=request.model)
        return [Trial(name, (problem,)) for name in loadable]
    if not situation.usable(None):
        return nothing_usable(situation, loadable)
    if all(row["format"] == "gguf" for row in model["variants"].values()):
        problem = problems.make("checkpoint-missing", engine=situation.engine["title"], model=request.model)
        return [Trial(name, (problem,)) for name in loadable]
    ways = _methods(situation)
    if not ways:
        formats = "/".join(sorted({row["format"] for row in loadable.values()}))
        problem = problems.make(
            "format-unsupported",
            engine=situation.engine_name,
            format=formats,
            model=request.model,
            variant=request.variant,
        )
        return [Trial(name, (problem,)) for name in loadable]
    trials = [
        replace(_expert_trial(situation, method, name), rank=rank) for rank, (method, name) in enumerate(ways)
    ]
    # One trial a variant, the first method that works.
    first: dict[str, Trial] = {}
    for trial in trials:
        if trial.variant not in first or (trial.ok and not first[trial.variant].ok):
            first[trial.variant] = trial
    return list(first.values())


def _methods(situation: Situation) -> list[tuple[str, str]]:
    """(method, variant) pairs that suit the wishes, best first."""
    request = situation.request
    loadable = candidates(request, situation.model, situation.engine)
    wished = request.ktransformers_method
    pairs = []
    for method in situation.engine["methods"]:
        # Nobody offers experts that are converted for AMX, so they are taken only where they are wished.
        if wished == "auto" and (method.startswith("AMX") or method == "BF16" != request.variant):
            continue
        if wished not in ("auto", method):
            continue
        if method == "LLAMAFILE":
            # kt-kernel reads plain k-quants, not the dynamic i-quants.
            names = [name for name, row in loadable.items() if row["format"] == "gguf" and "IQ" not in name]
            if request.variant == "auto":
                names = sorted(names, key=lambda name: abs(bits(situation.model, name) - KNEE_BITS))[:1]
        else:
            names = [name for name in loadable if name == ("BF16" if method == "BF16" else "FP8")]
        pairs += [(method, name) for name in names]
    return pairs


def _checkpoint(model: Mapping[str, Any]) -> str:
    """The variant whose configuration, tokenizer and attention go with experts in GGUF files."""
    names: list[str] = [name for name, row in model["variants"].items() if row["format"] == "safetensors"]
    return min(names, key=lambda name: (name != "FP8", name != "BF16", name))


def _expert_trial(situation: Situation, method: str, name: str) -> Trial:
    request, model, problems = situation.request, situation.model, situation.problems
    variant = model["variants"][name]
    checkpoint_name = name if variant["format"] == "safetensors" else _checkpoint(model)
    checkpoint = model["variants"][checkpoint_name]
    flags = situation.host["cpu"].get("flags")
    missing = sorted(set(situation.engine["methods"][method]) - set(flags or []))
    found: list[Problem] = []
    if flags is not None and missing:
        found.append(
            problems.make(
                "cpu-isa",
                engine=f"{situation.engine['title']} {method}",
                missing=", ".join(missing),
            )
        )
    cards = situation.usable(None)
    parallel = request.parallel or 1
    choices: list[tuple[sizing.ExpertFit, int]] = []
    for memory in sorted({beside.budget(card) for card in cards}, reverse=True):
        count = sum(beside.budget(card) >= memory for card in cards)
        for devices in (1, 2, 4, 8):
            if devices <= count and model["attention"]["heads"] % devices == 0:
                fit = sizing.fit_experts(
                    model,
                    checkpoint,
                    variant if variant["format"] == "gguf" else None,
                    method,
                    devices=devices,
                    context=request.context_length,
                    parallel=parallel,
                )
                choices.append((fit, memory))
    room = {memory: int(memory * (1 - sizing.GPU_MARGIN)) for _fit, memory in choices}
    good = [(fit, memory) for fit, memory in choices if fit.needed <= room[memory]]
    fit, memory = good[0] if good else max(choices, key=lambda one: room[one[1]] - one[0].needed)
    if not good:
        found.append(
            problems.make(
                "gpu-memory",
                model=request.model,
                variant=checkpoint_name,
                parallel=parallel,
                context=request.context_length,
                needed=human_bytes(fit.needed),
                count=fit.devices,
                available=human_bytes(room[memory]),
            )
        )
    used = [card for card in cards if beside.budget(card) >= memory][: fit.devices]
    disk_bytes = room_on_disk(situation, fit.disk)
    found += common_problems(situation, name, fit.host, disk_bytes, used)
    if checkpoint is not variant and "files" in variant and "files" not in checkpoint:
        found.append(problems.make("weights-unverified", model=request.model, variant=checkpoint_name))
    found += _python_problems(situation)
    expert_path = commands.model_path(request.model, name)
    if method.startswith("AMX"):
        expert_path = commands.model_path(request.model, f"{name}-{method}")
        found.append(problems.make("weights-converted", method=method, folder=expert_path))
    nodes = situation.numa_nodes
    share = situation.host["memory_bytes"] // nodes
    if nodes > 1 and fit.experts // nodes + sizing.KT_HOST_PROCESS + sizing.SYSTEM_RESERVE > share:
        found.append(
            problems.make(
                "memory-numa",
                nodes=nodes,
                needed=human_bytes(fit.experts // nodes),
                available=human_bytes(share),
            )
        )
    sizes = sizes_by_card(situation, used, [fit.needed] * len(used))
    environment = commands.ktransformers_environment()
    if len(used) < len(sizes):
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(str(index) for index, size in enumerate(sizes) if size)
    layers = model["attention"]["layers"]
    row = plan_row(
        situation,
        name,
        placement={
            "strategy": "experts",
            "gpu_layers": layers,
            "total_layers": layers,
            "cpu_expert_layers": layers,
            "method": method,
            "numa_nodes": nodes,
            **({"folders": [expert_path]} if method.startswith("AMX") else {}),
            "tensor_parallel": fit.devices,
            "pipeline_parallel": 1,
            "nodes": 1,
        },
        parallel=parallel,
        cache_type="f16",
        kv_bytes=sizing.kv_bytes_per_token(model, "f16"),
        devices=sizes,
        host_bytes=fit.host,
        disk_bytes=disk_bytes,
        environment=environment,
        command=commands.ktransformers(
            commands.model_path(request.model, checkpoint_name),
            expert_path,
            request.model,
            situation.port,
            method=method,
            devices=fit.devices,
            context=request.context_length,
            parallel=parallel,
            threads=situation.threads,
            numa_nodes=nodes,
            reasoning=writes_reasoning(situation),
        ),
        weight_bytes=checkpoint["bytes"] + (variant["bytes"] if variant is not checkpoint else 0),
    )
    row["parts"] = [checkpoint_name] if checkpoint is variant else [checkpoint_name, name]
    return Trial(name, tuple(found), row, False)


def _python_problems(situation: Situation) -> list[Problem]:
    """What is wrong where a system has no Python that the engine's packages are made for."""
    engine, os = situation.engine, situation.host["os"]
    known = engine.get("systems", {})
    if not known or situation.request.own_python or os["version_id"] in known.get(os["id"], []):
        return []
    supported = ", ".join(f"{name} {version}" for name, rows in known.items() for version in rows)
    return [
        situation.problems.make(
            "engine-python",
            engine=f"{engine['title']} {engine['version']}",
            pythons="/".join(engine["pythons"]),
            system=f"{os['id']} {os['version_id']}",
            supported=supported,
            variable=f"{situation.engine_name}_python",
        )
    ]
