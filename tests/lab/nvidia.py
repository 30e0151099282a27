"""NVIDIA's apt repositories, and Ubuntu's with its driver, as the lab has them.

The container toolkit's programs are real. The driver's packages are empty but for their units: what they
prove is which names, versions, keys and pins a host ends with. Names: catalog/nvidia.yml.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml

from . import apt
from .apt import Key, Package
from .artifacts import container_toolkit
from .artifacts.common import Log, key_of, locked

CATALOG = Path(__file__).resolve().parents[2] / "catalog" / "nvidia.yml"
# As after an update that has not reached all parts yet: the newest has no fabric manager.
WHOLE, PARTLY = "580.95.05", "580.126.20"
OTHERS = ("590.48.01",)
# By suite: version, kernel, its build, and the DKMS beside it.
UBUNTU = {
    "jammy": ("22.04", "5.15.0-130", "140", "2.8.7-2ubuntu2.2"),
    "noble": ("24.04", "6.8.0-60", "63", "3.0.11-1ubuntu13"),
}
_UNIT = b"[Unit]\nDescription=Lab: %s\n[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n"
_UNIT += b"[Install]\nWantedBy=multi-user.target\n"
UNITS = {
    "nvidia-persistenced": "nvidia-persistenced",
    "nvidia-compute-utils-580-server": "nvidia-persistenced",
    "nvidia-compute-utils-580": "nvidia-persistenced",
    "nvidia-fabricmanager": "nvidia-fabricmanager",
    "nvidia-fabricmanager-580": "nvidia-fabricmanager",
}


def table() -> dict[str, Any]:
    """The catalogue's row for NVIDIA's packages."""
    data: dict[str, Any] = yaml.safe_load(CATALOG.read_text(encoding="utf-8"))["nvidia"]
    return data


def _packages(row: dict[str, Any], branch: int, versions: dict[str, str], suffix: str) -> list[Package]:
    """Every package that a row names, in these versions; `partly` leaves out what fabric needs."""
    fabric = {*row.get("fabric", []), *row.get("nvlink5", [])}
    groups = [*row["modules"].values(), *row.get("signed", {}).values(), row["exact"], row.get("fabric", [])]
    groups += [row.get("nvlink5", [])]
    made = []
    for name in dict.fromkeys(text for group in groups for text in group):
        full = name.replace("BRANCH", str(branch))
        for version, kind in versions.items():
            if kind == "partly" and name in fabric:
                continue
            made.append(package(full, version + suffix))
    return made


def package(name: str, version: str) -> Package:
    """An empty package, with its unit where the real one has one."""
    unit = UNITS.get(name)
    if not unit:
        return Package(name, version)
    text = _UNIT % unit.encode()
    return Package(name, version, {f"/lib/systemd/system/{unit}.service": text})


def drivers(www: Path, key: Key) -> None:
    """NVIDIA's repositories for the systems of the catalogue, in WWW/cuda; Ubuntu's own in WWW/ubuntu."""
    for row in table()["rows"].values():
        if row["source"] != "nvidia":
            continue
        versions = {WHOLE: "whole", PARTLY: "partly"}
        packages = _packages(row, 580, versions, "-1")
        if row["os"] == "debian":
            packages += _packages(row, 590, dict.fromkeys(OTHERS, "whole"), "-1")
        loose = dict.fromkeys([*row["loose"], *row.get("nvlink5_loose", []), *row.get("prefer", [])])
        known = {one.name for one in packages}
        # An empty DKMS would stand before the real one.
        packages += [package(name, "2025.10.1-1") for name in loose if name not in known | {"dkms"}]
        for version in row["versions"]:
            path = row["repository"]["path"].replace("VERSION", version.replace(".", ""))
            apt.publish(www / "cuda" / path, {"": packages}, key, suite="", label="NVIDIA CUDA")
            (www / "cuda" / path / row["repository"]["key"]).write_bytes(key.public)
    row = table()["rows"]["ubuntu-distribution"]
    for suite, (version, kernel, build, dkms) in UBUNTU.items():
        packages = _packages(row, 580, {WHOLE: "whole", PARTLY: "partly"}, f"-0ubuntu0.{version}.1")
        main = [
            package("linux-headers-generic", f"{kernel.replace('-', '.')}.{build}"),
            package(f"linux-headers-{kernel}-generic", f"{kernel}.{build}"),
            package("dkms", dkms),
        ]
        for name in row["signed_modules"].values():
            full = name.replace("BRANCH", "580").replace("KERNEL", f"{kernel}-generic")
            packages.append(package(full, f"{kernel}.{build}"))
        multiverse = [one for one in packages if "fabricmanager" in one.name or "nscq" in one.name]
        restricted = [one for one in packages if one not in multiverse]
        components = {"main": main, "restricted": restricted, "universe": [], "multiverse": multiverse}
        apt.publish(www / "ubuntu" / suite, components, key, suite=suite, label="Ubuntu")


def containers(cache: Path, www: Path, key: Key, log: Log) -> None:
    """The repository of the container toolkit."""
    made = container_toolkit.build(cache, log)
    row = table()["container_toolkit"]
    packages = []
    for version in made.extra["versions"]:
        root = made.path / version / "root"
        files = {f"/{file.relative_to(root)}": file for file in root.rglob("*") if file.is_file()}
        script = (made.path / version / "postinst").read_text(encoding="utf-8")
        packages.append(Package(row["package"], f"{version}-1", dict(files), scripts={"postinst": script}))
    apt.publish(www / row["path"], {"": packages}, key, suite="", label="nvidia-container-toolkit")
    (www / row["key"]).write_bytes(key.public)


def serve(cache: Path, what: str, log: Log) -> tuple[str, Key]:
    """See that the mirror holds `drivers` or `containers`; where below it, and the key that signs them.

    The place is named by what is in it: caches on the way, and other hosts, keep what they know.
    """
    key = apt.key(cache, log)
    recipe = {
        "catalogue": table(),
        "key": key.fingerprint,
        "made by": Path(__file__).read_text(encoding="utf-8"),
    }
    place = f"nvidia-{what}/{key_of(recipe)}"
    root = cache / "www" / place
    with locked(cache, "nvidia-repositories", log):
        if not (root / "whole").exists():
            shutil.rmtree(root, ignore_errors=True)
            root.mkdir(parents=True)
            if what == "drivers":
                drivers(root, key)
            else:
                containers(cache, root, key, log)
            (root / "whole").touch()
    return place, key
