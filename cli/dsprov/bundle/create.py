"""Makes a bundle: asks Ansible what the roles need, brings it all into a folder, writes the manifest last."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ansible_collections.dsprov.appliance.plugins.plugin_utils.bundle import (
    MANIFEST,
    PIECE_BYTES,
    SCHEMA,
    Row,
    manifest_bytes,
    write_manifest,
)
from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import (
    catalogue,
    problems,
    read_yaml,
    tier_variables,
)
from dsprov import runner
from dsprov.bundle import apt, images, wheels
from dsprov.bundle.gather import WORK, Gathering, Wanted, from_needs, safe_name
from dsprov.invocation import compose
from dsprov.paths import cache_dir
from dsprov.runner import Outcome
from dsprov.version import version

# What the folder of a bundle holds beside the manifest; anything else in it is not ours.
TREES = ("apt", "files", "images", "weights", "wheels")
# Stands for every host of the run in a facts document.
ANY = "any"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Order:
    """What is asked for on the command line.

    Attributes:
        systems: such as debian-12; empty where facts say it.
        facts: a facts file, or None.
        inventories: of the user's; with neither systems nor facts, their hosts are read.
    """

    tier: str
    systems: tuple[str, ...]
    facts: Path | None
    inventories: tuple[Path, ...]
    overrides: tuple[str, ...]
    channel: str | None
    output: Path


@dataclass
class Needs:
    """What the roles noted for all hosts, by system, and for which plans."""

    by_system: dict[str, dict[str, Any]] = field(default_factory=dict)
    made_for: list[dict[str, str]] = field(default_factory=list)
    places: dict[str, Any] = field(default_factory=dict)
    arch: str = ""


class NeedsError(Exception):
    """The roles could not say what they need; the outcome of their run says why."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__()
        self.outcome = outcome


def check_systems(names: Sequence[str]) -> None:
    """Raises ProblemError (bundle-target) for a system that is not supported."""
    known = [
        f"{name}-{version}"
        for name, row in catalogue()["systems"]["systems"].items()
        for version in row["versions"]
    ]
    for name in names:
        if name not in known:
            raise problems().error("bundle-target", detail=f"--os {name}: one of {', '.join(known)}")


def check_output(folder: Path) -> None:
    """Raises ProblemError (bundle-folder) for a folder that holds somebody else's files."""
    if folder.exists() and not folder.is_dir():
        raise problems().error("bundle-folder", folder=folder, detail="is no folder")
    others = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    if others and MANIFEST not in others and WORK not in others:
        detail = f"is not empty and holds no bundle ({others[0]})"
        raise problems().error("bundle-folder", folder=folder, detail=detail)


def imagined(system: str) -> dict[str, Any]:
    """Facts of a machine that any tier without GPUs fits on, of which nothing but the system is known."""
    name, _, release = system.partition("-")
    return {
        "os": {"id": name, "version_id": release, "arch": "x86_64", "kernel": ""},
        "cpu": {"vendor": "", "model": "", "sockets": 1, "cores": 64, "threads": 128, "numa_nodes": 1},
        "memory_bytes": 1 << 40,
    }


@contextlib.contextmanager
def _runs(order: Order) -> Iterator[list[tuple[list[Path], Path | None]]]:
    """The runs of the playbook that are to be made: inventories, and the facts to plan from."""
    inventories = list(order.inventories) or [Path(f"{ANY},")]
    if order.facts is not None:
        hosts = read_yaml(order.facts).get("hosts", {})
        yield [(list(order.inventories) or [Path(",".join([*hosts, ""]))], order.facts)]
    elif not order.systems:
        if not order.inventories:
            raise problems().error("bundle-target", detail="for which system is the bundle?")
        yield [(inventories, None)]
    else:
        if tier_variables(order.tier).get("dsprov_require_gpu"):
            detail = f"tier {order.tier} needs GPUs: what is needed depends on which"
            raise problems().error("bundle-target", detail=detail)
        folder = Path(cache_dir()) / "facts"
        folder.mkdir(parents=True, exist_ok=True)
        runs: list[tuple[list[Path], Path | None]] = []
        for system in order.systems:
            file = folder / f"{system}.json"
            file.write_text(json.dumps({"schema": 1, "hosts": {ANY: imagined(system)}}), encoding="utf-8")
            runs.append((inventories, file))
        yield runs


