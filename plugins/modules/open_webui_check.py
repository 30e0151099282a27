#!/usr/bin/python
# Copyright (c) 2026 The dsprov authors
# SPDX-License-Identifier: Apache-2.0
"""Prove from the host that Open WebUI serves, is closed to strangers and knows the model."""

from __future__ import annotations

DOCUMENTATION = r"""
module: open_webui_check
short_description: Prove that Open WebUI serves, is closed to strangers and knows the model
version_added: 0.1.0
description:
  - Waits for C(/health), compares the version, and expects that the API refuses a caller without a token and
    that nobody can sign up.
  - Signs in as the administrator and looks for the model in the list. The password is read on the host from
    its file and is neither an argument nor part of the result.
author: The dsprov authors (@dsprov)
options:
  url:
    description: Base URL of Open WebUI, without a path.
    type: str
    required: true
  wait:
    description: Seconds to wait for it to be healthy.
    type: int
    default: 300
  version:
    description: The version that has to answer; any version if unset.
    type: str
  email:
    description: The administrator's e-mail address.
    type: str
    required: true
  password_file:
    description: File on the host that holds the administrator's password alone.
    type: path
    required: true
  signin_required:
    description:
      - Whether a refused sign-in is a failure.
      - People may change the password in the browser; the file is then out of date, which is worth a warning.
    type: bool
    default: false
  models:
    description: Models that have to be in the list of a signed-in user.
    type: list
    elements: str
    default: []
  wait_model:
    description: Seconds to wait for them to be in the list.
    type: int
    default: 30
  hint:
    description: What a person looks at when it does not come up, such as a command that shows the log.
    type: str
    default: ''
attributes:
  check_mode:
    description: Changes nothing anyway.
    support: full
  diff_mode:
    description: Changes nothing.
    support: none
"""

EXAMPLES = r"""
- name: Verify that Open WebUI serves the model
  dsprov.appliance.open_webui_check:
    url: http://127.0.0.1:8080
    version: 0.11.3
    email: admin@localhost
    password_file: /etc/dsprov/secrets/open-webui-admin-password
    models: [smollm2:135m]
"""

RETURN = r"""
version:
  description: The version that answered.
  type: str
  returned: success
models:
  description: Names of the models that the administrator sees.
  type: list
  elements: str
  returned: success
signed_in:
  description: Whether the password in the file is still the administrator's.
  type: bool
  returned: success
waited:
  description: Seconds until it was healthy.
  type: float
  returned: success
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.dsprov.appliance.plugins.module_utils.loopback import call


class CheckError(Exception):
    """Says what does not hold, where, and what to do."""


@dataclass
class Proof:
    """What was seen."""

    version: str = ""
    models: list[str] = field(default_factory=list)
    signed_in: bool = False
    waited: float = 0.0
    warnings: list[str] = field(default_factory=list)


class OpenWebuiCheck:
    """One round of questions."""

    def __init__(self, params: dict[str, Any], pause: float = 0.5) -> None:
        self.params = params
        self.url = params["url"].rstrip("/")
        self.pause = pause
        self.proof = Proof()

    def prove(self) -> Proof:
        """Ask everything in turn; raise at the first answer that is wrong."""
        self._healthy()
        self._version()
        self._closed()
        token = self._sign_in()
        if token:
            self._models(token)
        return self.proof

    def _healthy(self) -> None:
        start = time.monotonic()
        while True:
            status, answer = call(f"{self.url}/health", timeout=5)
            waited = time.monotonic() - start
            if status == 200 and isinstance(answer, dict) and answer.get("status") is True:
                self.proof.waited = round(waited, 1)
                return
            if waited >= self.params["wait"]:
                said = f"answered {status}" if status else "does not answer"
                hint = f"; see: {self.params['hint']}" if self.params["hint"] else ""
                raise CheckError(f"Open WebUI at {self.url} {said} after {self.params['wait']} s{hint}")
            time.sleep(self.pause)

    def _version(self) -> None:
        status, answer = call(f"{self.url}/api/version")
        self.proof.version = str(answer.get("version", "")) if isinstance(answer, dict) else ""
        wanted = self.params["version"]
        if status != 200 or (wanted and self.proof.version != wanted):
            raise CheckError(
                f"Open WebUI at {self.url} says it is version '{self.proof.version}', "
                f"not {wanted or 'any that is known'}; is another Open WebUI on this port?"
            )

    def _closed(self) -> None:
        status, _ = call(f"{self.url}/api/models")
        if status not in (401, 403):
            raise CheckError(
                f"Open WebUI at {self.url}/api/models answers {status} to a caller without a token; "
                "set WEBUI_AUTH to True"
            )
        _, answer = call(f"{self.url}/api/config")
        config = answer if isinstance(answer, dict) else {}
        if config.get("onboarding"):
            raise CheckError(
                f"Open WebUI at {self.url} has no administrator, and the first visitor would become one; "
                "see its log for why the account was not made"
            )
        if config.get("features", {}).get("enable_signup") is not False:
            raise CheckError(f"Open WebUI at {self.url} lets strangers sign up; set ENABLE_SIGNUP to False")

    def _sign_in(self) -> str:
        path = Path(self.params["password_file"])
        try:
            password = path.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise CheckError(
                f"{path}: cannot be read ({error.strerror}); enter the role open_webui to make it"
            ) from None
        status, answer = call(
            f"{self.url}/api/v1/auths/signin", body={"email": self.params["email"], "password": password}
        )
        token = answer.get("token", "") if status == 200 and isinstance(answer, dict) else ""
        if token:
            self.proof.signed_in = True
            return str(token)
        message = (
            f"Open WebUI at {self.url} answers {status} to {self.params['email']} with the password in "
            f"{path}; if it was changed in the browser, write the new one into that file"
        )
        if self.params["signin_required"] or status not in (400, 401, 403, 429):
            raise CheckError(message)
        self.proof.warnings.append(message)
        return ""

    def _models(self, token: str) -> None:
        start = time.monotonic()
        while True:
            status, answer = call(f"{self.url}/api/models", token=token)
            rows = answer.get("data", []) if isinstance(answer, dict) else []
            self.proof.models = sorted(str(row.get("id", "")) for row in rows if isinstance(row, dict))
            missing = [name for name in self.params["models"] if name not in self.proof.models]
            if status == 200 and not missing:
                return
            if time.monotonic() - start >= self.params["wait_model"]:
                raise CheckError(
                    f"Open WebUI at {self.url} does not offer the model '{', '.join(missing)}' (it offers: "
                    f"{', '.join(self.proof.models) or 'none'}); does the engine answer at its /v1/models?"
                )
            time.sleep(self.pause)


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "wait": {"type": "int", "default": 300},
            "version": {"type": "str"},
            "email": {"type": "str", "required": True},
            # A path, not a secret.
            "password_file": {"type": "path", "required": True, "no_log": False},
            "signin_required": {"type": "bool", "default": False},
            "models": {"type": "list", "elements": "str", "default": []},
            "wait_model": {"type": "int", "default": 30},
            "hint": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    try:
        proof = OpenWebuiCheck(module.params).prove()
    except CheckError as error:
        module.fail_json(msg=str(error))
    for warning in proof.warnings:
        module.warn(warning)
    module.exit_json(
        changed=False,
        version=proof.version,
        models=proof.models,
        signed_in=proof.signed_in,
        waited=proof.waited,
    )


if __name__ == "__main__":
    main()
