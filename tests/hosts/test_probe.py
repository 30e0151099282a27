"""The probe on real hosts with imitated cards: machines by states of the driver, and the real pynvml."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pynvml
import pytest

from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import check, facts_schema

from .conftest import LAB, PROJECT, Lab, dsprov

HOSTS = ("t12", "t13")
ABSENT = {"driver_version": None, "library_version": None, "cuda_version": None, "nvml_error": None}
H20 = {
    "vendor": "nvidia",
    "name": "NVIDIA H20",
    "pci_id": "10de:2329",
    "memory_bytes": 102625181696,
    "compute_capability": "9.0",
    "nvlinks": 18,
}
RTX_4090 = {
    "vendor": "nvidia",
    "name": "NVIDIA GeForce RTX 4090",
    "pci_id": "10de:2684",
    "memory_bytes": 25757220864,
    "compute_capability": "8.9",
}


def by_pci(device: str) -> dict[str, Any]:
    return {
        "vendor": "nvidia",
        "name": f"NVIDIA device 0x{device}",
        "pci_id": f"10de:{device}",
        "driver_version": None,
    }


def imitate(machine: str, *options: str) -> None:
    for host in HOSTS:
        subprocess.run(
            [sys.executable, "-m", "tests.lab", "hardware", "--project", LAB, host, machine, *options],
            cwd=PROJECT,
            check=True,
        )


@pytest.fixture(scope="module", autouse=True)
def _bare_again(lab: Lab) -> Iterator[None]:
    """The hosts' other tests want none of this."""
    yield
    for host in HOSTS:
        lab.sh(
            host,
            "systemctl disable --now lab-hardware.service; rm -rf /etc/dsprov-lab "
            "/etc/systemd/system/lab-hardware.service /usr/local/lib/libnvidia-ml.so.* /usr/bin/nvidia-smi; "
            "ldconfig",
        )


def probe(lab: Lab) -> dict[str, dict[str, Any]]:
    run = dsprov("probe", "-i", lab.inventory, "--json")
    assert run.code == 0
    check(run.document, facts_schema(), None, "probe")
    hosts: dict[str, dict[str, Any]] = run.document["hosts"]
    assert sorted(hosts) == list(HOSTS)
    return hosts


MACHINES = [
    pytest.param("none", ["--driver", "none"], [], False, ABSENT, id="none"),
    pytest.param("1 x 4090", ["--driver", "none"], [by_pci("2684")], False, ABSENT, id="4090-absent"),
    pytest.param(
        "1 x 4090",
        ["--driver", "525.60.13"],
        [RTX_4090 | {"driver_version": "525.60.13"}],
        False,
        {"driver_version": "525.60.13", "library_version": "12.525.60.13", "cuda_version": "12.0"},
        id="4090-old",
    ),
    pytest.param(
        "1 x 4090",
        [],
        [RTX_4090 | {"driver_version": "580.95.05"}],
        False,
        {"driver_version": "580.95.05", "cuda_version": "13.0", "nvml_error": None},
        id="4090-present",
    ),
    pytest.param(
        "1 x 4090",
        ["--driver", "580.95.05", "--loaded", "570.86.15"],
        [by_pci("2684")],
        False,
        {"library_version": "13.580.95.05", "nvml_error": "Driver/library version mismatch (18)"},
        id="4090-mismatch",
    ),
    pytest.param("8 x H20", ["--driver", "none"], 8 * [by_pci("2329")], True, ABSENT, id="h20-absent"),
    pytest.param(
        "8 x H20",
        ["--driver", "470.256.02"],
        8 * [by_pci("2329")],
        True,
        {"library_version": "11.470.256.02", "nvml_error": "Driver Not Loaded (9)"},
        id="h20-too-old",
    ),
    pytest.param(
        "8 x H20",
        [],
        8 * [H20 | {"driver_version": "580.95.05"}],
        True,
        {"driver_version": "580.95.05", "cuda_version": "13.0", "nvml_error": None},
        id="h20-present",
    ),
]


@pytest.mark.parametrize(("machine", "options", "gpus", "nvswitch", "driver"), MACHINES)
def test_machines(
    lab: Lab,
    machine: str,
    options: list[str],
    gpus: list[dict[str, Any]],
    nvswitch: bool,
    driver: dict[str, Any],
) -> None:
    imitate(machine, *options)
    before = lab.fingerprint("t12")
    for facts in probe(lab).values():
        assert facts["gpus"] == gpus
        assert facts["nvswitch"] is nvswitch
        assert facts["nvidia"] | driver == facts["nvidia"]
        (nic,) = [row for row in facts["nics"] if row["name"] == "eth0"]
        assert nic["address"].count(".") == 3
    assert lab.fingerprint("t12") == before