def ask_roles(order: Order, watch: runner.Watch) -> Needs:
    """What has to come from outside, by Ansible's own reading of all variables.

    Raises:
        NeedsError: a run of the playbook failed.
        ProblemError: bundle-target.
    """
    needs = Needs()
    with _runs(order) as runs:
        for inventories, facts in runs:
            overrides = [*order.overrides, *([f"dsprov_facts={facts.resolve()}"] if facts else [])]
            invocation = compose(
                "bundle", inventories, tier=order.tier, overrides=overrides, channel=order.channel
            )
            outcome = runner.run(invocation, watch)
            if outcome.exit_code:
                raise NeedsError(outcome)
            _take(needs, outcome)
    return needs


def _take(needs: Needs, outcome: Outcome) -> None:
    rows = {row["name"]: row for row in (outcome.plan or {}).get("hosts", [])}
    for name, host in sorted(outcome.hosts.items()):
        noted, facts, row = host.results["needs"], host.results["facts"], rows[name]
        system = f"{facts['os']['id']}-{facts['os']['version_id']}"
        needs.arch = facts["os"]["arch"]
        needs.places = row["sources"]
        made_for = {"engine": row["engine"], "model": row["model"], "variant": row["weights"]["variant"]}
        if made_for not in needs.made_for:
            needs.made_for.append(made_for)
        known = needs.by_system.setdefault(system, {"weights": []})
        weights = [{**file, "folder": _weights_folder(made_for)} for file in row["weights"]["artifacts"]]
        for kind, found in {**noted, "weights": weights}.items():
            own = known.setdefault(kind, [])
            own += [one for one in found if one not in own]
        digests = {file["sha256"] for file in weights}
        known["files"] = [file for file in known["files"] if file["sha256"] not in digests]


def _weights_folder(made_for: Mapping[str, str]) -> str:
    return f"weights/{safe_name(made_for['model'])}/{safe_name(made_for['variant'])}"


