"""Two hosts as one engine: who may speak with it, and that it comes back whatever happens to one of them."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

UNIT = "dsprov-vllm.service"
WATCH = "dsprov-vllm-watch.service"
KEY = "/etc/dsprov/secrets/vllm-api-key"
# A start takes a minute on two idle cores, and both hosts share them.
PATIENCE = 1500

ASK = (
    "import json,urllib.request as r;"
    f"h={{'Content-Type':'application/json','Authorization':'Bearer '+open('{KEY}').read().strip()}};"
    "b=json.dumps({'model':'tiny-v3','messages':[{'role':'user','content':'Hello'}],'max_tokens':8}).encode();"
    "print(r.urlopen(r.Request('http://127.0.0.1:11436/v1/chat/completions',b,h),timeout=60).read().decode())"
)


@pytest.fixture(autouse=True)
def root(host: Any) -> Any:
    """Look as root does."""
    with host.sudo():
        yield


def is_head(host: Any) -> bool:
    return str(host.backend.get_hostname()) == "head"


def tokens(head: Any) -> int:
    """Length of an answer; 0 where none comes."""
    done = head.run("/usr/bin/python3 -c %s", ASK)
    return int(json.loads(done.stdout)["usage"]["completion_tokens"]) if done.rc == 0 else 0


def restarts(host: Any) -> str:
    return str(host.service(UNIT).systemd_properties["InvocationID"])


def comes_back(head: Any) -> bool:
    """Whether the group answers again."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if tokens(head):
            return True
        time.sleep(5)
    return False


def test_both_run_and_the_head_answers(host: Any) -> None:
    assert host.service(UNIT).is_running
    assert host.service(WATCH).is_running
    assert host.service(WATCH).is_enabled
    words = host.check_output(f"systemctl show {UNIT} --property ExecStart --value")
    assert "--nnodes 2" in words
    assert ("--headless" in words) is not is_head(host)
    if is_head(host):
        assert tokens(host) > 0


@pytest.mark.parametrize("unit", [UNIT, WATCH])
def test_the_units_are_hardened(host: Any, unit: str) -> None:
    text = host.run(f"systemd-analyze security {unit} --no-pager").stdout
    assert float(text.rsplit(f"level for {unit}:", 1)[1].split()[0]) <= 2.5, text


def test_only_the_group_may_come_in(host: Any) -> None:
    rules = host.check_output("nft list table inet dsprov")
    assert "tcp dport 29500" in rules
    assert "skuid" in rules
    # Nobody else's tables were touched or made; that of the lab's own Docker is for its names.
    tables = set(host.check_output("nft list tables").splitlines())
    assert tables - {"table ip nat"} == {"table inet dsprov"}
