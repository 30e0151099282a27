# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Which NVIDIA driver a host gets, from where, or why none. Pure but for `key_enrolled`.

Two steps, for what a repository holds is known only once it is listed: `decide` from what the host is, and
`resolve` from the versions that apt knows.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ansible_collections.dsprov.appliance.plugins.module_utils.hardware import Card, Gpus, branch
from ansible_collections.dsprov.appliance.plugins.module_utils.problems import Problem, Problems

# What the role installed, and how far it came.
RECEIPT = "/var/lib/dsprov/nvidia/driver.json"
# Keys by which Debian's and Ubuntu's DKMS sign what they build.
_KEYS = ("/var/lib/dkms/mok.pub", "/var/lib/shim-signed/mok/MOK.der")
OPEN, PROPRIETARY = "open", "proprietary"
# dpkg's states of a package that is neither there nor gone.
HALF = {"half-installed", "unpacked", "half-configured", "triggers-awaited", "triggers-pending"}
# What a package of a driver is called, and what else is: CUDA's toolkit, containers, tools for settings.
_PACKAGE = re.compile(
    r"(lib)?nvidia-(driver|kernel|dkms|open|headless|utils|compute|smi|ml1|cfg1|alternative|fabricmanager|nscq)"
    r"|libcuda1$|cuda-drivers|linux-modules-nvidia-|nvidia-fabricmanager"
)


@dataclass(frozen=True)
class Wishes:
    """What the role was asked for; `auto`, 0 and the empty string leave it to the rules.

    Attributes:
        floor: oldest branch that will do, of the engine that the plan chose.
        existing: `keep` or `replace` a driver that somebody else installed.
        fabric: whether the fabric manager is wanted: `auto`, `true` or `false`.
        bake: for an image: no GPU and no running kernel of its own to ask.
    """

    source: str = "auto"
    branch: int = 0
    version: str = ""
    flavour: str = "auto"
    existing: str = "keep"
    floor: int = 0
    fabric: str = "auto"
    bake: bool = False
    try_unbuildable: bool = False


@dataclass(frozen=True)
class Found:
    """A driver that is on the host.

    Attributes:
        version: such as "580.95.05"; empty where nobody says.
        origin: `dsprov`, `distribution`, `nvidia`, `runfile` or `other`.
        packages: its packages, where it has some.
        half: those that dpkg left half way.
    """

    version: str = ""
    origin: str = ""
    packages: tuple[str, ...] = ()
    half: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decision:
    """What to do about a host's driver.

    Attributes:
        action: `install`, `keep` or `none`.
        row: the row of catalog/nvidia.yml it comes from.
        branches: those that will do, best first.
        signed: whether the distribution's own signed modules are taken instead of building some.
        exact: packages of one version, without those of the modules; loose: of any.
        purge: packages of another driver that go first.
    """

    action: str
    found: Found = field(default_factory=Found)
    row: str = ""
    source: str = ""
    branches: tuple[int, ...] = ()
    flavour: str = ""
    signed: bool = False
    fabric: bool = False
    nvlink5: bool = False
    purge: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing stands in the way."""
        return not any(problem["severity"] == "error" for problem in self.problems)

    def as_dict(self) -> dict[str, Any]:
        """For a task's result, in which templates add lists to lists."""
        made: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return made

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Decision:
        """A decision out of what `as_dict` made of it, as far as a choice of packages wants it."""
        kept = {
            name: row[name] for name in ("action", "row", "source", "flavour", "signed", "fabric", "nvlink5")
        }
        return cls(**kept, branches=tuple(row["branches"]))


def key_enrolled() -> bool:
    """Whether the firmware knows the key by which this host's DKMS signs."""
    mokutil = shutil.which("mokutil")
    for path in _KEYS if mokutil else ():
        if os.path.exists(path):
            done = subprocess.run(
                [str(mokutil), "--test-key", path], capture_output=True, text=True, check=False
            )
            if "is already enrolled" in done.stdout:
                return True
    return False


