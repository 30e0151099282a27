"""Docker seen from outside, after the role met an administrator's settings and somebody else's container."""

from __future__ import annotations

import json
from typing import Any


def docker(host: Any, *words: str) -> Any:
    with host.sudo():
        return json.loads(host.check_output("docker " + " ".join(words)))


def test_the_administrator_keeps_what_is_theirs(host: Any) -> None:
    with host.sudo():
        options = json.loads(host.file("/etc/docker/daemon.json").content_string)
    assert options["max-concurrent-downloads"] == 7
    assert options["labels"] == ["owner=school", "appliance=dsprov"]
    assert options["debug"] is True, "set by hand later, and no option of ours"


def test_our_options_are_in_effect(host: Any) -> None:
    info = docker(host, "info", "--format", "'{{json .}}'")
    assert info["LiveRestoreEnabled"] is True
    assert info["LoggingDriver"] == "json-file"
    assert info["RegistryConfig"]["Mirrors"]
    assert set(info["Labels"]) == {"owner=school", "appliance=dsprov"}


def test_the_container_of_somebody_else_never_stopped(host: Any) -> None:
    state = docker(host, "inspect", "theirs")[0]["State"]
    assert state["Running"] is True
    assert str(state["Pid"]) == host.file("/etc/docker/theirs.pid").content_string


def test_a_new_container_rotates_its_log(host: Any) -> None:
    with host.sudo():
        image = docker(host, "inspect", "theirs")[0]["Config"]["Image"]
        name = host.check_output("docker create %s true", image)
        config = docker(host, "inspect", name)[0]["HostConfig"]["LogConfig"]
        host.check_output("docker rm %s", name)
    assert config == {"Type": "json-file", "Config": {"max-size": "50m", "max-file": "3"}}


def test_the_service_runs_and_starts_with_the_host(host: Any) -> None:
    service = host.service("docker")
    assert service.is_running and service.is_enabled


def test_the_daemon_listens_on_no_port(host: Any) -> None:
    with host.sudo():
        assert "dockerd" not in host.check_output("ss --listening --tcp --udp --processes --numeric")


def test_what_was_edited_by_hand_is_kept_and_nothing_is_left_over(host: Any) -> None:
    with host.sudo():
        kept = host.check_output("find /var/lib/dsprov/backups -type f -perm 600").split()
        stray = host.check_output(
            "find /etc/docker /etc/dsprov /opt/dsprov /var/lib/dsprov "
            r"\( -name '*.tmp' -o -name '*.lock' -o -name '*.part' -o -name '*check' \)"
        )
    assert any("max-concurrent-downloads" in host.run("sudo cat %s", path).stdout for path in kept)
    assert any("1k" in host.run("sudo cat %s", path).stdout for path in kept)
    assert stray == ""
