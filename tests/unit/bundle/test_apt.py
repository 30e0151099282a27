"""The bundle's apt repository: the same bytes each time; real apt trusts it, and nothing that was changed."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from ansible_collections.dsprov.appliance.plugins.module_utils.problems import ProblemError
from dsprov.bundle import apt
from dsprov.bundle.gather import Wanted

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, (*apt.TOOLS, "dpkg-deb"))), reason="needs apt, gpg and dpkg-deb"
)
CONTROL = """Package: {name}
Version: 1:1.0
Architecture: amd64
Maintainer: T <t@example.org>
Description: t
 t
{more}"""


def run(*words: str | Path) -> str:
    return subprocess.run([str(word) for word in words], check=True, capture_output=True, text=True).stdout


def deb(folder: Path, name: str, more: str = "") -> Path:
    """A real package."""
    tree = folder / f"tree-{name}"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(CONTROL.format(name=name, more=more), encoding="utf-8")
    file = folder / f"{name}_1.0_amd64.deb"
    run("dpkg-deb", "--root-owner-group", "-b", tree, file)
    shutil.rmtree(tree)
    return file


def packages(folder: Path) -> list[apt.Package]:
    found = []
    for name, more in (("one", "Depends: two\n"), ("two", ""), ("three", "")):
        file = deb(folder, name, more)
        data = file.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        paragraph = run("dpkg-deb", "-f", file) + f"Filename: pool/main/x.deb\nSize: {len(data)}\n"
        paragraph += f"MD5sum: {'0' * 32}\nSHA256: {digest}"
        path = f"apt/debian-12/pool/{file.name}"
        found.append(apt.Package(Wanted(path, file.name, digest, len(data), ()), paragraph))
    return found


@pytest.fixture
def repository(tmp_path: Path) -> tuple[Path, apt.Key]:
    """A signed repository in the shape that a bundle has it."""
    pool = tmp_path / "bundle/apt/debian-12/pool"
    pool.mkdir(parents=True)
    key = apt.Key.own()
    for path, data in apt.index_files(packages(pool), "debian-12", "x86_64", key).items():
        (tmp_path / "bundle" / path).write_bytes(data)
    return pool.parent, key


def own_apt(tmp_path: Path, repository: Path, key: apt.Key) -> apt.Apt:
    (tmp_path / "key.asc").write_text(key.public, encoding="ascii")
    source = apt.Repository(f"file:{repository}", ("./",), (), str(tmp_path / "key.asc"))
    return apt.Apt(tmp_path / "root", "debian-12", "x86_64", [source])


def test_apt_trusts_it_and_finds_what_is_needed(repository: tuple[Path, apt.Key], tmp_path: Path) -> None:
    folder, key = repository
    chosen = own_apt(tmp_path, folder, key).choose(["one"])
    assert sorted(package.wanted.path for package in chosen) == [
        "apt/debian-12/pool/one_1.0_amd64.deb",
        "apt/debian-12/pool/two_1.0_amd64.deb",
    ]


@pytest.mark.parametrize("name", ["InRelease", "Packages"])
def test_apt_refuses_what_was_changed(repository: tuple[Path, apt.Key], tmp_path: Path, name: str) -> None:
    folder, key = repository
    (folder / "Packages.gz").unlink()
    (folder / "Release").unlink()
    file = folder / name
    file.write_bytes(file.read_bytes().replace(b"SHA256", b"SHA265", 1))
    with pytest.raises(ProblemError) as caught:
        own_apt(tmp_path, folder, key).choose(["one"])
    assert caught.value.problem["code"] == "bundle-packages"


def test_apt_refuses_another_key(
    repository: tuple[Path, apt.Key], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
    other = apt.Key.own()
    assert other.fingerprint != repository[1].fingerprint
    with pytest.raises(ProblemError):
        own_apt(tmp_path, repository[0], other).choose(["one"])


def test_a_package_that_is_not_there(repository: tuple[Path, apt.Key], tmp_path: Path) -> None:
    with pytest.raises(ProblemError) as caught:
        own_apt(tmp_path, *repository).choose(["four"])
    assert "four" in caught.value.problem["message"]["en"]


def test_the_same_packages_give_the_same_bytes(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    chosen = packages(pool)
    key = apt.Key.own()
    again = apt.Key.own()
    assert again == key
    first = apt.index_files(chosen, "debian-12", "x86_64", key)
    assert first == apt.index_files(list(reversed(chosen)), "debian-12", "x86_64", again)
    assert b"MD5sum" not in first["apt/debian-12/Packages"]
    assert b"Filename: ./pool/one_1.0_amd64.deb" in first["apt/debian-12/Packages"]


def test_the_secret_key_is_its_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    apt.Key.own()
    (file,) = (tmp_path / "state").rglob("bundle-key.asc")
    assert file.stat().st_mode & 0o077 == 0


def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ProblemError) as caught:
        apt.need_tools()
    assert "apt-get" in caught.value.problem["message"]["en"]
