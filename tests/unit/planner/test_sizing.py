"""Sizes against what was measured elsewhere, on hardware that no test of ours has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ansible_collections.dsprov.appliance.plugins.module_utils import gguf, sizing
from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import catalogue
from tests.fixtures import ggufs
from tests.fixtures.machines import GIB

MIB = 1024 * 1024
Q2_K, Q4_0, Q4_K, Q6_K, Q8_0 = 10, 2, 12, 14, 8
AVX2 = {"avx2", "fma", "f16c"}
AVX512 = AVX2 | {"avx512f", "avx512_vnni"}
AMX = AVX512 | {"amx_int8", "amx_tile"}

# MiB of the compute buffer on a CUDA device, with every layer there and with four of them, as llama-server
# reports it (-c 4096 -fa on -ctk q8_0 -ctv q8_0 -b 2048 -ub 512 -np 1). Source: gpustack/gguf-parser-go
# v0.28.1, testdata/llamacpp_compute_buffer_sweep.json; shapes: the models' config.json.
PUBLIC = [
    ("qwen2", {"layers": 36, "kv_heads": 2, "feed": 11008}, 80.59, 96.68),
    ("llama", {"layers": 24, "kv_heads": 8, "feed": 7168}, 58.09, 72.44),
]


def model(folder: Path, arch: str, **shape: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    path = ggufs.write(folder / "m.gguf", *ggufs.dense(arch, **shape, words=400, kind="q4_K"))
    row = gguf.model_of(gguf.read(str(path)), str(path))[2]
    ((_name, variant),) = row["variants"].items()
    return row, variant


def place(row: dict[str, Any], variant: dict[str, Any], cards: list[int], **more: Any) -> sizing.LayerFit:
    wish = {"context": 4096, "parallel": 1, "cache_type": "q8_0", "strategy": "layers"}
    return sizing.fit_layers(row, variant, cards, **{**wish, **more})


@pytest.mark.parametrize(("arch", "shape", "full", "part"), PUBLIC, ids=["qwen2", "llama"])
def test_compute_buffers_measured_on_cuda(
    tmp_path: Path, arch: str, shape: dict[str, Any], full: float, part: float
) -> None:
    row, variant = model(tmp_path, arch, **shape, hidden=2048, heads=16, head_dim=128)
    compute = sizing.compute_bytes(row, variant, 4096, "q8_0")
    assert compute / MIB == pytest.approx(full, abs=0.1)
    # Where layers stay in memory the device has copies of what is worked on: never less than was measured.
    small = place(row, variant, [int(1.2 * GIB)])
    assert 0 < small.ngl <= small.total
    weights = sizing.weights_of(variant)
    cache = sizing.kv_bytes_per_token(row, "q8_0") // small.total * 4096
    layers = weights.layers[small.total + 1 - small.ngl :]
    there = sum(layers) + cache * len(layers) + weights.output + sizing.CUDA_CONTEXT
    assert part * MIB <= small.devices[0] - there <= 1.5 * part * MIB


def test_only_the_first_device_has_copies_of_what_is_in_memory(tmp_path: Path) -> None:
    path = ggufs.write(
        tmp_path / "moe.gguf",
        *ggufs.latent(
            layers=8, hidden=1024, heads=16, feed=2048, experts=64, active=4, expert_feed=1024, words=400
        ),
    )
    row = gguf.model_of(gguf.read(str(path)), str(path))[2]
    ((_name, variant),) = row["variants"].items()
    weights = sizing.weights_of(variant)

    def beside(fit: sizing.LayerFit) -> int:
        """Bytes on devices that are neither weights nor cache."""
        cache = sizing.kv_bytes_per_token(row, "f16") * 4096
        return (
            sum(fit.devices)
            - (weights.output + sum(weights.layers) + sum(weights.experts[fit.cpu_experts :]))
            - cache
        )

    part = place(row, variant, [GIB, GIB], strategy="experts", cache_type="f16")
    full = place(row, variant, [2 * GIB, 2 * GIB], strategy="experts", cache_type="f16")
    assert part.ngl == full.ngl == full.total + 1
    assert part.cpu_experts > full.cpu_experts == 0
    assert sum(count > 0 for count in full.counts) == sum(count > 0 for count in part.counts) == 2
    # Half of a layer's experts: what the down projection has at most.
    assert beside(part) - beside(full) == max(weights.experts) // 2
    assert part.devices[0] <= GIB * (1 - sizing.GPU_MARGIN)


@pytest.mark.parametrize(
    ("kind", "shape", "experts", "flags", "buffer"),
    [
        (Q4_K, (3584, 512), False, AVX2, "CPU_REPACK"),
        (Q4_K, (3584, 512), False, set(), None),
        (Q4_K, (3584, 510), False, AVX2, None),
        (Q4_0, (128, 512), False, AVX2, "CPU_REPACK"),
        (Q6_K, (3584, 512), False, AVX512, None),
        (Q8_0, (3584, 512), False, AVX512, None),
        (Q2_K, (3584, 512), False, AVX2, None),
        (Q2_K, (3584, 512), False, AVX512, "CPU_REPACK"),
        (Q4_K, (2048, 512, 8), True, AVX2, "CPU_REPACK"),
        # What has three dimensions and is no expert stays: kv_b, split by heads.
        (Q4_K, (128, 512, 8), False, AMX, None),
        (Q8_0, (3584, 512), False, AMX, "AMX"),
        (Q6_K, (3584, 512), False, AMX, "AMX"),
        (Q4_K, (3584, 520), False, AMX, "CPU_REPACK"),
        (Q4_K, (2048, 512, 8), True, AMX, "CPU_REPACK"),
    ],
)
def test_weights_that_a_cpu_lays_out_anew(
    kind: int, shape: tuple[int, ...], experts: bool, flags: set[str], buffer: str | None
) -> None:
    packed = sizing.repacked(kind, shape, 1000, flags, experts=experts)
    assert (packed and packed[0]) == buffer


def test_amx_takes_more_memory_for_sums_of_blocks(tmp_path: Path) -> None:
    row, variant = model(tmp_path, "llama", layers=4, hidden=512, heads=8, kv_heads=4, head_dim=64, feed=1536)
    plain, amx = (place(row, variant, [], flags=flags).host for flags in (AVX512, AMX))
    weights = sizing.weights_of(variant)
    assert amx - plain == int((weights.output + sum(weights.layers)) * 4 / 144)
    # On a machine with GPUs weights stay as they are.
    assert place(row, variant, [GIB], flags=AMX).host == place(row, variant, [GIB], flags=AVX2).host


@pytest.mark.parametrize(
    ("name", "device", "host", "bits"),
    [
        # ggml-org/llama.cpp#11861: CUDA0 model buffer size, CPU_Mapped model buffer size.
        ("deepseek-r1:32b", 18508.35, 417.66, None),
        # containers/ramalama#616: model size = 4.36 GiB (4.91 BPW).
        ("deepseek-r1:7b", None, None, 4.91),
        # gpustack/gpustack#1060: file size = 4.58 GiB (4.89 BPW).
        ("deepseek-r1:8b", None, None, 4.89),
    ],
)
def test_weights_of_the_catalogue_are_what_llama_cpp_logs(
    name: str, device: float | None, host: float | None, bits: float | None
) -> None:
    known = catalogue()["models"][name]
    weights = sizing.weights_of(known["variants"]["Q4_K_M"])
    there = weights.output + sum(weights.layers)
    if device is not None:
        assert there / MIB == pytest.approx(device, abs=0.01)
        assert weights.embedding / MIB == pytest.approx(host, abs=0.01)
    if bits is not None:
        assert (there + weights.embedding) * 8 / known["parameters"] == pytest.approx(bits, abs=0.005)
