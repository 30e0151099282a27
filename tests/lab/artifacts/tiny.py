"""Tiny models of real architectures with random weights: whole checkpoints for vLLM, made of nothing.

Their answers mean nothing, and everything else about them is real: configuration, safetensors, tokenizer and
chat template. Made by the standard library alone and the same on every machine, for the seed is fixed.
"""

from __future__ import annotations

import array
import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import common
from .common import Artifact, Log

REVISION = 1
SEED = 20261122
# The bytes as tokens of their own, then what marks the ends of a text and of a turn.
SPECIAL = ("<|begin|>", "<|end|>", "<|user|>", "<|assistant|>")
VOCABULARY = 256 + len(SPECIAL)
SPREAD = 0.2
LICENSE = "CC0-1.0"

TEMPLATE = (
    "{% for message in messages %}{{ '<|assistant|>' if message['role'] == 'assistant' else '<|user|>' }}"
    "{{ message['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

# What both have in common; their own shapes lie below it.
_COMMON: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": VOCABULARY,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "tiny-llama": _COMMON
    | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 32,
    },
    "tiny-v3": _COMMON
    | {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "q_lora_rank": 32,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "moe_layer_freq": 1,
        "first_k_dense_replace": 1,
        "n_group": 2,
        "topk_group": 1,
        "topk_method": "noaux_tc",
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
        "num_nextn_predict_layers": 0,
    },
}

Shape = tuple[int, ...]


