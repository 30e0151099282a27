"""Cards in containers seen from outside: who may open which, and what is left of an administrator's Docker.

Behind an imitated card's node is nothing: who may open it gets "No such device or address", who may not
"Operation not permitted".
"""

from __future__ import annotations

import json
from typing import Any

import pytest

PACKAGE = "nvidia-container-toolkit-base"
OPENED, REFUSED = "No such device or address", "Operation not permitted"


@pytest.fixture(autouse=True)
def root(host: Any) -> Any:
    """Only root may ask Docker."""
    with host.sudo():
        yield


def version(host: Any) -> tuple[int, ...]:
    """Docker's own: 20.10 on Debian 12, 26.1 on Debian 13."""
    said = host.check_output("docker version --format '{{.Server.Version}}'")
    return tuple(int(part) for part in said.partition("+")[0].split(".")[:2])


def opening(host: Any, container: str, node: str) -> str:
    done = host.run("docker exec %s cat %s", container, node)
    assert done.rc != 0
    return str(done.stderr)


def test_the_release_goes_with_this_docker_and_stays(host: Any) -> None:
    wanted = "1.20.1-1" if version(host) >= (26, 1) else "1.19.0-1"
    assert host.package(PACKAGE).version == wanted
    assert PACKAGE in host.check_output("apt-mark showhold").split()
    assert f"Candidate: {wanted}" in host.check_output("apt-cache policy %s", PACKAGE)
    assert wanted.partition("-")[0] in host.check_output("nvidia-ctk --version")
    with_hook = "nvidia-container-toolkit nvidia-container-runtime libnvidia-container1"
    assert host.run(f"dpkg-query --show {with_hook}").rc != 0


def test_the_administrator_keeps_what_is_theirs(host: Any) -> None:
    options = json.loads(host.file("/etc/docker/daemon.json").content_string)
    assert options["exec-opts"] == ["native.cgroupdriver=systemd"]
    assert options["features"]["buildkit"] is True
    assert options["runtimes"]["theirs"] == {"path": "/usr/sbin/runc"}
    assert options["runtimes"]["nvidia"] == {"path": "/usr/bin/nvidia-container-runtime"}


def test_docker_knows_the_runtime_and_the_cards(host: Any) -> None:
    info = json.loads(host.check_output("docker info --format '{{json .}}'"))
    assert {"runc", "nvidia", "theirs"} <= set(info["Runtimes"])
    assert info["DefaultRuntime"] == "runc"
    if version(host) >= (25, 0):
        assert "/var/run/cdi" in info["CDISpecDirs"]
        words = "docker run --rm --device nvidia.com/gpu=1 %s sh -c 'ls /dev/nvidia[0-9]*'"
        image = host.check_output("docker inspect --format '{{.Config.Image}}' no-card")
        assert host.check_output(words, image) == "/dev/nvidia1"


def test_the_cards_are_described(host: Any) -> None:
    listed = host.check_output("nvidia-ctk --quiet cdi list").split()
    assert {"nvidia.com/gpu=0", "nvidia.com/gpu=1", "nvidia.com/gpu=all"} <= set(listed)
    for unit in ("nvidia-cdi-refresh.service", "nvidia-cdi-refresh.path"):
        assert host.service(unit).is_enabled


def test_containers_keep_their_cards_after_systemd_read_its_units_again(host: Any) -> None:
    """The side effect had it do so, with the containers running since before the role mended Docker."""
    assert "systemd" in host.check_output("docker info --format '{{.CgroupDriver}}'")
    for node in ("/dev/nvidia0", "/dev/nvidia1", "/dev/nvidiactl"):
        assert OPENED in opening(host, "all-cards", node)
    assert OPENED in opening(host, "second-card", "/dev/nvidia1")


def test_without_names_below_dev_char_they_would_lose_them(host: Any) -> None:
    """What the drop-in is for: the runc of Debian 12 tells systemd of no device without such a name."""
    if version(host) >= (26, 1):
        # From runc 1.1.15 on the fault that this proves does not exist, so nothing could be seen.
        pytest.skip("this runc tells systemd by number")
    image = host.check_output("docker inspect --format '{{.Config.Image}}' no-card")
    host.check_output("rm /dev/char/195:*")
    try:
        words = "docker run --detach --name loser --runtime nvidia --env NVIDIA_VISIBLE_DEVICES=0 %s sleep 99"
        host.check_output(words, image)
        assert OPENED in opening(host, "loser", "/dev/nvidia0")
        host.check_output("systemctl daemon-reload")
        assert REFUSED in opening(host, "loser", "/dev/nvidia0")
    finally:
        host.run("docker rm --force loser")
        host.check_output("systemctl start nvidia-cdi-refresh.service")
    assert host.file("/dev/char/195:0").is_symlink


def test_a_container_has_no_card_that_it_was_not_given(host: Any) -> None:
    # grep fails where it counts none, which is what is wanted.
    assert host.check_output("docker exec no-card sh -c 'ls /dev | grep -c nvidia || true'") == "0"
    host.check_output("docker exec no-card sh -c '[ -e /dev/nvidia0 ] || mknod /dev/nvidia0 c 195 0'")
    assert REFUSED in opening(host, "no-card", "/dev/nvidia0")
    listed = host.check_output("docker exec second-card sh -c 'ls /dev/nvidia[0-9]*'")
    assert listed == "/dev/nvidia1"


def test_the_driver_s_library_is_in_the_container(host: Any) -> None:
    there = host.check_output("docker exec all-cards sh -c 'ls /usr/local/lib /usr/bin/nvidia-smi'")
    assert "libnvidia-ml.so.1" in there
    assert "/usr/bin/nvidia-smi" in there
