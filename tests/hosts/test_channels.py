"""Channels against real repositories and registries: Docker's own apt repository, and images by rule.

The programs are Debian's under Docker's names (tests/lab/docker_apt.py); repositories, signatures, registry
and every check are real.
"""

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
import yaml

from tests.lab import docker_apt, engine, index, mirror, registry
from tests.lab.artifacts.common import cache_root
from tests.lab.mirror import Mirror
from tests.lab.registry import Registry

from .conftest import BOTH, LAB, PROJECT, Lab, dsprov, hosts_of

NAME = f"{LAB}-channels"
PLAY = """
- hosts: "{{ target }}"
  gather_facts: false
  become: true
  vars:
    dsprov_sources: "{{ dsprov_mirrors }}"
  tasks:
    - ansible.builtin.include_role: {name: dsprov.appliance.common}
    - ansible.builtin.include_role: {name: dsprov.appliance.docker}
    - community.docker.docker_image_pull:
        name: "{{ item | dsprov.appliance.image_place(dsprov_sources) }}"
      loop: "{{ images | default([]) }}"
"""
# What a mirror may turn into, and what apt or the key's check say of it.
WRONG = {
    "key-of-a-stranger": "wanted",
    "signed-by-a-stranger": "NO_PUBKEY",
    "forged": "BADSIG",
    "expired": "is expired",
    "changed": "Hash Sum mismatch",
    "incomplete": "it has no containerd.io",
    "missing": "404",
}


@dataclass(frozen=True)
class Hosts(Lab):
    """The hosts, with a play of the role docker alone."""

    play: Path = Path()

    def run(self, host: str, **variables: Any) -> tuple[int, str]:
        """Its exit status and what it said."""
        words = [Path(sys.executable).with_name("ansible-playbook"), "-i", self.inventory, self.play]
        words += ["-e", json.dumps({"target": host, **variables})]
        environment = {**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "LC_ALL": "C.UTF-8"}
        environment["ANSIBLE_COLLECTIONS_PATH"] = str(PROJECT / "cli")
        command = list(map(str, words))
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        print(done.stdout, done.stderr)
        return done.returncode, done.stdout

    @property
    def mirrors(self) -> dict[str, Any]:
        """Where the lab's mirrors are, as its inventory says."""
        text = (self.inventory.parent / "group_vars" / "all.yml").read_text(encoding="utf-8")
        found: dict[str, Any] = yaml.safe_load(text)["dsprov_mirrors"]
        return found

    def clean(self, host: str) -> bool:
        """Whether nothing of Docker and its repository is there, and apt works as it did."""
        there = self.sh(
            host, "ls /etc/apt/sources.list.d /etc/apt/keyrings; dpkg-query -W | grep -c docker || true"
        )
        self.sh(host, "apt-get -q update -o APT::Update::Error-Mode=any")
        return "docker" not in there and there.split()[-1] == "0"


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    play = tmp_path_factory.mktemp("play") / "play.yml"
    play.write_text(PLAY, encoding="utf-8")
    for lab in hosts_of(NAME, "--artifacts", "ollama,model", **BOTH):
        yield Hosts(lab.inventory, lab.project, play)


@pytest.fixture(scope="module")
def site(hosts: Hosts) -> Mirror:
    """The lab's mirror; after the hosts, so that its network is there."""
    return mirror.ensure(cache_root(), engine.ensure_network(print), print)


@pytest.fixture(scope="module")
def docker_s(site: Mirror) -> tuple[str, list[str]]:
    """Docker's repositories, below their kinds; whose signature is right."""
    made = docker_apt.serve(cache_root(), site, print)
    return f"{site.files}/{made.place}", [made.fingerprint]


