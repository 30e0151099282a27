"""Offline: hosts that reach nothing but this machine become appliances from a bundle, or are left alone."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from ansible_collections.dsprov.appliance.plugins.plugin_utils.bundle import manifest_bytes, write_manifest

from .conftest import DSPROV, PROJECT, Lab, dsprov

BOTH = ("--os", "debian-12", "--os", "debian-13")
# What an online install would ask: the mirror's files, registry and apt cache, an outside address, a name.
REACH = r"""
for place in @MIRROR@/80 @MIRROR@/5000 @MIRROR@/3142 198.51.100.1/443; do
  timeout 3 bash -c "</dev/tcp/$place" 2>/dev/null && echo "reached $place"
done
timeout 5 getent hosts deb.debian.org && echo "resolved a name"
true
"""

# A file of each kind.
KINDS = (
    "manifest.json",
    "apt/debian-13/pool/*.deb",
    "apt/debian-13/InRelease",
    "files/*/*",
    "images/blobs/sha256/*",
    "weights/*/*/*",
)


def create(lab: Lab, folder: Path, *systems: str) -> dict[str, Any]:
    run = dsprov("bundle", "create", "--tier", "demo", *systems, "-i", lab.inventory, "-o", folder, "--json")
    assert run.code == 0, run.err
    document: dict[str, Any] = run.document
    return document


@pytest.fixture(scope="module")
def bundle(cut: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A whole bundle for both releases; tests copy what they break."""
    kept = os.environ.get("DSPROV_TEST_BUNDLE")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("bundle") / "demo"
    create(cut, folder, *BOTH)
    yield folder
    if not kept:
        shutil.rmtree(folder)


def copy_of(bundle: Path, folder: Path) -> Path:
    """A copy whose files are links: what is broken has to be written anew, not in place."""
    shutil.copytree(bundle, folder, copy_function=os.link)
    return folder


def rewrite(file: Path, data: bytes) -> None:
    file.unlink()
    file.write_bytes(data)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    rewrite(file, bytes(data))


def chat(lab: Lab, host: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tests.lab.chat", "-i", str(lab.inventory), "--host", host],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    return done.stdout


def test_the_hosts_reach_nothing_else(cut: Lab) -> None:
    """Else nothing below would be proved; this machine, which does reach the mirror, is the counter-proof."""
    mirrors = yaml.safe_load((cut.inventory.parent / "group_vars" / "all.yml").read_text(encoding="utf-8"))
    mirror = urlsplit(mirrors["dsprov_mirrors"]["pypi_index"]).hostname
    script = REACH.replace("@MIRROR@", str(mirror))
    for host in ("t12", "t13"):
        assert cut.sh(host, script) == ""
    here = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert f"reached {mirror}/80" in here.stdout
    assert f"reached {mirror}/3142" in here.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_byte_stops_an_install(cut: Lab, bundle: Path, tmp_path: Path, kind: str) -> None:
    folder = copy_of(bundle, tmp_path / "copy")
    victim = random.Random(kind).choice(sorted(folder.glob(kind)))
    flip(victim)
    before = cut.fingerprint("t13")
    run = dsprov("install", "--tier", "demo", "--bundle", folder, "-i", cut.inventory)
    assert run.code == 2
    assert str(victim) in run.errors[0]
    assert dsprov("bundle", "verify", folder).code == 2
    assert cut.fingerprint("t13") == before


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"systems": ["debian-12"]}, "nothing for debian-13 x86_64; it was made for debian-12 x86_64"),
        ({"arch": "aarch64"}, "nothing for debian-13 x86_64; it was made for debian-12 aarch64"),
        ({"tier": "basic"}, "made for tier basic, not demo"),
        ({"schema": 2, "dsprov": "9.0.0"}, "made by dsprov 9.0.0"),
    ],
    ids=["system", "arch", "tier", "newer"],
)
def test_a_bundle_that_was_not_made_for_this(
    cut: Lab, bundle: Path, tmp_path: Path, change: dict[str, Any], word: str
) -> None:
    folder = copy_of(bundle, tmp_path / "copy")
    document = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (folder / "manifest.sha256").unlink()
    write_manifest(folder, manifest_bytes({**document, **change}))
    before = cut.fingerprint("t13")
    inventory = cut.variant(tmp_path, hosts=("t13",))
    run = dsprov("install", "--tier", "demo", "--bundle", folder, "-i", inventory)
    assert run.code == 2
    assert len(run.errors) == 1
    assert word in run.errors[0]
    assert cut.fingerprint("t13") == before


def test_a_setting_that_the_bundle_was_not_made_with(cut: Lab, bundle: Path, tmp_path: Path) -> None:
    before = cut.fingerprint("t13")
    inventory = cut.variant(tmp_path, hosts=("t13",))
    for setting, word in (
        (f"open_webui_image_digest=sha256:{'0' * 64}", "open-webui/open-webui@sha256:0000"),
        ("open_webui_image=registry.example.org/open-webui", "registry.example.org"),
        ("open_webui_method=venv", "uv 0."),
        ("dsprov_model=deepseek-r1:1.5b", "DeepSeek-R1-Distill-Qwen-1.5B"),
        ("dsprov_engine=llama_cpp", "cmake"),
    ):
        run = dsprov("install", "--tier", "demo", "--bundle", bundle, "-i", inventory, "-e", setting)
        assert run.code == 2, setting
        assert len(run.errors) == 1
        assert word in run.errors[0]
    assert cut.fingerprint("t13") == before


