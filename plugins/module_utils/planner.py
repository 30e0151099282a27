# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""The planner: facts, a request and the catalogue in, a plan out. Pure: no input or output, no clock.

All sizes are bytes. Memory is estimated from first principles: the weights' byte count, the KV cache by
layers x KV heads x head size x cache type, llama.cpp's compute buffer by batch x vocabulary, and what CUDA
takes for itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ansible_collections.dsprov.appliance.plugins.module_utils.problems import Problem, Problems, human_bytes
from ansible_collections.dsprov.appliance.plugins.module_utils.sources import file_sources, resolve_channel

SCHEMA = 1
MIB = 1024 * 1024

# Bytes per value of a KV cache type: q8_0 packs 32 values with one f16 scale in 34 bytes, q4_0 in 18.
KV_BYTES = {"f16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
# llama.cpp's default micro batch; its output buffer of f32 logits dominates the compute buffer.
MICRO_BATCH = 512
# A CUDA context with cuBLAS workspace, per device, and an allowance for fragmentation.
CUDA_CONTEXT = 512 * MIB
GPU_MARGIN = 0.05
# The engine's own process, and what the operating system and Open WebUI want beside it.
ENGINE_PROCESS = 256 * MIB
SYSTEM_RESERVE = 1024 * MIB
# Docker, the engine's libraries and Open WebUI's image with its layers unpacked.
SOFTWARE_BYTES = {"engine": 4_000_000_000, "web_ui": 5_000_000_000}
DISK_MARGIN = 0.10
# Parameters from which on answers from a CPU take patience.
SLOW_ON_CPU = 3_000_000_000
# Open WebUI's port where `open_webui_port` does not say otherwise.
WEB_UI_PORT = 8080
# Where everything of ours lives; the disk that holds it is the one that must have room.
DATA_MOUNT = "/var/lib/dsprov"


@dataclass(frozen=True)
class Request:
    """What is asked for: a tier's settings with the user's overrides on top.

    Each field is the variable `dsprov_<field>` (catalog/variables.yml).
    """

    tier: str
    model: str
    engine: str = "auto"
    variant: str = "auto"
    context_length: int = 8192
    parallel: int = 1
    kv_cache_type: str = "q8_0"
    placement: str = "auto"
    channel: str = "upstream"
    mirrors: Mapping[str, Any] | None = None
    web_ui: bool = True
    # Ports that roles will listen on where they were moved, by the role variable that moved them.
    ports: Mapping[str, int] | None = None

    @classmethod
    def from_variables(cls, variables: Mapping[str, Any]) -> Request:
        """A request from `dsprov_*` variables; those that are not settings of a plan are left out."""
        names = {field.name for field in fields(cls)}
        given = {key.removeprefix("dsprov_"): value for key, value in variables.items()}
        return cls(**{name: given[name] for name in names & given.keys()})


def kv_bytes_per_token(model: Mapping[str, Any], cache_type: str) -> int:
    """Bytes of KV cache for one token of one request.

    Source: keys and values of each layer, llama.cpp's `llama_kv_cache` ("K (q8_0): ... MiB" in its log).
    """
    shape = model["attention"]
    values = 2 * shape["layers"] * shape["kv_heads"] * shape["head_dim"]
    return int(values * KV_BYTES[cache_type])


def plan(
    facts: Mapping[str, Any],
    request: Request,
    catalogue: Mapping[str, Any],
    host_requests: Mapping[str, Request] | None = None,
) -> dict[str, Any]:
    """The plan for every host of `facts`.

    Args:
        facts: a facts document, schema 1, already checked against its schema.
        request: what is asked for.
        catalogue: models, engines, software, channels, systems and problems, as loaded from catalog/.
        host_requests: requests of hosts whose own variables differ from the rest.

    Returns:
        The plan, schema 1. `ok` is false when any problem is an error.
    """
    problems = Problems(catalogue["problems"])
    found: list[Problem] = []
    hosts: list[dict[str, Any]] = []
    wishes = {name: (host_requests or {}).get(name, request) for name in sorted(facts["hosts"])}
    shared = all(own == request for own in wishes.values())
    for name, own in wishes.items():
        troubles = _check_request(own, catalogue, problems)
        for problem in [] if shared else troubles:
            problem["host"] = name  # This host's own wish: the others go on.
        if not troubles:
            row, troubles = _plan_host(name, facts["hosts"][name], own, catalogue, problems)
            hosts.append(row)
        # What is wrong with a request that all hosts share is said once.
        found += [problem for problem in troubles if problem not in found]
    return {
        "schema": SCHEMA,
        "tier": request.tier,
        "ok": not any(problem["severity"] == "error" for problem in found),
        "engine": _choose_engine(request, catalogue),
        "model": request.model,
        "hosts": hosts,
        "problems": found,
    }


def digest(document: Mapping[str, Any]) -> str:
    """sha256 of a document's canonical JSON, to tell whether anything in it changed."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _choose_engine(request: Request, catalogue: Mapping[str, Any]) -> str:
    if request.engine != "auto":
        return request.engine
    return str(next(name for name, row in catalogue["engines"].items() if row["provisioned"]))


def _check_request(request: Request, catalogue: Mapping[str, Any], problems: Problems) -> list[Problem]:
    """What is wrong with the request itself, whatever the hosts are."""
    found: list[Problem] = []
    model = catalogue["models"].get(request.model)
    if model is None:
        return [problems.make("model-unknown", model=request.model, known=_known(catalogue["models"]))]
    name = _choose_engine(request, catalogue)
    engine = catalogue["engines"].get(name)
    if engine is None or not engine["provisioned"]:
        ready = [key for key, row in catalogue["engines"].items() if row["provisioned"]]
        return [problems.make("engine-unavailable", engine=name, known=_known(ready))]
    variants = model["variants"]
    if request.variant not in ("auto", *variants):
        found.append(
            problems.make(
                "variant-unknown", model=request.model, variant=request.variant, known=_known(variants)
            )
        )
    elif not any(row["format"] in engine["formats"] for row in _candidates(request, model).values()):
        formats = "/".join(sorted({row["format"] for row in _candidates(request, model).values()}))
        found.append(
            problems.make(
                "format-unsupported",
                engine=name,
                format=formats,
                model=request.model,
                variant=request.variant,
            )
        )
    if request.kv_cache_type not in engine["kv_cache_types"]:
        found.append(
            problems.make(
                "kv-cache-unsupported",
                engine=name,
                kind=request.kv_cache_type,
                known=_known(engine["kv_cache_types"]),
            )
        )
    if request.placement not in engine["placements"]:
        found.append(
            problems.make(
                "placement-unsupported",
                engine=name,
                placement=request.placement,
                known=_known(engine["placements"]),
            )
        )
    for key, value, low, high in (
        ("dsprov_context_length", request.context_length, 256, 16 * 1024 * 1024),
        ("dsprov_parallel", request.parallel, 1, 4096),
    ):
        if not low <= value <= high:
            found.append(problems.make("value-out-of-range", key=key, value=value, expected=f"{low}..{high}"))
    if request.context_length > model["context_limit"]:
        found.append(
            problems.make(
                "context-too-long",
                length=request.context_length,
                limit=model["context_limit"],
                model=request.model,
            )
        )
    return found


def _candidates(request: Request, model: Mapping[str, Any]) -> dict[str, Any]:
    variants: dict[str, Any] = model["variants"]
    return variants if request.variant == "auto" else {request.variant: variants[request.variant]}


def _plan_host(
    name: str,
    host: Mapping[str, Any],
    request: Request,
    catalogue: Mapping[str, Any],
    problems: Problems,
) -> tuple[dict[str, Any], list[Problem]]:
    model = catalogue["models"][request.model]
    engine_name = _choose_engine(request, catalogue)
    engine = catalogue["engines"][engine_name]
    found = _check_system(name, host, engine_name, catalogue, problems)

    # The largest variant is the most precise one; `auto` takes it where it fits, else the next.
    loadable = {k: v for k, v in _candidates(request, model).items() if v["format"] in engine["formats"]}
    ordered = sorted(loadable.items(), key=lambda item: -item[1]["bytes"])
    disk = _data_disk(host)
    for variant_name, variant in ordered:  # noqa: B007 - read below; _check_request promises one at least
        fit = _fit(host, request, model, variant)
        disk_bytes = _disk_bytes(variant, request)
        # What an earlier run has brought needs no room again.
        still_needed = max(0, disk_bytes - host.get("delivered_bytes", 0))
        roomy = disk is None or still_needed <= disk["free_bytes"]
        if roomy and fit.host_bytes <= host["memory_bytes"]:
            break

    if fit.host_bytes > host["memory_bytes"]:
        found.append(
            problems.make(
                "host-memory",
                name,
                model=request.model,
                variant=variant_name,
                needed=human_bytes(fit.host_bytes),
                available=human_bytes(host["memory_bytes"]),
            )
        )
    elif not fit.devices:
        if model["parameters"] > SLOW_ON_CPU:
            found.append(problems.make("cpu-only", name, model=request.model, tier=request.tier))
    elif fit.gpu_layers < fit.total_layers:
        found.append(problems.make("part-on-cpu", name, layers=fit.gpu_layers, total=fit.total_layers))

    if disk is not None and disk["free_bytes"] < still_needed:
        found.append(
            problems.make(
                "disk-space",
                name,
                mount=disk["mount"],
                free=human_bytes(disk["free_bytes"]),
                needed=human_bytes(still_needed),
                missing=human_bytes(still_needed - disk["free_bytes"]),
            )
        )
    found += _check_ports(name, host, request, engine_name, catalogue, problems)

    channel, channel_problem = _channel(name, host, request, catalogue["channels"], problems)
    if channel_problem:
        found.append(channel_problem)
    sources = resolve_channel(catalogue["channels"][channel], request.mirrors or {})
    files = [
        {
            "name": file["name"],
            "bytes": file["bytes"],
            "sha256": file["sha256"],
            "sources": file_sources(file, sources),
        }
        for file in variant["files"]
    ]
    threads = host["cpu"]["cores"]
    return {
        "name": name,
        "role": "single",
        "engine": engine_name,
        "model": request.model,
        "weights": {
            "variant": variant_name,
            "format": variant["format"],
            "bytes": variant["bytes"],
            "files": len(files),
            "sources": [_label(source) for source in variant["files"][0]["sources"]],
            "artifacts": files,
        },
        "placement": {
            "strategy": "layers" if fit.devices else "cpu",
            "gpu_layers": fit.gpu_layers,
            "total_layers": fit.total_layers,
            "tensor_parallel": 1,
            "pipeline_parallel": 1,
            "nodes": 1,
            "cpu_threads": threads,
        },
        "context": {
            "length": request.context_length,
            "parallel": request.parallel,
            "kv_cache_type": request.kv_cache_type,
            "kv_bytes_per_token": kv_bytes_per_token(model, request.kv_cache_type),
        },
        "memory": {
            "gpu_bytes_per_device": fit.devices,
            "host_bytes": fit.host_bytes,
            "disk_bytes": disk_bytes,
        },
        "sampling": dict(model.get("sampling", {})),
        "environment": _environment(request),
        "command": ["ollama", "serve"],
        "channel": channel,
        "sources": sources,
    }, found


def _disk_bytes(variant: Mapping[str, Any], request: Request) -> int:
    """Room for everything, with weights twice while the engine takes them in: verified file and own copy."""
    software = SOFTWARE_BYTES["engine"] + (SOFTWARE_BYTES["web_ui"] if request.web_ui else 0)
    return int((2 * variant["bytes"] + software) * (1 + DISK_MARGIN))


def _environment(request: Request) -> dict[str, str]:
    """What the engine must be told; a quantised cache needs flash attention."""
    return {
        "OLLAMA_CONTEXT_LENGTH": str(request.context_length),
        "OLLAMA_FLASH_ATTENTION": "1",
        "OLLAMA_KV_CACHE_TYPE": request.kv_cache_type,
        "OLLAMA_NUM_PARALLEL": str(request.parallel),
    }


@dataclass(frozen=True)
class _Fit:
    """Where the weights of one variant go on one host."""

    gpu_layers: int
    total_layers: int
    devices: list[int]
    host_bytes: int


def _fit(
    host: Mapping[str, Any], request: Request, model: Mapping[str, Any], variant: Mapping[str, Any]
) -> _Fit:
    """Whole layers onto the GPUs, as llama.cpp splits them, the rest into memory."""
    layers = model["attention"]["layers"]
    tokens = request.context_length * request.parallel
    cache = kv_bytes_per_token(model, request.kv_cache_type) * tokens
    # Logits of one micro batch as f32, and its activations.
    compute = MICRO_BATCH * 4 * (model["vocabulary"] + 8 * model["attention"]["hidden"])
    per_layer = (variant["bytes"] + cache) / layers
    usable = [
        int(gpu["memory_bytes"] * (1 - GPU_MARGIN)) - CUDA_CONTEXT - compute
        for gpu in host.get("gpus", [])
        for _ in range(gpu.get("count", 1))
        if gpu["vendor"] == "nvidia" and gpu.get("memory_bytes")
    ]
    slots = [max(0, int(free / per_layer)) for free in usable]
    gpu_layers = min(layers, sum(slots))
    # Each card its share by the room it has, as llama.cpp's layer split goes by free memory.
    shares = [gpu_layers * slot // max(1, sum(slots)) for slot in slots]
    for index in sorted(range(len(slots)), key=lambda i: shares[i] - slots[i])[: gpu_layers - sum(shares)]:
        shares[index] += 1
    devices = [int(share * per_layer) + CUDA_CONTEXT + compute if share else 0 for share in shares]
    on_host = (layers - gpu_layers) * per_layer
    if gpu_layers < layers:
        on_host += compute
    return _Fit(gpu_layers, layers, devices, int(on_host) + ENGINE_PROCESS + SYSTEM_RESERVE)


def _check_system(
    name: str,
    host: Mapping[str, Any],
    engine_name: str,
    catalogue: Mapping[str, Any],
    problems: Problems,
) -> list[Problem]:
    found: list[Problem] = []
    os, systems = host["os"], catalogue["systems"]
    if os["version_id"] not in systems["systems"].get(os["id"], {"versions": []})["versions"]:
        supported = ", ".join(
            f"{row['title']} {version}" for row in systems["systems"].values() for version in row["versions"]
        )
        found.append(
            problems.make("os-unsupported", name, os=os["id"], version=os["version_id"], supported=supported)
        )
    if os["arch"] not in systems["architectures"]:
        found.append(problems.make("arch-unsupported", name, arch=os["arch"]))
    flags = host["cpu"].get("flags")
    missing = sorted(set(catalogue["engines"][engine_name]["cpu_flags"]) - set(flags or []))
    if flags is not None and missing:
        found.append(problems.make("cpu-isa", name, engine=engine_name, missing=", ".join(missing)))
    skew = host.get("clock_skew_seconds", 0)
    if abs(skew) > 86400:
        found.append(problems.make("clock-skew", name, skew=f"{skew / 86400:.1f} d"))
    return found


def _check_ports(
    name: str,
    host: Mapping[str, Any],
    request: Request,
    engine_name: str,
    catalogue: Mapping[str, Any],
    problems: Problems,
) -> list[Problem]:
    """Ports that we need and somebody else holds."""
    ports = {f"{engine_name}_host": catalogue["engines"][engine_name]["port"]}
    if request.web_ui:
        ports["open_webui_port"] = WEB_UI_PORT
    wanted = {
        port: variable for variable, port in {**ports, **(request.ports or {})}.items() if variable in ports
    }
    found: list[Problem] = []
    for row in host.get("listeners", []):
        if row["port"] not in wanted or row.get("owner") == "dsprov":
            continue
        problem = problems.make(
            "port-in-use",
            name,
            port=row["port"],
            process=row.get("process", "?"),
            pid=row.get("pid") or "?",
            variable=wanted[row["port"]],
        )
        if problem not in found:  # One process may listen on IPv4 and IPv6.
            found.append(problem)
    return found


def _channel(
    name: str, host: Mapping[str, Any], request: Request, known: Mapping[str, Any], problems: Problems
) -> tuple[str, Problem | None]:
    """The channel asked for; `auto` is the one that answered this host first."""
    if request.channel != "auto":
        return request.channel, None
    answers = {key: ms for key, ms in host.get("channels", {}).items() if ms is not None and key in known}
    if answers:
        return min(answers, key=lambda key: (answers[key], key)), None
    tried = ", ".join(sorted(host.get("channels", {})))
    return "upstream", problems.make("no-channel", name, tried=tried) if tried else None


def _data_disk(host: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The disk that will hold our data: the longest mount point above its folder."""
    above = [
        disk
        for disk in host.get("disks", [])
        if disk["mount"] == DATA_MOUNT or DATA_MOUNT.startswith(disk["mount"].rstrip("/") + "/")
    ]
    return max(above, key=lambda disk: len(disk["mount"]), default=None)


def _label(source: Mapping[str, str]) -> str:
    kind = next(key for key in ("huggingface", "pypi") if key in source)
    return f"{kind}:{source[kind]}"


def _known(names: Any) -> str:
    return ", ".join(names)
