# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""One engine on one host: which variant fits where, or what stands in the way. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ansible_collections.dsprov.appliance.plugins.module_utils import commands, sizing
from ansible_collections.dsprov.appliance.plugins.module_utils.hardware import (
    Accelerators,
    Card,
    branch,
    floor_of,
    meets,
)
from ansible_collections.dsprov.appliance.plugins.module_utils.nvidia_driver import Decision
from ansible_collections.dsprov.appliance.plugins.module_utils.problems import Problem, Problems, human_bytes

# Docker, the engine's libraries (for llama.cpp also the CUDA toolkit and room to build in), in GB.
SOFTWARE_BYTES = {"ollama": 4, "llama_cpp": 8, "vllm": 15, "ktransformers": 20}
GB = 1_000_000_000
WEB_UI_BYTES = 5 * GB
DISK_MARGIN = 0.10
# Parameters from which on answers from a CPU take patience.
SLOW_ON_CPU = 3_000_000_000
# Bits a weight up to which more of them are worth the time that a CPU takes to read them.
KNEE_BITS = 5.0
# Slots that are tried where as many are wanted as fit; vLLM's batch is bound by its cache alone.
SLOTS = (16, 8, 4, 2, 1)
MOST_SEQUENCES = 256
# Where everything of ours lives; the disk that holds it is the one that must have room.
DATA_MOUNT = "/var/lib/dsprov"
# One concurrent request serves about ten named users (the rule of the appliances' price list).
USERS_PER_REQUEST = 10


def port_variable(engine: str) -> str:
    """The role's input that chooses an engine's port."""
    return "ollama_host" if engine == "ollama" else f"{engine}_port"


@dataclass(frozen=True)
class Trial:
    """One variant tried: what a host's row of the plan would say, and what is wrong with it.

    Attributes:
        row: the row of the plan without the host's own parts; None where nothing could be sized.
        full: whether GPUs do all the work.
        rank: order of the engine's own, where it has one; less is better.
    """

    variant: str
    problems: tuple[Problem, ...]
    row: dict[str, Any] | None = None
    full: bool = False
    rank: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing stands in the way."""
        return not any(problem["severity"] == "error" for problem in self.problems)


@dataclass(frozen=True)
class Attempt:
    """One engine tried on one host: the variant taken, and those turned down."""

    engine: str
    taken: Trial
    others: tuple[Trial, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether the engine can serve on this host."""
        return self.taken.ok


@dataclass(frozen=True)
class Situation:
    """What an attempt is made with: the host, the wishes, the catalogue's rows.

    Attributes:
        driver: what the role nvidia_driver makes of the host for this engine; None where it leaves it alone.
    """

    host: Mapping[str, Any]
    accelerators: Accelerators
    request: Any
    model: Mapping[str, Any]
    engine_name: str
    engine: Mapping[str, Any]
    problems: Problems
    driver: Decision | None = None

    @property
    def port(self) -> int:
        """The port that the engine listens on: the wished one, or its own."""
        wished = self.request.ports or {}
        return int(wished.get(port_variable(self.engine_name), self.engine["port"]))

    @property
    def threads(self) -> int:
        """Physical cores: hyperthreads only get in each other's way."""
        return int(self.host["cpu"]["cores"])

    @property
    def numa_nodes(self) -> int:
        """Memory nodes of the host."""
        return int(self.host["cpu"].get("numa_nodes", 1))

    def usable(self, floor: str | None) -> list[Card]:
        """Cards whose compute capability suffices for the engine and for `floor`."""
        own = self.engine["compute_capability"]
        return [card for card in self.accelerators.cards if meets(card, own) and meets(card, floor)]

    def cache_type(self, variant: Mapping[str, Any]) -> str:
        """The cache's type that is wished, or the best there is."""
        if self.request.kv_cache_type != "auto":
            return str(self.request.kv_cache_type)
        known = variant.get("kv_cache_types", self.engine["kv_cache_types"])
        return "q8_0" if "q8_0" in known and "q8_0" in self.engine["kv_cache_types"] else "f16"


def candidates(request: Any, model: Mapping[str, Any], engine: Mapping[str, Any]) -> dict[str, Any]:
    """Variants that are wished and that the engine can load."""
    variants = model["variants"]
    wished = variants if request.variant == "auto" else {request.variant: variants[request.variant]}
    return {name: row for name, row in wished.items() if row["format"] in engine["formats"]}


def attempt(situation: Situation) -> Attempt:
    """The best that one engine can do on one host."""
    trials = _TRIALS[situation.engine_name](situation)
    good = [trial for trial in trials if trial.ok]
    if good:
        taken = min(good, key=lambda trial: _worse(situation.model, trial))
    else:
        # The least demanding one says best what is missing.
        taken = min(trials, key=lambda trial: situation.model["variants"][trial.variant]["bytes"])
    return Attempt(situation.engine_name, taken, tuple(trial for trial in trials if trial is not taken))