def test_a_host_that_forwards_nothing(cut: Lab, bundle: Path, tmp_path: Path) -> None:
    inventory = cut.variant(tmp_path, hosts=("t13",))
    cut.sh("t13", "echo 'AllowTcpForwarding no' > /etc/ssh/sshd_config.d/no.conf; systemctl restart ssh")
    try:
        before = cut.fingerprint("t13")
        run = dsprov("install", "--tier", "demo", "--bundle", bundle, "-i", inventory)
        assert run.code == 2
        assert "AllowTcpForwarding" in run.errors[0]
        assert cut.fingerprint("t13") == before
    finally:
        cut.sh("t13", "rm /etc/ssh/sshd_config.d/no.conf; systemctl restart ssh")


def test_an_install_without_a_network(cut: Lab, bundle: Path, tmp_path: Path) -> None:
    inventory = cut.variant(tmp_path, hosts=("t13",))
    run = dsprov("install", "--tier", "demo", "--bundle", bundle, "-i", inventory, "--json")
    assert run.code == 0, run.err
    assert "Paris" in chat(cut, "t13")
    again = dsprov("install", "--tier", "demo", "--bundle", bundle, "-i", inventory, "--json")
    assert again.document["hosts"]["t13"]["changed"] == 0, again.document["hosts"]["t13"]["changed_tasks"]
    assert cut.sh("t13", "grep -r 127.0.0.1:4870 /etc/apt", check=False) == ""
    assert dsprov("status", "-i", inventory).code == 0


@pytest.mark.slow
def test_both_releases_from_media(cut: Lab, bundle: Path, tmp_path: Path) -> None:
    """The whole way on both, from a bundle that was cut to media."""
    assert dsprov("bundle", "split", bundle, "--size", "300MB", "-o", tmp_path / "media").code == 0
    media = sorted((tmp_path / "media").iterdir())
    assert len(media) >= 3
    folders = [word for medium in media for word in ("--bundle", str(medium))]
    run = dsprov("install", "--tier", "demo", *folders, "-i", cut.inventory, "--json")
    assert run.code == 0, run.err
    for host in ("t12", "t13"):
        assert "Paris" in chat(cut, host)


@pytest.mark.slow
def test_the_same_inputs_give_the_same_bundle(cut: Lab, bundle: Path, tmp_path: Path) -> None:
    first = create(cut, bundle, *BOTH)
    assert first["fetched_bytes"] == 0
    second = create(cut, tmp_path / "anew", *BOTH)
    assert second["digest"] == first["digest"]
    assert second["fetched_bytes"] > 100_000_000


def weight(folder: Path) -> int:
    """Bytes on disk, of what is finished and of what is on its way; files come and go meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_blocks * 512
    return total


@pytest.mark.slow
def test_a_bundle_killed_at_any_moment_goes_on(cut: Lab, bundle: Path, tmp_path: Path) -> None:
    """Five moments; what came before a kill is not fetched again, and nothing unfinished is left."""
    create(cut, bundle, *BOTH)  # Each test has a user of its own, whose key is in the bundle.
    wanted = dsprov("bundle", "show", bundle, "--json").document
    folder = tmp_path / "killed"
    command = [str(DSPROV), "bundle", "create", "--tier", "demo", *BOTH]
    command += ["-i", str(cut.inventory), "-o", str(folder)]
    moments = (0, 60_000_000, 150_000_000, 300_000_000, 500_000_000)
    for arrived in moments:
        started = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while started.poll() is None and weight(folder) < arrived:
            time.sleep(0.05)
        time.sleep(random.random())
        started.send_signal(signal.SIGKILL)
        started.wait(timeout=30)
    made = create(cut, folder, *BOTH)
    assert made["digest"] == wanted["digest"]
    # Lost is what no journal had yet: at most 64 MiB of each of four files.
    assert made["fetched_bytes"] <= wanted["bytes"] - moments[-1] + 4 * 64 * 1024 * 1024
    left = {path.name for path in folder.iterdir()}
    assert left == {path.name for path in bundle.iterdir()}


VENV = ("-e", "open_webui_method=venv")


@pytest.fixture(scope="module")
def wheels(cut: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for Open WebUI without Docker: all its Python packages are in it."""
    kept = os.environ.get("DSPROV_TEST_VENV_BUNDLE")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("wheels") / "bundle"
    create(cut, folder, "--os", "debian-12", *VENV)
    return folder


@pytest.mark.slow
def test_a_list_of_packages_that_the_bundle_was_not_made_from(cut: Lab, wheels: Path, tmp_path: Path) -> None:
    own = tmp_path / "requirements.txt"
    own.write_text(f"idna==3.0 --hash=sha256:{'0' * 64}\n", encoding="utf-8")
    before = cut.fingerprint("t12")
    wish = (*VENV, "-e", f"open_webui_requirements={own}")
    run = dsprov("install", "--tier", "demo", "--bundle", wheels, "-i", cut.variant(tmp_path), *wish)
    assert run.code == 2
    assert "idna==3.0 (Python 3.11)" in run.errors[0]
    assert cut.fingerprint("t12") == before


@pytest.mark.slow
def test_wheels_without_a_network(cut: Lab, wheels: Path, tmp_path: Path) -> None:
    inventory = cut.variant(tmp_path)
    run = dsprov("install", "--tier", "demo", "--bundle", wheels, "-i", inventory, *VENV)
    assert run.code == 0, run.err
    assert cut.sh("t12", "systemctl is-active dsprov-open-webui.service") == "active\n"
    assert "Paris" in chat(cut, "t12")