def test_the_real_pynvml_reads_the_same(lab: Lab) -> None:
    """One file on the host's path, as a package would put it there; the probe then asks through it."""
    imitate("8 x H20")
    by_ctypes = probe(lab)
    place = "$(python3 -c 'import sysconfig; print(sysconfig.get_paths()[\"purelib\"])')"
    # One answer is marked, so that nothing but the file can have given it.
    mark = "\n\ndef nvmlSystemGetNVMLVersion():\n    return 'by pynvml'\n"
    source = Path(pynvml.__file__).read_text(encoding="utf-8") + mark
    for host in HOSTS:
        subprocess.run(
            ["docker", "exec", "-i", f"dsprov-lab-{LAB}-{host}", "sh", "-c", f"cat > {place}/pynvml.py"],
            input=source,
            text=True,
            check=True,
        )
    try:
        for host, facts in probe(lab).items():
            assert facts["gpus"] == by_ctypes[host]["gpus"]
            assert facts["nvidia"] == by_ctypes[host]["nvidia"] | {"library_version": "by pynvml"}
            said = lab.sh(
                host, "python3 -c 'import pynvml as p; p.nvmlInit(); print(p.nvmlDeviceGetCount())'"
            )
            assert said == "8\n"
    finally:
        for host in HOSTS:
            lab.sh(host, f"rm -f {place}/pynvml.py")


def test_a_host_that_boots_again_has_its_cards(lab: Lab) -> None:
    """What a boot does: the mount is gone, and the unit that makes it is wanted by the boot."""
    imitate("1 x 4090")
    lab.sh("t13", "systemctl stop lab-hardware.service && systemctl is-enabled lab-hardware.service")
    assert [card["pci_id"] for card in probe(lab)["t13"]["gpus"]] == ["10de:2684"]  # by its driver alone
    lab.sh("t13", "systemctl start sysinit.target && systemctl start lab-hardware.service")
    assert lab.sh("t13", "cat /sys/bus/pci/devices/0000:10:00.0/device") == "0x2684\n"


@pytest.mark.parametrize(
    ("machine", "driver", "engine", "words"),
    [
        ("2 x V100-32", "580.95.05", "vllm", ["vLLM", "compute capability 7.5", "V100", "7.0"]),
        # The oldest CUDA that llama.cpp is built with is newer than this driver.
        ("2 x 4090", "550.163.01", "llama_cpp", ["NVIDIA driver 550.163.01", "llama.cpp", "570 or later"]),
    ],
)
def test_cards_and_drivers_that_an_engine_cannot_use_are_refused_by_name(
    lab: Lab, machine: str, driver: str, engine: str, words: list[str]
) -> None:
    imitate(machine, "--driver", driver)
    before = lab.fingerprint("t12")
    chosen = ("-e", f"dsprov_engine={engine}", "-e", "dsprov_model=deepseek-r1:7b")
    run = dsprov("install", "--tier", "basic", "-i", lab.inventory, "--limit", "t12", *chosen)
    assert run.code == 3
    assert any(all(word in error for word in words) for error in run.errors), run.err
    assert lab.fingerprint("t12") == before


def test_a_toolkit_that_is_newer_than_the_driver_is_refused_and_an_older_one_is_not(lab: Lab) -> None:
    imitate("1 x 4090", "--driver", "570.86.15")
    before = lab.fingerprint("t12")
    words = ("--tier", "demo", "-i", lab.inventory, "--limit", "t12", "-e", "dsprov_engine=llama_cpp")
    run = dsprov("install", *words, "-e", "cuda_toolkit_version=13.0")
    assert run.code == 3
    assert "cuda_toolkit_version 13.0 is newer than the driver: it wants NVIDIA driver 580" in run.errors[0]
    assert "this host has 570.86.15" in run.errors[0]
    assert lab.fingerprint("t12") == before
    planned = dsprov("plan", *words, "--json")
    assert planned.code == 0
    assert planned.document["hosts"][0]["build"]["cuda"] == "12.8"


def test_a_probe_is_quick(lab: Lab) -> None:
    """Under 2 s a host with all its cards, Ansible's own start included."""
    imitate("8 x H20")
    begun = time.monotonic()
    probe(lab)
    assert time.monotonic() - begun < 2 * len(HOSTS) + 2
