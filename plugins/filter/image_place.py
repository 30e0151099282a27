# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""From an image's own name to the name under which a channel has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.dsprov.appliance.plugins.module_utils.sources import image_place

DOCUMENTATION = r"""
name: image_place
short_description: The name under which a channel has an image
version_added: 0.1.0
description:
  - Puts the registry that stands in for an image's own in its place; tag and digest stay.
  - Docker's C(registry-mirrors) serve Docker Hub alone. For every other registry the name has to change.
options:
  _input:
    description: The image as its makers call it, such as V(ghcr.io/open-webui/open-webui).
    type: str
    required: true
  places:
    description: The channel's places; only its C(registries) count.
    type: dict
    default: {}
author:
  - The dsprov authors
"""

EXAMPLES = r"""
- name: Say where the image comes from
  ansible.builtin.debug:
    msg: "{{ 'quay.io/prometheus/prometheus' | dsprov.appliance.image_place(dsprov_sources) }}"
"""

RETURN = r"""
_value:
  description: The image in that channel, such as V(m.daocloud.io/quay.io/prometheus/prometheus).
  type: str
"""


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"image_place": image_place}
