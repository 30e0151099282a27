"""What a play hands to the planner: variables wherever people write them, and which hosts fell out."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from dsprov.invocation import ansible_environment, compose

PLAY = """\
- hosts: all
  gather_facts: false
  connection: local
  vars:
    dsprov_model: smollm2:135m
    dsprov_parallel: "{{ seats }}"
  tasks:
    - name: Check what people wrote
      dsprov.appliance.validate:
      register: dsprov_asked
    - name: Know the hosts
      ansible.builtin.set_fact:
        dsprov_probed:
          facts:
            os: {id: debian, version_id: "12", arch: x86_64, kernel: 6.1.0-1-amd64}
            cpu: {vendor: intel, model: CPU, sockets: 1, cores: 4, threads: 4, numa_nodes: 1, flags: [avx2]}
            memory_bytes: 16000000000
            installed_group: "{{ group | default([]) }}"
    - name: Lose a host
      ansible.builtin.fail:
      when: lost is defined
    - name: Plan them
      dsprov.appliance.plan:
      register: planned
      run_once: true
    - name: Write the plan
      ansible.builtin.copy:
        content: "{{ planned.plan | to_json }}"
        dest: "{{ written }}"
        mode: "0644"
      run_once: true
"""


def play(tmp_path: Path, hosts: dict[str, Any], *words: str) -> tuple[str, Path]:
    """Run the play on such hosts; what Ansible said, and where the plan is written."""
    text, inventory, written = (tmp_path / name for name in ("play.yml", "hosts.yml", "plan.json"))
    text.write_text(PLAY, encoding="utf-8")
    inventory.write_text(yaml.safe_dump({"all": {"hosts": hosts}}), encoding="utf-8")
    done = subprocess.run(
        ["ansible-playbook", text, "-i", inventory, "-e", f"written={written}", *words],
        env=ansible_environment(compose("plan", [inventory])),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr, written


def test_variables_of_a_play_reach_the_planner(tmp_path: Path) -> None:
    said, written = play(tmp_path, {"one": {"seats": 1}, "two": {"seats": 2, "dsprov_context_length": 2048}})
    assert written.exists(), said
    rows = {row["name"]: row for row in json.loads(written.read_text(encoding="utf-8"))["hosts"]}
    assert [rows[name]["context"]["parallel"] for name in ("one", "two")] == [1, 2]
    assert rows["two"]["context"]["length"] == 2048


@pytest.mark.parametrize(
    ("known", "words", "refused"),
    [
        ({}, ["-e", "dsprov_nodes=2", "-e", "dsprov_engine=vllm"], True),
        ({"group": ["one", "two"]}, [], True),
        ({"group": ["one", "two"]}, ["-e", "dsprov_nodes=1"], False),
        ({}, [], False),
    ],
)
def test_a_group_that_lost_a_host_is_left_alone(
    tmp_path: Path, known: dict[str, Any], words: list[str], refused: bool
) -> None:
    hosts = {"one": {"seats": 1, **known}, "two": {"seats": 1, **known, "lost": True}}
    said, written = play(tmp_path, hosts, *words)
    assert written.exists() is not refused, said
    assert ("group-host-lost" in said) is refused, said


def test_groups_that_are_whole_go_on(tmp_path: Path) -> None:
    hosts = {name: {"seats": 1, "group": list(group)} for group in ("ab", "cd") for name in group}
    hosts["d"]["lost"] = True
    said, written = play(tmp_path, hosts)
    assert written.exists(), said
    made = json.loads(written.read_text(encoding="utf-8"))
    assert {row["name"] for row in made["hosts"]} == {"a", "b"}
    (parted,) = [problem for problem in made["problems"] if problem["code"] == "group-host-lost"]
    assert parted["host"] == "c"
    assert "d fell out" in parted["message"]["en"]