def bits(model: Mapping[str, Any], variant: str) -> float:
    """Bits a weight."""
    return float(model["variants"][variant]["bytes"] * 8 / model["parameters"])


def _worse(model: Mapping[str, Any], trial: Trial) -> tuple[bool, bool, int, bool, int]:
    """Order of what works: what can be delivered, what needs no CPU, then the most precise.

    Where a CPU has part of the work its speed goes by bytes, so beyond the knee less is better.
    """
    variant = model["variants"][trial.variant]
    size = variant["bytes"]
    heavy = not trial.full and bits(model, trial.variant) > KNEE_BITS
    return ("files" not in variant, not trial.full, trial.rank, heavy, size if heavy else -size)


def data_disk(host: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The disk that will hold our data: the longest mount point above its folder."""
    above = [
        disk
        for disk in host.get("disks", [])
        if disk["mount"] == DATA_MOUNT or DATA_MOUNT.startswith(disk["mount"].rstrip("/") + "/")
    ]
    return max(above, key=lambda disk: len(disk["mount"]), default=None)


def _common(
    situation: Situation, variant_name: str, host_bytes: int, disk_bytes: int, cards: Sequence[Card]
) -> list[Problem]:
    """What holds for every engine: memory, disk, drivers, and what is known of the weights."""
    request, host, problems = situation.request, situation.host, situation.problems
    variant = situation.model["variants"][variant_name]
    found: list[Problem] = []
    if host_bytes > host["memory_bytes"]:
        found.append(
            problems.make(
                "host-memory",
                model=request.model,
                variant=variant_name,
                needed=human_bytes(host_bytes),
                available=human_bytes(host["memory_bytes"]),
            )
        )
    disk = data_disk(host)
    # What an earlier run has brought needs no room again.
    still_needed = max(0, disk_bytes - host.get("delivered_bytes", 0))
    if disk is not None and disk["free_bytes"] < still_needed:
        found.append(
            problems.make(
                "disk-space",
                mount=disk["mount"],
                free=human_bytes(disk["free_bytes"]),
                needed=human_bytes(still_needed),
                missing=human_bytes(still_needed - disk["free_bytes"]),
            )
        )
    found += _drivers(situation, cards)
    if variant.get("estimated"):
        found.append(problems.make("weights-estimated", model=request.model, variant=variant_name))
    if "files" not in variant:
        found.append(problems.make("weights-unverified", model=request.model, variant=variant_name))
    return found


def _drivers(situation: Situation, cards: Sequence[Card]) -> list[Problem]:
    problems, floor = situation.problems, situation.engine["driver"]
    found: list[Problem] = []
    driver = situation.driver
    lacking = [card for card in cards if card.driver is None or (branch(card.driver) or floor) < floor]
    lost = silent_driver(situation.host)[1].startswith("card ")
    if driver is not None and driver.action == "install" and lacking and not lost:
        if not driver.ok:
            return list(driver.problems)
        said = problems.make(
            "driver-install",
            count=len(lacking),
            branch=driver.branches[0],
            flavour=driver.flavour,
            source=driver.source,
            more=" + fabric manager" if driver.fabric else "",
        )
        return [said, *driver.problems]
    for card in dict.fromkeys(cards):
        have = branch(card.driver)
        if have is not None and have < floor:
            needs = f"{situation.engine['title']} {situation.engine['version']}"
            problem = problems.make("driver-too-old", found=card.driver, needs=needs, floor=floor)
            found += [problem] if problem not in found else []
    bare = sum(card.driver is None for card in cards)
    installed, error = silent_driver(situation.host)
    if bare and not error:
        found.append(problems.make("driver-missing", count=bare, floor=floor))
    elif bare and (branch(installed) or floor) < floor:
        needs = f"{situation.engine['title']} {situation.engine['version']}"
        found.append(problems.make("driver-too-old", found=installed, needs=needs, floor=floor))
    return found


def silent_driver(host: Mapping[str, Any]) -> tuple[str, str]:
    """The version of a driver that is installed and does not answer, and why not; both may be empty.

    It is the library's, which names what the next boot should load.
    """
    driver = host.get("nvidia") or {}
    # NVML's own version begins with CUDA's: 13.580.95.05.
    return str(driver.get("library_version") or "").partition(".")[2], str(driver.get("nvml_error") or "")


def _disk_bytes(situation: Situation, weights: int) -> int:
    """Room for everything, in Ollama's case with weights twice: verified file and own copy."""
    copies = 2 if situation.engine_name == "ollama" else 1
    software = SOFTWARE_BYTES[situation.engine_name] * GB + (WEB_UI_BYTES if situation.request.web_ui else 0)
    return int((copies * weights + software) * (1 + DISK_MARGIN))


def _row(
    situation: Situation,
    variant_name: str,
    *,
    placement: dict[str, Any],
    parallel: int,
    cache_type: str,
    kv_bytes: int,
    devices: list[int],
    host_bytes: int,
    disk_bytes: int,
    environment: dict[str, str],
    command: list[str],
    weight_bytes: int | None = None,
) -> dict[str, Any]:
    variant = situation.model["variants"][variant_name]
    files = variant.get("files", [])
    shards = variant.get("shards", {})
    sources = (files[0] if files else shards)["sources"]
    return {
        "weights": {
            "variant": variant_name,
            "format": variant["format"],
            "bytes": weight_bytes or variant["bytes"],
            "files": len(files) or shards.get("count") or 0,
            "sources": [_label(source) for source in sources],
        },
        "placement": {**placement, "cpu_threads": situation.threads},
        "context": {
            "length": situation.request.context_length,
            "parallel": parallel,
            "kv_cache_type": cache_type,
            "kv_bytes_per_token": kv_bytes,
        },
        "memory": {
            "gpu_bytes_per_device": devices,
            "host_bytes": host_bytes,
            "disk_bytes": disk_bytes,
        },
        "capacity": {
            "concurrent_requests": parallel,
            "named_users": USERS_PER_REQUEST * parallel,
            "estimated": True,
        },
        "environment": environment,
        "command": command,
    }


def _label(source: Mapping[str, str]) -> str:
    kind = next(key for key in ("huggingface", "modelscope", "pypi", "url", "file") if key in source)
    return f"{kind}:{source[kind]}"


def _reasons(situation: Situation) -> bool:
    """Whether the model writes its reasoning down first, which a parser then sets apart."""
    return "r1" in situation.request.model


# -- llama.cpp and Ollama ------------------------------------------------------------------------


def _layer_trials(situation: Situation) -> list[Trial]:
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
            [card.memory for card in cards],
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
    disk_bytes = _disk_bytes(situation, variant["bytes"])
    used = [card for card, count in zip(cards, fit.counts, strict=True) if count]
    found += _common(situation, name, fit.host, disk_bytes, used)
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
    row = _row(
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
        devices=_by_card(situation, cards, fit.devices),
        host_bytes=fit.host,
        disk_bytes=disk_bytes,
        environment=environment,
        command=command,
    )
    if "toolkits" in situation.engine:
        row["build"] = _build(situation.engine["toolkits"], used)
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


def _by_card(situation: Situation, cards: Sequence[Card], sizes: Sequence[int]) -> list[int]:
    """Sizes of the cards that are used, among all cards of the host in their order."""
    left = list(zip(cards, sizes, strict=True))
    shown = []
    for card in situation.accelerators.cards:
        if left and left[0][0] is card:
            shown.append(left.pop(0)[1])
        else:
            shown.append(0)
    return shown


def _first(shards: Mapping[str, Any]) -> str:
    """Name of the first shard."""
    return str(shards["name"].format(index=1, count=shards.get("count") or 1))


# -- vLLM ----------------------------------------------------------------------------------------


def _nothing_usable(situation: Situation, variants: Mapping[str, Any]) -> list[Trial]:
    """What stands in the way where the engine can use no card of the host at all."""
    request, problems, engine = situation.request, situation.problems, situation.engine
    if not situation.accelerators.cards:
        problem = problems.make("no-gpu", model=request.model, engine=situation.engine_name)
    else:
        best = max(situation.accelerators.cards, key=lambda card: card.capability or (0, 0))
        problem = problems.make(
            "compute-capability",
            engine=engine["title"],
            version=engine["version"],
            floor=engine["compute_capability"],
            gpu=best.name,
            found=_dotted(best),
        )
    return [Trial(name, (problem,)) for name in variants]


def _dotted(card: Card) -> str:
    return ".".join(map(str, card.capability or ()))


def _tensor_trials(situation: Situation) -> list[Trial]:
    loadable = candidates(situation.request, situation.model, situation.engine)
    if not situation.usable(None):
        if situation.request.vllm_build == "cpu":
            return [_cpu_trial(situation, name, variant) for name, variant in loadable.items()]
        return _nothing_usable(situation, loadable)
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
        found=_dotted(best),
        precision=variant["precision"].upper(),
        model=situation.request.model,
        variant=name,
        floor=floor,
    )


