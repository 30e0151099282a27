"""What the probe reads of NVIDIA's driver: by ctypes and by the real pynvml, from the lab's imitation."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.dsprov.appliance.plugins.module_utils import nvml
from tests.lab import hardware
from tests.lab.artifacts.common import cache_root

BACKENDS = ("Library()", "importlib.import_module('pynvml')")
ASK = """
import dataclasses, importlib, json
from ansible_collections.dsprov.appliance.plugins.module_utils import nvml
from ansible_collections.dsprov.appliance.plugins.module_utils.nvml import Library
print(json.dumps(dataclasses.asdict({call})))
"""


@pytest.fixture(scope="module")
def library() -> Path:
    return hardware.library(cache_root(), print).path


def ask(library: Path, folder: Path, conf: str | None, call: str) -> dict[str, Any]:
    """What a reading comes to in a process that finds the imitated library, told this."""
    path = folder / "nvml.conf"
    if conf is not None:
        path.write_text(conf, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", ASK.format(call=call)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "LD_LIBRARY_PATH": str(library.parent),
            "DSPROV_LAB_NVML": str(path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    row: dict[str, Any] = json.loads(done.stdout)
    return row


def conf(machine: str, driver: str = hardware.DRIVER, loaded: str | None = None, more: str = "") -> str:
    return hardware.nvml_conf(hardware.parse(machine), driver, loaded) + more


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_card_is_read(library: Path, tmp_path: Path, backend: str) -> None:
    found = ask(library, tmp_path, conf("8 x H20"), f"nvml.read({backend})")
    assert found["driver_version"] == "580.95.05"
    assert found["library_version"] == "13.580.95.05"
    assert found["cuda_version"] == "13.0"
    assert found["error"] is None
    assert [one["address"][1] for one in found["devices"]] == list(range(0x10, 0x50, 8))
    for one in found["devices"]:
        assert one | {"address": None} == {
            "name": "NVIDIA H20",
            "address": None,
            "pci_id": "10de:2329",
            "memory_bytes": 97871 * 1024**2,
            "compute_capability": "9.0",
            "nvlinks": 18,
        }


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_card_without_links(library: Path, tmp_path: Path, backend: str) -> None:
    (card,) = ask(library, tmp_path, conf("1 x 4090"), f"nvml.read({backend})")["devices"]
    assert card["nvlinks"] is None
    assert card["memory_bytes"] == 24564 * 1024**2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("text", "error"),
    [
        (None, "Driver Not Loaded (9)"),
        (conf("8 x H20", "470.256.02"), "Driver Not Loaded (9)"),
        (conf("1 x 4090", "580.95.05", "570.86.15"), "Driver/library version mismatch (18)"),
    ],
)
def test_a_driver_that_does_not_answer(
    library: Path, tmp_path: Path, backend: str, text: str | None, error: str
) -> None:
    found = ask(library, tmp_path, text, f"nvml.read({backend})")
    assert found["error"] == error
    assert found["devices"] == []
    assert found["driver_version"] is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_a_driver_is_too_old_for_is_left_out(library: Path, tmp_path: Path, backend: str) -> None:
    more = "absent = nvmlDeviceGetCudaComputeCapability nvmlDeviceGetNvLinkState nvmlDeviceGetPciInfo_v3\n"
    found = ask(library, tmp_path, conf("1 x 4090", more=more), f"nvml.read({backend})")
    (card,) = found["devices"]
    assert (card["name"], card["compute_capability"], card["pci_id"]) == (
        "NVIDIA GeForce RTX 4090",
        None,
        None,
    )


def test_other_answers_of_the_imitation_reach_pynvml(library: Path, tmp_path: Path) -> None:
    """What serves metrics and health asks for more than the probe does."""
    script = """
import pynvml as p, json
p.nvmlInit()
h = p.nvmlDeviceGetHandleByIndex(1)
u = p.nvmlDeviceGetUtilizationRates(h)
again = p.nvmlDeviceGetHandleByUUID(p.nvmlDeviceGetUUID(h))
by_bus = p.nvmlDeviceGetHandleByPciBusId(p.nvmlDeviceGetPciInfo(h).busId)
print(json.dumps([u.gpu, u.memory, p.nvmlDeviceGetMemoryInfo(h, p.nvmlMemory_v2).used,
    p.nvmlDeviceGetMemoryInfo(h).free, p.nvmlDeviceGetEccMode(h), p.nvmlDeviceGetTemperature(h, 0),
    p.nvmlDeviceGetIndex(again), p.nvmlDeviceGetIndex(by_bus), p.nvmlDeviceGetPciInfo(h).busId]))
"""
    more = "utilization_gpu.1 = 87\nutilization_gpu = 1\nutilization_memory = 5\nmemory_used = 1024\n"
    (tmp_path / "conf").write_text(conf("2 x H20", more=more + "temperature = 44\n"), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={
            **os.environ,
            "LD_LIBRARY_PATH": str(library.parent),
            "DSPROV_LAB_NVML": str(tmp_path / "conf"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    total = 97871 * 1024**2
    assert json.loads(done.stdout) == [87, 5, 1024, total - 1024, [1, 1], 44, 1, 1, "00000000:18:00.0"]


def test_no_library_is_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "LIBRARY", "libnowhere.so.1")
    monkeypatch.setattr(nvml, "backend", nvml.Library)
    assert nvml.read_apart() == nvml.Reading()


def test_apart_is_the_same(library: Path, tmp_path: Path) -> None:
    text = conf("2 x A100-80")
    assert ask(library, tmp_path, text, "nvml.read_apart()") == ask(
        library, tmp_path, text, "nvml.read(Library())"
    )


def test_a_library_that_crashes_takes_nobody_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # A signal that pytest does not write pages about.
    monkeypatch.setattr(nvml, "backend", lambda: os.kill(os.getpid(), signal.SIGKILL))
    found = nvml.read_apart()
    assert found.devices == ()
    assert found.error is not None
    assert "ended the process" in found.error


def test_a_library_that_hangs_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "backend", lambda: os.read(os.pipe()[0], 1))
    found = nvml.read_apart(patience=0.2)
    assert found.devices == ()
    assert found.error is not None
    assert "no answer in 0.2 s" in found.error


def test_the_library_is_old_enough_for_every_host(library: Path) -> None:
    """It is built here and loaded there, where the C library may be older."""
    wanted = {word for word in library.read_bytes().split(b"\0") if word.startswith(b"GLIBC_")}
    assert wanted
    assert all(tuple(map(int, word[6:].split(b"."))) <= (2, 31) for word in wanted)
