#!/usr/bin/python
# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Ansible module: prove from the host that an engine answers by the OpenAI API."""

from __future__ import annotations

DOCUMENTATION = r"""
module: openai_check
short_description: Prove that an engine serves its model by the OpenAI API
version_added: 0.1.0
description:
  - Waits until C(/models) lists the model and asks for one completion.
  - Ends at once, with the service's last words, when its unit has failed or keeps falling over.
  - With O(key_file), expects that a caller without the key is refused. The key is read on the host and is
    neither an argument nor part of the result.
options:
  url:
    description: Base URL of the API, such as C(http://127.0.0.1:11435/v1).
    type: str
    required: true
  model:
    description: Name of the model that has to be served.
    type: str
    required: true
  key_file:
    description: File on the host that holds the API key alone; none for an engine without one.
    type: path
  unit:
    description: The engine's unit.
    type: str
    required: true
  wait:
    description: Seconds until the model has to be listed, its loading included.
    type: int
    default: 3600
  timeout:
    description: Seconds that the answer may take.
    type: int
    default: 600
  prompt:
    description: What the model is asked; empty to ask nothing.
    type: str
    default: What is the capital of France?
  max_tokens:
    description: Length of the answer.
    type: int
    default: 8
  fingerprint:
    description: How the C(system_fingerprint) of the answer has to begin, which names the engine's version.
    type: str
    default: ''
attributes:
  check_mode:
    description: Changes nothing anyway.
    support: full
author:
  - The dsprov authors
"""

EXAMPLES = r"""
- name: Verify that the engine answers
  dsprov.appliance.openai_check:
    url: http://127.0.0.1:11435/v1
    model: smollm2:135m
    key_file: /etc/dsprov/secrets/llama-server-api-key
    unit: dsprov-llama-server.service
"""

RETURN = r"""
models:
  description: Names of the models that are served.
  returned: success
  type: list
  elements: str
answer:
  description: What the model said.
  returned: success
  type: str
waited:
  description: Seconds until the model was listed.
  returned: success
  type: float
seconds:
  description: Seconds that the answer took.
  returned: success
  type: float
tokens:
  description: Tokens of the answer.
  returned: success
  type: int
"""

import json
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.dsprov.appliance.plugins.module_utils.loopback import call
from ansible_collections.dsprov.appliance.plugins.module_utils.units import Unit, cause

FALLS = 3


class CheckError(Exception):
    """Says what does not hold, where, and what to do."""


class Check:
    """One round of questions."""

    def __init__(self, params: dict[str, Any], pause: float = 0.5) -> None:
        self.params = params
        self.url = params["url"].rstrip("/")
        self.pause = pause
        self.key = ""
        if params["key_file"]:
            try:
                self.key = Path(params["key_file"]).read_text(encoding="utf-8").strip()
            except OSError as error:
                raise CheckError(
                    f"{params['key_file']}: cannot be read ({error.strerror}); run the install again"
                ) from None

    def prove(self) -> dict[str, Any]:
        """Ask everything in turn; raise at the first answer that is wrong."""
        found = self._listed()
        if self.key:
            status, _ = call(f"{self.url}/chat/completions", "", {"messages": []}, 20)
            if status not in (401, 403):
                raise CheckError(
                    f"{self.url} answers {status} to a caller without its key; does another service have "
                    "this port?"
                )
        return found | (
            self._answer() if self.params["prompt"] else {"answer": "", "seconds": 0.0, "tokens": 0}
        )

    def _listed(self) -> dict[str, Any]:
        unit, wanted = self.params["unit"], self.params["model"]
        first = Unit.read(unit).restarts
        begun = time.monotonic()
        while True:
            status, answer = call(f"{self.url}/models", self.key, None, 20)
            rows = answer.get("data") if isinstance(answer, dict) else None
            names = sorted(str(row.get("id")) for row in rows or [] if isinstance(row, dict))
            waited = time.monotonic() - begun
            if status == 200 and wanted in names:
                return {"models": names, "waited": round(waited, 1)}
            if status == 200 and names:
                raise CheckError(f"{self.url} serves {', '.join(names)}, not {wanted}; restart {unit}")
            if status in (401, 403):
                raise CheckError(f"{self.url} refuses the key in {self.params['key_file']}; restart {unit}")
            now = Unit.read(unit)
            if now.failed or now.restarts >= first + FALLS or (not now.active and not now.pid):
                raise CheckError(f"{unit} starts and falls over; {cause(unit)}")
            if waited >= self.params["wait"]:
                said = f"answers {status}" if status else f"does not answer ({answer})"
                raise CheckError(f"{self.url} {said} after {self.params['wait']} s; {cause(unit)}")
            time.sleep(self.pause)

    def _answer(self) -> dict[str, Any]:
        body = {
            "model": self.params["model"],
            "messages": [{"role": "user", "content": self.params["prompt"]}],
            "max_tokens": self.params["max_tokens"],
            "temperature": 0,
            "seed": 1,
        }
        begun = time.monotonic()
        status, answer = call(f"{self.url}/chat/completions", self.key, body, self.params["timeout"])
        seconds = time.monotonic() - begun
        choices = answer.get("choices") if isinstance(answer, dict) else None
        message = (choices[0].get("message") if choices else None) or {}
        # A model that thinks first says nothing else in so few words; engines do not agree on the name of it.
        said = (message.get(key) for key in ("content", "reasoning", "reasoning_content"))
        text = next((str(words).strip() for words in said if words), "")
        if status != 200 or not text:
            raise CheckError(
                f"{self.params['model']} at {self.url} gives no answer (status {status}): "
                f"{json.dumps(answer)[:200]}; {self.params['unit']}: {cause(self.params['unit'])}"
            )
        fingerprint = str(answer.get("system_fingerprint") or "")
        if not fingerprint.startswith(self.params["fingerprint"]):
            raise CheckError(
                f"{self.url} is answered by {fingerprint}, not {self.params['fingerprint']}; "
                f"restart {self.params['unit']}"
            )
        tokens = int((answer.get("usage") or {}).get("completion_tokens") or 0)
        return {"answer": text, "seconds": round(seconds, 2), "tokens": tokens}


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "model": {"type": "str", "required": True},
            # A path, not a secret.
            "key_file": {"type": "path", "no_log": False},
            "unit": {"type": "str", "required": True},
            "wait": {"type": "int", "default": 3600},
            "timeout": {"type": "int", "default": 600},
            "prompt": {"type": "str", "default": "What is the capital of France?"},
            "max_tokens": {"type": "int", "default": 8},
            "fingerprint": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(changed=False, **Check(module.params).prove())
    except CheckError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
