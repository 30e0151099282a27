"""Debian packages with all they depend on, chosen by this machine's own apt for another system, and signed.

apt works in a folder of its own here: other lists, an empty status, the archive's keyring. Nothing of this
machine's packages is looked at or changed, and no right of root's is needed.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import itertools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ansible_collections.dsprov.appliance.plugins.module_utils import apt_keys, nvidia_driver
from ansible_collections.dsprov.appliance.plugins.module_utils.files import FileError
from ansible_collections.dsprov.appliance.plugins.module_utils.problems import ProblemError
from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import catalogue, problems
from dsprov.bundle.gather import Wanted, safe_name
from dsprov.paths import state_dir

TOOLS = {"apt-get": "apt", "apt-config": "apt", "gpg": "gpg"}
ARCHITECTURES = {"x86_64": "amd64"}
# Fields of a package's paragraph that say where it lay, or are digests nobody should trust any more.
_DROPPED = ("Filename", "MD5sum", "SHA1", "Description-md5")
# A Release file has to have a date; the same one each time, so that the same packages give the same bytes.
_DATE = "Wed, 01 Jan 2025 00:00:00 UTC"
_SIGNED_AT = "20250101T000000"


@dataclass(frozen=True)
class Repository:
    """An apt repository to choose from: `key` is the file that its signature is checked with."""

    url: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    key: str


@dataclass(frozen=True)
class Driver:
    """An NVIDIA driver as the repositories have it.

    Attributes:
        names: its packages and what they are built with, as a manifest has them.
        wanted: the same for apt, with the version where all parts must have one and the same.
    """

    names: tuple[str, ...]
    wanted: tuple[str, ...]


@dataclass(frozen=True)
class Package:
    """A chosen package: its file, and its paragraph of the archive's list."""

    wanted: Wanted
    paragraph: str


def need_tools() -> None:
    """Says what is missing on this machine.

    Raises:
        ProblemError: bundle-tools.
    """
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        packages = " ".join(sorted({TOOLS[tool] for tool in missing}))
        raise problems().error("bundle-tools", tools=", ".join(missing), packages=packages)


