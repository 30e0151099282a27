# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""From a channel's name to what a host asks to learn which of its places work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.dsprov.appliance.plugins.module_utils.sources import AUTO, endpoints
from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import catalogue

DOCUMENTATION = r"""
name: endpoints
short_description: What a host asks to learn which places of a channel work
version_added: 0.2.0
description:
  - Makes the endpoints of M(dsprov.appliance.probe) from the catalogue.
options:
  _input:
    description: Name of the channel; V(auto) stands for all of them.
    type: str
    required: true
  mirrors:
    description: The user's own places, which leave nothing to choose.
    type: dict
    default: {}
  named:
    description: Ask the places of a named channel, too, where there is nothing to choose.
    type: bool
    default: false
author:
  - The dsprov authors
"""

EXAMPLES = r"""
- name: Read the host and the places that it reaches
  dsprov.appliance.probe:
    endpoints: "{{ 'auto' | dsprov.appliance.endpoints }}"
"""

RETURN = r"""
_value:
  description: Kind of place to address to the URL of the proof.
  type: dict
"""


def of_channel(
    channel: str, mirrors: Mapping[str, Any] | None = None, named: bool = False
) -> dict[str, dict[str, str]]:
    """What `probe` takes as its `endpoints`; nothing where there is nothing to choose or to check."""
    rows = catalogue()
    if channel != AUTO and (not named or channel not in rows["channels"]):
        return {}
    return endpoints(rows, channel, mirrors or {})


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"endpoints": of_channel}
