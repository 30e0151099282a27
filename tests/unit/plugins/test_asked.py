"""The planner reads variables wherever Ansible lets people write them, not those of inventories alone."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

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


def test_variables_of_a_play_reach_the_planner(tmp_path: Path) -> None:
    play, hosts, written = (tmp_path / name for name in ("play.yml", "hosts.yml", "plan.json"))
    play.write_text(PLAY, encoding="utf-8")
    known = {"one": {"seats": 1}, "two": {"seats": 2, "dsprov_context_length": 2048}}
    hosts.write_text(yaml.safe_dump({"all": {"hosts": known}}), encoding="utf-8")
    words = ["ansible-playbook", str(play), "-i", str(hosts), "-e", f"written={written}"]
    done = subprocess.run(
        words,
        env=ansible_environment(compose("plan", [hosts])),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["name"]: row for row in json.loads(written.read_text(encoding="utf-8"))["hosts"]}
    assert [rows[name]["context"]["parallel"] for name in ("one", "two")] == [1, 2]
    assert rows["two"]["context"]["length"] == 2048
