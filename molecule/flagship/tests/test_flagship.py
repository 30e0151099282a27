"""A flagship appliance of two hosts: people go to the head, and a chat is answered by both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PROJECT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
INVENTORY = PROJECT / ".lab" / os.environ["LAB_PROJECT"] / "hosts.ini"


def is_head(host: Any) -> bool:
    return str(host.backend.get_hostname()) == "head"


def test_both_hosts_run_their_part(host: Any) -> None:
    for unit in ("dsprov-vllm.service", "dsprov-vllm-watch.service"):
        assert host.service(unit).is_running
        assert host.service(unit).is_enabled


def test_the_hosts_know_what_they_are(host: Any) -> None:
    with host.sudo():
        state = json.loads(host.file("/etc/dsprov/state.json").content_string)
    assert (state["tier"], state["engine"], state["model"]) == ("flagship", "vllm", "tiny-v3")


def test_people_go_to_the_head_alone(host: Any) -> None:
    if not is_head(host):
        assert not host.socket("tcp://127.0.0.1:8080").is_listening
        assert not host.socket("tcp://127.0.0.1:11436").is_listening
        return
    words = ["-m", "tests.lab.chat", "-i", str(INVENTORY), "--host", "head"]
    done = subprocess.run([sys.executable, *words], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
