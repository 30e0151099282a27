"""What a plan prints is what the unit runs: every engine with a unit of its own, over all known machines."""

from __future__ import annotations

import re
import shlex
from typing import Any

import jinja2
import pytest
import yaml

from ansible_collections.dsprov.appliance.plugins.module_utils.units import exec_line
from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import catalogue
from tests.conftest import ROOT
from tests.fixtures.emitted import group_rows, hosts

# Roles whose unit is made from the plan's own words.
ENGINES = ("ktransformers", "llama_cpp", "vllm")
# What a role sets beside the plan: where caches go, and the mark of what runs.
OWN = {
    "CUDA_HOME",
    "DSPROV_DIGEST",
    "HOME",
    "PATH",
    "PYTHONPATH",
    "TORCHINDUCTOR_CACHE_DIR",
    "VLLM_CONFIG_ROOT",
    "XDG_CACHE_HOME",
}


def unit_of(engine: str, row: dict[str, Any]) -> str:
    """The unit as the role writes it; what is of no matter here is left empty."""
    unit = catalogue()["engines"][engine]["unit"]
    template = ROOT / "roles" / engine / "templates" / f"{unit}.j2"
    values = {
        key: value
        for folder in ("defaults", "vars")
        for key, value in yaml.safe_load(
            (ROOT / "roles" / engine / folder / "main.yml").read_text(encoding="utf-8")
        ).items()
    }
    plain = {key: value for key, value in values.items() if not re.search(r"{[{%]", str(value))}
    program = f"/opt/dsprov/{engine}/current/bin/{row['command'][0]}"
    look = {"exec_start": exec_line([program, *row["command"][1:]])}
    # As Ansible does: a unit is no web page.
    environment = jinja2.Environment(autoescape=False)  # noqa: S701
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        {
            **plain,
            "vllm_members": [row["environment"]["VLLM_HOST_IP"]] if row["role"] != "single" else [],
            "__vllm_over_ray": row["command"][0] == "ray",
            f"__{engine}_look": look,
            f"__{engine}_words": row["command"],
            f"{engine}_environment": row["environment"],
            f"{engine}_build": "cuda",
            f"{engine}_backend": "cuda",
            "cuda_toolkit_contract": {"path": "/opt/dsprov/cuda/13"},
        }
    )


def unescaped(line: str) -> list[str]:
    """Words of a line as systemd reads them."""
    return [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(line)]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_unit_runs_what_the_plan_says(engine: str) -> None:
    planned = hosts(engine)
    assert len(planned) > 5
    if engine == "vllm":
        planned += (groups := group_rows())
        assert {(row["role"], row["command"][0]) for row in groups} == {
            (role, program) for role in ("head", "worker") for program in ("vllm", "ray")
        }
    for row in planned:
        unit = unit_of(engine, row)
        (command,) = re.findall(r"(?m)^ExecStart=(.*)$", unit)
        assert unescaped(command)[1:] == row["command"][1:]
        assert unescaped(command)[0].endswith(f"/{row['command'][0]}")
        settings = dict(
            unescaped(line)[0].split("=", 1) for line in re.findall(r"(?m)^Environment=(.*)$", unit)
        )
        assert {key: value for key, value in settings.items() if key not in OWN} == row["environment"]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_command_names_what_the_plan_brings(engine: str) -> None:
    """Every path of a command is the folder of the weights, or in it, or a folder of files that come."""
    for row in hosts(engine):
        weights = row["weights"]
        brought = {f"{weights['folder']}/{file['name']}" for file in weights["artifacts"]}
        # Converted weights are the user's to bring, which the plan says.
        brought |= {f"{folder}/x" for folder in row["placement"].get("folders", [])}
        for word in row["command"]:
            if word.startswith("/") and brought:
                assert any(one == word or one.startswith(f"{word}/") for one in brought), word


def test_systems_of_an_engine_have_its_python() -> None:
    systems = catalogue()["systems"]["systems"]
    for name, engine in catalogue()["engines"].items():
        if "pythons" not in engine:
            continue
        suits = {
            os: [
                version
                for version in row["versions"]
                if row["python"][version] in engine["pythons"]
                or engine["python_packages"].get(f"{os} {version}", "").removeprefix("python")
                in engine["pythons"]
            ]
            for os, row in systems.items()
        }
        assert engine["systems"] == {os: versions for os, versions in suits.items() if versions}, name