class Apt:
    """apt for one system, in a folder of its own.

    Args:
        folder: kept between runs, so that lists are fetched once.
        system: such as debian-12.
        arch: the machine's, such as x86_64.
    """

    def __init__(self, folder: Path, system: str, arch: str, repositories: Sequence[Repository]) -> None:
        self.folder = folder.absolute()
        self.system = system
        for name in ("state/lists/partial", "cache/archives/partial", "etc/sources.d", "etc/parts"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "status").write_text("", encoding="utf-8")
        for old in (self.folder / "etc" / "sources.d").iterdir():
            old.unlink()
        for index, one in enumerate(repositories):
            text = (
                f"Types: deb\nURIs: {one.url}\nSuites: {' '.join(one.suites)}\n"
                + (f"Components: {' '.join(one.components)}\n" if one.components else "")
                + f"Signed-By: {one.key}\n"
            )
            (self.folder / "etc" / "sources.d" / f"{index}.sources").write_text(text, encoding="utf-8")
        self._config = self.folder / "apt.conf"
        self._config.write_text(self._settings(ARCHITECTURES[arch]), encoding="utf-8")

    def _settings(self, architecture: str) -> str:
        here = self.folder
        return (
            f'Dir "{here}/";\n'
            f'Dir::State "{here}/state/";\nDir::State::status "{here}/status";\n'
            f'Dir::Cache "{here}/cache/";\nDir::Etc "{here}/etc/";\n'
            f'Dir::Etc::SourceList "/dev/null";\nDir::Etc::SourceParts "{here}/etc/sources.d/";\n'
            f'Dir::Etc::Parts "{here}/etc/parts/";\nDir::Log "{here}/";\n'
            f'APT::Architecture "{architecture}";\nAPT::Architectures {{ "{architecture}"; }};\n'
            'APT::Install-Recommends "false";\nAPT::Install-Suggests "false";\n'
            'Acquire::Languages "none";\nAcquire::Retries "3";\nAPT::Sandbox::User "";\n'
            'Acquire::ForceHash "SHA256";\n' + "".join(_proxies())
        )

    def _run(self, *words: str) -> str:
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "APT_CONFIG": str(self._config), "LC_ALL": "C.UTF-8"},
        )
        if done.returncode:
            said = [
                line for line in (done.stdout + done.stderr).splitlines() if line.startswith(("E:", "W:"))
            ]
            told = [line.strip() for line in done.stdout.splitlines() if "Depends:" in line]
            detail = " ".join((said + told)[:4]) or "it says nothing"
            raise problems().error("bundle-packages", system=self.system, detail=detail)
        return done.stdout

    def _update(self) -> None:
        """Fetch the lists."""
        # Errors of single lists are only warnings to apt, and would give packages of an old list.
        self._run("apt-get", "-q", "update", "-o", "APT::Update::Error-Mode=any")

    def driver(self, row: Mapping[str, Any]) -> Driver:
        """The NVIDIA driver that a role noted, in the newest version that all its parts have.

        `choose` keeps to it.

        Raises:
            ProblemError: driver-version, driver-kernel, kernel-headers; bundle-packages as in `choose`.
        """
        self._update()
        table, decision = catalogue()["nvidia"], nvidia_driver.Decision.of(row["decision"])
        wishes, kernel = nvidia_driver.Wishes(**row["wishes"]), str(row["kernel"])
        names = nvidia_driver.asked(decision, table, kernel)
        said = self._run("apt-cache", "madison", *names)
        versions: dict[str, list[str]] = {name: [] for name in names}
        for name, version, where in (line.split(" | ") for line in said.splitlines()):
            if where.endswith(" Packages"):
                versions[name.strip()].append(version.strip())
        made = nvidia_driver.resolve(decision, versions, kernel, False, wishes, table, problems())
        if made.problems:
            first = made.problems[0]
            raise ProblemError(first, problems().exit_code(first["code"]))
        (self.folder / "etc" / "preferences.d").mkdir(exist_ok=True)
        (self.folder / "etc" / "preferences.d" / "driver").write_text(made.preferences, encoding="utf-8")
        full = {
            name: next(one for one in versions[name] if nvidia_driver.upstream(one) == made.version)
            for name in made.held
        }
        wanted = tuple(f"{name}={full[name]}" if name in full else name for name in made.install)
        return Driver(made.install, wanted)

    def choose(self, names: Sequence[str]) -> list[Package]:
        """These packages and all that they depend on, as on a machine that has none yet.

        Raises:
            ProblemError: bundle-packages; the archive cannot be read or trusted, or a package is not there.
        """
        self._update()
        said = self._run("apt-get", "-q", "-y", "--print-uris", "install", *sorted(set(names)))
        found = re.findall(r"^'([^']+)' (\S+) (\d+) SHA256:([0-9a-f]{64})$", said, re.MULTILINE)
        paragraphs = self._paragraphs({sha256 for _url, _name, _size, sha256 in found})
        return [
            Package(
                Wanted(
                    # As the archive calls the file: without the epoch, whose colon no file system likes.
                    path=f"apt/{self.system}/pool/{safe_name(unquote(url).rpartition('/')[2])}",
                    name=name,
                    sha256=sha256,
                    bytes=int(size),
                    sources=(url,),
                ),
                paragraphs[sha256],
            )
            for url, name, size, sha256 in found
        ]

    def _paragraphs(self, digests: set[str]) -> dict[str, str]:
        """The lists' paragraphs of packages, by the digest of the package."""
        found: dict[str, str] = {}
        for file in sorted((self.folder / "state" / "lists").glob("*_Packages")):
            # A release's list is 50 MB: as one text with its paragraphs it would be 500 MB of memory.
            with file.open(encoding="utf-8") as lines:
                for blank, group in itertools.groupby(lines, lambda line: line == "\n"):
                    paragraph = "" if blank else "".join(group).strip("\n")
                    match = re.search(r"^SHA256: ([0-9a-f]{64})$", paragraph, re.MULTILINE)
                    if match and match[1] in digests:
                        found.setdefault(match[1], paragraph)
        return found


def _proxies() -> Iterator[str]:
    """The proxies that this machine's own apt uses."""
    done = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if re.match(r"Acquire::https?::Proxy(-Auto-Detect)?(::[^ ]+)? ", line):
            yield f"{line}\n"


