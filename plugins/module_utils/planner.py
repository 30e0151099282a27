# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""The planner: facts, a request and the catalogue in, a plan out. Pure: no input or output, no clock.

All sizes are bytes. `sizing` says how much memory a variant takes, `attempts` what one engine makes of one
host; here engines are chosen, hosts joined, and refusals given a way out.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from ansible_collections.dsprov.appliance.plugins.module_utils import (
    beside,
    commands,
    nvidia_driver,
    sizing,
)
from ansible_collections.dsprov.appliance.plugins.module_utils.attempts import Attempt, attempt
from ansible_collections.dsprov.appliance.plugins.module_utils.hardware import Gpus, branch, named
from ansible_collections.dsprov.appliance.plugins.module_utils.problems import Problem, Problems
from ansible_collections.dsprov.appliance.plugins.module_utils.sizing import KV_BYTES, kv_bytes_per_token
from ansible_collections.dsprov.appliance.plugins.module_utils.sources import choose, file_sources
from ansible_collections.dsprov.appliance.plugins.module_utils.tensor_trials import gpu_memory, tensor_row
from ansible_collections.dsprov.appliance.plugins.module_utils.trials import (
    Situation,
    Trial,
    candidates,
    port_variable,
    silent_driver,
)

__all__ = ["KV_BYTES", "Request", "digest", "kv_bytes_per_token", "plan"]

SCHEMA = 1
# Open WebUI's port where `open_webui_port` does not say otherwise, and the Docker it was tried with.
WEB_UI_PORT = 8080
DOCKER_FLOOR = (20, 10)
# A clock this far off is set by hand or by nobody. apt refuses lists that are 10 s newer than the host's
# clock (Acquire::Max-FutureTime in apt.conf(5)), and mirrors make new ones all day.
DAY = 86_400
CLOCK_DRIFT = 300
# Hosts that may share one model; more are a fleet of their own.
MOST_NODES = 8
# Refusals that more hosts may mend, and those for which another wish may do.
SPANNED = {"gpu-memory", "tensor-parallel"}
WAYS_OUT = {
    "checkpoint-missing", "compute-capability", "cpu-isa", "engine-python", "engines-together", "gpu-memory",
    "host-memory", "kv-cache-legacy", "model-unsupported", "no-gpu", "precision-unsupported",
    "tensor-parallel",
}  # fmt: skip
INSTALL_ONLY = {"engine-unavailable", "weights-unverified"}
SHORTEST_CONTEXT = 2048


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
    kv_cache_type: str = "auto"
    placement: str = "auto"
    ktransformers_method: str = "auto"
    vllm_build: str = "cuda"
    # What starts vLLM's shares of one model on several hosts.
    vllm_executor: str = "mp"
    # Hosts that share one model: 0 as few as can hold it, 1 never more.
    nodes: int = 0
    require_gpu: bool = False
    # Whether engines that serve on a host go on beside the planned one.
    beside: bool = False
    channel: str = "upstream"
    mirrors: Mapping[str, Any] | None = None
    web_ui: bool = True
    # `none` leaves drivers to their owner; what the role nvidia_driver is told beside that, as pairs.
    nvidia_driver: str = "auto"
    driver: tuple[tuple[str, Any], ...] = ()
    # Release of the CUDA toolkit that an engine is built with, where somebody names one.
    cuda_toolkit: str = ""
    # Whether somebody names the Python that an engine is installed with.
    own_python: bool = False
    # Ports that roles will listen on where they were moved, by the role variable that moved them.
    ports: Mapping[str, int] | None = None

    @classmethod
    def from_variables(cls, variables: Mapping[str, Any]) -> Request:
        """A request from `dsprov_*` variables; those that are not settings of a plan are left out."""
        names = {field.name for field in fields(cls)}
        given = {key.removeprefix("dsprov_"): value for key, value in variables.items()}
        return cls(**{name: given[name] for name in names & given.keys()})


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
        catalogue: models, gpus, engines, preference, channels, places, systems and problems, as loaded from
            catalog/.
        host_requests: requests of hosts whose own variables differ from the rest.

    Returns:
        The plan, schema 1. `ok` is false when any problem is an error. What an install would stop at, but a
        plan need not, is a warning here.
    """
    problems = Problems(catalogue["problems"])
    found: list[Problem] = []
    rows: dict[str, dict[str, Any]] = {}
    groups: list[tuple[Request, list[str]]] = []
    for name in sorted(facts["hosts"], key=_natural):
        own = (host_requests or {}).get(name, request)
        known = next((names for wish, names in groups if wish == own), None)
        if known is None:
            groups.append((own, known := []))
        known.append(name)
    for own, names in groups:
        troubles = _check_request(own, catalogue, problems)
        if troubles and len(groups) > 1:
            # Wishes of these hosts alone: the others go on.
            found += [{**problem, "host": name} for name in names for problem in troubles]
            continue
        if not troubles:
            made = _Group(names, facts["hosts"], own, catalogue, problems)
            rows |= made.rows
            troubles = made.problems
        found += [problem for problem in troubles if problem not in found]
    hosts = [rows[name] for name in sorted(rows, key=_natural)]
    return {
        "schema": SCHEMA,
        "tier": request.tier,
        "ok": not any(problem["severity"] == "error" for problem in found),
        "engine": hosts[0]["engine"] if hosts else _engines(request, catalogue)[0],
        "model": request.model,
        "hosts": hosts,
        "problems": found,
    }


def digest(document: Mapping[str, Any]) -> str:
    """sha256 of a document's canonical JSON, to tell whether anything in it changed."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _engines(request: Request, catalogue: Mapping[str, Any]) -> list[str]:
    """Engines to try, best first (catalog/preference.yml)."""
    if request.engine != "auto":
        return [request.engine]
    model = catalogue["models"].get(request.model, {"parameters": 0, "variants": {}})
    names = list(_preference(model, catalogue)["engines"])
    known = model["variants"]
    wished = {
        row["format"] for row in ([known[request.variant]] if request.variant in known else known.values())
    }
    rows = catalogue["engines"]
    if wished and not any(wished & set(rows[name]["formats"]) for name in names if name in rows):
        # Weights that none of the preferred engines loads, but that somebody asks for by name.
        return [name for name, row in rows.items() if wished & set(row["formats"])]
    return names


