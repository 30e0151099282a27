# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""The exact command and environment of each engine, from what the planner decided. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.dsprov.appliance.plugins.module_utils.sizing import LayerFit, TensorFit

MODELS = "/var/lib/dsprov/models"
LOOPBACK = "127.0.0.1"
# Processes of one host find each other by sockets that anyone may speak to: Gloo's and NCCL's.
WITHIN_HOST = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
VENV = "/opt/dsprov/{engine}/current/bin"
# vLLM's port for its own processes on several hosts (its default); Ray's first one.
MASTER_PORT = 29500
# Ray would take any: fixed ones can be kept from everybody else. Its workers take those from the tenth on.
RAY_PORTS = {
    "node-manager": 29501,
    "object-manager": 29502,
    "runtime-env-agent": 29503,
    "dashboard-agent-listen": 29504,
    "dashboard-agent-grpc": 29505,
    "metrics-export": 29506,
    # The server for clients elsewhere, which cannot be left out where gRPC is installed.
    "ray-client-server": 29507,
    "min-worker": 29510,
    "max-worker": 29599,
}
# Bytes of Ray's store for objects, a third of the memory by default; vLLM sends little by it.
RAY_STORE = 256 * 1024**2

RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Hosts may have taken other updates of the same Python.
    "RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL": "minor",
    # Seconds for the others to come; the service starts anew after it.
    "RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT": "120",
    # It would run the model at a low priority, and end it where memory is nearly full: the kernel does that,
    # whose word for it is looked for.
    "RAY_worker_niceness": "0",
    "RAY_memory_monitor_refresh_ms": "0",
}


def model_path(model: str, variant: str = "", files: Sequence[Mapping[str, Any]] = ()) -> str:
    """Where a model lies on a host: the folder of all or of one variant, or a variant's first file."""
    folder = f"{MODELS}/{re.sub(r'[^A-Za-z0-9._-]', '-', model)}/{variant}".rstrip("/")
    return f"{folder}/{files[0]['name']}" if files else folder


def llama_server(
    path: str,
    model: str,
    port: int,
    fit: LayerFit,
    *,
    strategy: str,
    context: int,
    parallel: int,
    cache_type: str,
    flash: bool,
    threads: int,
    numa_nodes: int,
) -> list[str]:
    """llama.cpp's server. --fit and an explicit placement exclude each other."""
    words = ["llama-server", "--model", path, "--alias", model, "--host", LOOPBACK, "--port", str(port)]
    words += ["--ctx-size", str(context * parallel), "--parallel", str(parallel)]
    words += ["--flash-attn", "on" if flash else "off"]
    words += ["--cache-type-k", cache_type, "--cache-type-v", cache_type, "--threads", str(threads)]
    used = [index for index, count in enumerate(fit.counts) if count]
    if strategy == "fit" and fit.counts:
        words += ["--fit", "on"]
    else:
        words += ["--fit", "off", "--n-gpu-layers", str(fit.ngl)]
        if fit.cpu_experts:
            words += ["--n-cpu-moe", str(fit.cpu_experts)]
        if len(used) == 1 and len(fit.counts) > 1:
            words += ["--split-mode", "none", "--main-gpu", str(used[0])]
        elif len(used) > 1:
            words += ["--split-mode", "layer", "--tensor-split", ",".join(map(str, fit.counts))]
    if numa_nodes > 1 and (fit.cpu_experts or fit.ngl <= fit.total):
        words += ["--numa", "distribute"]
    return [*words, "--metrics", "--offline"]


def vllm_serve(
    path: str,
    model: str,
    port: int,
    fit: TensorFit,
    *,
    utilisation: float | None,
    context: int,
    parallel: int,
    half: bool,
    experts: bool,
    reasoning: bool,
    eager: bool = False,
    node: tuple[int, int, str] | None = None,
    ray: int = 0,
) -> list[str]:
    """vLLM's server; `node` is (rank, number of nodes, address of the first), for several hosts.

    `utilisation` is the share of each GPU, None on a CPU; `eager` compiles nothing, which wants a compiler.
    `ray`: shares of the model that each host has, where Ray and not vLLM itself starts those of several.
    """
    words = ["vllm", "serve", path, "--served-model-name", model, "--host", LOOPBACK, "--port", str(port)]
    words += ["--tensor-parallel-size", str(fit.tensor), "--pipeline-parallel-size", str(fit.pipeline)]
    words += ["--max-model-len", str(context), "--max-num-seqs", str(parallel)]
    words += ["--max-num-batched-tokens", str(fit.batched)]
    if utilisation is not None:
        words += ["--gpu-memory-utilization", str(utilisation)]
    if eager:
        words.append("--enforce-eager")
    if half:
        words += ["--dtype", "half"]
    if experts and fit.tensor > 1:
        words.append("--enable-expert-parallel")
    if reasoning:
        words += ["--reasoning-parser", "deepseek_r1"]
    if node is not None and ray:
        return [*_ray(node, ray), "--", *words, "--distributed-executor-backend", "ray"]
    if node is not None:
        rank, nodes, head = node
        words += ["--nnodes", str(nodes), "--node-rank", str(rank), "--master-addr", head]
        words += ["--master-port", str(MASTER_PORT)]
        if rank:
            words.append("--headless")
    return words


