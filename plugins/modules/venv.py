#!/usr/bin/python
# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Ansible module: a virtual environment with exactly the packages of a list, in one round trip."""

from __future__ import annotations

DOCUMENTATION = r"""
module: venv
short_description: Make a virtual environment with exactly the packages of a list
version_added: 0.1.0
description:
  - Makes a virtual environment by uv, fills it with the packages of a list in which every package has its
    digests, proves that it works, and marks it as whole. One that is marked is not touched again.
  - One that was interrupted is made anew; what was downloaded for it is used again.
options:
  path:
    description: Folder of the virtual environment.
    type: path
    required: true
  python:
    description: Interpreter that it is made of.
    type: path
    required: true
  uv:
    description: The program uv on the host.
    type: path
    required: true
  requirements:
    description: List of packages on the host, versions and digests, as C(uv pip compile) writes it.
    type: path
    required: true
  stamp:
    description: What marks it as whole, such as the digest of the list.
    type: str
    required: true
  index:
    description: Index that packages come from.
    type: str
    default: https://pypi.org/simple
  cache:
    description: Folder for what is downloaded, on the disk of O(path); removed in the end.
    type: path
    required: true
  proof:
    description: Arguments of the new interpreter that have to end well before it counts as whole.
    type: list
    elements: str
    default: []
  known_as:
    description: >-
      Versions of distributions that the environment counts as having, for programs that look themselves up by
      another name than the one that they are published under.
    type: dict
    default: {}
  title:
    description: What is installed, for messages.
    type: str
    required: true
attributes:
  check_mode:
    description: Says what would change.
    support: full
author:
  - The dsprov authors
"""

EXAMPLES = r"""
- name: Ensure the virtual environment is whole
  dsprov.appliance.venv:
    title: KTransformers 0.7.2
    path: /opt/dsprov/ktransformers/0.7.2-1a2b3c4d
    python: /usr/bin/python3.11
    uv: /opt/dsprov/uv/0.13.9/uv
    requirements: /opt/dsprov/ktransformers/requirements-0.7.2-1a2b3c4d.txt
    stamp: "{{ digest }}"
    cache: /opt/dsprov/ktransformers/.cache
    proof: ["-c", "import kt_kernel"]
"""

RETURN = r"""
path:
  description: Folder of the virtual environment.
  returned: success
  type: str
seconds:
  description: Seconds that it took.
  returned: changed
  type: float
proof:
  description: What the proof printed last.
  returned: changed
  type: str
"""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

STAMP = ".dsprov-stamp"
# The end of what a program said is what matters.
MOST_WORDS = 1500


class VenvError(Exception):
    """Says what could not be done, where, and what to do."""


class Venv:
    """One virtual environment."""

    def __init__(self, params: dict[str, Any]) -> None:
        self.params = params
        self.path = Path(params["path"])
        self.stamp = self.path / STAMP

    def whole(self) -> bool:
        """Whether it was finished, from the same list."""
        try:
            text = self.stamp.read_text(encoding="utf-8")
        except OSError:
            return False
        return text.strip() == self.params["stamp"] and (self.path / "bin" / "python").exists()

    def make(self) -> str:
        """Make it, and return what the proof said last."""
        params = self.params
        shutil.rmtree(self.path, ignore_errors=True)
        self._uv("venv", "--no-project", f"--python={params['python']}", str(self.path))
        python = self.path / "bin" / "python"
        self._uv(
            "pip",
            "install",
            "--no-deps",
            "--compile-bytecode",
            "--require-hashes",
            f"--python={python}",
            f"--requirements={params['requirements']}",
        )
        for name, version in params["known_as"].items():
            self._know(name, version)
        said = ""
        if params["proof"]:
            done = _run([str(python), *params["proof"]], dict(os.environ))
            if done.returncode:
                raise VenvError(f"{params['title']} was installed but does not work: {_end(done.stderr)}")
            said = _end(done.stdout)
        # The name goes last and in one step: half an environment never looks whole.
        fresh = self.path / f"{STAMP}.new"
        fresh.write_text(f"{params['stamp']}\n", encoding="utf-8")
        with fresh.open("rb") as file:
            os.fsync(file.fileno())
        fresh.rename(self.stamp)
        return said

    def _know(self, name: str, version: str) -> None:
        """Let the environment say that it has a distribution."""
        for site in self.path.glob("lib/python3*/site-packages"):
            folder = site / f"{name}-{version}.dist-info"
            folder.mkdir()
            text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            (folder / "METADATA").write_text(text, encoding="utf-8")

    def tidy(self) -> bool:
        """Remove the downloads, and say whether there were any."""
        cache = Path(self.params["cache"])
        there = cache.exists()
        shutil.rmtree(cache, ignore_errors=True)
        return there

    def _uv(self, *words: str) -> None:
        params = self.params
        environment = {
            **os.environ,
            "UV_DEFAULT_INDEX": params["index"],
            # On the same disk its files become links, not copies.
            "UV_CACHE_DIR": params["cache"],
            "UV_NO_CONFIG": "1",
            "UV_NO_PROGRESS": "1",
            "UV_PYTHON_DOWNLOADS": "never",
            "UV_HTTP_TIMEOUT": "60",
            # A company's own authority is in the host's store, not in the one that uv carries.
            "UV_SYSTEM_CERTS": "1",
        }
        done = _run([params["uv"], *words], environment)
        if done.returncode:
            raise VenvError(
                f"uv cannot install {params['title']} from {_public(params['index'])}: {_end(done.stderr)}"
            )


def _run(command: Sequence[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    except OSError as error:
        raise VenvError(f"{command[0]} cannot be run ({error.strerror}); run the install again") from None


def _end(text: str) -> str:
    return _public(" ".join(text.split()))[-MOST_WORDS:] or "it said nothing"


def _public(text: str) -> str:
    """A text without the name and password of its addresses."""
    return re.sub(r"//[^/@\s]*@", "//", text)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "python": {"type": "path", "required": True},
            "uv": {"type": "path", "required": True},
            "requirements": {"type": "path", "required": True},
            "stamp": {"type": "str", "required": True},
            "index": {"type": "str", "default": "https://pypi.org/simple"},
            "cache": {"type": "path", "required": True},
            "proof": {"type": "list", "elements": "str", "default": []},
            "known_as": {"type": "dict", "default": {}},
            "title": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    venv = Venv(module.params)
    result: dict[str, Any] = {"changed": False, "path": str(venv.path)}
    begun = time.monotonic()
    try:
        if not venv.whole():
            result["changed"] = True
            if not module.check_mode:
                result["proof"] = venv.make()
                result["seconds"] = round(time.monotonic() - begun, 1)
        if not module.check_mode:
            venv.tidy()
        module.exit_json(**result)
    except VenvError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename or venv.path}: {error.strerror}")


if __name__ == "__main__":
    main()
