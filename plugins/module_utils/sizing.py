# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""How much memory a model takes, and where: arithmetic only, no input or output.

All sizes are bytes. llama.cpp's figures follow its source (layer split, cache rows, graph reservation) and
were compared with what its own libllama reports; vLLM's and KTransformers' follow their source and public
logs, and are estimates.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MIB = 1024 * 1024
GIB = 1024 * MIB

# Bytes per value of a KV cache type: q8_0 packs 32 values with one f16 scale in 34 bytes, q4_0 in 18.
KV_BYTES = {"f16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
# llama.cpp's default micro batch, and the step to which it rounds the cells of a cache.
MICRO_BATCH = 512
CELL_STEP = 256
# A CUDA context with its libraries' workspace, per device, and an allowance for fragmentation. Measured on an
# H100 with driver 580: 612 to 720 MiB beyond weights, cache and buffers (bench/gpu_memory, 2026-11).
CUDA_CONTEXT = 768 * MIB
GPU_MARGIN = 0.05
# What llama.cpp's own --fit leaves free on each device (common/common.h).
FIT_MARGIN = GIB
# The engine's own process, and what the operating system and Open WebUI want beside it.
ENGINE_PROCESS = 256 * MIB
SYSTEM_RESERVE = 1024 * MIB

# Types that llama.cpp lays out anew for the CPU, by ggml's number, with the flag this takes: Q4_0, Q4_K,
# IQ4_NL and MXFP4 by AVX2, Q2_K by AVX-512. The rest it reads as it is. Source: ggml-cpu/repack.cpp.
REPACKED = {2: "avx2", 12: "avx2", 20: "avx2", 39: "avx2", 10: "avx512f"}
REPACK_ROWS = 8
# The same for AMX, with how much a weight grows by. Source: ggml-cpu/amx/mmq.cpp, get_row_size.
# Q4_0, Q4_1 and Q6_K stay as large as they are; Q8_0, Q4_K, Q5_K and IQ4_XS carry sums of their blocks.
AMX_FLAGS = {"amx_int8", "avx512_vnni"}
AMX_GROWTH = {2: 0.0, 3: 0.0, 8: 4 / 34, 12: 4 / 144, 13: 4 / 176, 14: 0.0, 23: 2 / 136}
AMX_ROWS = 32
# Share of a layer's experts, or of a dense layer, that its largest tensor has at most: the down projection
# is one of three, with more bits than the others.
LARGEST_TENSOR = 0.5

# vLLM: share of a device it takes (its default), and what stays beside weights and cache.
VLLM_UTILISATION = 0.92
VLLM_DENSE_OVERHEAD = int(1.2 * GIB)
VLLM_MOE_OVERHEAD = 9 * GIB
VLLM_BLOCK = 16
# A Python process a device, with what it stages while loading.
VLLM_HOST_BASE = 6 * GIB
VLLM_HOST_PER_DEVICE = 2 * GIB
# Cards from this size on batch 8192 tokens by default, smaller ones 2048 (vllm/engine/arg_utils.py).
LARGE_CARD = 70 * GIB

# KTransformers: SGLang's runtime beside weights and cache on a device, and the processes in memory.
KT_GPU_RUNTIME = 2_500_000_000
KT_HOST_PROCESS = 8 * GIB
# Bytes a weight of an expert takes in memory, by method (kt-kernel documentation).
KT_EXPERT_BYTES = {"AMXINT4": 350 / 653.9, "AMXINT8": 670 / 653.9, "FP8": 1 + 4 / 16384, "BF16": 2.0}

# Bytes a weight takes in checkpoints for vLLM: AWQ has a 16-bit scale and a 4-bit zero for 128 weights.
WEIGHT_BYTES = {"bf16": 2.0, "fp8": 1 + 4 / 16384, "int4_awq": (4 + 20 / 128) / 8}
# Where scales of a quantised checkpoint tie weights together, a share must be a multiple of this.
WEIGHT_GROUP = {"bf16": 1, "fp8": 128, "int4_awq": 128}


@dataclass(frozen=True)
class Weights:
    """Bytes of a variant by where its tensors go.

    Attributes:
        embedding: token embedding; llama.cpp keeps it in host memory.
        output: head and final norm, one more layer in llama.cpp's count.
        layers: everything of a layer but routed experts, by layer.
        experts: routed experts, by layer.
        mtp: the multi-token-prediction layer, which stays on the disk.
    """

    embedding: int
    output: int
    layers: tuple[int, ...]
    experts: tuple[int, ...]
    mtp: int = 0


def indices(text: str) -> Iterator[int]:
    """The layers that "0-2,5" names, in its order."""
    for part in text.split(","):
        first, _dash, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def weights_of(variant: Mapping[str, Any]) -> Weights:
    """The table of a variant's tensor classes, a row a layer."""
    table = variant["weights"]
    layers: dict[int, tuple[int, int]] = {}
    for row in table["layers"]:
        for index in indices(row["at"]):
            layers[index] = (row["bytes"], row.get("experts", 0))
    ordered = [layers[index] for index in sorted(layers)]
    return Weights(
        table["embedding"],
        table["output"],
        tuple(own for own, _experts in ordered),
        tuple(experts for _own, experts in ordered),
        table.get("mtp", 0),
    )


def kv_values_per_layer(model: Mapping[str, Any], variant: Mapping[str, Any] | None = None) -> int:
    """Values that one token keeps in the cache of one layer.

    Source: llama.cpp src/llama-kv-cache.cpp. MLA keeps one latent and no V; its old GGUF files all heads.
    """
    shape = model["attention"]
    if shape["kind"] == "gqa":
        return int(2 * shape["kv_heads"] * shape["head_dim"])
    if variant is not None and variant.get("kv") == "mha":
        return int(shape["heads"] * (shape["head_dim"] + shape["v_head_dim"]))
    return int(shape["kv_lora_rank"] + shape["qk_rope_head_dim"])


def kv_bytes_per_token(
    model: Mapping[str, Any], cache_type: str, variant: Mapping[str, Any] | None = None
) -> int:
    """Bytes of KV cache for one token of one request, over all layers and devices."""
    values = model["attention"]["layers"] * kv_values_per_layer(model, variant)
    return int(values * KV_BYTES[cache_type])


def cells(context: int, parallel: int) -> int:
    """Cells of llama.cpp's cache: each slot's context rounded up (src/llama-context.cpp)."""
    return math.ceil(context / CELL_STEP) * CELL_STEP * parallel


def compute_bytes(
    model: Mapping[str, Any],
    variant: Mapping[str, Any],
    cell_count: int,
    cache_type: str,
    micro_batch: int = MICRO_BATCH,
) -> int:
    """llama.cpp's compute buffer of one device: the graph of a micro batch over all cells, in bytes.

    The terms are the tensors alive at the widest point; measured against libllama (bench/plan_accuracy).
    """
    shape, feed = model["attention"], model["feed_forward"]
    hidden, heads = shape["hidden"], shape["heads"]
    batch = min(micro_batch, cell_count)
    mask = 2 * batch * cell_count
    if shape["kind"] == "mla":
        extra = 16 * feed.get("experts", 0) + 4
        if variant.get("kv") == "mha":
            # CUDA has no flash attention for this shape, so scores of all heads over all cells are kept.
            rows = 2 * heads * (shape["head_dim"] + shape["v_head_dim"]) + 5 * hidden + extra // 4
            return int(4 * batch * (rows + (heads + 1) * cell_count))
        latent = shape["kv_lora_rank"] + shape["qk_rope_head_dim"]
        return int(4 * batch * (2 * heads * latent + 8 * hidden + extra) + mask)
    intermediate = feed["intermediate"]
    if feed.get("experts"):
        intermediate = max(intermediate, feed["expert_intermediate"] * feed["active"])
    if cache_type == "f16":
        return int(4 * batch * (3 * intermediate + 4 * hidden + 6) + mask)
    # A quantised cache brings a rotation of head_dim x head_dim.
    return int(
        4 * batch * (3 * intermediate + 3 * hidden + 14) + mask + 4 * shape["head_dim"] * shape["head_dim"]
    )


def repacked(
    kind: int, shape: Sequence[int], size: int, flags: Collection[str], *, experts: bool = False
) -> tuple[str, int] | None:
    """Where llama.cpp keeps a weight that a CPU with these flags multiplies by, if in a layout of its own.

    Args:
        kind: ggml's number of the type.
        shape: as in the file, the row's length first.
        experts: whether it holds routed experts, and so has three dimensions.

    Returns:
        The buffer's name and the bytes there, or None where the weight stays as it is in the file.
    """
    if len(shape) != (3 if experts else 2):
        return None
    amx = not experts and set(flags) >= AMX_FLAGS
    if amx and kind in AMX_GROWTH and shape[1] % AMX_ROWS == 0:
        return "AMX", int(size * (1 + AMX_GROWTH[kind]))
    fits = REPACKED.get(kind) in flags and shape[1] % REPACK_ROWS == 0
    return ("CPU_REPACK", size) if fits else None


def amx_growth(model: Mapping[str, Any], variant: Mapping[str, Any]) -> float:
    """By how much the dense weights of a variant grow at most on a CPU with AMX."""
    # Only Q8_0 has more than 8 bits and is laid out anew.
    return AMX_GROWTH[8] if 8 < variant["bytes"] * 8 / model["parameters"] < 10 else AMX_GROWTH[12]


def output_bytes(model: Mapping[str, Any], slots: int) -> int:
    """llama-server's logits, f32, in host memory."""
    return int(4 * model["vocabulary"] * slots)


# -- llama.cpp and Ollama ------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerFit:
    """Where llama.cpp puts one variant.

    Attributes:
        ngl: layers on GPUs in llama.cpp's own count, the output layer included.
        total: all layers in the plan's count, without the output layer.
        counts: layers a device, in the devices' order, in llama.cpp's count.
        cpu_experts: first layers whose experts stay in memory (-ncmoe).
        devices: bytes a device.
        host: bytes in host memory, with what the system itself wants.
    """

    ngl: int
    total: int
    counts: tuple[int, ...]
    cpu_experts: int
    devices: tuple[int, ...]
    host: int

    @property
    def full(self) -> bool:
        """Whether everything but the embedding is on GPUs."""
        return self.ngl == self.total + 1 and self.cpu_experts == 0

    @property
    def gpu_layers(self) -> int:
        """Layers on GPUs in the plan's count, which is `total` only where all are there."""
        return self.total if self.ngl > self.total else min(self.ngl, self.total - 1)


def _spread(items: Sequence[int], room: Sequence[int]) -> list[int]:
    """How many of `items` each device takes, in order, each device as many as fit. Greedy is best here."""
    counts, place, end = [], 0, len(items)
    for space in room:
        begin = place
        while place < end and items[place] <= space:
            space -= items[place]
            place += 1
        counts.append(place - begin)
    return counts


def _balanced(items: Sequence[int], room: Sequence[int]) -> list[int]:
    """The same number of items in all, with the fullest device as empty as can be."""
    best = _spread(items, room)
    low, high = 0, 64
    while high - low > 1:
        middle = (low + high) // 2
        counts = _spread(items, [space * middle // 64 for space in room])
        if sum(counts) == sum(best):
            best, high = counts, middle
        else:
            low = middle
    return best


def fit_layers(
    model: Mapping[str, Any],
    variant: Mapping[str, Any],
    cards: Sequence[int],
    *,
    context: int,
    parallel: int,
    cache_type: str,
    strategy: str,
    flags: Collection[str] = (),
) -> LayerFit:
    """Places a variant as llama.cpp does.

    Weights in host memory are counted once. A CPU that lays them out anew (`repacked`) reads them through the
    page cache, which may drop the originals afterwards.

    Args:
        cards: memory of each device.
        flags: the CPU's.
        strategy: "layers" puts whole layers on GPUs from the last on; "experts" leaves experts of the first
            layers in memory; "fit" is either, with the room that llama.cpp's --fit leaves.
    """
    weights = weights_of(variant)
    total = len(weights.layers)
    cell_count = cells(context, parallel)
    row = int(kv_values_per_layer(model, variant) * KV_BYTES[cache_type]) * cell_count
    compute = compute_bytes(model, variant, cell_count, cache_type)
    fixed = CUDA_CONTEXT + compute

    def usable(memory: int) -> int:
        margin = memory * GPU_MARGIN if strategy != "fit" else max(memory * GPU_MARGIN, FIT_MARGIN)
        return max(0, int(memory - margin) - fixed)

    def items(cpu_experts: int) -> list[int]:
        rows = [
            own + row + (experts if index >= cpu_experts else 0)
            for index, (own, experts) in enumerate(zip(weights.layers, weights.experts, strict=True))
        ]
        return [weights.output, *reversed(rows)]

    def place(room: Sequence[int]) -> tuple[list[int], int]:
        # From the output layer backwards, so the last device is filled first.
        backwards = list(reversed(room))
        high = 0
        if strategy in ("experts", "fit") and any(weights.experts):
            low, high = -1, total
            if sum(_spread(items(high), backwards)) <= total:
                high = 0  # Not even without experts: whole layers then.
            while high - low > 1:
                middle = (low + high) // 2
                if sum(_spread(items(middle), backwards)) > total:
                    high = middle
                else:
                    low = middle
        return list(reversed(_balanced(items(high), backwards))), high

    counts = [0] * len(cards)
    cpu_experts = staged = 0
    if cards:
        # One device that holds everything is better than many that wait for each other.
        largest = max(range(len(cards)), key=lambda index: (cards[index], -index))
        room = [usable(card) for card in cards]
        if sum(items(0)) <= room[largest]:
            counts[largest] = total + 1
        else:
            counts, cpu_experts = place(room)
        if sum(counts) <= total or cpu_experts:
            # Large batches are computed on the first device even where the weights are in memory, so it has
            # a copy of the tensor that is worked on, and of its layer's cache.
            staged = int(max(map(max, weights.layers, weights.experts)) * LARGEST_TENSOR)
            staged += row if sum(counts) <= total else 0
            for first in range(len(cards)):
                counts, cpu_experts = place([0] * first + [max(0, room[first] - staged), *room[first + 1 :]])
                if counts[first]:  # Else it is too small for copies, and the next one is the first.
                    break
    ngl = sum(counts)
    left = total + 1 - ngl
    rows = list(reversed(items(cpu_experts)))
    on_gpus = rows[left:]
    devices = []
    for count in counts:
        own, on_gpus = on_gpus[:count], on_gpus[count:]
        devices.append(sum(own) + fixed + staged if count else 0)
        staged = 0 if count else staged
    on_host = weights.embedding + output_bytes(model, parallel)
    on_host += sum(weights.experts[:cpu_experts]) + sum(rows[:left])
    if left or cpu_experts:
        on_host += compute
    else:
        on_host += 4 * MICRO_BATCH * model["attention"]["hidden"] + 2 * MICRO_BATCH * cell_count
    if not ngl and set(flags) >= AMX_FLAGS:
        on_host += int((weights.output + sum(weights.layers)) * amx_growth(model, variant))
    return LayerFit(
        ngl, total, tuple(counts), cpu_experts, tuple(devices), on_host + ENGINE_PROCESS + SYSTEM_RESERVE
    )


# -- vLLM ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TensorFit:
    """How vLLM shares one variant between devices.

    Attributes:
        tensor: devices that share each layer.
        pipeline: stages, one a host.
        needed: bytes a device must have for the wished context, at the utilisation that vLLM is given.
        budget: bytes a device that vLLM takes.
        tokens: tokens that the cache of the fullest device holds.
        batched: tokens a step.
    """

    tensor: int
    pipeline: int
    needed: int
    budget: int
    tokens: int
    batched: int
    host: int


def tensor_sizes(model: Mapping[str, Any], variant: Mapping[str, Any], most: int) -> list[int]:
    """Numbers of devices, up to `most`, that can share a layer of this variant evenly; ascending."""
    shape, feed = model["attention"], model["feed_forward"]
    group = WEIGHT_GROUP[variant["precision"]]
    widths = [feed.get("expert_intermediate", feed["intermediate"]), feed["intermediate"]]
    good = []
    for size in range(1, most + 1):
        if shape["heads"] % size:
            continue
        if shape["kind"] == "gqa" and shape["kv_heads"] % size and size % shape["kv_heads"]:
            continue
        if size > 1 and any(width % (size * group) for width in widths):
            continue
        good.append(size)
    return good


def fit_tensors(
    model: Mapping[str, Any],
    variant: Mapping[str, Any],
    card: int,
    *,
    tensor: int,
    pipeline: int,
    context: int,
    parallel: int,
    utilisation: float = VLLM_UTILISATION,
) -> TensorFit:
    """Memory of the fullest of `tensor` x `pipeline` equal devices of `card` bytes.

    Source: vLLM's own accounting (budget = total x utilisation; cache = what weights and a dummy run leave).
    """
    weights = weights_of(variant)
    shape, feed = model["attention"], model["feed_forward"]
    each = WEIGHT_BYTES[variant["precision"]]
    layers = len(weights.layers)
    stage = math.ceil(layers / pipeline)
    rows = sorted((own + experts for own, experts in zip(weights.layers, weights.experts, strict=True)))
    of_stage = sum(rows[-stage:])
    ends = weights.embedding + weights.output if pipeline == 1 else max(weights.embedding, weights.output)
    batched = 8192 if card >= LARGE_CARD else 2048
    if shape["kind"] == "mla":
        # The projections into latents and the router are whole on each device; kv_b is kept again, at 16 bit.
        latent = shape["kv_lora_rank"] + shape["qk_rope_head_dim"]
        whole = stage * int(
            shape["hidden"] * (shape["q_lora_rank"] + latent) * each
            + 2 * shape["hidden"] * feed.get("experts", 0)
        )
        again = (
            stage
            * 2
            * shape["kv_lora_rank"]
            * shape["heads"]
            * (shape["qk_nope_head_dim"] + shape["v_head_dim"])
        )
        own = (of_stage + ends - whole) // tensor + whole + again // tensor
        kv = stage * latent * 2
    else:
        own = (of_stage + ends) // tensor
        kv = stage * 2 * max(1, shape["kv_heads"] // tensor) * shape["head_dim"] * 2
    if feed.get("experts"):
        beside = VLLM_MOE_OVERHEAD
    else:
        wide = 2 * feed["intermediate"] // tensor + 4 * shape["hidden"]
        beside = VLLM_DENSE_OVERHEAD + 4 * batched * wide
    budget = int(card * utilisation)
    block = VLLM_BLOCK
    tokens = max(0, (budget - own - beside) // (kv * block)) * block
    wished = math.ceil(context / block) * block * max(1, parallel) * kv
    return TensorFit(
        tensor,
        pipeline,
        own + beside + wished,
        budget,
        tokens,
        batched,
        SYSTEM_RESERVE + VLLM_HOST_BASE + tensor * VLLM_HOST_PER_DEVICE,
    )


def fit_cpu(model: Mapping[str, Any], variant: Mapping[str, Any], cache: int) -> TensorFit:
    """vLLM's CPU build with `cache` GiB for the KV cache: everything in memory, once while it loads."""
    weights = weights_of(variant)
    own = sum(weights.layers) + sum(weights.experts) + weights.embedding + weights.output
    each = kv_bytes_per_token(model, "f16")
    tokens = int(cache * GIB // (each * VLLM_BLOCK)) * VLLM_BLOCK
    host = SYSTEM_RESERVE + VLLM_HOST_PER_DEVICE + own + cache * GIB
    return TensorFit(1, 1, 0, 0, tokens, 2048, host)


# -- KTransformers -------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExpertFit:
    """How KTransformers shares a model between GPUs and memory.

    Attributes:
        devices: GPUs that share what is not experts.
        needed: bytes each of them must have.
        experts: bytes of experts in memory.
        host: bytes in host memory altogether.
        disk: bytes of weights on the disk: the checkpoint, and experts in the method's own form.
    """

    devices: int
    needed: int
    experts: int
    host: int
    disk: int


def expert_values(model: Mapping[str, Any]) -> int:
    """Weights of all routed experts."""
    feed, shape = model["feed_forward"], model["attention"]
    layers = shape["layers"] - feed["dense_layers"]
    return int(layers * feed["experts"] * 3 * feed["expert_intermediate"] * shape["hidden"])


def fit_experts(
    model: Mapping[str, Any],
    checkpoint: Mapping[str, Any],
    gguf: Mapping[str, Any] | None,
    method: str,
    *,
    devices: int,
    context: int,
    parallel: int,
) -> ExpertFit:
    """Memory for experts by `method`, and for the rest of `checkpoint` on `devices` GPUs."""
    rest = weights_of(checkpoint)
    if method == "LLAMAFILE" and gguf is not None:
        experts = sum(weights_of(gguf).experts)
        disk = checkpoint["bytes"] + gguf["bytes"]
    else:
        experts = int(expert_values(model) * KT_EXPERT_BYTES[method])
        disk = checkpoint["bytes"] + (experts if method.startswith("AMX") else 0)
    on_gpu = sum(rest.layers) + rest.embedding + rest.output
    # Every GPU keeps the whole latent cache.
    cache = kv_bytes_per_token(model, "f16") * context * max(1, parallel)
    needed = on_gpu // devices + cache + KT_GPU_RUNTIME
    return ExpertFit(devices, needed, experts, experts + KT_HOST_PROCESS + SYSTEM_RESERVE, disk)