@pytest.mark.parametrize("kind", WRONG)
def test_a_repository_that_is_not_docker_s(hosts: Hosts, docker_s: tuple[str, list[str]], kind: str) -> None:
    """Named with its reason; the host's apt does not know it afterwards."""
    base, fingerprints = docker_s
    code, said = hosts.run(
        "t12",
        docker_source="repository",
        docker_apt_url=f"{base}/{kind}",
        docker_apt_fingerprints=fingerprints,
    )
    assert code != 0
    assert f"Docker's apt repository {base}/{kind}/debian cannot be used" in said
    assert WRONG[kind] in said
    assert hosts.clean("t12")


def test_the_channel_s_repository_is_refused_in_one_line(
    hosts: Hosts, docker_s: tuple[str, list[str]], tmp_path: Path
) -> None:
    """As an integrator sees it, who named a mirror that signs by itself: the catalogue knows another key."""
    base, _ = docker_s
    mirrors = {**hosts.mirrors, "docker_apt": f"{base}/good"}
    inventory = hosts.variant(tmp_path)
    (tmp_path / "host_vars").mkdir()
    (tmp_path / "host_vars" / "t12.yml").write_text(json.dumps({"dsprov_mirrors": mirrors}), encoding="utf-8")
    run = dsprov("install", "--tier", "demo", "-i", inventory, "-e", "docker_source=repository")
    assert run.code == 1
    (line,) = run.errors
    assert f"Docker's apt repository {base}/good/debian cannot be used" in line
    assert "9DC858229FC7DD38854AE2D88D81803C0EBFCD88" in line
    assert "docker_apt_fingerprints" in run.err
    assert hosts.clean("t12")


def test_docker_s_own_repository(hosts: Hosts, docker_s: tuple[str, list[str]]) -> None:
    """By the channel's address; what was installed is Docker's and runs; a second run changes nothing."""
    base, fingerprints = docker_s
    mirrors = {**hosts.mirrors, "docker_apt": f"{base}/good/"}
    wish = {"docker_source": "repository", "docker_apt_fingerprints": fingerprints, "dsprov_mirrors": mirrors}
    code, _said = hosts.run("t12", **wish)
    assert code == 0
    versions = hosts.sh("t12", "dpkg-query -W docker-ce docker-ce-cli containerd.io")
    assert versions.count(docker_apt.VERSION) == 3
    assert base in hosts.sh("t12", "apt-cache policy docker-ce")
    assert hosts.sh("t12", "docker version --format '{{.Server.Version}}'").startswith("20.10")
    code, said = hosts.run("t12", **wish)
    assert code == 0
    assert " changed=0 " in said


@pytest.fixture(scope="module")
def images(hosts: Hosts, site: Mirror) -> Iterator[tuple[Registry, dict[str, str]]]:
    """A registry that has an image for Docker Hub and each registry that names are rewritten for."""
    small = mirror.busybox(cache_root(), site, print)
    with registry.running(NAME, cache_root(), print) as made:
        wanted = ["library/busybox", *(f"{name}/lab/small" for name in ("ghcr.io", "nvcr.io", "quay.io"))]
        digests = {path: made.push(str(small.extra["image"]), path) for path in wanted}
        for host in ("t12", "t13"):
            folder = f"/etc/docker/certs.d/{made.address}"
            hosts.sh(host, f"mkdir -p {folder}; cat > {folder}/ca.crt <<'EOF'\n{made.authority}\nEOF")
        yield made, digests


@pytest.mark.parametrize("host", ["t12", "t13"])
def test_images_come_from_the_channel_s_registries(
    hosts: Hosts, images: tuple[Registry, dict[str, str]], host: str
) -> None:
    """Docker Hub's by Docker's own mirrors, of which the first is dead; all others by their names."""
    made, digests = images
    registries = {name: f"{made.address}/{name}" for name in ("ghcr.io", "nvcr.io", "quay.io")}
    mirrors = {
        **hosts.mirrors,
        "registry_mirrors": ["https://198.51.100.1", f"https://{made.address}"],
        "registries": registries,
        "insecure_registries": [],
    }
    wanted = {f"docker.io/library/busybox@{digests['library/busybox']}": "library/busybox"}
    wanted |= {f"{name}/lab/small@{digests[f'{name}/lab/small']}": f"{name}/lab/small" for name in registries}
    before = len(made.asked())
    code, _said = hosts.run(host, dsprov_mirrors=mirrors, images=list(wanted))
    assert code == 0
    asked = made.asked()[before:]
    there = hosts.sh(
        host, "docker image inspect --format '{{json .RepoDigests}}' $(docker images -q | sort -u)"
    )
    for path in wanted.values():
        assert any(f"/v2/{path}/manifests/{digests[path]}" in line for line in asked), path
        name = "busybox" if path.startswith("library/") else f"{made.address}/{path}"
        assert f"{name}@{digests[path]}" in there


