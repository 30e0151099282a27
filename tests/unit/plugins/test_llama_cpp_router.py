"""A server of several models: its command, and the file that describes them."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.dsprov.appliance.plugins.filter.llama_cpp_router import routed

COMMAND = ["llama-server", "--model", "/m/a.gguf", "--alias", "a:1b", "--host", "127.0.0.1", "--port", "1"]
COMMAND += ["--ctx-size", "4096", "--no-warmup", "--metrics", "--offline"]


@pytest.mark.parametrize(("command", "models"), [(COMMAND, []), ([], [{"name": "b", "path": "/b"}])])
def test_one_model_needs_no_file(command: list[str], models: list[dict[str, Any]]) -> None:
    assert routed(command, models, "/etc/x.ini", 2) == {"command": command, "text": ""}


def test_several_models_are_described_in_a_file_of_their_own() -> None:
    other = {"name": "b:2b", "path": "/m/b.gguf", "settings": {"threads": 2, "ctx-size": 1024}}
    made = routed(COMMAND, [other, {"name": "c", "path": "/m/c.gguf"}], "/etc/x.ini", 3)
    assert made["command"] == [
        *("llama-server", "--host", "127.0.0.1", "--port", "1", "--metrics", "--offline"),
        *("--models-preset", "/etc/x.ini", "--models-max", "3"),
    ]
    own = ["load-on-startup = true", "model = /m/a.gguf", "ctx-size = 4096", "no-warmup = true"]
    assert [part.splitlines() for part in made["text"].split("\n\n")[1:]] == [
        ["[a-1b]", "alias = a:1b", *own],
        ["[b-2b]", "alias = b:2b", "model = /m/b.gguf", "ctx-size = 1024", "threads = 2"],
        ["[c]", "alias = c", "model = /m/c.gguf"],
    ]