def _preference(model: Mapping[str, Any], catalogue: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row of catalog/preference.yml for a model of this size."""
    rows: list[Mapping[str, Any]] = catalogue["preference"]
    size = model["parameters"]
    return next(
        (row for row in rows if row["parameters_to"] is None or size <= row["parameters_to"]), rows[-1]
    )


def _check_request(request: Request, catalogue: Mapping[str, Any], problems: Problems) -> list[Problem]:
    """What is wrong with the request itself, whatever the hosts are."""
    found: list[Problem] = []
    if request.beside and request.engine == "auto":
        # The hardware's own choice may be the one that stands there, whose model would then go.
        found.append(problems.make("engine-unnamed", known=_known(catalogue["engines"])))
    model = catalogue["models"].get(request.model)
    if model is None:
        return [problems.make("model-unknown", model=request.model, known=_known(catalogue["models"]))]
    names = [name for name in _engines(request, catalogue) if name in catalogue["engines"]]
    if not names:
        known = _known(catalogue["engines"])
        return [problems.make("engine-unknown", engine=request.engine, known=known)]
    rows = {name: catalogue["engines"][name] for name in names}
    variants = model["variants"]
    if request.variant not in ("auto", *variants):
        found.append(
            problems.make(
                "variant-unknown", model=request.model, variant=request.variant, known=_known(variants)
            )
        )
    else:
        able = [name for name in names if candidates(request, model, rows[name])]
        if not able:
            chosen = variants.values() if request.variant == "auto" else [variants[request.variant]]
            found.append(
                problems.make(
                    "format-unsupported",
                    engine=names[0],
                    format="/".join(sorted({row["format"] for row in chosen})),
                    model=request.model,
                    variant=request.variant,
                )
            )
        # Whoever is asked for the rest must be able to load the weights too.
        names = able or names
    kind = request.kv_cache_type
    able = [name for name in names if kind in ("auto", *rows[name]["kv_cache_types"])]
    if not able:
        known = _known(rows[names[0]]["kv_cache_types"])
        found.append(problems.make("kv-cache-unsupported", engine=names[0], kind=kind, known=known))
    names = able or names
    if not any(request.placement in rows[name]["placements"] for name in names):
        known = _known(rows[names[0]]["placements"])
        found.append(
            problems.make("placement-unsupported", engine=names[0], placement=request.placement, known=known)
        )
    if request.nodes > 1 and not any(rows[name]["spans_hosts"] for name in names):
        able = [name for name, row in catalogue["engines"].items() if row["spans_hosts"]]
        found.append(problems.make("nodes-unsupported", engine=names[0], known=_known(able)))
    for key, value, low, high in (
        ("dsprov_nodes", request.nodes, 0, MOST_NODES),
        ("dsprov_context_length", request.context_length, 256, 16 * 1024 * 1024),
        ("dsprov_parallel", request.parallel, 0, 4096),
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


def _natural(name: str) -> tuple[list[str | int], str]:
    """The order of names in which gpu2 comes before gpu10."""
    parts = re.split(r"([0-9]+)", name)  # Every other one is a number.
    return [int(part) if at % 2 else part for at, part in enumerate(parts)], name


def _all_ok(made: Mapping[str, Attempt]) -> bool:
    return bool(made) and all(one.ok for one in made.values())


def _suits(request: Request, model: Mapping[str, Any], engine: Mapping[str, Any]) -> bool:
    """Whether an engine can do what is wished, whatever the host."""
    return (
        bool(candidates(request, model, engine))
        and (request.nodes <= 1 or engine["spans_hosts"])
        and request.kv_cache_type in ("auto", *engine["kv_cache_types"])
        and request.placement in engine["placements"]
    )


class _Group:
    """Hosts with the same wishes, planned together: each alone where it can, else as one.

    Attributes:
        rows: a row of the plan for each host that could be sized.
        problems: what is wrong with the hosts, or worth knowing.
    """

    def __init__(
        self,
        names: Sequence[str],
        hosts: Mapping[str, Any],
        request: Request,
        catalogue: Mapping[str, Any],
        problems: Problems,
    ) -> None:
        self.names, self.hosts, self.request = names, hosts, request
        self.catalogue, self._problems = catalogue, problems
        self.model = catalogue["models"][request.model]
        self.gpus = Gpus(catalogue["gpus"])
        self._accelerators = {name: self.gpus.accelerators(hosts[name]) for name in names}
        self._keys = {name: self._key(hosts[name]) for name in names}
        self._known: dict[tuple[str, Request, str], Attempt] = {}
        self._ways: dict[tuple[str, bool], dict[str, Any] | None] = {}
        self._helped: list[dict[str, Any]] = []
        self.rows: dict[str, dict[str, Any]] = {}
        self.problems: list[Problem] = []
        self._plan()

    def _key(self, host: Mapping[str, Any]) -> str:
        """What of a host an attempt depends on: equal hosts are tried once."""
        keys = [
            "os", "cpu", "memory_bytes", "disks", "gpus", "nvidia", "nvswitch", "secure_boot",
            "delivered_bytes", "nics",
        ]  # fmt: skip
        keys += ["installed_engines", "installed_group"] if self.request.beside else []
        return json.dumps({key: host.get(key) for key in keys}, sort_keys=True)

    def _beside(self, name: str, request: Request, engine: str) -> dict[str, Mapping[str, Any]]:
        """What serves on a host and goes on beside an engine, with what the host's record says of it."""
        return beside.others(self.hosts[name], engine) if request.beside else {}

    def _situation(self, name: str, request: Request, engine: str) -> Situation:
        host, stays = self.hosts[name], self._beside(name, request, engine)
        if stays:
            host = {
                **host,
                "memory_bytes": max(0, host["memory_bytes"] - beside.taken_on_host(stays)),
                # What came for them is theirs, and stays.
                "delivered_bytes": max(0, host.get("delivered_bytes", 0) - beside.taken_on_disk(stays)),
            }
        return Situation(
            host,
            beside.narrowed(self._accelerators[name], stays) if stays else self._accelerators[name],
            request,
            self.model,
            engine,
            self.catalogue["engines"][engine],
            self._problems,
            self._driver(name, request, self.catalogue["engines"][engine]["driver"]),
        )

    def _driver(self, name: str, request: Request, floor: int) -> nvidia_driver.Decision | None:
        """What an install does about a host's driver; None where it is told to leave it, or nobody said."""
        host = self.hosts[name]
        said = all(card.driver != "" for card in self._accelerators[name].cards)
        if request.nvidia_driver == "none" or not self._accelerators[name].cards or not said:
            return None
        wishes = nvidia_driver.Wishes(floor=floor, **dict(request.driver))
        return nvidia_driver.decide(
            host,
            nvidia_driver.seen_by_probe(host),
            wishes,
            self.catalogue["nvidia"],
            self.catalogue["gpus"],
            self._problems,
        )

    def _attempt(self, name: str, request: Request, engine: str) -> Attempt:
        key = (self._keys[name], _hashable(request), engine)
        if key not in self._known:
            trouble = self._never_beside(name, request, engine)
            if trouble:
                self._known[key] = Attempt(engine, Trial("", (trouble,)))
            else:
                one = attempt(self._situation(name, request, engine))
                stays = self._beside(name, request, engine)
                self._known[key] = self._crowded(name, request, one, stays) if stays and not one.ok else one
        return self._known[key]

    def _never_beside(
        self, name: str, request: Request, engine: str, group: Sequence[str] = ()
    ) -> Problem | None:
        """What keeps an engine from standing beside those of a host, whatever their memory."""
        stays = self._beside(name, request, engine)
        if unknown := beside.unmeasured(stays):
            return self._problems.make("engines-unrecorded", engines=", ".join(unknown))
        if stays and (len(group) > 1 or len(self.hosts[name].get("installed_group", [])) > 1):
            return self._problems.make("engines-group", engine=engine, standing=beside.in_words(stays))
        return None

    def _crowded(
        self, name: str, request: Request, one: Attempt, stays: Mapping[str, Mapping[str, Any]]
    ) -> Attempt:
        """The refusal of an engine beside others: in their name where it would serve without them."""
        if any(problem["code"] == "disk-space" for problem in one.taken.problems):
            return one  # The disk is no matter of who stands in memory.
        alone = self._attempt(name, replace(request, beside=False), one.engine)
        if not alone.ok:
            return alone
        tried = (one.taken, *one.others, alone.taken)
        needs = next(trial.row["memory"] for trial in tried if trial.row)
        left = self._situation(name, request, one.engine)
        cards = left.accelerators.cards
        trouble = self._problems.make(
            "engines-together",
            engine=one.engine,
            model=request.model,
            standing=beside.in_words(stays),
            needed=beside.amounts(needs["gpu_bytes_per_device"], needs["host_bytes"]),
            taken=beside.amounts([card.taken for card in cards], beside.taken_on_host(stays)),
            left=beside.amounts([card.free for card in cards], left.host["memory_bytes"]),
        )
        said = [problem for problem in one.taken.problems if problem["severity"] != "error"]
        return replace(one, taken=replace(one.taken, problems=(trouble, *said)))

    def _order(self, request: Request) -> list[str]:
        engines = self.catalogue["engines"]
        return [
            name for name in _engines(request, self.catalogue) if _suits(request, self.model, engines[name])
        ]

    def _plan(self) -> None:
        tried: dict[str, list[Attempt]] = {name: [] for name in self.names}
        chosen: dict[str, Attempt] = {}
        # What would serve, but of weights that this release cannot bring: only where nothing else serves.
        spare: dict[str, Attempt] = {}
        own: dict[str, list[Problem]] = {}
        for name in self.names:
            own[name] = self._host_problems(name)
            if self.request.require_gpu and not self._accelerators[name].cards:
                engine = self._order(self.request)[0]
                trouble = self._problems.make("no-gpu", model=self.request.model, engine=engine)
                chosen[name] = Attempt(engine, Trial("", (trouble,)))
        standing = self._standing()
        stays = {name for group in standing for name in group}
        waiting = [name for name in self.names if name not in chosen]
        for engine in self._order(self.request):
            for name in waiting:
                one = self._attempt(name, self.request, engine)
                tried[name].append(one)
                if one.ok and self.request.nodes <= 1 and name not in stays:
                    (chosen if one.deliverable else spare).setdefault(name, one)
            waiting = [name for name in waiting if name not in chosen]
            if self.catalogue["engines"][engine]["spans_hosts"]:
                for name, one in self._together(waiting, standing, tried, engine).items():
                    if one.deliverable or name not in spare:
                        tried[name][-1] = one
                    if one.ok:
                        (chosen if one.deliverable else spare).setdefault(name, one)
                waiting = [name for name in waiting if name not in chosen]
        for name in self.names:
            one = chosen.get(name) or spare.get(name) or self._least_bad(tried[name])
            self._add(name, one, tried[name], own[name])

    def _least_bad(self, tried: Sequence[Attempt]) -> Attempt:
        """The refusal to show: of an engine that this release installs, else of the first one tried."""
        engines = self.catalogue["engines"]
        return next((one for one in tried if engines[one.engine]["provisioned"]), tried[0])

    def _standing(self) -> list[tuple[str, ...]]:
        """Groups of earlier runs that stay: all their hosts are here, and asked for the same model."""
        if not any(self.catalogue["engines"][name]["spans_hosts"] for name in self._order(self.request)):
            return []
        found = []
        for name in self.names:
            group = tuple(self.hosts[name].get("installed_group", []))
            same = all(
                host in self.names
                and self.hosts[host].get("installed_group") == list(group)
                and self.hosts[host].get("installed_model", self.request.model) == self.request.model
                for host in group
            )
            if len(group) > 1 and group[0] == name and same and self.request.nodes in (0, len(group)):
                found.append(group)
        return found

    def _together(
        self,
        waiting: Sequence[str],
        standing: Sequence[tuple[str, ...]],
        tried: Mapping[str, Sequence[Attempt]],
        engine: str,
    ) -> dict[str, Attempt]:
        """What hosts serve together by this engine: groups that stand as they are, the others anew."""
        made: dict[str, Attempt] = {}
        for group in standing:
            if set(group) <= set(waiting):
                made |= self._span(group, engine)
        rest = [name for name in waiting if not any(name in group for group in standing)]
        if rest and self._may_span(rest, tried):
            made |= self._share(rest, engine)
        return made

    def _may_span(self, names: Sequence[str], tried: Mapping[str, Sequence[Attempt]]) -> bool:
        if self.request.nodes:
            return self.request.nodes > 1
        codes = {
            problem["code"]
            for name in names
            for problem in tried[name][-1].taken.problems
            if problem["severity"] == "error"
        }
        return len(names) >= 2 and codes <= SPANNED

    def _share(self, names: Sequence[str], engine: str) -> dict[str, Attempt]:
        """Hosts in groups that serve a model together: as large as is wished, else the smallest that hold it.

        Hosts of a group follow each other by name (2 before 10), and all groups are of one size. Unasked,
        only hosts with the same cards go together.
        """
        wished = self.request.nodes
        if wished > 1:
            if len(names) % wished:
                trouble = self._problems.make("nodes-count", nodes=wished, found=len(names))
                return {host: Attempt(engine, Trial("", (trouble,))) for host in names}
            return self._in_groups(names, wished, engine)
        alike: dict[str, list[str]] = {}
        for name in names:
            alike.setdefault(str(sorted(map(_sort_of, self._accelerators[name].cards))), []).append(name)
        made: dict[str, Attempt] = {}
        for some in alike.values():
            sizes = [size for size in range(2, MOST_NODES + 1) if len(some) % size == 0]
            able: list[dict[str, Attempt]] = []
            for size in sizes:
                # Hosts are alike: where the first of them cannot, nor can the rest.
                if _all_ok(self._span(some[:size], engine)):
                    able.append(self._in_groups(some, size, engine))
            able = [groups for groups in able if _all_ok(groups)]
            ready = [groups for groups in able if all(one.deliverable for one in groups.values())]
            if found := [*ready, *able]:
                made |= found[0]
            elif sizes:
                made |= self._in_groups(some, sizes[-1], engine)
        # Nobody has an equal: what keeps them apart is the thing to say.
        return made or (self._span(names, engine) if len(names) <= MOST_NODES else {})

    def _in_groups(self, names: Sequence[str], size: int, engine: str) -> dict[str, Attempt]:
        made: dict[str, Attempt] = {}
        for at in range(0, len(names), size):
            made |= self._span(names[at : at + size], engine)
        return made

    def _span(self, names: Sequence[str], engine: str) -> dict[str, Attempt]:
        """One model over several equal hosts: cards of a host share layers, hosts follow each other."""
        first, wished = names[0], self.request.nodes
        for name in names:
            if trouble := self._never_beside(name, self.request, engine, names):
                return {host: Attempt(engine, Trial("", (trouble,))) for host in names}
        situations = {name: self._situation(name, self.request, engine) for name in names}
        for name in names[1:]:
            a, b = self._accelerators[first].cards, self._accelerators[name].cards
            if sorted(map(_sort_of, a)) != sorted(map(_sort_of, b)):
                trouble = self._problems.make(
                    "nodes-differ", first=first, a=named(a), second=name, b=named(b)
                )
                return {host: Attempt(engine, Trial("", (trouble,))) for host in names}
        loadable = candidates(self.request, self.model, self.catalogue["engines"][engine])
        nics = commands.shared_nics([self.hosts[name] for name in names])
        address = nics[0]["address"] if nics[0] else first
        outcomes: list[dict[str, Attempt]] = []
        for variant_name, variant in sorted(loadable.items(), key=lambda item: -item[1]["bytes"]):
            floor = self.catalogue["engines"][engine].get("precisions", {}).get(variant["precision"])
            cards = situations[first].usable(floor)
            smallest = min((card.memory for card in cards), default=0)
            if not cards or len(names) > self.model["attention"]["layers"]:
                continue
            across = self.request.placement == "tensor"
            sizes = sizing.tensor_sizes(self.model, variant, len(cards) * (len(names) if across else 1))
            even = [size for size in sizes if not across or size % len(names) == 0]
            if not even:
                continue
            fit = sizing.fit_tensors(
                self.model,
                variant,
                smallest,
                tensor=even[-1],
                pipeline=1 if across else len(names),
                context=self.request.context_length,
                parallel=self.request.parallel,
            )
            each = fit.tensor // (len(names) if across else 1)
            made: dict[str, Attempt] = {}
            for rank, name in enumerate(names):
                one = situations[name]
                short: list[Problem] = []
                if fit.needed > fit.budget:
                    short.append(gpu_memory(one, variant_name, fit, each * len(names)))
                used = one.usable(floor)[:each]
                node = (rank, len(names), address)
                trial = tensor_row(one, variant_name, fit, used, short, node, nics[rank])
                made[name] = Attempt(engine, trial, group=tuple(names), nic=nics[rank])
            outcomes.append(made)
        able = [made for made in outcomes if _all_ok(made)]
        for made in sorted(able, key=lambda made: not made[first].deliverable):
            return made
        if wished > 1 and not outcomes:
            trouble = self._problems.make("nodes-uneven", model=self.request.model, nodes=wished)
            return {host: Attempt(engine, Trial("", (trouble,))) for host in names}
        return outcomes[-1] if outcomes else {}

    def _add(self, name: str, one: Attempt, tried: Sequence[Attempt], own: list[Problem]) -> None:
        """A host's row and problems, from the attempt that counts for it."""
        request, engine = self.request, self.catalogue["engines"][one.engine]
        found = [*own, *one.taken.problems]
        flags = self.hosts[name]["cpu"].get("flags")
        missing = sorted(set(engine["cpu_flags"]) - set(flags or []))
        if flags is not None and missing:
            found.append(self._problems.make("cpu-isa", engine=one.engine, missing=", ".join(missing)))
        found += self._port_problems(name, one.engine)
        if not engine["provisioned"]:
            known = _known(self._installed())
            found.append(self._problems.make("engine-unavailable", engine=engine["title"], known=known))
        by_tcp = one.group and not (one.nic or {}).get("rdma")
        for nic in self.hosts[name].get("nics", []) if by_tcp else []:
            if fault := nic.get("rdma_fault"):
                found.append(self._problems.make("rdma-down", nic=nic["name"], detail=fault))
        found = [self._with_way_out(name, problem) for problem in found]
        places, chosen, said = _places(self.hosts[name], request, self.catalogue, self._problems)
        found += said
        self.problems += [{**problem, "host": name} for problem in found]
        if one.taken.row is None:
            return
        row = one.taken.row
        # An engine that reads two variants gets both into the model's folder, each into its own one.
        parts = row.get("parts", [one.taken.variant])
        files = [
            {
                "name": file["name"] if len(parts) == 1 else f"{part}/{file['name']}",
                "bytes": file["bytes"],
                "sha256": file["sha256"],
                "sources": file_sources(file, places),
            }
            for part in parts
            for file in self.model["variants"][part].get("files", [])
        ]
        self.rows[name] = {
            "name": name,
            "role": ("head" if name == one.group[0] else "worker") if one.group else "single",
            "group": list(one.group),
            "engine": one.engine,
            "model": request.model,
            "weights": {
                **row["weights"],
                "folder": commands.model_path(request.model, parts[0] if len(parts) == 1 else ""),
                "artifacts": files,
            },
            "placement": dict(row["placement"]),
            "context": dict(row["context"]),
            "memory": {
                **row["memory"],
                "gpu_capacity": [c.memory for c in self._accelerators[name].cards],
            },
            "capacity": dict(row["capacity"]),
            "sampling": dict(self.model.get("sampling", {})),
            "driver": self._driver_row(name, row, engine["driver"]),
            "beside": {key: dict(kept) for key, kept in self._beside(name, request, one.engine).items()},
            **({"build": row["build"]} if "build" in row else {}),
            "environment": dict(row["environment"]),
            "command": list(row["command"]),
            "channel": request.channel,
            "sources": json.loads(json.dumps(places)),
            "chosen": chosen,
            "considered": [*_considered(self.model, one, tried), *self._later(one, tried)],
        }

    def _later(self, one: Attempt, tried: Sequence[Attempt]) -> Iterator[dict[str, Any]]:
        """Engines that were not tried, since one before them suits."""
        if not one.ok:
            return
        seen = {each.engine for each in tried}
        for engine in self._order(self.request):
            if engine not in seen:
                why = _preference(self.model, self.catalogue)["why"]
                yield {"engine": engine, "variant": "auto", "outcome": "passed", "reason": dict(why)}

    def _driver_row(self, name: str, row: Mapping[str, Any], floor: int) -> dict[str, Any]:
        """What the role nvidia_driver is to do: `install`, `keep`, or `none` where no card is used."""
        made = self._driver(name, self.request, floor) if any(row["memory"]["gpu_bytes_per_device"]) else None
        if made is None or made.action == "none":
            return {"action": "none", "floor": floor}
        if made.action == "keep":
            return {"action": "keep", "floor": floor, "version": made.found.version}
        return {
            "action": "install",
            "floor": floor,
            "branch": made.branches[0] if made.branches else None,
            "flavour": made.flavour,
            "source": made.source,
            "fabric_manager": made.fabric,
        }

    # -- what is wrong with a host, whatever the engine --------------------------------------------

    def _host_problems(self, name: str) -> list[Problem]:
        host, problems, systems = self.hosts[name], self._problems, self.catalogue["systems"]
        found: list[Problem] = []
        os = host["os"]
        if os["version_id"] not in systems["systems"].get(os["id"], {"versions": []})["versions"]:
            supported = ", ".join(
                f"{row['title']} {version}"
                for row in systems["systems"].values()
                for version in row["versions"]
            )
            found.append(
                problems.make("os-unsupported", os=os["id"], version=os["version_id"], supported=supported)
            )
        if os["arch"] not in systems["architectures"]:
            found.append(problems.make("arch-unsupported", arch=os["arch"]))
        skew = abs(host.get("clock_skew_seconds", 0))
        if skew > DAY:
            found.append(problems.make("clock-skew", skew=f"{skew / DAY:.1f} d"))
        elif skew > CLOCK_DRIFT:
            words = f"{skew / 60:.0f} min" if skew < 7200 else f"{skew / 3600:.1f} h"
            found.append(problems.make("clock-drift", skew=words))
        group = set(host.get("installed_group", []))
        away = sorted(group - set(self.names)) if name in group else []
        if away and not self.request.nodes:
            found.append(problems.make("group-parted", away=", ".join(away)))
        docker = _numbers((host.get("docker") or {}).get("version"))
        if self.request.web_ui and docker and docker < DOCKER_FLOOR:
            floor = ".".join(map(str, DOCKER_FLOOR))
            found.append(problems.make("docker-too-old", found=host["docker"]["version"], floor=floor))
        return [*found, *self._gpu_problems(name)]

    def _gpu_problems(self, name: str) -> list[Problem]:
        host, problems, seen = self.hosts[name], self._problems, self._accelerators[name]
        found = [problems.make("gpu-unknown", gpu=gpu) for gpu in seen.unknown]
        found += [problems.make("gpu-vendor", gpu=gpu, vendor=vendor) for gpu, vendor in seen.foreign]
        if not seen.cards:
            return found
        ours = self._driver(name, self.request, 0)
        installs = ours is not None and ours.action == "install" and ours.ok
        # One of ours that does not answer is mended by the install.
        found += [one for one in self._silent_driver(name) if one["code"] == "gpu-lost" or not installs]
        if host.get("nvswitch") and len(seen.cards) > 1 and not installs:
            found.append(problems.make("fabric-manager"))
        bare = any(not card.driver for card in seen.cards)
        if bare and host.get("secure_boot") and ours is None:
            found.append(problems.make("secure-boot"))
        if bare and host.get("nouveau"):
            found.append(problems.make("nouveau-loaded"))
        for card in dict.fromkeys(seen.cards):
            last = self.catalogue["gpus"].get(card.row or "", {}).get("driver_last")
            have = (_numbers(card.driver) or (0,))[0]
            if last and have > last:
                found.append(problems.make("driver-too-new", found=card.driver, gpu=card.name, last=last))
        return found

    def _silent_driver(self, name: str) -> list[Problem]:
        """What is wrong where a driver is installed and does not answer for every card."""
        host, problems = self.hosts[name], self._problems
        installed, error = silent_driver(host)
        if not error or all(card.driver is not None for card in self._accelerators[name].cards):
            return []
        if error.startswith("card "):  # The others answer.
            return [problems.make("gpu-lost", detail=error)]
        lowest = min(row["driver"] for row in self.catalogue["engines"].values())
        if (branch(installed) or lowest) < lowest:
            return []  # Too old for any engine, as each of them says.
        module = host["nvidia"].get("driver_version") or "-"
        return [problems.make("driver-broken", detail=error, module=module, library=installed or "-")]

    def _port_problems(self, name: str, engine_name: str) -> list[Problem]:
        """Ports that we need and somebody else holds."""
        request = self.request
        ports = {port_variable(engine_name): self.catalogue["engines"][engine_name]["port"]}
        if request.web_ui:
            ports["open_webui_port"] = WEB_UI_PORT
        wanted = {
            port: variable
            for variable, port in {**ports, **(request.ports or {})}.items()
            if variable in ports
        }
        found: list[Problem] = []
        # Our own make room for what is planned, unless they are to serve beside it.
        held = [row for row in self.hosts[name].get("listeners", []) if row.get("owner") != "dsprov"]
        held += [
            {"port": beside.port(row, self._port_of(key)), "process": key}
            for key, row in self._beside(name, request, engine_name).items()
        ]
        for row in held:
            if row["port"] not in wanted:
                continue
            problem = self._problems.make(
                "port-in-use",
                port=row["port"],
                process=row.get("process", "?"),
                pid=row.get("pid") or "?",
                variable=wanted[row["port"]],
            )
            if problem not in found:  # One process may listen on IPv4 and IPv6.
                found.append(problem)
        return found

    def _port_of(self, engine_name: str) -> int:
        """An engine's own port, by the catalogue; 0 where that does not know the engine."""
        return int(self.catalogue["engines"].get(engine_name, {}).get("port", 0))

    # -- ways out ----------------------------------------------------------------------------------

    def _with_way_out(self, name: str, problem: Problem) -> Problem:
        """A refusal whose remedy begins with variables that are known to help."""
        at_install = problem["code"] in INSTALL_ONLY
        if not at_install and (problem["severity"] != "error" or problem["code"] not in WAYS_OUT):
            return problem
        key = (self._keys[name], at_install)
        if key not in self._ways:
            helps = self._installs(name) if at_install else self._helps(name)
            self._ways[key] = next(helps, None)
        way = self._ways[key]
        if way is None:
            return problem
        words = " ".join(f"dsprov_{key}={_text(value)}" for key, value in way.items())
        remedy = problem["remedy"]
        return {
            **problem,
            "remedy": {
                "en": f"set {words}, or {remedy['en']}" if words not in remedy["en"] else remedy["en"],
                "zh": f"可设 {words},或{remedy['zh'].removeprefix('请')}"
                if words not in remedy["zh"]
                else remedy["zh"],
            },
        }

    def _installed(self) -> list[str]:
        """Engines that this release installs."""
        return [name for name, row in self.catalogue["engines"].items() if row["provisioned"]]

    def _installs(self, name: str) -> Iterator[dict[str, Any]]:
        """Changes with which this release can install on this host, not only plan."""
        for engine in self._installed():
            if engine in self._beside(name, self.request, self.request.engine):
                continue
            row = self.catalogue["engines"][engine]
            wish = replace(
                self.request, engine=engine, variant="auto", kv_cache_type="auto", placement="auto"
            )
            ready = [key for key, v in candidates(wish, self.model, row).items() if "files" in v]
            for variant in sorted(ready, key=lambda key: -self.model["variants"][key]["bytes"]):
                change: dict[str, Any] = {"engine": engine, "variant": variant}
                if self._attempt(name, replace(wish, **change), engine).ok:
                    kept: dict[str, Any] = {
                        k: v for k, v in change.items() if getattr(self.request, k) not in (v, "auto")
                    }
                    if self._order(replace(self.request, **kept))[:1] != [engine]:
                        kept["engine"] = engine
                    elif not kept:
                        kept["variant"] = variant
                    yield kept
                    return

    def _helps(self, name: str) -> Iterator[dict[str, Any]]:
        """Changes of the request that this host can serve, the smallest first."""
        room = self.hosts[name]["memory_bytes"] + sum(card.memory for card in self._accelerators[name].cards)
        # A bound that saves most of the search: what is on neither GPUs nor in memory is nowhere.
        fits = {
            key
            for key, row in self.model["variants"].items()
            if row["bytes"] - row["weights"].get("mtp", 0) <= room
        }
        for change in [*self._helped, *self._changes()]:
            variant = change.get("variant", self.request.variant)
            if not fits or (variant != "auto" and variant not in fits):
                continue
            wish = replace(self.request, **change)
            if wish.require_gpu and not self._accelerators[name].cards:
                continue
            if wish == self.request:
                continue
            if change.get("engine") in self._beside(name, wish, self.request.engine):
                continue  # It has a model of its own, which this would take away.
            if any(self._attempt(name, wish, engine).ok for engine in self._order(wish)):
                if change not in self._helped:
                    self._helped.append(change)
                yield change

    def _changes(self) -> Iterator[dict[str, Any]]:
        request = self.request
        engines = [name for row in self.catalogue["preference"][-1:] for name in row["engines"]]
        engines = list(dict.fromkeys([*_engines(replace(request, engine="auto"), self.catalogue), *engines]))
        yield {"kv_cache_type": "f16"}
        yield {"require_gpu": False}
        if request.ktransformers_method != "auto":
            yield {"ktransformers_method": "auto"}
        smaller: list[dict[str, Any]] = [{}]
        if request.parallel > 1:
            smaller.append({"parallel": 1})
        length = request.context_length // 2
        while length >= SHORTEST_CONTEXT:
            smaller.append({"context_length": length, **({"parallel": 1} if request.parallel > 1 else {})})
            length //= 2
        variants = sorted(self.model["variants"].items(), key=lambda item: -item[1]["bytes"])
        for less in smaller:
            if less:
                yield less
            for variant_name, _row in variants:
                yield {"variant": variant_name, **less}
            for engine in engines:
                yield {"engine": engine, **less}
            for engine in engines:
                yield {
                    "engine": engine,
                    "variant": "auto",
                    "kv_cache_type": "auto",
                    "placement": "auto",
                    **less,
                }


def _hashable(request: Request) -> Request:
    """The parts of a request that an attempt depends on, as a key."""
    return replace(request, mirrors=None, ports=None, channel="")


def _considered(model: Mapping[str, Any], one: Attempt, tried: Sequence[Attempt]) -> Iterator[dict[str, Any]]:
    """What was taken and what was turned down, each with its reason."""
    for each in tried:
        for trial in (each.taken, *each.others):
            taken = each is one and trial is each.taken and one.ok
            yield {
                "engine": each.engine,
                "variant": trial.variant or "auto",
                "outcome": "taken" if taken else ("passed" if trial.ok else "refused"),
                "reason": _reason(model, one.taken, trial, taken),
            }


def _reason(model: Mapping[str, Any], taken: Trial, trial: Trial, is_taken: bool) -> dict[str, str]:
    errors = [problem for problem in trial.problems if problem["severity"] == "error"]
    if errors:
        return dict(errors[0]["message"])
    if is_taken:
        return {"en": "fits", "zh": "可行"}
    variants = model["variants"]
    if (
        taken.variant in variants
        and "files" in variants[taken.variant]
        and "files" not in variants[trial.variant]
    ):
        return {"en": "no digests are known of it", "zh": "没有已知的校验值"}
    if taken.full and not trial.full:
        return {"en": "would run partly on the CPU", "zh": "部分需在 CPU 上运行"}
    if taken.variant in variants and variants[trial.variant]["bytes"] < variants[taken.variant]["bytes"]:
        return {"en": "less precise than what fits", "zh": "精度低于已选变体"}
    return {"en": "slower: more bytes for the CPU to read", "zh": "较慢:CPU 需读取更多数据"}


def _sort_of(card: Any) -> tuple[str, int]:
    return card.name, card.memory


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _numbers(version: Any) -> tuple[int, int] | None:
    """The first two numbers of a version, or None."""
    parts = str(version or "").split(".")
    if len(parts) < 2 or not all(
        part.isascii() and part.isdecimal() and len(part) < 10 for part in parts[:2]
    ):
        return None
    return int(parts[0]), int(parts[1])


def _places(
    host: Mapping[str, Any], request: Request, catalogue: Mapping[str, Any], problems: Problems
) -> tuple[dict[str, Any], dict[str, Any], list[Problem]]:
    """Where the host's bytes come from, why from there, and what is wrong with it."""
    answers = host.get("places", {})
    vendors = {card["vendor"].lower() for card in host.get("gpus", [])}
    places, chosen, silent = choose(catalogue, request.channel, request.mirrors or {}, answers, vendors)
    if silent and not chosen:
        tried = ", ".join(address for kind in silent for address in answers[kind])
        return places, chosen, [problems.make("no-channel", tried=tried)]
    said = [problems.make("place-silent", kinds=", ".join(silent))] if silent else []
    return places, chosen, said


def _known(names: Any) -> str:
    return ", ".join(names)