def test_a_registry_that_has_other_bytes(hosts: Hosts, images: tuple[Registry, dict[str, str]]) -> None:
    """A digest is a promise about bytes: what does not keep it is not taken."""
    made, digests = images
    digest = digests["quay.io/lab/small"]
    made.damage(digest)
    hosts.sh("t12", "docker rmi -f $(docker images -q)")
    mirrors = {
        **hosts.mirrors,
        "registries": {"quay.io": f"{made.address}/quay.io"},
        "insecure_registries": [],
    }
    code, said = hosts.run("t12", dsprov_mirrors=mirrors, images=[f"quay.io/lab/small@{digest}"])
    assert code != 0
    assert "verification failed" in said
    assert hosts.sh("t12", "docker images -q") == ""


WEBUI = """
- hosts: t12
  gather_facts: false
  become: true
  tasks:
    - ansible.builtin.include_role: {name: dsprov.appliance.common}
    - ansible.builtin.include_role: {name: dsprov.appliance.open_webui}
"""


@pytest.fixture(scope="module")
def wheels(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every package of Open WebUI and uv, a folder for each: a bundle's."""
    kept = os.environ.get("DSPROV_TEST_VENV_BUNDLE")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("wheels") / "bundle"
    words = ["bundle", "create", "--tier", "demo", "--os", "debian-12", "-i", hosts.inventory, "-o", folder]
    assert dsprov(*words, "-e", "open_webui_method=venv").code == 0
    uv = yaml.safe_load((PROJECT / "catalog" / "software.yml").read_text(encoding="utf-8"))["software"]["uv"]
    file = uv["files"]["x86_64"]
    (found,) = (folder / "files").glob(f"{file['sha256'][:16]}/*")
    (folder / "wheels" / "uv").mkdir(exist_ok=True)
    (folder / "wheels" / "uv" / file["name"]).unlink(missing_ok=True)
    (folder / "wheels" / "uv" / file["name"]).hardlink_to(found)
    return folder / "wheels"


@pytest.mark.slow
def test_wheels_from_an_index(hosts: Hosts, site: Mirror, wheels: Path, tmp_path: Path) -> None:
    """A wheel that is not what its digest says is refused by name; from an honest index Open WebUI serves."""
    (tmp_path / "play.yml").write_text(WEBUI, encoding="utf-8")
    alone = Hosts(hosts.inventory, hosts.project, tmp_path / "play.yml")
    here = str(engine.ensure_network(print)[1])
    wish = {"open_webui_method": "venv", "open_webui_model": ""}
    (victim,) = (wheels / "idna").iterdir()
    with index.running(here, wheels, spoilt=[victim.name]) as lying:
        code, said = alone.run("t12", open_webui_pypi_index=lying.url, **wish)
    assert code != 0
    assert "Hash mismatch" in said
    assert "idna" in said
    left = "find /opt/dsprov/open-webui -name .dsprov-stamp; ls /etc/systemd/system | grep webui || true"
    assert alone.sh("t12", left) == ""
    with index.running(here, wheels, as_json=False) as honest:
        code, _said = alone.run("t12", open_webui_pypi_index=honest.url, **wish)
        assert code == 0
        assert any(victim.name in path for path in honest.asked)
    assert alone.sh("t12", "curl -s http://127.0.0.1:8080/health || true").startswith('{"status":true')
