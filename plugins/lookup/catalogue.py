# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""A part of the catalogue for the roles that follow it."""

from __future__ import annotations

from functools import cache
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase

from ansible_collections.dsprov.appliance.plugins.module_utils.problems import ProblemError
from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import CATALOG, read_yaml

DOCUMENTATION = r"""
name: catalogue
short_description: A part of the catalogue
version_added: 0.2.0
description:
  - Reads C(catalog/), and each file of it once for a task however often the task asks.
options:
  _terms:
    description: Parts, which are named as their files are.
    type: list
    elements: str
    required: true
author:
  - The dsprov authors
"""

EXAMPLES = r"""
- name: Show which release of Ollama is pinned
  ansible.builtin.debug:
    msg: "{{ lookup('dsprov.appliance.catalogue', 'software').ollama.version }}"
"""

RETURN = r"""
_raw:
  description: What the part holds.
  type: list
  elements: dict
"""


@cache
def part(name: str) -> Any:
    """The rows of catalog/NAME.yml.

    Raises:
        AnsibleError: it cannot be read, or is of no such shape.
    """
    try:
        return read_yaml(CATALOG / f"{name}.yml")[name]
    except ProblemError as error:
        raise AnsibleError(str(error)) from error
    except KeyError as error:
        raise AnsibleError(f"the catalogue has no part {name}") from error


class LookupModule(LookupBase):
    """The lookup `catalogue`."""

    def run(self, terms: list[str], **_rest: Any) -> list[Any]:
        """What each part holds."""
        return [part(term) for term in terms]
