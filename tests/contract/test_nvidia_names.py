"""Names of Ubuntu's driver packages in the catalogue are those that Ubuntu's own index has listed."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from ansible_collections.dsprov.appliance.plugins.module_utils import nvidia_driver
from ansible_collections.dsprov.appliance.plugins.module_utils.nvidia_driver import Decision
from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import catalogue
from tests.contract.test_roles import ROOT

RECORDED: dict[str, Any] = yaml.safe_load((ROOT / "tests/fixtures/ubuntu_nvidia.yml").read_text("utf-8"))
SUITES = {"22.04": "jammy", "24.04": "noble"}


def names(row: str, **more: Any) -> dict[str, list[str]]:
    """What the rules ask apt for on a host of that row."""
    rows = catalogue()["nvidia"]["rows"]
    decision = Decision("install", row=row, branches=(580,), **more)
    return nvidia_driver.names(decision, rows[row], 580, "KERNEL")


@pytest.mark.parametrize("flavour", ["open", "proprietary"])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("version", SUITES)
def test_ubuntu_s_own_packages(version: str, signed: bool, flavour: str) -> None:
    row = catalogue()["nvidia"]["rows"]["ubuntu-distribution"]
    assert version in row["versions"]
    groups = names("ubuntu-distribution", flavour=flavour, signed=signed, fabric=True)
    asked = [*groups["modules"], *groups["exact"], *(one for one in groups["loose"] if one != "dkms")]
    for name in asked:
        if name not in RECORDED["seen_elsewhere"]:
            seen = RECORDED["distribution"][name]
            assert SUITES[version] in seen["suites"], name
            assert seen["component"] in row["components"], name
            assert nvidia_driver.upstream(seen["version"]).startswith("580."), name


def test_what_is_only_seen_elsewhere_stays_the_exception() -> None:
    groups = names("ubuntu-distribution", flavour="open", fabric=True)
    asked = groups["modules"] + groups["exact"]
    assert sum(one in RECORDED["distribution"] for one in asked) >= len(asked) - 1


@pytest.mark.parametrize("row", ["ubuntu-nvidia", "debian-nvidia-12"])
def test_nvidia_s_repository_has_what_switches_need(row: str) -> None:
    table = catalogue()["nvidia"]["rows"][row]
    for name in [*table["fabric"], *table["nvlink5"]]:
        assert name in RECORDED["nvidia"], name
    # Names of earlier branches differ, so the row must not offer them.
    assert min(table["branches"]) >= 580
