"""What `dsprov bundle create` refuses, before anything is fetched; Ansible itself reads the variables."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsprov.bundle import create
from tests.conftest import Dsprov
from tests.unit.bundle.conftest import Make

DEMO = ("bundle", "create", "--tier", "demo")


def refused(said: object, word: str, output: Path) -> None:
    assert said.code == 2, said.err  # type: ignore[attr-defined]
    assert word in said.err  # type: ignore[attr-defined]
    assert not output.exists() or list(output.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "word"),
    [
        ((), "for which system"),
        (("--os", "debian-11"), "one of debian-12, debian-13"),
        (("--os", "Debian 12"), "one of debian-12"),
        (("--facts", "/nothing.yml"), "no such file"),
        (("--os", "debian-12", "-e", "dsprov_password=x"), "ansible-vault"),
        (("--os", "debian-12", "-e", "nonsense"), "KEY=VALUE"),
    ],
)
def test_wrong_use(words: tuple[str, ...], word: str, dsprov: Dsprov, tmp_path: Path) -> None:
    output = tmp_path / "out"
    refused(dsprov(*DEMO, *words, "-o", output), word, output)


def test_a_tier_that_depends_on_gpus_wants_facts(dsprov: Dsprov, tmp_path: Path) -> None:
    output = tmp_path / "out"
    said = dsprov("bundle", "create", "--tier", "standard", "--os", "debian-12", "-o", output)
    refused(said, "--facts", output)


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (("--variant", "Q9"), "no variant 'Q9'"),
        (("-e", "dsprov_modle=x"), "did you mean dsprov_model"),
    ],
)
def test_what_the_plan_refuses(words: tuple[str, ...], word: str, dsprov: Dsprov, tmp_path: Path) -> None:
    output = tmp_path / "out"
    refused(dsprov(*DEMO, "--os", "debian-12", *words, "-o", output), word, output)


def test_a_folder_of_somebody_else_is_left_alone(dsprov: Dsprov, tmp_path: Path) -> None:
    mine = tmp_path / "files" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("mine", encoding="utf-8")
    said = dsprov(*DEMO, "--os", "debian-12", "-o", tmp_path)
    assert said.code == 2
    assert "holds no bundle" in said.err
    assert mine.read_text(encoding="utf-8") == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["files"]


def test_the_line_that_is_shown_is_the_line_that_runs(make: Make, dsprov: Dsprov, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts.ini"
    hosts.write_text("gpu01 ansible_host=192.0.2.10\n", encoding="utf-8")
    folder = make()
    said = dsprov("install", "--tier", "demo", "--bundle", folder, "-i", hosts, "--print-command")
    assert said.code == 0
    assert "-R 127.0.0.1:4870:" in said.out
    assert f"-e dsprov_channel=bundle -e dsprov_bundle={folder}" in said.out


def test_lists_of_packages_of_any_length_are_heard_of() -> None:
    """Open WebUI's, with all digests, is longer than what ansible-runner hands over by itself."""
    order = create.Order("demo", ("debian-12",), None, (), ("open_webui_method=venv",), None, Path("unused"))
    needs = create.ask_roles(order, lambda _event: None).by_system["debian-12"]
    (wheels,) = needs["wheels"]
    assert Path(wheels["requirements"]).read_text(encoding="utf-8").count("--hash=sha256:") > 1000
    assert any(file["name"].startswith("uv ") for file in needs["files"])
