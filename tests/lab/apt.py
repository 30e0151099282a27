"""Debian packages and signed repositories of the lab's own, for those of others that cannot be had here."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path

from .artifacts import common
from .artifacts.common import Log

OWNER = "dsprov lab"


@dataclass(frozen=True)
class Package:
    """One package: its files by path, each as bytes or a file's path.

    `more` goes into its control file, `scripts` are dpkg's, such as `postinst`.
    """

    name: str
    version: str
    files: Mapping[str, bytes | Path] = field(default_factory=dict)
    more: Mapping[str, str] = field(default_factory=dict)
    scripts: Mapping[str, str] = field(default_factory=dict)

    @property
    def control(self) -> str:
        """The package's control file."""
        fields = {
            "Package": self.name,
            "Version": self.version,
            "Architecture": "amd64",
            "Maintainer": OWNER,
            **self.more,
            "Description": f"{self.name}, as the lab has it",
        }
        return "".join(f"{key}: {value}\n" for key, value in fields.items())


def build(package: Package, folder: Path) -> Path:
    """The .deb of a package, in FOLDER."""
    root = folder / f".{package.name}"
    shutil.rmtree(root, ignore_errors=True)
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(package.control, encoding="utf-8")
    for name, text in package.scripts.items():
        (root / "DEBIAN" / name).write_text(text, encoding="utf-8")
        (root / "DEBIAN" / name).chmod(0o755)
    for path, content in package.files.items():
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            shutil.copyfile(content, target)
        else:
            target.write_bytes(content)
        target.chmod(0o755 if "bin/" in path or path.startswith("/DEBIAN/") else 0o644)
    deb = folder / f"{package.name}_{package.version.rpartition(':')[2]}_amd64.deb"
    common.run(["dpkg-deb", "--root-owner-group", "-Zgzip", "--build", root, deb])
    shutil.rmtree(root)
    return deb


@dataclass(frozen=True)
class Key:
    """A key that signs repositories of the lab."""

    home: Path
    fingerprint: str
    public: bytes


def key(cache: Path, log: Log, owner: str = OWNER) -> Key:
    """A key of the lab, its own or a stranger's, made once; nobody outside the lab trusts it."""
    common.need_tools({"gpg": "gnupg", "dpkg-deb": "dpkg"}, log)
    home = cache / ("gnupg" if owner == OWNER else f"gnupg-{owner.replace(' ', '-')}")
    with common.locked(cache, "gnupg", log):
        if not (home / "made").exists():
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir(mode=0o700, parents=True)
            words = ["--passphrase", "", "--quick-generate-key", owner, "ed25519", "sign", "never"]
            _gpg(home, *words)
            (home / "made").touch()
    rows = _gpg(home, "--with-colons", "--list-keys", owner).splitlines()
    fingerprint = next(row.split(":")[9] for row in rows if row.startswith("fpr:"))
    public = _gpg(home, "--armor", "--export", fingerprint).encode()
    return Key(home, fingerprint, public)


def _gpg(home: Path, *words: str) -> str:
    try:
        return common.run(["gpg", "--homedir", home, "--batch", "--quiet", *words])
    finally:
        common.run(["gpgconf", "--homedir", home, "--kill", "all"])


def index(debs: Mapping[Path, Package], root: Path) -> bytes:
    """The text of Packages for files that lie below ROOT."""
    text = ""
    for deb, package in debs.items():
        data = deb.read_bytes()
        text += package.control
        text += f"Filename: {os.path.relpath(deb, root)}\nSize: {len(data)}\n"
        text += f"SHA256: {hashlib.sha256(data).hexdigest()}\n\n"
    return text.encode()


def publish(
    root: Path,
    components: Mapping[str, Sequence[Package]],
    key: Key,
    *,
    suite: str,
    label: str,
    valid_until: str = "",
) -> None:
    """Write a repository at ROOT: flat where SUITE is empty, else dists/SUITE with these components.

    Args:
        valid_until: a date after which apt shall not take it; empty for ever.
    """
    shutil.rmtree(root, ignore_errors=True)
    lists: dict[str, bytes] = {}
    for name, packages in components.items():
        pool = root / "pool" / name if suite else root
        pool.mkdir(parents=True, exist_ok=True)
        debs = {build(package, pool): package for package in packages}
        data = index(debs, root)
        lists[f"{name}/binary-amd64/Packages" if suite else "Packages"] = data
        lists[f"{name}/binary-amd64/Packages.gz" if suite else "Packages.gz"] = gzip.compress(data, mtime=0)
    base = root / "dists" / suite if suite else root
    for path, data in lists.items():
        (base / path).parent.mkdir(parents=True, exist_ok=True)
        (base / path).write_bytes(data)
    head = {"Origin": label, "Label": label, "Date": formatdate(usegmt=True), "Architectures": "amd64"}
    if valid_until:
        head["Valid-Until"] = valid_until
    if suite:
        head |= {"Suite": suite, "Codename": suite, "Components": " ".join(components)}
    text = "".join(f"{name}: {value}\n" for name, value in head.items()) + "SHA256:\n"
    text += "".join(
        f" {hashlib.sha256(data).hexdigest()} {len(data)} {path}\n" for path, data in lists.items()
    )
    release = base / "Release"
    release.write_text(text, encoding="utf-8")
    _gpg(key.home, "--yes", "--clearsign", "--output", str(base / "InRelease"), str(release))
