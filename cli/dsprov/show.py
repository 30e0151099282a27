"""Plans and checks as people read them: tables, bars, reasons; in English and Chinese."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import click

from ansible_collections.dsprov.appliance.plugins.module_utils import beside, sizing
from ansible_collections.dsprov.appliance.plugins.module_utils.problems import human_bytes
from ansible_collections.dsprov.appliance.plugins.module_utils.trials import data_disk
from dsprov.words import pick, t

BAR = 24
# What a field engineer looks at, in the order in which it is mended, and the problems that belong there.
CHECKS: dict[str, tuple[str, str, frozenset[str]]] = {
    "reach": ("reach", "连通", frozenset({"unreachable"})),
    "login": ("login", "登录", frozenset({"sudo-missing", "python-missing", "python-too-old"})),
    "system": (
        "system", "系统", frozenset({"os-unsupported", "arch-unsupported", "docker-too-old", "cpu-isa"}),
    ),
    "driver": (
        "driver", "驱动",
        frozenset({
            "driver-too-old", "driver-too-new", "driver-missing", "driver-broken", "gpu-lost",
            "fabric-manager", "secure-boot", "nouveau-loaded",
        }),
    ),
    "gpu": (
        "GPU", "显卡",
        frozenset({
            "no-gpu", "gpu-memory", "gpu-vendor", "gpu-unknown", "compute-capability",
            "precision-unsupported", "tensor-parallel", "nodes-differ", "part-on-cpu", "cpu-only",
        }),
    ),
    "memory": ("memory", "内存", frozenset({"host-memory", "memory-numa", "engines-together"})),
    "disk": ("disk", "磁盘", frozenset({"disk-space", "disk-full"})),
    "ports": ("ports", "端口", frozenset({"port-in-use"})),
    "network": ("network", "网络", frozenset({"no-channel", "place-silent", "bundle-unreachable"})),
    "clock": ("clock", "时钟", frozenset({"clock-skew", "clock-drift"})),
}  # fmt: skip


def width(text: str) -> int:
    """Columns that a terminal gives a text: Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Lines of a table whose columns stand under each other in both languages."""
    lines = [list(head), *map(list, rows)]
    widths = [max(width(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        cells = [text + " " * (room - width(text)) for text, room in zip(line, widths, strict=True)]
        yield "  ".join(cells).rstrip()


def bar(used: int, there: int) -> str:
    """How full something is, and in figures; what overflows is marked."""
    share = used / there if there else 0.0
    filled = min(BAR, round(share * BAR))
    mark = t("  does not fit", "  放不下") if used > there else ""
    drawn = "█" * filled + "░" * (BAR - filled)
    return f"{drawn} {human_bytes(used)} / {human_bytes(there)} ({share:.0%}){mark}"


def show_plan(plan: Mapping[str, Any], why: bool = False, facts: Mapping[str, Any] | None = None) -> None:
    """The plan: a table of hosts, then what each holds, and with `why` what was turned down.

    Args:
        facts: the facts document, where it is at hand; memory and disk are shown against it.
    """
    verdict = t("fits", "可行") if plan["ok"] else t("refused", "不可行")
    click.echo(f"{plan['tier']}: {plan.get('model', '?')} · {plan.get('engine', '?')} · {verdict}")
    if not plan["hosts"]:
        return
    head = (
        t("host", "主机"), t("engine", "引擎"), t("variant", "变体"), t("where", "位置"),
        t("context", "上下文"), t("users", "用户"),
    )  # fmt: skip
    click.echo("\n".join(table(head, map(_host_cells, plan["hosts"]))))
    hosts = (facts or {}).get("hosts", {})
    refused = {problem["host"] for problem in plan["problems"] if problem["severity"] == "error"}
    for alike in _alike(plan["hosts"]):
        names = ", ".join(row["name"] for row in alike)
        click.echo(f"{names}:")
        for line in _details(alike[0], hosts.get(alike[0]["name"])):
            click.echo(f"  {line}")
        if alike[0]["name"] not in refused:
            click.echo(f"  {_serves(alike[0])}")
        if why:
            for line in _why(alike[0]):
                click.echo(f"  {line}")


def _alike(rows: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Hosts with the same plan, shown once."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        keys = ("engine", "weights", "placement", "context", "memory", "beside")
        groups.setdefault(repr([row[key] for key in keys]), []).append(row)
    return list(groups.values())


def _host_cells(row: Mapping[str, Any]) -> list[str]:
    context, capacity, weights = row["context"], row["capacity"], row["weights"]
    role = {"head": t(" (head)", "(主)"), "worker": t(" (worker)", "(从)")}.get(row["role"], "")
    users = capacity["named_users"]
    return [
        row["name"] + role,
        row["engine"],
        f"{weights['variant']} ({human_bytes(weights['bytes'])})",
        _where(row),
        f"{context['length']} × {context['parallel']} {context['kv_cache_type']}",
        t(f"~{users}", f"约 {users}"),
    ]


def _where(row: Mapping[str, Any]) -> str:
    place = row["placement"]
    cards = sum(1 for size in row["memory"]["gpu_bytes_per_device"] if size)
    if not cards:
        return "CPU"
    if place["strategy"] == "tensor":
        shared = f"TP {place['tensor_parallel']}"
        if place["pipeline_parallel"] > 1:
            shared += f" × PP {place['pipeline_parallel']}"
        return t(f"{shared}, {cards} GPU(s)", f"{shared},{cards} 张卡")
    layers = f"{place['gpu_layers']}/{place['total_layers']}"
    where = t(f"{layers} layers on {cards} GPU(s)", f"{cards} 张卡上 {layers} 层")
    experts = place.get("cpu_expert_layers")
    if experts:
        method = f" {place['method']}" if "method" in place else ""
        where += t(f", experts of {experts} in memory{method}", f",{experts} 层专家在内存{method}")
    return where


def _details(row: Mapping[str, Any], host: Mapping[str, Any] | None) -> Iterator[str]:
    """Bars of devices, memory and disk against what is there."""
    memory = row["memory"]
    sizes, there = memory["gpu_bytes_per_device"], memory["gpu_capacity"]
    label_memory, label_disk = t("memory", "内存"), t("disk", "磁盘")
    labels: list[tuple[str, str]] = []
    start = 0
    for index in range(1, len(sizes) + 1):
        if index == len(sizes) or (sizes[index], there[index]) != (sizes[start], there[start]):
            name = f"GPU {start}" if index - start == 1 else f"GPU {start}-{index - 1}"
            labels.append((name, bar(sizes[start], there[start])))
            start = index
    if host:
        labels.append((label_memory, bar(memory["host_bytes"], host["memory_bytes"])))
        disk = data_disk(host)
        need = human_bytes(memory["disk_bytes"])
        left = human_bytes(disk["free_bytes"]) if disk else "?"
        free = t(f", free {left}", f",剩余 {left}")
        labels.append((label_disk, need + free))
    else:
        labels.append((label_memory, human_bytes(memory["host_bytes"])))
        labels.append((label_disk, human_bytes(memory["disk_bytes"])))
    if stays := row["beside"]:
        takes = beside.amounts(beside.taken_on_cards(stays), beside.taken_on_host(stays))
        labels.append((t("beside", "并存"), f"{beside.in_words(stays)}: {takes}"))
    room = max(width(label) for label, _text in labels)
    for label, text in labels:
        yield f"{label}{' ' * (room - width(label))}  {text}"


def _serves(row: Mapping[str, Any]) -> str:
    capacity = row["capacity"]
    requests, users = capacity["concurrent_requests"], capacity["named_users"]
    length = row["context"]["length"]
    return t(
        f"serves {requests} request(s) at once of {length} tokens, about {users} named users (estimated)",
        f"可同时处理 {requests} 个请求(每个 {length} token),约 {users} 名用户(估计值)",
    )


def _why(row: Mapping[str, Any]) -> Iterator[str]:
    """What was considered; those turned down say what would have to change."""
    yield t("considered:", "考虑过的方案:")
    marks = {"taken": "✓", "passed": "·", "refused": "✗"}
    lines = (
        (f"  {marks[one['outcome']]}", one["engine"], one["variant"], pick(one["reason"]))
        for one in row["considered"]
    )
    yield from list(table(("", "", "", ""), lines))[1:]
    if row["chosen"]:
        yield t("places asked:", "试过的下载地址:")
        yield from list(table(("", "", "", ""), _places(row["chosen"])))[1:]
    yield t("command:", "命令:")
    settings = [f"{key}={value}" for key, value in sorted(row["environment"].items())]
    yield "  " + " ".join([*settings, *row["command"]])


def _places(chosen: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """A line a kind: the place that won, its time, and how the others did."""
    silent = t("no answer", "无应答")
    for kind, row in sorted(chosen.items()):
        others = [f"{one} {silent if ms is None else f'{ms:.0f} ms'}" for one, ms in row["others"].items()]
        yield f"  {kind}", row["address"], f"{row['ms']:.0f} ms", ", ".join(others)


def show_model(name: str, model: Mapping[str, Any], as_json: bool) -> None:
    """What a model takes, whatever the host: weights, cache and compute buffer by context and cache type."""
    ((variant_name, variant),) = model["variants"].items()
    weights = sizing.weights_of(variant)
    kinds = variant.get("kv_cache_types", list(sizing.KV_BYTES))
    lengths = [length for length in (2048, 8192, 32768, 131072) if length <= model["context_limit"]]
    sizes = [
        {
            "context": length,
            "kv_cache_type": kind,
            "kv_bytes": sizing.kv_bytes_per_token(model, kind, variant) * sizing.cells(length, 1),
            "compute_bytes": sizing.compute_bytes(model, variant, sizing.cells(length, 1), kind),
        }
        for length in lengths or [model["context_limit"]]
        for kind in kinds
    ]
    document = {
        "schema": 1,
        "model": name,
        "variant": variant_name,
        "parameters": model["parameters"],
        "layers": len(weights.layers),
        "weights": {
            "bytes": variant["bytes"],
            "embedding_bytes": weights.embedding,
            "output_bytes": weights.output,
            "layer_bytes": sum(weights.layers),
            "expert_bytes": sum(weights.experts),
        },
        "sizes": sizes,
    }
    if as_json:
        click.echo(json.dumps(document, ensure_ascii=False))
        return
    count = model["parameters"] / 1e9
    click.echo(
        f"{name}: {variant_name} · {human_bytes(variant['bytes'])} · {count:.2f} B · {len(weights.layers)}"
    )
    head = (
        t("context", "上下文"),
        t("cache type", "缓存类型"),
        t("KV cache", "KV 缓存"),
        t("compute", "计算缓冲"),
    )
    click.echo(
        "\n".join(
            table(
                head,
                (
                    [
                        str(row["context"]),
                        str(row["kv_cache_type"]),
                        human_bytes(row["kv_bytes"]),
                        human_bytes(row["compute_bytes"]),
                    ]
                    for row in sizes
                ),
            )
        )
    )


def show_check(
    states: Mapping[str, str], problems: Sequence[Mapping[str, Any]], plan: Mapping[str, Any] | None
) -> None:
    """A line a host: what is fine, what to look at, what to mend before an install.

    Args:
        states: how each host ended: ok, failed, unreachable.
        problems: all problems, the plan's and the run's.
    """
    everything = [*problems, *[p for p in (plan or {}).get("problems", []) if p not in problems]]
    keys = list(CHECKS)
    head = [t("host", "主机"), *(t(CHECKS[key][0], CHECKS[key][1]) for key in keys)]
    head += [t("plan", "方案"), t("verdict", "结论")]
    known = frozenset().union(*(CHECKS[key][2] for key in keys))
    rows = []
    for name in sorted(states):
        mine = [problem for problem in everything if problem.get("host") in (None, name)]
        reached = states[name] != "unreachable"
        cells = [_cell(mine, CHECKS[key][2], reached or key == "reach") for key in keys]
        others = frozenset(problem["code"] for problem in mine) - known
        cells.append(_cell(mine, others, reached))
        verdict = t("ready", "就绪") if states[name] == "ok" else t("not ready", "未就绪")
        rows.append([name, *cells, verdict])
    click.echo("\n".join(table(head, rows)))
    click.echo(t("✓ fine   ! look at it   ✗ mend it   - not seen", "✓ 正常   ! 需留意   ✗ 需修复   - 未检查"))


def _cell(problems: Iterable[Mapping[str, Any]], codes: frozenset[str], seen: bool) -> str:
    severities = {problem["severity"] for problem in problems if problem["code"] in codes}
    if "error" in severities:
        return "✗"
    if severities:
        return "!"
    return "✓" if seen else "-"
