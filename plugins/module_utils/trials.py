# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""One variant tried on one host: what a trial is made with, and what holds for every engine. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.dsprov.appliance.plugins.module_utils.hardware import (
    Accelerators,
    Card,
    branch,
    meets,
)
from ansible_collections.dsprov.appliance.plugins.module_utils.nvidia_driver import Decision
from ansible_collections.dsprov.appliance.plugins.module_utils.problems import Problem, Problems, human_bytes

# Docker, the engine's libraries (for llama.cpp also the CUDA toolkit and room to build in), in GB.
SOFTWARE_BYTES = {"ollama": 4, "llama_cpp": 8, "vllm": 17, "ktransformers": 20}
GB = 1_000_000_000
WEB_UI_BYTES = 5 * GB
DISK_MARGIN = 0.10
# Parameters from which on answers from a CPU take patience.
SLOW_ON_CPU = 3_000_000_000
# Bits a weight up to which more of them are worth the time that a CPU takes to read them.
KNEE_BITS = 5.0
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


def bits(model: Mapping[str, Any], variant: str) -> float:
    """Bits a weight."""
    return float(model["variants"][variant]["bytes"] * 8 / model["parameters"])


def data_disk(host: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The disk that will hold our data: the longest mount point above its folder."""
    above = [
        disk
        for disk in host.get("disks", [])
        if disk["mount"] == DATA_MOUNT or DATA_MOUNT.startswith(disk["mount"].rstrip("/") + "/")
    ]
    return max(above, key=lambda disk: len(disk["mount"]), default=None)


def common_problems(
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


def room_on_disk(situation: Situation, weights: int) -> int:
    """Room for everything, in Ollama's case with weights twice: verified file and own copy."""
    copies = 2 if situation.engine_name == "ollama" else 1
    software = SOFTWARE_BYTES[situation.engine_name] * GB + (WEB_UI_BYTES if situation.request.web_ui else 0)
    return int((copies * weights + software) * (1 + DISK_MARGIN))


def plan_row(
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
    """The row of the plan for one host, without the host's own parts.

    Args:
        kv_bytes: bytes of the cache for one token.
        devices: bytes on each card of the host, in the driver's order; 0 where a card is not used.
        weight_bytes: where an engine reads more than the variant alone.
    """
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


def writes_reasoning(situation: Situation) -> bool:
    """Whether the model writes its reasoning down first, which a parser then sets apart."""
    return "r1" in situation.request.model


def sizes_by_card(situation: Situation, cards: Sequence[Card], sizes: Sequence[int]) -> list[int]:
    """Sizes of the cards that are used, among all cards of the host in their order."""
    left = list(zip(cards, sizes, strict=True))
    shown = []
    for card in situation.accelerators.cards:
        if left and left[0][0] is card:
            shown.append(left.pop(0)[1])
        else:
            shown.append(0)
    return shown


def nothing_usable(situation: Situation, variants: Mapping[str, Any]) -> list[Trial]:
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
            found=dotted(best),
        )
    return [Trial(name, (problem,)) for name in variants]


def dotted(card: Card) -> str:
    """Compute capability as people write it: 8.9; empty where it is not known."""
    return ".".join(map(str, card.capability or ()))
