# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""From the command of a server for one model to the command of one for several."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

DOCUMENTATION = r"""
name: llama_cpp_router
short_description: The command of a llama.cpp server for several models, and the file that describes them
version_added: 0.2.0
description:
  - Words of a command win over the models' file, so only what is the same for all models stays in the
    command. All else becomes the first model of the file, which is loaded from the start.
  - Without further models the command stays as it is, and the text is empty.
options:
  _input:
    description: The command of a server for one model, word by word.
    type: list
    elements: str
    required: true
  models:
    description:
      - Further models, each with C(name), C(path) of its GGUF file and C(settings), options of the server.
    type: list
    elements: dict
    required: true
  preset:
    description: Path of the file.
    type: path
    required: true
  most:
    description: How many models are loaded at once.
    type: int
    required: true
author:
  - The dsprov authors
"""

EXAMPLES = r"""
- name: Show the file that describes the models
  ansible.builtin.debug:
    msg: "{{ (command | dsprov.appliance.llama_cpp_router(llama_cpp_models, '/etc/models.ini', 2)).text }}"
"""

RETURN = r"""
_value:
  description: C(command), word by word, and C(text) of the file.
  type: dict
"""

# What a server says once for all its models.
OF_ALL_MODELS = {"--host", "--port", "--metrics", "--offline", "--numa"}
HEAD = "\n[{}]\nalias = {}"


def routed(
    command: Sequence[str], models: Sequence[Mapping[str, Any]], preset: str, most: int
) -> dict[str, Any]:
    """The command of a server for the command's own model and `models`, and the text of `preset`."""
    if not models or not command:
        return {"command": list(command), "text": ""}
    words, own, rest, name = [command[0]], [], list(command[1:]), ""
    while rest:
        word = rest.pop(0)
        value = rest.pop(0) if rest and not rest[0].startswith("--") else None
        if word in OF_ALL_MODELS:
            words += [word] if value is None else [word, value]
        elif word == "--alias":
            name = value or ""
        else:
            own.append((word.removeprefix("--"), "true" if value is None else value))
    lines = ["; Kept by dsprov (role llama_cpp); changes made here are put back.", "version = 1"]
    # The part of a name after a colon is put into capitals; by its alias a model keeps its name.
    lines += [HEAD.format(name.replace(":", "-"), name), "load-on-startup = true"]
    lines += [f"{key} = {text}" for key, text in own]
    for model in models:
        lines += [HEAD.format(model["name"].replace(":", "-"), model["name"]), f"model = {model['path']}"]
        lines += [f"{key} = {text}" for key, text in sorted((model.get("settings") or {}).items())]
    words += ["--models-preset", preset, "--models-max", str(most)]
    return {"command": words, "text": "\n".join(lines) + "\n"}


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"llama_cpp_router": routed}
