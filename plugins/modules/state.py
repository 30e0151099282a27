#!/usr/bin/python
# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Records on the host what dsprov made of it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: state
short_description: Record what an install made of a host
version_added: 0.1.0
description:
  - Writes C(/etc/dsprov/state.json), from which C(status) knows what to look at, and later runs what was.
  - The time is only set anew when something else changed. The file is replaced in one step, never torn.
options:
  path:
    description: The file.
    type: path
    default: /etc/dsprov/state.json
  document:
    description: What to record; C(schema) and C(when) are added.
    type: dict
    required: true
author:
  - The dsprov authors (@dsprov)
attributes:
  check_mode:
    description: Says whether the record would change.
    support: full
"""

EXAMPLES = r"""
- name: Ensure the host's state is recorded
  dsprov.appliance.state:
    document:
      tier: demo
"""

RETURN = r"""
document:
  description: The record as it is on the host now.
  returned: always
  type: dict
  sample: {"schema": 1, "tier": "demo", "when": "2026-11-21T22:00:00Z"}
"""

import os
import time

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.dsprov.appliance.plugins.module_utils.files import dump_json, load_json

SCHEMA = 1


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "default": "/etc/dsprov/state.json"},
            "document": {"type": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    path = module.params["path"]
    old = load_json(path)
    wanted = {"schema": SCHEMA, **module.params["document"]}
    if {key: value for key, value in old.items() if key != "when"} == wanted:
        module.exit_json(changed=False, document=old)
    new = {**wanted, "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    if not module.check_mode:
        try:
            os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
            dump_json(path, new)
        except OSError as error:
            module.fail_json(msg=f"{path}: {error.strerror}; free space or mend its rights, then run again")
    module.exit_json(changed=True, document=new)


if __name__ == "__main__":
    main()