def _feed(prefix: str, hidden: int, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{prefix}.gate_proj.weight", (width, hidden)
    yield f"{prefix}.up_proj.weight", (width, hidden)
    yield f"{prefix}.down_proj.weight", (hidden, width)


def _attention(config: dict[str, Any], prefix: str) -> Iterator[tuple[str, Shape]]:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    if config["model_type"] == "llama":
        own, kept = heads * config["head_dim"], config["num_key_value_heads"] * config["head_dim"]
        yield f"{prefix}.q_proj.weight", (own, hidden)
        yield f"{prefix}.k_proj.weight", (kept, hidden)
        yield f"{prefix}.v_proj.weight", (kept, hidden)
        yield f"{prefix}.o_proj.weight", (hidden, own)
        return
    query, latent, rope = config["q_lora_rank"], config["kv_lora_rank"], config["qk_rope_head_dim"]
    plain, value = config["qk_nope_head_dim"], config["v_head_dim"]
    yield f"{prefix}.q_a_proj.weight", (query, hidden)
    yield f"{prefix}.q_a_layernorm.weight", (query,)
    yield f"{prefix}.q_b_proj.weight", (heads * (plain + rope), query)
    yield f"{prefix}.kv_a_proj_with_mqa.weight", (latent + rope, hidden)
    yield f"{prefix}.kv_a_layernorm.weight", (latent,)
    yield f"{prefix}.kv_b_proj.weight", (heads * (plain + value), latent)
    yield f"{prefix}.o_proj.weight", (hidden, heads * value)


def tensors(config: dict[str, Any]) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of a checkpoint's tensors, as transformers names them."""
    hidden = config["hidden_size"]
    yield "model.embed_tokens.weight", (VOCABULARY, hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (hidden,)
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
        yield from _attention(config, f"{prefix}.self_attn")
        if layer < config.get("first_k_dense_replace", config["num_hidden_layers"]):
            yield from _feed(f"{prefix}.mlp", hidden, config["intermediate_size"])
            continue
        width = config["moe_intermediate_size"]
        yield f"{prefix}.mlp.gate.weight", (config["n_routed_experts"], hidden)
        yield f"{prefix}.mlp.gate.e_score_correction_bias", (config["n_routed_experts"],)
        for expert in range(config["n_routed_experts"]):
            yield from _feed(f"{prefix}.mlp.experts.{expert}", hidden, width)
        yield from _feed(f"{prefix}.mlp.shared_experts", hidden, width * config["n_shared_experts"])
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (VOCABULARY, hidden)


def _size(shape: Shape) -> int:
    size = 1
    for side in shape:
        size *= side
    return size


def _brain_floats(values: list[float]) -> bytes:
    """bfloat16 is the upper half of a float32."""
    halves = array.array("H")
    halves.frombytes(struct.pack(f"<{len(values)}f", *values))
    return halves[1::2].tobytes()


def safetensors(config: dict[str, Any]) -> bytes:
    """The weights: a header of JSON, then the tensors one after the other."""
    luck = random.Random(SEED)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts: list[bytes] = []
    at = 0
    for name, shape in tensors(config):
        if name.endswith("norm.weight"):
            data, kind = _brain_floats([1.0] * _size(shape)), "BF16"
        elif name.endswith("_bias"):
            data, kind = struct.pack(f"<{_size(shape)}f", *[0.0] * _size(shape)), "F32"
        else:
            data, kind = _brain_floats([luck.gauss(0, SPREAD) for _ in range(_size(shape))]), "BF16"
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        parts.append(data)
        at += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(parts)


def _byte_letters() -> list[str]:
    """A printable letter for each byte, as byte-level tokenizers write them."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


def _tokenizer() -> dict[str, Any]:
    marks = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": 256 + index, "content": word, **marks} for index, word in enumerate(SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {letter: byte for byte, letter in enumerate(_byte_letters())},
            "merges": [],
        },
    }


def files(name: str) -> dict[str, bytes]:
    """All files of one model by name."""
    config = CONFIGS[name]
    documents: dict[str, Any] = {
        "config.json": config,
        "generation_config.json": {"bos_token_id": 256, "eos_token_id": 257},
        "tokenizer.json": _tokenizer(),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": SPECIAL[0],
            "eos_token": SPECIAL[1],
            "pad_token": SPECIAL[1],
            "clean_up_tokenization_spaces": False,
            "model_max_length": config["max_position_embeddings"],
            "chat_template": TEMPLATE,
        },
    }
    made = {key: json.dumps(value, indent=1, sort_keys=True).encode() for key, value in documents.items()}
    return {**made, "model.safetensors": safetensors(config)}


def _weights(config: dict[str, Any]) -> dict[str, Any]:
    """Bytes of tensor classes, as the catalogue wants them."""

    def of(prefix: str, experts: bool | None = None) -> int:
        total = 0
        for name, shape in tensors(config):
            routed = ".experts." in name
            if name.startswith(prefix) and (experts is None or routed is experts):
                total += _size(shape) * (4 if name.endswith("_bias") else 2)
        return total

    layers = [
        {"bytes": of(f"model.layers.{index}.", False), "at": str(index)}
        | ({"experts": of(f"model.layers.{index}.", True)} if "n_routed_experts" in config else {})
        for index in range(config["num_hidden_layers"])
    ]
    return {
        "embedding": of("model.embed_tokens"),
        "output": of("model.norm") + of("lm_head"),
        "layers": layers,
    }


def row(name: str, sizes: dict[str, tuple[int, str]], base: str) -> dict[str, Any]:
    """The catalogue's row of a model whose files, {name: (bytes, sha256)}, lie at BASE/NAME."""
    config = CONFIGS[name]
    heads, kept = config["num_attention_heads"], config["num_key_value_heads"]
    attention: dict[str, Any] = {
        "kind": "gqa",
        "layers": config["num_hidden_layers"],
        "hidden": config["hidden_size"],
        "heads": heads,
        "kv_heads": kept,
        "head_dim": config.get("head_dim", 0) or config["qk_nope_head_dim"] + config["qk_rope_head_dim"],
    }
    feed: dict[str, Any] = {"intermediate": config["intermediate_size"]}
    if config["model_type"] == "deepseek_v3":
        latents = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        attention |= {"kind": "mla", **{key: config[key] for key in latents}}
        feed |= {
            "experts": config["n_routed_experts"],
            "active": config["num_experts_per_tok"],
            "shared": config["n_shared_experts"],
            "expert_intermediate": config["moe_intermediate_size"],
            "dense_layers": config["first_k_dense_replace"],
        }
    return {
        "title": f"{name}, random weights",
        "license": LICENSE,
        "source": "tests/lab/artifacts/tiny.py",
        "parameters": sum(_size(shape) for _name, shape in tensors(config)),
        "attention": attention,
        "feed_forward": feed,
        "tied_embeddings": False,
        "vocabulary": VOCABULARY,
        "context_limit": config["max_position_embeddings"],
        "variants": {
            "BF16": {
                "format": "safetensors",
                "precision": "bf16",
                "bytes": sum(size for size, _digest in sizes.values()),
                "counts": "files",
                "weights": _weights(config),
                "files": [
                    {"name": file, "bytes": size, "sha256": digest, "sources": [{"url": f"{base}/{file}"}]}
                    for file, (size, digest) in sorted(sizes.items())
                ],
            }
        },
        "sampling": {"temperature": 0.6, "top_p": 0.95},
    }


def build(cache: Path, log: Log) -> Artifact:
    """A folder with a folder for each model; extra["files"] says size and digest of each file."""
    recipe = {"configs": CONFIGS, "template": TEMPLATE, "seed": SEED, "spread": SPREAD, "revision": REVISION}

    def make(out: Path) -> Artifact:
        sizes: dict[str, dict[str, tuple[int, str]]] = {}
        for name in CONFIGS:
            (out / name).mkdir()
            for file, data in files(name).items():
                (out / name / file).write_bytes(data)
                sizes.setdefault(name, {})[file] = (len(data), common.sha256_of(out / name / file))
        total = sum(size for rows in sizes.values() for size, _digest in rows.values())
        return Artifact(out, "", total, str(REVISION), {"files": sizes})

    return common.cached(cache, "tiny", recipe, make, log)
