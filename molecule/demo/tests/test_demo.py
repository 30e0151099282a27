"""A demo appliance seen from outside: what answers, what listens, who can read what, and a chat."""

from __future__ import annotations

import ipaddress
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
INVENTORY = PROJECT / ".lab" / os.environ["LAB_PROJECT"] / "hosts.ini"
PASSWORD = "/etc/dsprov/secrets/open-webui-admin-password"
MODEL = "smollm2:135m"

FETCH = """
import json, sys, urllib.request
request = json.load(sys.stdin)
body = json.dumps(request["body"]).encode() if request.get("body") else None
headers = {"Content-Type": "application/json"}
question = urllib.request.Request(request["url"], data=body, headers=headers)
with urllib.request.urlopen(question, timeout=120) as answer:
    print(answer.read().decode())
"""


def fetch(host: Any, url: str, body: dict[str, Any] | None = None) -> Any:
    """Ask a loopback address of the host, with the host's own Python."""
    request = json.dumps({"url": url, "body": body})
    return json.loads(host.check_output("printf '%%s' %s | python3 -c %s", request, FETCH))


@pytest.mark.parametrize("unit", ["ollama.service", "docker.service"])
def test_units_run_and_start_at_boot(host: Any, unit: str) -> None:
    service = host.service(unit)
    assert service.is_running
    assert service.is_enabled


def test_drop_in_took_effect(host: Any) -> None:
    environment = host.check_output("systemctl show ollama --property Environment --value").split()
    assert "OLLAMA_FLASH_ATTENTION=1" in environment
    assert "OLLAMA_KV_CACHE_TYPE=q8_0" in environment
    assert "OLLAMA_CONTEXT_LENGTH=4096" in environment
    assert host.file("/etc/systemd/system/ollama.service.d/dsprov.conf").exists


def test_engine_serves_the_model(host: Any) -> None:
    models = fetch(host, "http://127.0.0.1:11434/v1/models")
    assert MODEL in [row["id"] for row in models["data"]]


def test_engine_answers_a_chat(host: Any) -> None:
    question = {"model": MODEL, "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 16}
    answer = fetch(host, "http://127.0.0.1:11434/v1/chat/completions", question)
    assert answer["choices"][0]["message"]["content"].strip()


def test_open_webui_is_healthy(host: Any) -> None:
    assert fetch(host, "http://127.0.0.1:8080/health") == {"status": True}


def test_nobody_can_sign_up(host: Any) -> None:
    config = fetch(host, "http://127.0.0.1:8080/api/config")
    assert config["features"]["auth"] is True
    assert config["features"]["enable_signup"] is False


def test_chat_through_open_webui(host: Any) -> None:
    name = host.check_output("hostname")
    done = subprocess.run(
        [sys.executable, "-m", "tests.lab.chat", "-i", str(INVENTORY), "--host", name],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_only_ssh_listens_outside_loopback(host: Any) -> None:
    outside = set()
    for row in host.check_output("ss -H -l -n -t -u").splitlines():
        address, _, port = row.split()[4].rpartition(":")
        address = address.partition("%")[0].strip("[]")
        if address == "*" or not ipaddress.ip_address(address).is_loopback:
            outside.add(port)
    assert outside == {"22"}


def test_secrets_are_roots_alone(host: Any) -> None:
    with host.sudo():
        folder = host.file("/etc/dsprov/secrets")
        assert (folder.user, folder.mode) == ("root", 0o700)
        names = host.check_output("find /etc/dsprov/secrets -type f").split()
        assert PASSWORD in names
        for name in names:
            found = host.file(name)
            assert (found.user, found.mode) == ("root", 0o600), name


def test_password_is_nowhere_that_others_can_read(host: Any) -> None:
    # Every file and process word that the user nobody can read is looked through for the password itself;
    # the same look as root has to find the password's own file, else it would prove nothing.
    places = "/etc /opt /home /tmp /run /var/log /var/lib/dsprov /proc/[0-9]*/cmdline"
    with host.sudo():
        look = f"sh -c 'grep -r -a -l -s -F -f - {places}'"
        assert host.run(f"cat {PASSWORD} | setpriv --reuid nobody --clear-groups {look}").stdout == ""
        assert PASSWORD in host.run(f"cat {PASSWORD} | {look}").stdout.split()
        assert host.run(f"journalctl -q -o cat --no-pager | grep -c -F -f {PASSWORD}").stdout.strip() == "0"


def test_state_is_recorded(host: Any) -> None:
    with host.sudo():
        state = json.loads(host.file("/etc/dsprov/state.json").content_string)
    assert state["tier"] == "demo"
