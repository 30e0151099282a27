"""What somebody breaks by hand, the next run mends, and that run changes nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import testinfra

PROJECT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
INVENTORY = PROJECT / ".lab" / os.environ["LAB_PROJECT"] / "hosts.ini"
TIER = PROJECT / "inventories" / "tiers" / "demo.yml"

DROP_ROTATION = """
import json
path = "/etc/docker/daemon.json"
options = json.load(open(path))
del options["log-opts"]
json.dump(options, open(path, "w"))
"""


@dataclass(frozen=True)
class Break:
    """Damage by hand: the command, the roles whose tasks may then change something, a look at the mend."""

    name: str
    command: str
    roles: frozenset[str]
    mended: str


# One run of the playbook mends a group; the parts of a group do not touch each other.
GROUPS = [
    [
        Break(
            "drop-in deleted",
            "rm /etc/systemd/system/ollama.service.d/dsprov.conf; "
            "systemctl daemon-reload; systemctl restart ollama",
            frozenset({"ollama"}),
            "systemctl show ollama --property Environment | grep -q OLLAMA_KV_CACHE_TYPE=q8_0",
        ),
        Break(
            "container stopped",
            "docker stop dsprov-open-webui",
            frozenset({"open_webui"}),
            "test \"$(docker inspect --format '{{.State.Running}}' dsprov-open-webui)\" = true",
        ),
    ],
    [
        Break(
            "unit stopped",
            "systemctl stop ollama",
            frozenset({"ollama"}),
            "systemctl is-active --quiet ollama",
        ),
        Break(
            "daemon.json edited",
            f"python3 -c '{DROP_ROTATION}'",
            frozenset({"docker"}),
            'python3 -c \'import json; json.load(open("/etc/docker/daemon.json"))["log-opts"]\'',
        ),
    ],
    [
        Break(
            "model removed",
            "/opt/dsprov/ollama/current/bin/ollama rm smollm2:135m",
            # Ollama's was the only copy: the weights come anew.
            frozenset({"model_store", "ollama"}),
            "/opt/dsprov/ollama/current/bin/ollama show smollm2:135m",
        ),
    ],
]


def appliances() -> list[Any]:
    """Both hosts, by the inventory that the run uses."""
    hosts: list[Any] = testinfra.get_hosts(["ansible://all"], ansible_inventory=str(INVENTORY))
    return hosts


def converge() -> Iterator[tuple[str, str, str]]:
    """Run the playbook; (role, task, host) of every change it made."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "ansible",
            "playbook",
            "dsprov.appliance.install",
            "-i",
            str(TIER),
            "-i",
            str(INVENTORY),
        ],
        cwd=PROJECT,
        env={**os.environ, "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json"},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    start = done.stdout.find("{")
    assert start >= 0, done.stdout + done.stderr
    report = json.loads(done.stdout[start:])
    failed = [
        f"{name}: {task['task']['name']}: {result.get('msg')}"
        for play in report["plays"]
        for task in play["tasks"]
        for name, result in task["hosts"].items()
        if result.get("failed") or result.get("unreachable")
    ]
    assert done.returncode == 0, failed or done.stderr
    for play in report["plays"]:
        for task in play["tasks"]:
            role, _, words = task["task"]["name"].partition(" : ")
            for name, result in task["hosts"].items():
                if result.get("changed"):
                    yield role.rpartition(".")[2], words, name


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: " and ".join(one.name for one in group))
def test_damage_is_mended_and_nothing_else_changes(group: list[Break]) -> None:
    hosts = appliances()
    assert len(hosts) == 2
    for host in hosts:
        with host.sudo():
            for one in group:
                done = host.run(one.command)
                assert done.rc == 0, f"{one.name}: {done.stderr}"
                assert host.run(one.mended).rc != 0, f"{one.name}: not broken, so nothing would be proved"
    changes = sorted(converge())
    wanted = frozenset().union(*(one.roles for one in group))
    assert {role for role, _, _ in changes} == wanted, changes
    assert len({name for _, _, name in changes}) == 2, changes
    for host in hosts:
        with host.sudo():
            for one in group:
                done = host.run(one.mended)
                assert done.rc == 0, f"{one.name}: {done.stdout} {done.stderr}"


def test_after_all_repairs_nothing_is_left_to_do() -> None:
    assert sorted(converge()) == []