def _ray(node: tuple[int, int, str], shares: int) -> list[str]:
    """Ray on one of several hosts: as soon as all are there, the first of them runs what follows."""
    rank, nodes, head = node
    address = f"[{head}]" if ":" in head else head
    words = ["ray", "symmetric-run", "--address", f"{address}:{MASTER_PORT}", "--min-nodes", str(nodes)]
    # It starts a process for each CPU that it knows of; vLLM's ask for none.
    words += ["--num-cpus", "1", "--num-gpus", str(shares), "--object-store-memory", str(RAY_STORE)]
    for name, port in RAY_PORTS.items():
        words += [f"--{name}-port", str(port)]
    # None that adds hosts, and no dashboard, which the first host has.
    words.append("--no-monitor")
    return words if rank else [*words, "--include-dashboard", "false"]


def ktransformers(
    path: str,
    expert_path: str,
    model: str,
    port: int,
    *,
    method: str,
    devices: int,
    context: int,
    parallel: int,
    threads: int,
    numa_nodes: int,
    reasoning: bool,
) -> list[str]:
    """SGLang with experts kept in memory by kt-kernel."""
    words = ["python", "-m", "sglang.launch_server", "--host", LOOPBACK, "--port", str(port)]
    words += ["--model", path, "--served-model-name", model]
    words += ["--kt-weight-path", expert_path, "--kt-method", method]
    words += ["--kt-cpuinfer", str(threads), "--kt-threadpool-count", str(numa_nodes)]
    words += ["--kt-num-gpu-experts", "0", "--tensor-parallel-size", str(devices)]
    words += ["--context-length", str(context), "--max-total-tokens", str(context * parallel)]
    words += ["--max-running-requests", str(parallel)]
    # FlashInfer would compile its own with nvcc, which a host need not have.
    words += ["--sampling-backend", "pytorch"]
    return [*words, "--reasoning-parser", "deepseek-r1"] if reasoning else words


def ollama_environment(
    context: int, parallel: int, cache_type: str, cards: int, flash: bool
) -> dict[str, str]:
    """What Ollama must be told; a quantised cache needs flash attention."""
    settings = {
        "OLLAMA_CONTEXT_LENGTH": str(context),
        "OLLAMA_FLASH_ATTENTION": "1" if flash else "0",
        "OLLAMA_KV_CACHE_TYPE": cache_type,
        "OLLAMA_NUM_PARALLEL": str(parallel),
    }
    return {**settings, "OLLAMA_SCHED_SPREAD": "1"} if cards > 1 else settings


def vllm_environment(
    nic: Mapping[str, Any] | None, several: bool, hopper_fp8: bool, cpu_cache: int = 0, ray: bool = False
) -> dict[str, str]:
    """vLLM's environment: no hub at run time, and the network that its processes talk over: on one host none.

    `cpu_cache`: GiB of memory for the cache of the CPU build; 0 for GPUs. `ray`: whether Ray starts it.
    """
    settings = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    if cpu_cache:
        # It compiles single functions whatever --enforce-eager says, and a host without GPUs has no compiler.
        settings |= {"VLLM_CPU_KVCACHE_SPACE": str(cpu_cache), "TORCH_COMPILE_DISABLE": "1"}
    if hopper_fp8:
        settings["VLLM_USE_FLASHINFER_MOE_FP8"] = "1"
    if several and ray:
        settings |= RAY_SETTINGS
    if not several:
        settings |= {**WITHIN_HOST, "VLLM_HOST_IP": LOOPBACK}
    elif nic is not None:
        settings |= {"NCCL_SOCKET_IFNAME": nic["name"], "GLOO_SOCKET_IFNAME": nic["name"]}
        if nic.get("address"):
            settings["VLLM_HOST_IP"] = nic["address"]
    return settings


def ktransformers_environment() -> dict[str, str]:
    """SGLang's environment: no hub at run time, and processes of one host that talk over loopback."""
    return {"HF_HUB_OFFLINE": "1", **WITHIN_HOST}


def shared_nics(hosts: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any] | None]:
    """Of each host the network card that all of them talk over.

    All of one network where they have one in common: RDMA on all of them first, then the fastest by its
    slowest card. Otherwise each host's own best, which is for routers to join.
    """
    known: list[dict[str, Mapping[str, Any]]] = [
        {
            nic["network"]: nic
            for nic in sorted(host.get("nics", []), key=_merit)
            # By a link's own addresses hosts talk to what is built into them, such as a BMC.
            if nic.get("address") and nic.get("network") and not nic["address"].startswith("169.254.")
        }
        for host in hosts
    ]
    common = set.intersection(*map(set, known))
    if not common:
        return [best_nic(host) for host in hosts]
    chosen = max(sorted(common), key=lambda network: min(_merit(host[network])[:2] for host in known))
    return [host[chosen] for host in known]


def _merit(nic: Mapping[str, Any]) -> tuple[bool, int, str]:
    return nic.get("rdma", False), nic.get("speed_mbps", 0), nic["name"]


def best_nic(host: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """A host's best network card that has an address: RDMA first, then the fastest."""
    rows = [row for row in host.get("nics", []) if row.get("address")]
    return max(rows, key=_merit, default=None)
