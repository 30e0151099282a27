"""Docker's own apt repository, as the lab has it: Docker's layout and names, Debian's programs, our key.

Beside the good one stand those that a mirror may turn into: signed by somebody else, out of date, changed
after it was signed, without a package.
"""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import time
from dataclasses import dataclass, replace
from email.utils import formatdate
from pathlib import Path

from . import apt
from .apt import Key, Package
from .artifacts import base, common
from .artifacts.common import Artifact, Log, key_of
from .engine import NETWORK, ROLE, LabError
from .mirror import Mirror

SUITE, RELEASE = "bookworm", "debian-12"
VERSION = "5:20.10.24-1~debian.12~bookworm"
# Which of Debian's packages make up which of Docker's.
PARTS = {"docker-ce": "docker.io", "docker-ce-cli": "docker.io", "containerd.io": "containerd runc"}
CLIENT = "/usr/bin/docker"
DEPENDS = {
    "docker-ce": "docker-ce-cli, containerd.io, iptables, adduser, libc6, libdevmapper1.02.1, libsystemd0",
    "docker-ce-cli": "libc6",
    "containerd.io": "libc6, libseccomp2",
}
# The engine starts with the package, as Docker's does.
POSTINST = b"""#!/bin/sh
set -e
getent group docker >/dev/null || groupadd --system docker
systemctl daemon-reload
systemctl enable --quiet --now docker.service
"""
_FETCH = """
set -e
exec 3>&1 >&2
cd /tmp
apt-get -q update
apt-get -q download docker.io containerd runc
mkdir root
for deb in *.deb; do mkdir "root/${deb%%_*}"; dpkg -x "$deb" "root/${deb%%_*}"; done
tar -C root -c . >&3
"""


def _programs(cache: Path, mirror: Mirror, log: Log) -> Artifact:
    """Debian's Docker, unpacked: a folder for each package."""
    host = str(base.build_image(RELEASE, cache, log).extra["image"])
    recipe = {"name": "docker-programs", "image": host, "script": _FETCH}

    def make(out: Path) -> Artifact:
        archive = out / "root.tar"
        command = ["docker", "run", "--rm", "--network", NETWORK, "--label", f"{ROLE}=build"]
        command += ["-e", f"http_proxy={mirror.apt_proxy}", host, "sh", "-c", _FETCH]
        with archive.open("wb") as stream:
            done = subprocess.run(command, stdout=stream, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise LabError(f"Docker's programs: {(done.stderr.strip() or 'no output').splitlines()[-1]}")
        with tarfile.open(archive) as packed:
            packed.extractall(out, filter="data")
        archive.unlink()
        return Artifact(out, "", 0, VERSION)

    return common.cached(cache, "docker-programs", recipe, make, log)


def _packages(programs: Path) -> list[Package]:
    made = []
    for name, parts in PARTS.items():
        files: dict[str, bytes | Path] = {}
        for part in parts.split():
            root = programs / part
            for file in sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink()):
                path = f"/{file.relative_to(root)}"
                if "/share/" not in path and (path == CLIENT) == (name == "docker-ce-cli"):
                    files[path] = file
        if name == "docker-ce":
            files["/DEBIAN/postinst"] = POSTINST
        if name == "containerd.io":
            files = {path: file for path, file in files.items() if path != CLIENT}
        made.append(Package(name, VERSION, files, {"Depends": DEPENDS[name]}))
    return made


@dataclass(frozen=True)
class Repositories:
    """Where they lie below the mirror's files, and whose signature the good one has."""

    place: str
    fingerprint: str

    def at(self, kind: str) -> str:
        """One of them, without the distribution's name, as Docker's own address is given."""
        return f"{self.place}/{kind}"


def serve(cache: Path, mirror: Mirror, log: Log) -> Repositories:
    """See that the mirror holds all of them."""
    key, stranger = apt.key(cache, log), apt.key(cache, log, "a stranger")
    programs = _programs(cache, mirror, log)
    recipe = {"programs": programs.path.name, "keys": [key.fingerprint, stranger.fingerprint]}
    recipe["made by"] = [Path(module).read_text(encoding="utf-8") for module in (__file__, apt.__file__)]
    place = f"docker-apt/{key_of(recipe)}"
    root = cache / "www" / place
    with common.locked(cache, "docker-repositories", log):
        if not (root / "whole").exists():
            shutil.rmtree(root, ignore_errors=True)
            root.mkdir(parents=True)
            with common.step(log, "making Docker's repositories"):
                _publish(root, _packages(programs.path), key, stranger)
            (root / "whole").touch()
    return Repositories(place, key.fingerprint)


def _publish(root: Path, packages: list[Package], key: Key, stranger: Key) -> None:
    def one(kind: str, found: list[Package], signer: Key, shown: Key = key, valid_until: str = "") -> Path:
        place = root / kind / "debian"
        apt.publish(place, {"stable": found}, signer, suite=SUITE, label="Docker CE", valid_until=valid_until)
        (place / "gpg").write_bytes(shown.public)
        return place

    empty = [replace(package, files={}) for package in packages]
    one("good", packages, key)
    one("signed-by-a-stranger", empty, stranger)
    one("key-of-a-stranger", empty, stranger, shown=stranger)
    one("expired", empty, key, valid_until=formatdate(time.time() - 86400, usegmt=True))
    one("incomplete", empty[:-1], key)
    changed = one("changed", empty, key) / "dists" / SUITE
    for name in ("Packages", "Packages.gz"):
        (changed / "stable" / "binary-amd64" / name).write_bytes(b"")
    forged = one("forged", empty, key) / "dists" / SUITE / "InRelease"
    forged.write_bytes(forged.read_bytes().replace(b"Label: Docker CE", b"Label: Docker EE"))