@dataclass(frozen=True)
class _Share:
    """Equal use of some cards by vLLM: each as if it had the smallest one's memory."""

    fit: sizing.TensorFit
    memory: int


def _tensor_trial(situation: Situation, name: str, variant: Mapping[str, Any]) -> Trial:
    request, model, problems = situation.request, situation.model, situation.problems
    wrong = precision_problem(situation, name, variant)
    if wrong is not None:
        return Trial(name, (wrong,))
    cards = situation.usable(situation.engine.get("precisions", {}).get(variant["precision"]))

    def share(memory: int, tensor: int) -> _Share:
        fit = sizing.fit_tensors(
            model,
            variant,
            memory,
            tensor=tensor,
            pipeline=1,
            context=request.context_length,
            parallel=request.parallel,
        )
        return _Share(fit, memory)

    shares: list[_Share] = []
    uneven: list[int] = []
    for memory in sorted({card.memory for card in cards}, reverse=True):
        count = sum(card.memory >= memory for card in cards)
        sizes = sizing.tensor_sizes(model, variant, count)
        shares += [share(memory, size) for size in sizes]
        if count not in sizes and share(memory, count).fit.needed <= share(memory, count).fit.budget:
            uneven.append(count)
    good = [one for one in shares if one.fit.needed <= one.fit.budget]
    found: list[Problem] = []
    best = max(good or shares, key=lambda one: (one.fit.budget - one.fit.needed, one.fit.tensor))
    if good:
        best = max(good, key=lambda one: (one.fit.tensor, one.memory))
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
    used = [card for card in cards if card.memory >= best.memory][: best.fit.tensor]
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
) -> Trial:
    """A row for vLLM, on one host or as one of several (`node`: rank, number, address of the first)."""
    request, model = situation.request, situation.model
    variant = model["variants"][name]
    parallel = request.parallel or max(1, min(MOST_SEQUENCES, fit.tokens // request.context_length))
    disk_bytes = _disk_bytes(situation, variant["bytes"])
    found = [*found, *_common(situation, name, fit.host, disk_bytes, used)]
    capabilities = [card.capability for card in used if card.capability]
    hopper = variant["precision"] == "fp8" and all(capability[0] == 9 for capability in capabilities)
    moe = bool(model["feed_forward"].get("experts"))
    on_cpu = request.vllm_build == "cpu"
    environment = commands.vllm_environment(
        commands.best_nic(situation.host),
        node is not None,
        hopper and moe and bool(capabilities),
        _cpu_cache(situation) if on_cpu else 0,
    )
    # It takes its whole share, whatever weights leave of it for the cache; what is refused shows its need.
    fits = fit.needed <= fit.budget
    takes = [int(card.memory * sizing.VLLM_UTILISATION) if fits else fit.needed for card in used]
    sizes = _by_card(situation, used, takes)
    if len(used) < len(sizes):
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(str(index) for index, size in enumerate(sizes) if size)
    if on_cpu:
        # It would ask the driver of cards that it can do nothing with.
        environment["CUDA_VISIBLE_DEVICES"] = ""
    command = commands.vllm_serve(
        commands.model_path(request.model, name),
        request.model,
        situation.engine["port"],
        fit,
        utilisation=sizing.VLLM_UTILISATION if used else None,
        context=request.context_length,
        parallel=parallel,
        half=variant["precision"] == "int4_awq" and any(c < (8, 0) for c in capabilities),
        experts=moe,
        reasoning=_reasons(situation),
        eager=on_cpu,
        node=node,
    )
    layers = model["attention"]["layers"]
    row = _row(
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


# -- KTransformers -------------------------------------------------------------------------------


def _expert_trials(situation: Situation) -> list[Trial]:
    request, model, problems = situation.request, situation.model, situation.problems
    loadable = candidates(request, model, situation.engine)
    if not model["feed_forward"].get("experts"):
        title = situation.engine["title"]
        problem = problems.make("model-unsupported", engine=title, model=request.model)
        return [Trial(name, (problem,)) for name in loadable]
    if not situation.usable(None):
        return _nothing_usable(situation, loadable)
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


def _expert_trial(situation: Situation, method: str, name: str) -> Trial:
    request, model, problems = situation.request, situation.model, situation.problems
    variant = model["variants"][name]
    checkpoint_name = name if variant["format"] == "safetensors" else "FP8"
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
    for memory in sorted({card.memory for card in cards}, reverse=True):
        count = sum(card.memory >= memory for card in cards)
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
    used = [card for card in cards if card.memory >= memory][: fit.devices]
    disk_bytes = _disk_bytes(situation, fit.disk)
    found += _common(situation, name, fit.host, disk_bytes, used)
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
    sizes = _by_card(situation, used, [fit.needed] * len(used))
    environment = commands.ktransformers_environment(fit.devices)
    if len(used) < len(sizes):
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(str(index) for index, size in enumerate(sizes) if size)
    layers = model["attention"]["layers"]
    row = _row(
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
            reasoning=_reasons(situation),
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


_TRIALS = {
    "ollama": _layer_trials,
    "llama_cpp": _layer_trials,
    "vllm": _tensor_trials,
    "ktransformers": _expert_trials,
}
