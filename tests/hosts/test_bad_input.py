"""Bad input: one line that says what, where and how to mend it; exit code 2; nothing touched."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .conftest import PROJECT, Lab, dsprov


def refused(lab: Lab, inventory: Path, *words: str, options: tuple[str, ...] = (), code: int = 2) -> None:
    """Install ends with one error that has all the words, and leaves t12 as it was."""
    before = lab.fingerprint("t12")
    run = dsprov("install", "--tier", "demo", "-i", inventory, *options)
    assert run.code == code
    assert len(run.errors) == 1, run.err
    for word in words:
        assert word in run.errors[0]
    assert lab.fingerprint("t12") == before


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (
            "[all:vars]\ndsprov_contxt_length=4096",
            ["dsprov_contxt_length", "hosts.ini:", "dsprov_context_length"],
        ),
        ("[all:vars]\ndsprov_context_length=long", ["dsprov_context_length", "'long'", "whole number"]),
        ("[all:vars]\ndsprov_engine=olama", ["dsprov_engine", "'olama'", "ollama"]),
        ("[all:vars]\nollama_max_queue=many", ["ollama_max_queue", "many"]),
        ("[all:vars]\nopen_webui_port=eighty", ["open_webui_port", "eighty"]),
        ("[all:vars]\ndsprov_model=deepseek-r2:7b", ["dsprov_model", "deepseek-r2:7b", "deepseek-r1:7b"]),
        ("[all:vars]\ndsprov_context_length={{ nowhere }}", ["dsprov_context_length", "nowhere"]),
    ],
)
def test_variables(lab: Lab, tmp_path: Path, extra: str, words: list[str]) -> None:
    refused(lab, lab.variant(tmp_path, extra), *words)


def test_an_inventory_that_is_no_ini(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "hosts.ini"
    path.write_text("[appliances\nt12 ansible_host=\n", encoding="utf-8")
    refused(lab, path, str(path))


def test_an_inventory_without_hosts(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "hosts.ini"
    path.write_text("[appliances]\n", encoding="utf-8")
    refused(lab, path, str(path), "no hosts")


def test_a_limit_that_matches_nothing(lab: Lab, tmp_path: Path) -> None:
    refused(lab, lab.variant(tmp_path), "--limit nobody", options=("--limit", "nobody"))


def test_a_user_without_sudo(lab: Lab, tmp_path: Path) -> None:
    lab.sh(
        "t12",
        "mv /etc/sudoers.d /etc/sudoers.away && mkdir /etc/sudoers.d; gpasswd -d integrator sudo || true",
    )
    try:
        refused(lab, lab.variant(tmp_path), "t12", "sudo")
    finally:
        lab.sh("t12", "rmdir /etc/sudoers.d && mv /etc/sudoers.away /etc/sudoers.d")


def test_a_host_without_python(lab: Lab, tmp_path: Path) -> None:
    lab.sh("t12", "mv /usr/bin/python3 /usr/bin/python3.away")
    try:
        refused(lab, lab.variant(tmp_path), "t12", "Python 3", "apt-get install")
    finally:
        lab.sh("t12", "mv /usr/bin/python3.away /usr/bin/python3")


@contextmanager
def listening(lab: Lab, port: int) -> Iterator[None]:
    """Somebody else's server on a port."""
    lab.sh("t12", f"systemd-run --unit=squatter python3 -m http.server --bind 127.0.0.1 {port}")
    lab.sh(
        "t12",
        f"for i in $(seq 50); do ss -Hltn 'sport = :{port}' | grep -q . && exit; sleep 0.1; done; exit 1",
    )
    try:
        yield
    finally:
        lab.sh("t12", "systemctl stop squatter")


@pytest.mark.parametrize(("port", "engine"), [(8080, "ollama"), (11434, "ollama"), (11435, "llama_cpp")])
def test_a_port_that_is_taken(lab: Lab, tmp_path: Path, port: int, engine: str) -> None:
    with listening(lab, port):
        options = ("-e", f"dsprov_engine={engine}")
        refused(lab, lab.variant(tmp_path), "t12", f"port {port}", "python3", options=options)


def test_a_disk_too_full_for_the_model(lab: Lab, tmp_path: Path) -> None:
    lab.sh("t12", "mkdir -p /var/lib/dsprov && mount -t tmpfs -o size=64m tmpfs /var/lib/dsprov")
    try:
        refused(lab, lab.variant(tmp_path), "t12", "/var/lib/dsprov", "free")
    finally:
        lab.sh("t12", "umount /var/lib/dsprov; rmdir /var/lib/dsprov || true")


def test_a_catalogue_with_a_typo(lab: Lab, tmp_path: Path) -> None:
    # The whole tree again, as an integrator who edits the catalogue has it.
    tree = tmp_path / "tree"
    shutil.copytree(
        PROJECT,
        tree,
        symlinks=True,
        ignore=shutil.ignore_patterns(".git", ".venv", ".lab", ".*_cache", "__pycache__"),
    )
    models = tree / "catalog" / "models.yml"
    text = models.read_text(encoding="utf-8").replace("context_limit: 8192", "contxt_limit: 8192")
    models.write_text(text, encoding="utf-8")
    before = lab.fingerprint("t12")
    run = dsprov(
        "install", "--tier", "demo", "-i", lab.variant(tmp_path), env={"PYTHONPATH": str(tree / "cli")}
    )
    assert run.code == 2
    assert len(run.errors) == 1
    for word in ("models.yml", "smollm2:135m", "contxt_limit", "context_limit"):
        assert word in run.errors[0]
    assert lab.fingerprint("t12") == before
