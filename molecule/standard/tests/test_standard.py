"""A standard appliance: its engine and its web page answer, and nothing but ssh listens beyond loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.lab.reach import open_ports

PROJECT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
INVENTORY = PROJECT / ".lab" / os.environ["LAB_PROJECT"] / "hosts.ini"


@pytest.mark.parametrize("unit", ["dsprov-vllm.service", "docker.service"])
def test_units_run_and_start_at_boot(host: Any, unit: str) -> None:
    assert host.service(unit).is_running
    assert host.service(unit).is_enabled


def test_a_chat_through_open_webui_and_through_the_engine(host: Any) -> None:
    name = host.check_output("hostname")
    words = ["-m", "tests.lab.chat", "-i", str(INVENTORY), "--host", name]
    done = subprocess.run([sys.executable, *words], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_host_knows_what_it_is(host: Any) -> None:
    with host.sudo():
        state = json.loads(host.file("/etc/dsprov/state.json").content_string)
    assert (state["tier"], state["engine"], state["model"]) == ("standard", "vllm", "tiny-llama")


def test_ssh_alone_can_be_reached(host: Any) -> None:
    assert open_ports(host) == {22}
    udp = [line.split()[3] for line in host.check_output("ss -Hlnu").splitlines()]
    assert [one for one in udp if not one.startswith(("127.", "[::1]:"))] == []
