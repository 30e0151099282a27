# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""A host's accelerators as the planner sees them: facts completed from the catalogue. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_DEVICE = re.compile(r"device 0x([0-9a-f]{4})", re.IGNORECASE)
NVIDIA = "10de"


@dataclass(frozen=True)
class Card:
    """One NVIDIA card that can be counted on.

    Attributes:
        capability: compute capability as (major, minor), or None where nobody knows it.
        driver: version of the driver that answers for it, None where none does, empty where nobody said.
        row: its name in catalog/gpus.yml, or None.
        taken: bytes of its memory that other engines have, which go on serving.
    """

    name: str
    memory: int
    capability: tuple[int, int] | None
    driver: str | None
    row: str | None
    taken: int = 0

    @property
    def free(self) -> int:
        """Bytes that nobody else has."""
        return max(0, self.memory - self.taken)


@dataclass(frozen=True)
class Accelerators:
    """All of a host.

    Attributes:
        cards: NVIDIA cards whose memory is known, one entry each.
        unknown: names that neither the facts nor the catalogue say enough of.
        foreign: (name, vendor) of other makers' cards.
    """

    cards: tuple[Card, ...]
    unknown: tuple[str, ...]
    foreign: tuple[tuple[str, str], ...]


class Gpus:
    """The catalogue's accelerators by name and by PCI id."""

    def __init__(self, rows: Mapping[str, Mapping[str, Any]]) -> None:
        self.rows = rows
        self._names = {name.lower(): key for key, row in rows.items() for name in row["names"]}
        self._ids = {device: key for key, row in rows.items() for device in row["pci_ids"]}

    def find(self, gpu: Mapping[str, Any]) -> str | None:
        """The row of a GPU of the facts: by PCI id, else by name."""
        device = str(gpu.get("pci_id", "")).lower().removeprefix("0x")
        named = _DEVICE.search(gpu["name"])
        if not device and named:
            device = named[1].lower()
        if device and ":" not in device:
            device = f"{NVIDIA}:{device}"
        return self._ids.get(device) or self._names.get(gpu["name"].lower())

    def accelerators(self, host: Mapping[str, Any]) -> Accelerators:
        """What of a host's GPUs can be planned with. What the facts say wins over the catalogue."""
        cards: list[Card] = []
        unknown: list[str] = []
        foreign: list[tuple[str, str]] = []
        for gpu in host.get("gpus", []):
            key = self.find(gpu)
            row = self.rows[key] if key else {}
            if gpu["vendor"].lower() != "nvidia":
                foreign.append((gpu["name"], gpu["vendor"]))
                continue
            memory = gpu.get("memory_bytes") or row.get("memory_bytes")
            if key is None:
                unknown.append(gpu["name"])
            if not memory:
                continue
            name = row["names"][0] if key and _DEVICE.search(gpu["name"]) else gpu["name"]
            capability = _capability(gpu.get("compute_capability") or row.get("compute_capability"))
            card = Card(name, memory, capability, gpu.get("driver_version", ""), key)
            cards += [card] * gpu.get("count", 1)
        return Accelerators(tuple(cards), tuple(dict.fromkeys(unknown)), tuple(dict.fromkeys(foreign)))


def _capability(text: Any) -> tuple[int, int] | None:
    found = re.fullmatch(r"(\d{1,3})\.(\d{1,2})", str(text or ""), re.ASCII)
    return (int(found[1]), int(found[2])) if found else None


def branch(version: str | None) -> int | None:
    """The branch of a driver's version: 580 of "580.95.05"."""
    found = re.match(r"(\d{1,6})(?:\.|$)", version or "", re.ASCII)
    return int(found[1]) if found else None


def floor_of(text: str) -> tuple[int, int]:
    """A floor of the catalogue, such as "7.5", to compare with a card's capability."""
    major, _dot, minor = text.partition(".")
    return int(major), int(minor)


def meets(card: Card, floor: str | None) -> bool:
    """Whether a card's compute capability suffices. One that nobody knows is trusted."""
    return floor is None or card.capability is None or card.capability >= floor_of(floor)


def named(cards: tuple[Card, ...]) -> str:
    """ "8 x NVIDIA H20", or several such joined."""
    counts: dict[str, int] = {}
    for card in cards:
        counts[card.name] = counts.get(card.name, 0) + 1
    return " + ".join(f"{count} x {name}" for name, count in counts.items()) or "0 x GPU"
