#!/usr/bin/python
# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Ansible module: the key of an apt repository, known by its fingerprint."""

from __future__ import annotations

DOCUMENTATION = r"""
module: apt_key
short_description: Bring the key file of an apt repository, trusted by its fingerprint alone
version_added: 0.1.0
description:
  - Fetches a key file from the first source that has the right one, and writes it for C(Signed-By).
  - Every primary key in the file must be among O(fingerprints), so that nobody else can sign for the
    repository.
  - A file that is there with these keys is kept, and nobody is asked.
  - Needs neither gpg nor any package on the host.
options:
  dest:
    description: Where the key file belongs.
    type: path
    required: true
  sources:
    description: Addresses, best first.
    type: list
    elements: str
    required: true
  fingerprints:
    description: Fingerprints of the keys that may be in the file, in hexadecimal; blanks do not count.
    type: list
    elements: str
    required: true
attributes:
  check_mode:
    description: Says whether the file would change; asks nobody.
    support: full
author:
  - The dsprov authors
"""

EXAMPLES = r"""
- name: Ensure the repository's key is present
  dsprov.appliance.apt_key:
    dest: /etc/apt/keyrings/dsprov-nvidia.gpg
    sources: ["https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64/3bf863cc.pub"]
    fingerprints: [EB693B3035CD5710E231E123A4B469963BF863CC]
"""

RETURN = r"""
source:
  description: The address that had it; empty where nobody was asked.
  returned: always
  type: str
found:
  description: Fingerprints in the file.
  returned: when the file is there
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.dsprov.appliance.plugins.module_utils import files
from ansible_collections.dsprov.appliance.plugins.module_utils.apt_keys import ensure


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "dest": {"type": "path", "required": True},
            # Public keys: nothing of them is a secret.
            "sources": {"type": "list", "elements": "str", "required": True},
            "fingerprints": {"type": "list", "elements": "str", "required": True},
        },
        supports_check_mode=True,
    )
    wanted = {"".join(one.split()).upper() for one in module.params["fingerprints"]}
    try:
        result = ensure(module.params["dest"], module.params["sources"], wanted, module.check_mode)
    except (files.FileError, OSError) as problem:
        module.fail_json(msg=str(problem))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
