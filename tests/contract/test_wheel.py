"""The wheel in a clean environment: built, installed, and run by its absolute path."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from dsprov.version import version
from tests.conftest import ROOT

pytestmark = pytest.mark.slow
INSIDE = "ansible_collections/dsprov/appliance/"


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command with a minimal environment: no virtual environment is active, PATH knows nothing of ours."""
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "HOME": str(cwd), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


UV = Path(sys.executable).with_name("uv")


def must(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, f"{done.args}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def package_environment(home: Path) -> dict[str, str]:
    """The caller's own package index, cache and proxy: how packages are reached here."""
    keep = {
        key: value
        for key, value in os.environ.items()
        if key.startswith(("UV_", "PIP_", "SSL_", "REQUESTS_", "PYENV_")) or key.lower().endswith("_proxy")
    }
    return {**keep, "HOME": os.environ.get("HOME", str(home))}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("dist")
    must(run(UV, "build", "--quiet", "--wheel", "--out-dir", target, cwd=ROOT, **package_environment(target)))
    (made,) = target.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of a clean virtual environment that holds the wheel."""
    home = tmp_path_factory.mktemp("clean")
    venv = home / "venv"
    keep = package_environment(home)
    keep["PATH"] = os.environ["PATH"]
    must(run(UV, "venv", "--quiet", "--python", sys.executable, venv, cwd=home, **keep))
    python = venv / "bin" / "python"
    must(run(UV, "pip", "install", "--quiet", "--python", python, wheel, cwd=home, **keep))
    return venv / "bin"


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    path = tmp_path / "hosts.ini"
    path.write_text("gpu01 ansible_host=192.0.2.10\n", encoding="utf-8")
    return path


def test_the_wheel_holds_the_house_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert len(names) == len(set(names))
    for name in (
        "dsprov/cli.py",
        "dsprov/commands/install.py",
        f"{INSIDE}galaxy.yml",
        f"{INSIDE}ansible.cfg",
        f"{INSIDE}catalog/models.yml",
        f"{INSIDE}catalog/schema/facts.yml",
        f"{INSIDE}inventories/tiers/demo.yml",
        f"{INSIDE}meta/runtime.yml",
        f"{INSIDE}playbooks/install.yml",
        f"{INSIDE}plugins/module_utils/planner.py",
        f"{INSIDE}plugins/action/plan.py",
        f"{INSIDE}roles/ollama/meta/argument_specs.yml",
    ):
        assert name in names
    roles = {path.parent.parent.name for path in (ROOT / "roles").glob("*/tasks/main.yml")}
    assert {f"{INSIDE}roles/{role}/tasks/main.yml" for role in roles} <= set(names)
    allowed = ("dsprov/", INSIDE, f"dsprov-{version()}.dist-info/")
    strange = re.compile(
        r"(^|/)(tests?|molecule|bench|\.[^/]+|__pycache__)(/|$)|\.(pyc|log|key|pem)$|secrets/"
    )
    for name in names:
        assert name.startswith(allowed), name
        assert not strange.search(name), name


def test_the_wheel_holds_no_secret(wheel: Path) -> None:
    shapes = re.compile(
        rb"-----BEGIN [A-Z ]*PRIVATE KEY|\bhf_[A-Za-z0-9]{30}|\bgh[pousr]_[A-Za-z0-9]{36}|\bAKIA[A-Z0-9]{16}"
    )
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            assert not shapes.search(archive.read(name)), name


def test_version_and_tiers(installed: Path, tmp_path: Path) -> None:
    assert must(run(installed / "dsprov", "--version", cwd=tmp_path)).strip() == f"dsprov {version()}"
    assert "demo" in must(run(installed / "dsprov", "tiers", "list", cwd=tmp_path))


def test_plan_of_a_file(installed: Path, tmp_path: Path) -> None:
    import yaml

    from tests.fixtures.machines import facts

    path = tmp_path / "facts.yml"
    path.write_text(yaml.safe_dump(facts()), encoding="utf-8")
    said = must(run(installed / "dsprov", "plan", "--facts", path, "--tier", "demo", cwd=tmp_path))
    assert "smollm2:135m" in said


def test_print_command_names_the_wheels_own_tier(installed: Path, hosts: Path, tmp_path: Path) -> None:
    line = must(
        run(installed / "dsprov", "install", "--print-command", "--tier", "demo", "-i", hosts, cwd=tmp_path)
    )
    assert "ansible-playbook dsprov.appliance.install -i " in line
    (tier,) = re.findall(r"-i (\S+/tiers/demo\.yml)", line)
    assert tier.startswith(str(installed.parent))
    assert Path(tier).is_file()


@pytest.mark.parametrize("playbook", ["install", "demo", "probe", "check", "plan", "status"])
def test_playbooks_are_found_by_their_full_name(
    playbook: str, installed: Path, hosts: Path, tmp_path: Path
) -> None:
    done = run(
        installed / "ansible-playbook",
        "--syntax-check",
        f"dsprov.appliance.{playbook}",
        "-i",
        hosts,
        cwd=tmp_path,
    )
    assert f"{installed.parent}/lib" in must(done)
    assert f"/dsprov/appliance/playbooks/{playbook}.yml" in done.stdout


def test_a_real_run_works_without_an_active_environment(installed: Path, tmp_path: Path) -> None:
    path = tmp_path / "hosts.ini"
    path.write_text(
        f"here ansible_connection=local ansible_become=false ansible_python_interpreter={sys.executable}\n",
        encoding="utf-8",
    )
    said = must(run(installed / "dsprov", "probe", "-i", path, "--json", cwd=tmp_path))
    assert '"here"' in said
