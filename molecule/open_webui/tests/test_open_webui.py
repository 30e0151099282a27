"""Open WebUI seen from outside: who may come in, what listens, what holds the secrets, and a chat."""

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
INVENTORY = PROJECT / ".lab" / "molecule-open_webui" / "hosts.ini"
ENV_FILE = "/etc/dsprov/secrets/open-webui.env"
ADMIN_FILE = "/etc/dsprov/secrets/open-webui-admin-password"
DATA = "/var/lib/dsprov/open-webui"

ASK = """
import json, sys, urllib.error, urllib.request
try:
    with urllib.request.urlopen(sys.argv[1], timeout=60) as answer:
        print(json.dumps([answer.status, answer.read().decode()]))
except urllib.error.HTTPError as error:
    print(json.dumps([error.code, error.read().decode()]))
"""


def ask(host: Any, path: str) -> tuple[int, str]:
    """Ask Open WebUI on the host's loopback; return status and body."""
    status, body = json.loads(host.check_output("python3 -c %s %s", ASK, f"http://127.0.0.1:8080{path}"))
    return status, body


def test_healthy_and_of_the_pinned_version(host: Any) -> None:
    assert ask(host, "/health") == (200, '{"status":true}')
    assert json.loads(ask(host, "/api/version")[1])["version"] == "0.11.3"


def test_pages_are_served_in_the_chosen_language(host: Any) -> None:
    status, page = ask(host, "/")
    assert status == 200
    assert "<!doctype html>" in page.lower()
    assert json.loads(ask(host, "/api/config")[1])["default_locale"] == "zh-CN"


def test_strangers_get_nothing(host: Any) -> None:
    config = json.loads(ask(host, "/api/config")[1])
    assert config["features"]["auth"] is True
    assert config["features"]["enable_signup"] is False
    assert not config.get("onboarding")
    assert ask(host, "/api/models")[0] in (401, 403)


def test_listens_on_loopback_alone(host: Any) -> None:
    with host.sudo():
        lines = host.check_output("ss -Htln 'sport = :8080 or sport = :11434'").splitlines()
    addresses = {line.split()[3].rsplit(":", 1)[0].strip("[]") for line in lines}
    assert addresses
    assert all(ipaddress.ip_address(address).is_loopback for address in addresses), addresses


def test_container_is_pinned_and_has_no_powers(host: Any) -> None:
    with host.sudo():
        container = json.loads(host.check_output("docker inspect dsprov-open-webui"))[0]
    assert "@sha256:" in container["Config"]["Image"]
    assert container["HostConfig"]["CapDrop"] == ["ALL"]
    assert container["HostConfig"]["SecurityOpt"] == ["no-new-privileges:true"]
    assert container["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"
    assert not container["HostConfig"]["PortBindings"]


@pytest.mark.parametrize("path", [ENV_FILE, ADMIN_FILE])
def test_secrets_are_for_root_alone(host: Any, path: str) -> None:
    with host.sudo():
        file = host.file(path)
        assert (file.user, file.group, file.mode) == ("root", "root", 0o600)
        assert host.file("/etc/dsprov/secrets").mode == 0o700
        assert host.file(DATA).mode == 0o700


def test_no_secret_lies_anywhere_else(host: Any) -> None:
    """Patterns come from a file, so that this search itself puts none into a log or the process list."""
    search = (
        f"umask 077; sed -n 's/^[A-Z_]*=//p' {ENV_FILE} > /run/patterns; test -s /run/patterns || exit 9; "
        "{ grep -rlFf /run/patterns --exclude-dir=secrets /etc /var/log /tmp /home /root /var/lib/dsprov "
        "/var/lib/docker/containers 2>/dev/null; ps axww -o args | grep -Ff /run/patterns; "
        "journalctl --no-pager | grep -Ff /run/patterns; "
        "docker inspect dsprov-open-webui | grep -Ff /run/patterns; "
        "docker logs dsprov-open-webui 2>&1 | grep -Ff /run/patterns; } | cut -c1-100; rm /run/patterns"
    )
    with host.sudo():
        assert host.check_output("bash -c %s", search) == ""


def test_chat(host: Any) -> None:
    name = host.check_output("hostname")
    done = subprocess.run(
        [sys.executable, "-m", "tests.lab.chat", "-i", str(INVENTORY), "--host", name, "--json"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["model"] == "smollm2:135m"
    assert result["webui"]["answer"]
    assert result["engine"]["answer"]
    with host.sudo():
        password = host.check_output("cat %s", ADMIN_FILE)
    assert password not in done.stdout + done.stderr
