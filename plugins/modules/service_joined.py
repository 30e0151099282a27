#!/usr/bin/python
# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Ansible module: wait until a service of a group of hosts has reached the first of them."""

from __future__ import annotations

DOCUMENTATION = r"""
module: service_joined
short_description: Wait until a service has reached the first host of its group
version_added: 0.2.0
description:
  - The first host of a group waits for the others, for long where they never come. Why one does not come is
    seen on that one alone.
  - Fails at once, with the service's last words, when its unit has failed or keeps falling over. When time
    is up it says no more than that, since the first host may be the one that does not come.
options:
  unit:
    description: The service's unit.
    type: str
    required: true
  address:
    description: The first host's address.
    type: str
    required: true
  wait:
    description: Seconds to look at it.
    type: int
    default: 300
attributes:
  check_mode:
    description: Changes nothing anyway.
    support: full
author:
  - The dsprov authors
"""

EXAMPLES = r"""
- name: Ensure this host's part reaches the head
  dsprov.appliance.service_joined:
    unit: dsprov-vllm.service
    address: 10.0.0.1
"""

RETURN = r"""
joined:
  description: Whether it has reached the first host.
  returned: success
  type: bool
"""

import pwd
import re
import time

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.dsprov.appliance.plugins.module_utils.units import Unit, cause, run

# Starts after which a service that ends by itself is given up.
FALLS = 2


class FellError(Exception):
    """Says why it falls over."""


def reaches(user: str, address: str) -> bool:
    """Whether a process of the user has a connection to the address."""
    number = pwd.getpwnam(user).pw_uid
    mark = rf"\buid:{number}\b" if number else r"\bino:"  # Of root it names no number.
    said = run(["ss", "-Htne", "state", "established", "dst", f"[{address}]" if ":" in address else address])
    return re.search(mark, said) is not None


def joined(unit: str, address: str, seconds: float, pause: float = 1.0) -> bool:
    """Whether it reaches the address in time.

    Raises:
        FellError: the unit falls over.
    """
    first = Unit.read(unit)
    begun = time.monotonic()
    while True:
        now = Unit.read(unit)
        if now.active and now.user and reaches(now.user, address):
            return True
        if now.failed or now.restarts >= first.restarts + FALLS:
            raise FellError(f"{unit} starts and falls over; {cause(unit)}")
        if time.monotonic() - begun >= seconds:
            return False
        time.sleep(pause)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "unit": {"type": "str", "required": True},
            "address": {"type": "str", "required": True},
            "wait": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    given = module.params
    try:
        module.exit_json(changed=False, joined=joined(given["unit"], given["address"], given["wait"]))
    except FellError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
