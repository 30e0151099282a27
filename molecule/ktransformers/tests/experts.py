"""Runs on the host, in the role's virtual environment: do the CPU's kernels compute what torch does?

For each method of the plan it writes a layer of four small experts as that method reads them, lets kt-kernel
load and multiply it, and prints a line: the method, the kernels' name, and the largest error of the answer.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import gguf
import kt_kernel
import torch
from gguf import quants
from safetensors.torch import save_file

# Memory that a GPU reads directly wants a driver; common memory holds the same numbers.
_empty = torch.empty
torch.empty = lambda *words, pin_memory=False, **options: _empty(*words, **options)

EXPERTS, ACTIVE, HIDDEN, FEED, TOKENS = 4, 2, 512, 512, 3
NAMES = ("gate", "up", "down")


def shape(name: str) -> tuple[int, int]:
    return (HIDDEN, FEED) if name == "down" else (FEED, HIDDEN)


def write(method: str, folder: Path) -> dict[str, torch.Tensor]:
    """Write a layer, and return its weights as they are meant, by projection: (experts, rows, columns)."""
    wanted = {name: torch.randn(EXPERTS, *shape(name)) * 0.05 for name in NAMES}
    if method == "LLAMAFILE":
        writer = gguf.GGUFWriter(folder / "layer.gguf", "deepseek2")
        for name, value in wanted.items():
            kind = gguf.GGMLQuantizationType.Q8_0
            packed = quants.quantize(value.numpy(), kind)
            writer.add_tensor(f"blk.0.ffn_{name}_exps.weight", packed, raw_dtype=kind)
            wanted[name] = torch.from_numpy(quants.dequantize(packed, kind))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return wanted
    tensors: dict[str, torch.Tensor] = {}
    for name, value in wanted.items():
        for expert in range(EXPERTS):
            key = f"model.layers.0.mlp.experts.{expert}.{name}_proj.weight"
            if method == "FP8":
                rows, columns = shape(name)
                blocks = value[expert].reshape(rows // 128, 128, columns // 128, 128)
                scale = blocks.abs().amax(dim=(1, 3), keepdim=True) / 448
                packed = (blocks / scale).to(torch.float8_e4m3fn)
                wanted[name][expert] = (packed.float() * scale).reshape(rows, columns)
                tensors[key] = packed.reshape(rows, columns).contiguous()
                tensors[f"{key}_scale_inv"] = scale.reshape(rows // 128, columns // 128).contiguous()
            else:
                tensors[key] = value[expert].to(torch.bfloat16)
                wanted[name][expert] = tensors[key].float()
    save_file(tensors, folder / "model.safetensors")
    return wanted


def answer(
    method: str, folder: Path, x: torch.Tensor, ids: torch.Tensor, shares: torch.Tensor
) -> torch.Tensor:
    """What the kernels say."""
    wrapper = kt_kernel.KTMoEWrapper(
        layer_idx=0,
        num_experts=EXPERTS,
        num_experts_per_tok=ACTIVE,
        hidden_size=HIDDEN,
        moe_intermediate_size=FEED,
        gpu_experts_mask=torch.zeros(EXPERTS, dtype=torch.bool),
        cpuinfer_threads=2,
        threadpool_count=1,
        weight_path=str(folder),
        chunked_prefill_size=64,
        method=method,
    )
    wrapper.load_weights(torch.arange(EXPERTS, dtype=torch.int64))
    said = torch.zeros(TOKENS, HIDDEN, dtype=torch.bfloat16)
    count = torch.tensor([TOKENS], dtype=torch.int32)
    task = wrapper.moe.forward_task(
        count.data_ptr(), ACTIVE, ids.data_ptr(), shares.data_ptr(), x.data_ptr(), said.data_ptr(), False
    )
    wrapper.cpu_infer.submit(task)
    wrapper.cpu_infer.sync(0)
    return said.float()


def main() -> None:
    """Say a line for each method."""
    for method in sys.argv[1:]:
        torch.manual_seed(7)
        with tempfile.TemporaryDirectory() as name:
            weights = write(method, Path(name))
            x = torch.randn(TOKENS, HIDDEN).to(torch.bfloat16)
            ids = torch.tensor([[0, 2], [1, 3], [3, 0]], dtype=torch.int64)
            shares = torch.tensor([[0.6, 0.4], [0.5, 0.5], [0.9, 0.1]], dtype=torch.float32)
            said = answer(method, Path(name), x, ids, shares)
        wanted = torch.zeros(TOKENS, HIDDEN)
        for token in range(TOKENS):
            for place in range(ACTIVE):
                gate, up, down = (weights[one][ids[token, place]] for one in NAMES)
                inner = torch.nn.functional.silu(gate @ x[token].float()) * (up @ x[token].float())
                wanted[token] += shares[token, place] * (down @ inner)
        error = ((said - wanted).abs().max() / wanted.abs().max()).item()
        print(f"RESULT {method} {kt_kernel.__cpu_variant__} {error:.4f}", flush=True)


if __name__ == "__main__":
    main()
