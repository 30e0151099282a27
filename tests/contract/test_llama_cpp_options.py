"""What llama.cpp is built with, by the role's own variables: code for the host's cards, and for no others."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import ROOT

HOME = "/opt/dsprov/cuda/13.0.2"
CUDA = {"version": "13.0.2", "path": HOME, "stubs": f"{HOME}/lib64/stubs"}
# In a process of its own: Ansible's loader takes over how collections are imported.
TEMPLATE = """
import json, sys
import yaml
from ansible.plugins.loader import init_plugin_loader
init_plugin_loader([sys.argv[1] + "/cli"])
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

def trusted(value):
    if isinstance(value, dict):
        return {key: trusted(one) for key, one in value.items()}
    if isinstance(value, list):
        return [trusted(one) for one in value]
    return trust_as_template(value) if isinstance(value, str) else value

role = sys.argv[1] + "/roles/llama_cpp"
values = {"role_path": role, "ansible_facts": {}}
for folder in ("vars", "defaults"):
    with open(f"{role}/{folder}/main.yml", encoding="utf-8") as file:
        values |= trusted(yaml.safe_load(file))
found = {}
for case, (name, more) in json.load(sys.stdin).items():
    templar = Templar(loader=DataLoader(), variables={**values, **more})
    found[case] = templar.template(values[name])
print(json.dumps(found, default=str))
"""
OPTIONS, WANTED = "__llama_cpp_options", "__llama_cpp_wanted"
COMMAND = ["llama-server", "--model", "/m/a.gguf", "--alias", "a", "--port", "11435"]


def on(*capabilities: str) -> dict[str, Any]:
    """Inputs of a build for cards."""
    return {
        "llama_cpp_backend": "cuda",
        "cuda_toolkit_contract": {**CUDA, "capabilities": list(capabilities)},
    }


# Which variable of the role, with what a user or a plan sets.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "version": ("llama_cpp_version", {}),
    "cpu": (OPTIONS, {}),
    "4090": (OPTIONS, on("8.9")),
    "mixed": (OPTIONS, on("8.9", "6.1", "12.0", "8.9")),
    "unsorted": (OPTIONS, on("12.0", "7.5", "9.0")),
    "own": (OPTIONS, {**on("8.9"), "llama_cpp_cmake_options": {"GGML_CUDA_FA": "OFF"}}),
    "portable": (WANTED, {"llama_cpp_cmake_options": {"GGML_NATIVE": "OFF"}}),
    "one": (WANTED, {"llama_cpp_command": COMMAND}),
    "several": (
        WANTED,
        {
            "llama_cpp_command": COMMAND,
            "llama_cpp_arguments": ["--port", "9"],
            "llama_cpp_models": [{"name": "b", "path": "/m/b.gguf"}],
        },
    ),
}


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    """What the variables come to, by case."""
    done = subprocess.run(
        [sys.executable, "-c", TEMPLATE, str(ROOT)],
        input=json.dumps(CASES),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("case", "architectures"),
    [("4090", "89-real"), ("mixed", "89-real;120-real"), ("unsorted", "75-real;90-real;120-real")],
)
def test_code_is_made_for_the_hosts_own_cards(made: dict[str, Any], case: str, architectures: str) -> None:
    options = made[case]
    assert options["CMAKE_CUDA_ARCHITECTURES"] == architectures
    assert options["CMAKE_CUDA_COMPILER"] == "/opt/dsprov/cuda/13.0.2/bin/nvcc"
    assert options["CMAKE_INSTALL_RPATH"] == "$ORIGIN;/opt/dsprov/cuda/13.0.2/lib"
    assert options["CMAKE_EXE_LINKER_FLAGS"] == f"-Wl,-rpath-link,{CUDA['stubs']}"
    assert (options["GGML_CUDA"], options["GGML_NATIVE"]) == ("ON", "ON")


def test_a_build_for_the_cpu_knows_no_cuda(made: dict[str, Any]) -> None:
    assert not [key for key in made["cpu"] if "CUDA" in key]
    assert made["cpu"]["CMAKE_INSTALL_RPATH"] == "$ORIGIN"
    assert made["cpu"]["LLAMA_BUILD_NUMBER"] == made["version"].removeprefix("b")


def test_the_users_options_win(made: dict[str, Any]) -> None:
    assert made["own"]["GGML_CUDA_FA"] == "OFF"
    assert made["portable"]["build"]["inputs"]["options"]["GGML_NATIVE"] == "OFF"
    assert (made["portable"]["build"]["native"], made["one"]["build"]["native"]) == (False, True)


def test_what_is_looked_for_follows_the_commands_last_word(made: dict[str, Any]) -> None:
    one, several = made["one"], made["several"]
    assert ([int(port) for port in one["ports"]], one["files"]) == ([11435], ["/m/a.gguf"])
    assert ([int(port) for port in several["ports"]], several["files"]) == ([9], ["/m/a.gguf", "/m/b.gguf"])
    assert one["command"] == COMMAND
    assert "--models-preset" in several["command"]
