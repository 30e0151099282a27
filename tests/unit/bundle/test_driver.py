"""NVIDIA's driver in a bundle: real apt, repositories as NVIDIA and Debian have them, empty packages."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.dsprov.appliance.plugins.module_utils import nvidia_driver
from ansible_collections.dsprov.appliance.plugins.module_utils.problems import ProblemError
from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import catalogue, problems
from dsprov.bundle import apt
from tests.lab import apt as lab
from tests.lab.apt import Package

KERNEL = "6.1.0-50-amd64"
# The newest of the branch has no fabric manager yet; the newest branch is not the wished one.
WHOLE, PARTLY, NEWER = "580.95.05", "580.126.20", "590.48.01"
FACTS = {
    "os": {"id": "debian", "version_id": "12", "arch": "x86_64", "kernel": KERNEL},
    "gpus": [
        {"vendor": "nvidia", "name": "NVIDIA H20", "memory_bytes": 102625181696, "compute_capability": "9.0"}
        | {"driver_version": None}
    ]
    * 8,
    "nvswitch": True,
}

pytestmark = pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="needs dpkg-deb")


@pytest.fixture(scope="module")
def www(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, lab.Key]:
    """NVIDIA's repository, and Debian's with the headers and the rest."""
    folder = tmp_path_factory.mktemp("www")
    key = lab.key(tmp_path_factory.mktemp("cache"), lambda _line: None)
    row = catalogue()["nvidia"]["rows"]["debian-nvidia-12"]
    parts = [*row["modules"]["open"], *row["exact"]]
    packages = [Package(name, f"{version}-1") for name in parts for version in (WHOLE, PARTLY, NEWER)]
    packages += [Package(name, f"{version}-1") for name in row["fabric"] for version in (WHOLE, NEWER)]
    packages += [Package(name, "2026.1-1") for name in row["loose"]]
    packages += [Package("dkms", "1:3.2-1", more={"Depends": "make"})]
    lab.publish(folder / "nvidia", {"": packages}, key, suite="", label="NVIDIA CUDA")
    (folder / "nvidia" / "key.pub").write_bytes(key.public)
    debian = [Package(f"linux-headers-{KERNEL}", "6.1.170-1"), Package("linux-headers-amd64", "6.1.170-1")]
    debian += [Package("dkms", "3.0-1"), Package("make", "4.3-1")]
    lab.publish(folder / "debian", {"main": debian}, key, suite="bookworm", label="Debian")
    return folder, key


def noted(facts: dict[str, Any], **wishes: Any) -> dict[str, Any]:
    rows = catalogue()
    wished = nvidia_driver.Wishes(floor=580, **wishes)
    look = nvidia_driver.seen_by_probe(facts)
    decision = nvidia_driver.decide(facts, look, wished, rows["nvidia"], rows["gpus"], problems())
    assert decision.ok
    return {"decision": decision.as_dict(), "wishes": vars(wished), "kernel": facts["os"]["kernel"]}


def own_apt(folder: Path, www: tuple[Path, lab.Key], tmp_path: Path) -> apt.Apt:
    """As `bundle create` has it: NVIDIA's key by its fingerprint, from beside the repository."""
    root, key = www
    keyring = tmp_path / "debian.asc"
    keyring.write_bytes(key.public)
    source = (root / "nvidia" / "key.pub").as_uri()
    row = {
        "url": f"file:{root}/nvidia",
        "suite": "/",
        "components": [],
        "key": {"name": "NVIDIA's key", "fingerprints": [key.fingerprint], "sources": [source]},
    }
    debian = apt.Repository(f"file:{root}/debian", ("bookworm",), ("main",), str(keyring))
    return apt.Apt(folder, "debian-12", "x86_64", [debian, *apt.third_party([row], tmp_path)])


def test_all_parts_are_of_the_newest_version_that_all_have(www: tuple[Path, lab.Key], tmp_path: Path) -> None:
    row = noted(FACTS)
    assert row["decision"]["fabric"]
    chooser = own_apt(tmp_path / "apt", www, tmp_path)
    driver = chooser.driver(row)
    chosen = {one.wanted.path.rpartition("/")[2].rpartition("_")[0] for one in chooser.choose(driver.wanted)}
    for name in ("nvidia-kernel-open-dkms", "libcuda1", "nvidia-driver-cuda", "nvidia-fabricmanager"):
        assert f"{name}_{WHOLE}-1" in chosen
    assert f"linux-headers-{KERNEL}_6.1.170-1" in chosen
    # NVIDIA's own where its modules want it, and what that depends on.
    assert "dkms_3.2-1" in {one.replace("1%3a", "") for one in chosen}
    assert "make_4.3-1" in chosen
    assert not [one for one in chosen if PARTLY in one or NEWER in one]
    table = catalogue()["nvidia"]
    assert nvidia_driver.lacking(row, table, list(driver.names)) == ""
    assert nvidia_driver.lacking(row, table, [one for one in driver.names if one != "libcuda1"]) == "libcuda1"
    assert (
        nvidia_driver.lacking(
            noted({**FACTS, "os": FACTS["os"] | {"kernel": "6.1.0-51-amd64"}}), table, list(driver.names)
        )
        == "linux-headers-6.1.0-51-amd64"
    )


@pytest.mark.parametrize(
    ("kernel", "wishes", "code"),
    [
        ("6.1.0-1-amd64", {}, "kernel-headers"),
        (KERNEL, {"version": "580.1.1"}, "driver-version"),
        (KERNEL, {"version": PARTLY}, "driver-version"),
    ],
)
def test_what_cannot_be_had_is_said_while_the_bundle_is_made(
    www: tuple[Path, lab.Key], tmp_path: Path, kernel: str, wishes: dict[str, Any], code: str
) -> None:
    row = noted({**FACTS, "os": {**FACTS["os"], "kernel": kernel}}, **wishes)
    with pytest.raises(ProblemError) as caught:
        own_apt(tmp_path / "apt", www, tmp_path).driver(row)
    assert caught.value.problem["code"] == code
    assert caught.value.exit_code


def test_a_repository_of_somebody_else_s_key_is_not_taken(www: tuple[Path, lab.Key], tmp_path: Path) -> None:
    root, _key = www
    sources = [(root / "nvidia" / "key.pub").as_uri()]
    key = {"name": "NVIDIA's key", "fingerprints": ["0" * 40], "sources": sources}
    row = {"url": f"file:{root}/nvidia", "suite": "/", "components": [], "key": key}
    with pytest.raises(ProblemError) as caught:
        apt.third_party([row], tmp_path)
    assert caught.value.problem["code"] == "bundle-source"
    assert "holds the key" in str(caught.value)