def seen_by_probe(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the facts alone tell of a driver, in the module's words: enough for a plan."""
    nvidia = facts.get("nvidia") or {}
    # NVML's version is CUDA's before the driver's: 13.580.95.05.
    library = str(nvidia.get("library_version") or "").partition(".")[2]
    answers = [gpu["driver_version"] for gpu in facts.get("gpus", []) if gpu.get("driver_version")]
    version = next(iter(answers), "") or nvidia.get("driver_version") or library
    if not version and nvidia.get("nvml_error"):
        # Something of a driver is there, whatever it is.
        version = "unknown"
    return {
        "packages": [],
        "loaded": version,
        "receipt": {"version": version} if nvidia.get("managed") else {},
        "key_enrolled": bool(nvidia.get("key_enrolled")),
    }


def find(look: Mapping[str, Any]) -> Found:
    """The driver that is there, from what the module read."""
    receipt = look.get("receipt") or {}
    packages = {row["name"]: row for row in look.get("packages", []) if _PACKAGE.match(row["name"])}
    there = sorted(name for name, row in packages.items() if row["status"] != "config-files")
    half = tuple(name for name in there if packages[name]["status"] in HALF)
    version = look.get("loaded") or look.get("library") or ""
    if receipt:
        return Found(receipt.get("version") or version, "dsprov", tuple(there), half)
    if look.get("runfile"):
        return Found(version or look["runfile"], "runfile", tuple(there), half)
    modules = [name for name in there if re.search(r"dkms|kernel|headless|linux-modules|driver", name)]
    if modules or half:
        origins = {packages[name].get("origin", "") for name in there}
        origin = (
            "nvidia"
            if any(label.startswith("NVIDIA") for label in origins)
            else ("distribution" if origins & {"Debian", "Ubuntu"} else "other")
        )
        return Found(
            version or upstream(packages[(modules or half)[0]]["version"]), origin, tuple(there), half
        )
    if version:
        return Found(version, "other", tuple(there), half)
    return Found()


def decide(
    facts: Mapping[str, Any],
    look: Mapping[str, Any],
    wishes: Wishes,
    table: Mapping[str, Any],
    gpus: Mapping[str, Any],
    problems: Problems,
) -> Decision:
    """What to do on one host.

    Args:
        facts: the host's row of a facts document.
        look: what the module nvidia_driver read: packages, runfile, receipt, key_enrolled.
        wishes: the role's inputs.
        table: `nvidia` of catalog/nvidia.yml.
        gpus: `gpus` of catalog/gpus.yml.
        problems: the table of problems.
    """
    found = find(look)
    cards = Gpus(gpus).accelerators(facts).cards
    here = [gpu for gpu in facts.get("gpus", []) if gpu["vendor"].lower() == "nvidia"]
    if not here and not wishes.bake:
        return Decision("none", found)
    ours = found.origin == "dsprov"
    if found.origin and not ours and wishes.existing == "keep":
        return Decision("keep", found, problems=tuple(_kept(found, wishes, problems)))
    rules = _Rules(facts, cards, wishes, table, gpus, problems)
    decision = rules.choose(found)
    if not ours and found.origin == "runfile" and decision.ok:
        # Its own uninstaller is the only one that knows what it wrote.
        trouble = problems.make("driver-runfile", found=found.version)
        return Decision("keep", found, problems=(trouble,))
    if decision.ok and decision.action == "install":
        insecure = rules.secure_boot(decision, look)
        if insecure:
            return replace(decision, problems=(*decision.problems, insecure))
    return decision


def _kept(found: Found, wishes: Wishes, problems: Problems) -> Iterable[Problem]:
    have = branch(found.version)
    if found.half:
        yield problems.make("driver-half-installed", packages=", ".join(found.half))
    elif wishes.floor and have is not None and have < wishes.floor:
        yield problems.make("driver-too-old", found=found.version, needs="the engine", floor=wishes.floor)


class _Rules:
    """The rules of catalog/nvidia.yml for one host."""

    def __init__(
        self,
        facts: Mapping[str, Any],
        cards: Sequence[Card],
        wishes: Wishes,
        table: Mapping[str, Any],
        gpus: Mapping[str, Any],
        problems: Problems,
    ) -> None:
        self.facts, self.cards, self.wishes = facts, cards, wishes
        self.table, self.gpus, self.problems = table, gpus, problems
        rows = [gpus[card.row] for card in cards if card.row]
        # A card that the catalogue does not know may be anything; it wants no special modules.
        self.floor = max([wishes.floor, *(row.get("driver_floor", 0) for row in rows)])
        self.ceiling = min([row["driver_last"] for row in rows if "driver_last" in row], default=10**6)
        self.open_modules = {row["open_modules"] for row in rows if "open_modules" in row}
        self.nvlink5 = any(card.row in table["nvlink5"] for card in cards)
        several = len(cards) > 1
        auto = bool(facts.get("nvswitch")) or (self.nvlink5 and several)
        self.fabric = auto if wishes.fabric == "auto" else wishes.fabric == "true"

    def choose(self, found: Found) -> Decision:
        """The first row that can do it, or why none can."""
        wishes, problems, os = self.wishes, self.problems, self.facts["os"]
        trouble = self._impossible()
        if trouble:
            return Decision("install", found, problems=(trouble,))
        rows = {
            name: row
            for name, row in self.table["rows"].items()
            if row["os"] == os["id"] and os["version_id"] in row["versions"]
        }
        usable: list[tuple[str, tuple[int, ...]]] = []
        for name, row in rows.items():
            if wishes.source in ("auto", row["source"]):
                branches = self._branches(row)
                if branches and self._has_fabric(row):
                    usable.append((name, branches))
        # The branch that is wished or the default comes first, then the order of the file.
        wanted = wishes.branch or self.table["branch"]
        usable.sort(key=lambda one: one[1][0] != wanted)
        if not usable:
            known = ", ".join(
                f"{row['source']} ({'/'.join(map(str, row['branches']))}"
                f"{'' if self._has_fabric(row) else ', no fabric manager'})"
                for row in rows.values()
            )
            trouble = problems.make(
                "driver-source",
                source=wishes.source,
                os=os["id"],
                version=os["version_id"],
                wanted=self._wanted(),
                known=known or "-",
            )
            return Decision("install", found, problems=(trouble,))
        name, branches = usable[0]
        row = rows[name]
        flavour = self._flavour(branches[0])
        signed = bool(self.facts.get("secure_boot")) and not wishes.bake and "signed" in row
        return Decision(
            "install",
            found,
            name,
            row["source"],
            branches,
            flavour,
            signed,
            self.fabric,
            self.fabric and self.nvlink5,
            found.packages if found.origin not in ("", "dsprov") else (),
        )

    def _impossible(self) -> Problem | None:
        """What no source can mend."""
        wishes, problems = self.wishes, self.problems
        if {"required", "unsupported"} <= self.open_modules:
            return problems.make(
                "driver-mixed", gpus=", ".join(dict.fromkeys(card.name for card in self.cards))
            )
        for kind, flavour in (("required", OPEN), ("unsupported", PROPRIETARY)):
            if kind in self.open_modules and wishes.flavour not in ("auto", flavour):
                gpu = next(
                    c.name for c in self.cards if c.row and self.gpus[c.row].get("open_modules") == kind
                )
                return problems.make("driver-flavour", gpu=gpu, flavour=flavour, wished=wishes.flavour)
        wanted = branch(wishes.version) or wishes.branch
        if wanted and not self.floor <= wanted <= self.ceiling:
            if wanted > self.ceiling:
                gpu = next(c.name for c in self.cards if c.row and "driver_last" in self.gpus[c.row])
                return problems.make("driver-too-new", found=wanted, gpu=gpu, last=self.ceiling)
            return problems.make("driver-too-old", found=wanted, needs="this host", floor=self.floor)
        return None

    def _branches(self, row: Mapping[str, Any]) -> tuple[int, ...]:
        """Branches of a row that will do, best first: the default one, then the others in the row's order."""
        able = [one for one in row["branches"] if self.floor <= one <= self.ceiling]
        if "required" in self.open_modules or self.wishes.flavour == OPEN:
            able = [one for one in able if one >= self.table["open_modules"]["from"]]
        wanted = branch(self.wishes.version) or self.wishes.branch
        if wanted:
            return (wanted,) if wanted in able else ()
        default = self.table["branch"]
        return tuple(sorted(able, key=lambda one: one != default))

    def _has_fabric(self, row: Mapping[str, Any]) -> bool:
        return not self.fabric or ("fabric" in row and (not self.nvlink5 or "nvlink5" in row))

    def _flavour(self, chosen: int) -> str:
        """Open modules where they are production quality for every card of the host."""
        if self.wishes.flavour != "auto":
            return self.wishes.flavour
        if "unsupported" in self.open_modules:
            return PROPRIETARY
        if "required" in self.open_modules:
            return OPEN
        rule = self.table["open_modules"]
        titles = [self.gpus[card.row]["names"][0] if card.row else card.name for card in self.cards]
        graphics = any(mark in title for title in titles for mark in rule["graphics_names"])
        # A baked image may meet any card, so it gets what the youngest cards demand.
        return (
            OPEN if chosen >= rule["graphics_from" if graphics or not self.cards else "from"] else PROPRIETARY
        )

    def _wanted(self) -> str:
        one = self.wishes.version or self.wishes.branch
        words = str(one) if one else f">= {self.floor}" if self.floor else str(self.table["branch"])
        return words + (" with fabric manager" if self.fabric else "")

    def secure_boot(self, decision: Decision, look: Mapping[str, Any]) -> Problem | None:
        """Modules that are built here carry the host's own key, which the firmware must know first."""
        if (
            not self.facts.get("secure_boot")
            or self.wishes.bake
            or decision.signed
            or look.get("key_enrolled")
        ):
            return None
        return self.problems.make("secure-boot")


# -- once apt knows the repository ------------------------------------------------------------------


@dataclass(frozen=True)
class Resolution:
    """One version of everything.

    Attributes:
        version: upstream's, such as "580.95.05".
        install: names for apt, the kernel's headers among them.
        held: names that belong to the version and are held.
        modules: packages that may carry sources for DKMS.
        preferences: text for apt's preferences.d.
        kernels: releases of the kernels to build for; the installed headers' in a baked image.
    """

    version: str = ""
    branch: int = 0
    install: tuple[str, ...] = ()
    held: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    preferences: str = ""
    problems: tuple[Problem, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For a task's result, in which templates add lists to lists."""
        made: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return made


def names(decision: Decision, row: Mapping[str, Any], chosen: int, kernel: str) -> dict[str, list[str]]:
    """Package names of a decision by what they are for: modules, exact, loose, headers.

    Args:
        kernel: as `kernel_to_build_for` says.
    """

    def fill(texts: Iterable[str]) -> list[str]:
        return [text.replace("BRANCH", str(chosen)).replace("KERNEL", kernel) for text in texts]

    modules = fill(row["signed" if decision.signed else "modules"][decision.flavour])
    exact, loose = fill(row["exact"]), fill(row["loose"])
    if decision.signed:
        # Built for one kernel, and of its version, so it follows the kernel and not the driver.
        loose += fill([row["signed_modules"][decision.flavour]])
    if decision.fabric:
        exact += fill(row["fabric"])
    if decision.nvlink5:
        exact += fill(row["nvlink5"])
        loose += fill(row["nvlink5_loose"])
    return {
        "modules": modules,
        "exact": exact,
        "loose": loose if decision.signed else ["dkms", *loose],
        "headers": [] if decision.signed else fill([row["headers" if kernel else "headers_latest"]]),
    }


def kernel_to_build_for(look: Mapping[str, Any], wishes: Wishes) -> str:
    """Release of the running kernel; for an image of the newest that it can boot.

    Empty for an image without a kernel: the newest that the distribution has will be it.
    """
    if not wishes.bake:
        return str(look["kernel"])
    images = [row["release"] for row in look["kernels"] if row["image"]]
    return max(images, key=release_order, default="")


def asked(decision: Decision, table: Mapping[str, Any], kernel: str) -> list[str]:
    """All names whose versions `resolve` must know."""
    row = table["rows"][decision.row]
    wanted: list[str] = [row["headers_latest"]]
    for chosen in decision.branches:
        for group in names(decision, row, chosen, kernel).values():
            wanted += group
    return list(dict.fromkeys(wanted))


def lacking(driver: Mapping[str, Any], table: Mapping[str, Any], packages: Sequence[str]) -> str:
    """A package that a driver lacks among those of a bundle; empty where one of its branches is whole.

    Args:
        driver: a row that a role noted: decision, wishes, kernel.
        packages: what the bundle was asked to hold.
    """
    decision = Decision.of(driver["decision"])
    row = table["rows"][decision.row]
    first = ""
    for chosen in decision.branches:
        groups = names(decision, row, chosen, str(driver["kernel"]))
        missing = [
            one for group in ("modules", "exact", "headers") for one in groups[group] if one not in packages
        ]
        if not missing:
            return ""
        first = first or missing[0]
    return first


def resolve(
    decision: Decision,
    available: Mapping[str, Sequence[str]],
    kernel: str,
    headers: bool,
    wishes: Wishes,
    table: Mapping[str, Any],
    problems: Problems,
) -> Resolution:
    """The newest version that every package of the driver has.

    Packages of one driver may differ for a while (a security update of the libraries without one of the open
    modules, as in Debian 12), and a driver whose halves differ does not answer.

    Args:
        available: versions by package as apt lists them, newest first.
        kernel: as `kernel_to_build_for` says.
        headers: whether its headers are on the host.
    """
    row = table["rows"][decision.row]
    for chosen in decision.branches:
        groups = names(decision, row, chosen, kernel)
        one_version = groups["modules"] + groups["exact"]
        version = _common([available.get(name, ()) for name in one_version], chosen, wishes.version)
        if version:
            break
    else:
        missing = [
            name
            for chosen in decision.branches
            for group in ("modules", "exact")
            for name in names(decision, row, chosen, kernel)[group]
            if not any(branch(upstream(text)) == chosen for text in available.get(name, ()))
        ]
        trouble = problems.make(
            "driver-version",
            source=decision.source,
            wanted=wishes.version or "/".join(map(str, decision.branches)),
            missing=", ".join(dict.fromkeys(missing)) or "-",
            known=", ".join(sorted({upstream(v) for n in one_version for v in available.get(n, ())})) or "-",
        )
        return Resolution(problems=(trouble,))
    found: list[Problem] = []
    wanted_headers = groups["headers"]
    against = _version_of(kernel, [text for name in wanted_headers for text in available.get(name, ())])
    for pair in table["unbuildable"]:
        if (
            pair["row"] == decision.row
            and pair["driver"] == version
            and decision.flavour in pair["flavours"]
            and not decision.signed
            and not wishes.try_unbuildable
            and is_from(against, pair["kernels"])
        ):
            trouble = problems.make("driver-kernel", driver=version, kernel=against, detail=pair["detail"])
            found.append(trouble)
    if headers:
        wanted_headers = []
    elif kernel and wanted_headers and not available.get(wanted_headers[0]):
        found.append(problems.make("kernel-headers", kernel=kernel, package=wanted_headers[0]))
    loose = groups["loose"]
    lacking = [name for name in loose if not available.get(name)]
    if lacking:
        found.append(
            problems.make(
                "driver-version",
                source=decision.source,
                wanted=version,
                missing=", ".join(lacking),
                known=version,
            )
        )
    return Resolution(
        version,
        chosen,
        tuple(dict.fromkeys([*wanted_headers, *loose, *groups["modules"], *groups["exact"]])),
        tuple(dict.fromkeys(one_version)),
        tuple(groups["modules"]),
        preferences(row, version, chosen),
        tuple(found),
    )


def headers_asked(
    decision: Decision, look: Mapping[str, Any], kernel: str, row: Mapping[str, Any]
) -> list[str]:
    """What `missing_headers` asks for, before a repository of ours is listed; nothing where nothing is built.

    The distribution has headers in its first component, which every host knows.
    """
    there = any(one["headers"] for one in look["kernels"] if one["release"] == kernel)
    if decision.signed or there or not kernel:
        return []
    return [row["headers"].replace("KERNEL", kernel), row["headers_latest"]]


def missing_headers(
    kernel: str, names: Sequence[str], available: Mapping[str, Sequence[str]], problems: Problems
) -> list[Problem]:
    """The headers that no repository has; an apt that knows of no kernel at all cannot tell."""
    wanted, latest = names
    if available[wanted] or not available[latest]:
        return []
    return [problems.make("kernel-headers", kernel=kernel, package=wanted)]


def settled(
    decision: Decision, look: Mapping[str, Any], wishes: Wishes, table: Mapping[str, Any]
) -> Resolution:
    """What an earlier run installed, where that still answers the wishes; empty where it does not.

    A driver is not exchanged because the catalogue learnt of a better one: only a wish does that.
    """
    receipt = look.get("receipt") or {}
    there = {
        row["name"]
        for row in look["packages"]
        if row["status"] == "installed" and upstream(row["version"]) == receipt.get("version")
    }
    row = table["rows"].get(receipt.get("row", ""))
    if row is None or receipt.get("state") != "installed" or not set(receipt["held"]) <= there:
        return Resolution()
    chosen = receipt["branch"]
    # Whatever no wish asks for may stay as it is.
    fits = (
        chosen in decision.branches
        and wishes.source in ("auto", row["source"])
        and wishes.flavour in ("auto", receipt["flavour"])
        and wishes.version in ("", receipt["version"])
        and (receipt["fabric"] or not decision.fabric)
        and (receipt["nvlink5"] or not decision.nvlink5)
        and (receipt["signed"] or not decision.signed)
    )
    if not fits:
        return Resolution()
    version = receipt["version"]
    return Resolution(version, chosen, (), tuple(receipt["held"]), (), preferences(row, version, chosen))


def lists(
    row: Mapping[str, Any], os: Mapping[str, Any], targets: Sequence[Mapping[str, str]]
) -> dict[str, Any]:
    """What apt must be told of beside what it knows.

    Returns:
        `distribution`: text of a .sources file with the distribution's missing components, at the places
        that the host uses itself, or nothing; `repository`: path, key and fingerprint of NVIDIA's, or nothing
        where the host has it listed already.
    """
    codename = os.get("codename") or ""
    places: dict[tuple[str, str], dict[str, str]] = {}
    known: dict[tuple[str, str], set[str]] = {}
    for target in targets:
        if codename and target["release"].startswith(codename):
            key = (target["uri"], target["release"])
            known.setdefault(key, set()).add(target["component"])
            if target["component"] == "main":
                places[key] = dict(target)
    text = ""
    for (uri, release), target in places.items():
        missing = [one for one in row.get("components", []) if one not in known[uri, release]]
        if missing:
            text += f"Types: deb\nURIs: {uri}\nSuites: {release}\nComponents: {' '.join(missing)}\n"
            text += f"Signed-By: {target['signed_by']}\n\n" if target["signed_by"] else "\n"
    repository: dict[str, str] = {}
    if "repository" in row:
        path = row["repository"]["path"].replace("VERSION", os["version_id"].replace(".", ""))
        if not any(f"/{path}/" in f"{target['uri']}/" for target in targets):
            repository = {**row["repository"], "path": path}
    return {
        "distribution": f"# Made by dsprov.\n{text}".rstrip() + "\n" if text else "",
        "repository": repository,
    }


def signed_by(text: str, uri: str, release: str) -> str:
    """The key that a file of sources names for one place, in either of apt's formats; apt 2.6 does not tell.

    apt refuses one place with two different keys, so whoever adds components must name the same.
    """
    place = uri.rstrip("/")
    for line in text.splitlines():
        words = re.match(r"deb\s+\[([^\]]*)\]\s+(\S+)\s+(\S+)", line)
        if words and words[2].rstrip("/") == place and words[3] == release:
            found = re.search(r"signed-by=(\S+)", words[1])
            if found:
                return found[1]
    for stanza in re.split(r"\n\s*\n", text):
        # A line that begins with a blank goes on with the one before: a key may stand in the file itself.
        fields = {
            key.lower(): value.rstrip()
            for key, value in re.findall(r"(?m)^([A-Za-z-]+):[ \t]*((?:.*\n?)(?:[ \t]+.*\n?)*)", stanza)
        }
        places = [one.rstrip("/") for one in fields.get("uris", "").split()]
        if place in places and release in fields.get("suites", "").split():
            return str(fields.get("signed-by", ""))
    return ""


def preferences(row: Mapping[str, Any], version: str, chosen: int) -> str:
    """apt's preferences that keep every part of the driver at one version, whatever else is offered."""
    pins = " ".join(text.replace("BRANCH", str(chosen)) for text in row["pins"])
    text = "# Made by dsprov: the driver's parts stay at one version.\n"
    text += f"Package: {pins}\nPin: version {version}*\nPin-Priority: 1001\n"
    if row["source"] == "nvidia":
        if row.get("prefer"):
            text += f"\nPackage: {' '.join(row['prefer'])}\nPin: release l=NVIDIA CUDA\nPin-Priority: 600\n"
        text += "\n# All else comes from the distribution where it has it.\n"
        text += "Package: *\nPin: release l=NVIDIA CUDA\nPin-Priority: 100\n"
    return text


def upstream(version: str) -> str:
    """A driver's own version out of a package's: 580.95.05 of "1:580.95.05-0ubuntu1"."""
    return version.rpartition(":")[2].partition("-")[0]


def _common(lists: Sequence[Sequence[str]], chosen: int, wished: str) -> str:
    """The newest upstream version of a branch that all have, or nothing."""
    sets = [{upstream(text) for text in versions} for versions in lists]
    both = set.intersection(*sets) if sets else set()
    fit = [one for one in both if branch(one) == chosen and wished in ("", one)]
    return max(fit, key=numbers, default="")


def numbers(version: str) -> tuple[int, ...]:
    """The numbers at a version's beginning, to compare: (6, 12, 117) of "6.12.117+deb13-amd64"."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def release_order(release: str) -> tuple[int, ...]:
    """All numbers of a kernel's release, to compare: 6.1.0-50-amd64 is older than 6.1.0-56-amd64."""
    return tuple(map(int, re.findall(r"\d+", release)))


def is_from(kernel: str, firsts: Sequence[str]) -> bool:
    """Whether a kernel has what came with `firsts`: one for each long-term series, and all later ones."""
    found = numbers(kernel)
    series = {numbers(first)[:2]: numbers(first) for first in firsts}
    return found >= series[found[:2]] if found[:2] in series else found[:2] > max(series)


def _version_of(kernel: str, headers: Sequence[str]) -> str:
    """A kernel's version: that of its headers, for Debian 12 calls both 6.1.176 and 6.1.192 "6.1.0-N"."""
    return max(map(upstream, headers), key=numbers, default=kernel)


def first_error(log: str) -> str:
    """The first error in DKMS's log of a build, without the build's own folders; empty without one."""
    for line in log.splitlines():
        if re.search(r"\b(fatal )?error\b\s*:|^make\S*: \*\*\*|: not found$|No rule to make", line):
            return re.sub(r"\S*/build/(?=\S+:\d)", "", line).strip()[:300]
    return ""