def third_party(rows: Iterable[Mapping[str, Any]], folder: Path) -> list[Repository]:
    """Repositories that roles noted, each with its key fetched and known by its fingerprints.

    Raises:
        ProblemError: bundle-source.
    """
    found: list[Repository] = []
    for row in rows:
        key = row["key"]
        prints = ["".join(one.split()).upper() for one in key["fingerprints"]]
        file = folder / f"{'-'.join(prints)}.gpg"
        try:
            apt_keys.ensure(str(file), key["sources"], set(prints), check=False)
        except FileError as error:
            raise problems().error("bundle-source", name=key["name"], detail=error) from error
        found.append(Repository(row["url"], (row["suite"],), tuple(row["components"]), str(file)))
    return found


def index_files(packages: Sequence[Package], system: str, arch: str, key: Key) -> dict[str, bytes]:
    """The repository's own files, by path below the bundle: list and signed release."""
    paragraphs = sorted(_paragraph(one) for one in packages)
    listed = ("\n\n".join(paragraphs) + "\n").encode()
    contents = {"Packages": listed, "Packages.gz": gzip.compress(listed, 9, mtime=0)}
    digests = "".join(
        f" {hashlib.sha256(data).hexdigest()} {len(data)} {name}\n" for name, data in contents.items()
    )
    release = (
        f"Origin: dsprov\nLabel: dsprov bundle\nSuite: {system}\nCodename: {system}\nDate: {_DATE}\n"
        f"Architectures: {ARCHITECTURES[arch]}\nSHA256:\n{digests}"
    ).encode()
    contents |= {"Release": release, "InRelease": key.sign(release)}
    return {f"apt/{system}/{name}": data for name, data in contents.items()}


def _paragraph(package: Package) -> str:
    """A package's paragraph as our list has it."""
    kept: list[str] = []
    dropping = False
    for line in package.paragraph.splitlines():
        if not line.startswith((" ", "\t")):
            dropping = line.partition(":")[0] in _DROPPED
        if not dropping:
            kept.append(line)
    return "\n".join([*kept, f"Filename: ./pool/{package.wanted.path.rpartition('/')[2]}"])


@dataclass(frozen=True)
class Key:
    """This user's key for the repositories of bundles; made once, kept with the user's state."""

    secret: str
    public: str
    fingerprint: str

    @classmethod
    def own(cls) -> Key:
        """The user's key; made now where there is none yet."""
        file = state_dir() / "bundle-key.asc"
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _home() as home:
            if file.exists():
                _gpg(home, "--import", stdin=file.read_bytes())
            else:
                _gpg(
                    home, "--quick-generate-key", "dsprov bundles of this machine", "ed25519", "sign", "never"
                )
                made = _gpg(home, "--armor", "--export-secret-keys")
                part = file.with_suffix(".part")
                with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as handle:
                    handle.write(made)
                part.replace(file)
            listed = _gpg(home, "--with-colons", "--list-secret-keys").decode()
            found = re.search(r"^fpr:(?::*)([0-9A-F]{40,64}):", listed, re.MULTILINE)
            if not found:
                raise problems().error("system-error", file=file, detail="holds no secret key")
            public = _gpg(home, "--armor", "--export").decode()
            return cls(file.read_text(encoding="ascii"), public, found[1])

    def sign(self, text: bytes) -> bytes:
        """A text with its signature around it; the same text gives the same bytes."""
        with _home() as home:
            _gpg(home, "--import", stdin=self.secret.encode())
            return _gpg(home, "--digest-algo", "SHA512", "--clearsign", stdin=text)


@contextlib.contextmanager
def _home() -> Iterator[str]:
    """A folder for gpg alone: its agent's sockets have to have short paths, and it ends with the block."""
    with tempfile.TemporaryDirectory(prefix="dsprov-", dir="/tmp") as home:
        try:
            yield home
        finally:
            subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], capture_output=True, check=False)


def _gpg(home: str, *words: str, stdin: bytes = b"") -> bytes:
    # The key is as old as its signatures, so that nothing changes from run to run.
    command = ["gpg", "--homedir", home, "--batch", "--no-tty", "--quiet", "--pinentry-mode", "loopback"]
    command += ["--passphrase", "", "--faked-system-time", f"{_SIGNED_AT}!", "--no-emit-version"]
    done = subprocess.run([*command, *words], input=stdin, capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise problems().error("system-error", file="gpg", detail=said[-1] if said else "it says nothing")
    return done.stdout
