# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Engines that go on serving beside the one that is planned: what they take, and what they leave. Pure.

What stands on a host is the fact `installed_engines`: engine to what the host's record says of it. A record
of an earlier release names its engine alone, so what that one takes is not known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import groupby, zip_longest
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.dsprov.appliance.plugins.module_utils.hardware import Accelerators, Card
from ansible_collections.dsprov.appliance.plugins.module_utils.problems import human_bytes
from ansible_collections.dsprov.appliance.plugins.module_utils.sizing import (
    GPU_MARGIN,
    SYSTEM_RESERVE,
    VLLM_UTILISATION,
)

Rows = Mapping[str, Mapping[str, Any]]


def others(host: Mapping[str, Any], engine: str) -> dict[str, Mapping[str, Any]]:
    """What stands on a host but `engine` itself, so that a run again plans what the first one did."""
    rows: Rows = host.get("installed_engines", {})
    return {name: rows[name] for name in sorted(rows) if name != engine}


def unmeasured(rows: Rows) -> list[str]:
    """Engines of which nobody knows what they take."""
    return [name for name, row in rows.items() if "host_bytes" not in row]


def taken_on_host(rows: Rows) -> int:
    """Bytes of host memory that engines take; what the system itself wants is in each one's figure."""
    return sum(max(0, row["host_bytes"] - SYSTEM_RESERVE) for row in rows.values())


def taken_on_disk(rows: Rows) -> int:
    """Bytes that engines and their weights take on the disk."""
    return sum(row.get("disk_bytes", 0) for row in rows.values())


def taken_on_cards(rows: Rows) -> list[int]:
    """Bytes that engines take on each card, in the driver's order."""
    sizes = (row.get("gpu_bytes_per_device", []) for row in rows.values())
    return [sum(card) for card in zip_longest(*sizes, fillvalue=0)]


def narrowed(accelerators: Accelerators, rows: Rows) -> Accelerators:
    """The same cards, each with what engines take of it."""
    taken = taken_on_cards(rows)
    taken += [0] * (len(accelerators.cards) - len(taken))
    pairs = zip(accelerators.cards, taken, strict=False)
    return replace(accelerators, cards=tuple(replace(card, taken=size) for card, size in pairs))


def budget(card: Card) -> int:
    """The memory of a card for an engine that leaves `GPU_MARGIN` of it free by itself.

    Engines that share a card keep to vLLM's share of it together, whoever came first: with margins of their
    own each would grow into the other's, and a run again would plan another thing.
    """
    if not card.taken:
        return card.memory
    return max(0, math.ceil((VLLM_UTILISATION * card.memory - card.taken) / (1 - GPU_MARGIN)))


def utilisation(cards: Iterable[Card]) -> float:
    """vLLM's share of each card, one for all: of the whole card, and it does not start with less free."""
    free = (VLLM_UTILISATION - card.taken / card.memory if card.taken else VLLM_UTILISATION for card in cards)
    return max(0.0, math.floor(min(free) * 1000) / 1000)


def port(row: Mapping[str, Any], usual: int) -> int:
    """The port that an engine listens on, by its base URL."""
    try:
        return urlsplit(row.get("base_url", "")).port or usual
    except ValueError:
        return usual


def in_words(rows: Rows) -> str:
    """ "ollama (smollm2:135m)", or several such joined."""
    return ", ".join(f"{name} ({row['model']})" if "model" in row else name for name, row in rows.items())


def amounts(cards: Iterable[int], host: int) -> str:
    """Memory in words of every language: "GPU 2 x 22.1 GB + 0 B, RAM 9.7 GB"."""
    runs = [(size, len(list(same))) for size, same in groupby(cards)]
    sizes = " + ".join(
        f"{count} x {human_bytes(size)}" if count > 1 else human_bytes(size) for size, count in runs
    )
    return ", ".join([*([f"GPU {sizes}"] if runs else []), f"RAM {human_bytes(host)}"])