class Maker:
    """Makes the bundle of an order, once it is known what is needed.

    Args:
        say: a line for people.
    """

    def __init__(self, order: Order, needs: Needs, say: Say) -> None:
        self.order = order
        self.needs = needs
        self.say = say
        self.folder = order.output.absolute()
        self.small: dict[str, bytes] = {}
        # By system, the packages of its hosts' NVIDIA drivers.
        self.drivers: dict[str, list[str]] = {}
        self.fetched_bytes = 0

    def make(self) -> dict[str, Any]:
        """Brings everything; the manifest as it was written.

        Raises:
            ProblemError: anything of bundle-*, or system-error.
        """
        with self._own_folder():
            packages = self._choose_packages()
            wanted = [one.wanted for chosen in packages.values() for one in chosen]
            wanted += [*self._images(), *self._files(), *self._wheels()]
            gathering = Gathering(self.folder, wanted)
            rows = gathering.run()
            self.fetched_bytes = gathering.fetched_bytes
            key = apt.Key.own() if packages else None
            for system, chosen in packages.items():
                if key:
                    self.small |= apt.index_files(chosen, system, self.needs.arch, key)
            rows += [self._write_small(path, data) for path, data in self.small.items()]
            document = self._manifest(rows, key)
            self._finish(document)
        return document

    @contextlib.contextmanager
    def _own_folder(self) -> Iterator[None]:
        """The folder, ours alone while the block runs."""
        work = self.folder / WORK
        try:
            work.mkdir(parents=True, exist_ok=True)
            with (work / "lock").open("a+") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    detail = "another dsprov makes this bundle"
                    raise problems().error("system-error", file=self.folder, detail=detail) from error
                yield
        except PermissionError as error:
            name = error.filename or self.folder
            raise problems().error("system-error", file=name, detail=error.strerror) from error
        shutil.rmtree(work)

    def _choose_packages(self) -> dict[str, list[apt.Package]]:
        systems = {
            system: row
            for system, row in self.needs.by_system.items()
            if row["packages"] or row.get("drivers")
        }
        if not systems:
            return {}
        apt.need_tools()
        rows = catalogue()["systems"]["systems"]
        chosen: dict[str, list[apt.Package]] = {}
        for system, row in systems.items():
            name, _, release = system.partition("-")
            keyring = rows[name]["keyring"]
            if not Path(keyring).exists():
                raise problems().error("bundle-tools", tools=keyring, packages=rows[name]["keyring_package"])
            folder = cache_dir() / "apt" / system
            folder.mkdir(parents=True, exist_ok=True)
            repositories = [
                apt.Repository(
                    self.needs.places[suite["base"]],
                    tuple(one.format(codename=rows[name]["codenames"][release]) for one in suite["suites"]),
                    tuple(suite["components"]),
                    keyring,
                )
                for suite in rows[name]["suites"]
            ]
            all_of_them = [*repositories, *apt.third_party(row["repositories"], folder)]
            chosen[system] = apt.Apt(folder, system, self.needs.arch, all_of_them).choose(row["packages"])
            for driver in row.get("drivers", []):
                chosen[system] += self._choose_driver(system, driver, folder, repositories)
        return chosen

    def _choose_driver(
        self, system: str, row: Mapping[str, Any], folder: Path, repositories: Sequence[apt.Repository]
    ) -> list[apt.Package]:
        """A driver's packages, from lists of their own: its repository has others of common packages, too."""
        beside = folder / f"driver-{hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:8]}"
        beside.mkdir(exist_ok=True)
        wider = [
            replace(one, components=tuple(dict.fromkeys([*one.components, *row["components"]])))
            for one in repositories
        ]
        wider += apt.third_party(row["repositories"], beside)
        own = apt.Apt(beside, system, self.needs.arch, wider)
        driver = own.driver(row)
        self.drivers.setdefault(system, []).extend(driver.names)
        return own.choose(driver.wanted)

    def _each(self, kind: str) -> list[Any]:
        """What all systems need of a kind, once."""
        found: list[Any] = []
        for row in self.needs.by_system.values():
            found += [one for one in row.get(kind, []) if one not in found]
        return found

    def _images(self) -> list[Wanted]:
        found: list[Wanted] = []
        insecure = self.needs.places.get("insecure_registries", [])
        for row in self._each("images"):
            registry = images.Registry(row["image"], insecure)
            found += images.parts(registry, row["digest"], self.needs.arch, self._keep_manifest)
        return found

    def _keep_manifest(self, digest: str, raw: bytes) -> None:
        self.small[images.blob_path(digest)] = raw

    def _files(self) -> list[Wanted]:
        index = self.needs.places["pypi_index"]
        found = from_needs(self._each("files"), "files", index)
        for file in self._each("weights"):
            (one,) = from_needs([file], "weights", index)
            path = f"{file['folder']}/{safe_name(file['name'])}"
            found.append(Wanted(**{**vars(one), "path": path}))
        return found

    def _wheels(self) -> list[Wanted]:
        rows = catalogue()["systems"]["systems"]
        found: list[Wanted] = []
        for system, row in self.needs.by_system.items():
            name, _, release = system.partition("-")
            for one in row.get("wheels", []):
                python = one.get("python") or rows[name]["python"][release]
                text = Path(one["requirements"]).read_text(encoding="utf-8")
                found += wheels.wanted(text, python, self.needs.arch, one["index"])
        return found

    def _write_small(self, path: str, data: bytes) -> Row:
        """A file that we make ourselves."""
        file = self.folder / path
        if not file.exists() or file.read_bytes() != data:
            # From here on the old manifest would be wrong.
            (self.folder / MANIFEST).unlink(missing_ok=True)
            file.parent.mkdir(parents=True, exist_ok=True)
            part = self.folder / WORK / "small"
            part.write_bytes(data)
            part.replace(file)
        return Row(path, len(data), hashlib.sha256(data).hexdigest())

    def _manifest(self, rows: list[Row], key: apt.Key | None) -> dict[str, Any]:
        names = ("registry", "repository", "digest")
        return {
            "schema": SCHEMA,
            "dsprov": version(),
            "tier": self.order.tier,
            "arch": self.needs.arch,
            "systems": sorted(self.needs.by_system),
            "made_for": sorted(self.needs.made_for, key=str),
            "packages": {
                system: sorted({*row["packages"], *self.drivers.get(system, [])})
                for system, row in sorted(self.needs.by_system.items())
            },
            "images": sorted(({name: row[name] for name in names} for row in self._each("images")), key=str),
            "key": {"fingerprint": key.fingerprint, "public": key.public} if key else None,
            "piece_bytes": PIECE_BYTES,
            "files": [row.document() for row in sorted(rows, key=lambda row: row.path)],
        }

    def _finish(self, document: Mapping[str, Any]) -> None:
        """Takes away what an older bundle left in the folder, then writes the manifest."""
        kept = {row["path"] for row in document["files"]}
        raw = manifest_bytes(document)
        manifest = self.folder / MANIFEST
        if manifest.exists() and manifest.read_bytes() != raw:
            manifest.unlink()
        for tree in TREES:
            for file in sorted((self.folder / tree).rglob("*"), reverse=True):
                if file.is_dir():
                    with contextlib.suppress(OSError):  # It holds something still.
                        file.rmdir()
                elif file.relative_to(self.folder).as_posix() not in kept:
                    file.unlink()
        write_manifest(self.folder, raw)
