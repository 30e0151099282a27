#!/usr/bin/python
# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Ansible module: kernel modules whose sources a package brought, built by DKMS."""

from __future__ import annotations

DOCUMENTATION = r"""
module: dkms
short_description: Build and install the kernel modules whose sources packages brought
version_added: 0.1.0
description:
  - Finds the sources by the C(dkms.conf) among the packages' files, builds and installs them for kernels that
    have their headers here.
  - Built apart from the packages' own scripts, a module that does not build leaves no package half
    configured.
options:
  packages:
    description: Packages that may own sources; those without are passed over.
    type: list
    elements: str
    required: true
  kernel:
    description: Kernel that must get its modules; empty for an image, where every kernel with headers does.
    type: str
    default: ''
attributes:
  check_mode:
    description: Says what would be built.
    support: full
author:
  - The dsprov authors
"""

EXAMPLES = r"""
- name: Ensure the modules are built
  dsprov.appliance.dkms:
    packages: [nvidia-open-kernel-dkms]
    kernel: "{{ ansible_facts['kernel'] }}"
"""

RETURN = r"""
built:
  description: What was built now, as module/version and kernel.
  returned: always
  type: list
  elements: str
kernel:
  description: The kernel for which a module does not build.
  returned: when one does not
  type: str
error:
  description: The first error of the compiler or of make.
  returned: when one does not build
  type: str
log:
  description: DKMS's own log of that build.
  returned: when one does not build
  type: str
"""

import contextlib
import os
import re
import subprocess
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.dsprov.appliance.plugins.module_utils import files
from ansible_collections.dsprov.appliance.plugins.module_utils.nvidia_driver import first_error, release_order

TREE = "/var/lib/dkms"
# Seconds that another build may take.
PATIENCE = 3600


class BuildError(Exception):
    """A module does not build."""

    def __init__(self, message: str, **details: str) -> None:
        super().__init__(message)
        self.details = details


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """A command with its words in English."""
    environment = {**os.environ, "LC_ALL": "C"}
    return subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=False, env=environment
    )


def sources(packages: list[str]) -> list[tuple[str, str]]:
    """(module, version) of each dkms.conf that the packages own."""
    found = []
    for path in run("dpkg", "-L", *packages).stdout.splitlines():
        if re.fullmatch(r"/usr/src/[^/]+/dkms\.conf", path):
            with open(path, encoding="utf-8", errors="replace") as file:
                text = file.read()
            name, version = (
                re.search(rf"(?m)^\s*{key}=[\"']?([^\"'\s]+)", text)
                for key in ("PACKAGE_NAME", "PACKAGE_VERSION")
            )
            if name and version:
                found.append((name[1], version[1]))
    return sorted(set(found))


def installed() -> set[tuple[str, str, str]]:
    """(module, version, kernel) of what DKMS has installed; its two ways of printing that."""
    rows = set()
    for line in run("dkms", "status").stdout.splitlines():
        found = re.match(r"([^,/]+)(?:/|, )([^,]+), ([^,]+), [^:]+: (installed)", line)
        if found:
            rows.add((found[1], found[2], found[3]))
    return rows


def targets(kernel: str) -> list[str]:
    """Kernels to build for: the one that is wanted and the newest beside it, or all of an image."""
    there = [
        name for name in os.listdir("/lib/modules") if os.path.exists(f"/lib/modules/{name}/build/Makefile")
    ]
    there.sort(key=release_order)
    if not kernel:
        return there
    # The newest that can boot is what the next boot takes.
    newest = [name for name in there if os.path.exists(f"/boot/vmlinuz-{name}")][-1:]
    return list(dict.fromkeys([kernel, *newest]))


def build(name: str, version: str, kernel: str) -> None:
    """Build and install one module; raises BuildError."""
    module = ["-m", name, "-v", version]
    if not os.path.isdir(f"{TREE}/{name}/{version}"):
        done = run("dkms", "add", *module)
        if done.returncode:
            raise BuildError(
                f"dkms add {name}/{version}: {last(done)}", error=last(done), kernel=kernel, log=""
            )
    for step in ("build", "install"):
        done = run("dkms", step, *module, "-k", kernel)
        # 3 and 5: it is built or installed already.
        if done.returncode not in (0, 3, 5):
            log = f"{TREE}/{name}/{version}/build/make.log"
            text = ""
            if os.path.exists(log):
                with open(log, encoding="utf-8", errors="replace") as file:
                    text = file.read()
            error = first_error(text) or last(done)
            raise BuildError(
                f"{name}/{version} does not build for kernel {kernel}: {error}",
                error=error,
                kernel=kernel,
                log=text[-20000:],
            )


def last(done: subprocess.CompletedProcess[str]) -> str:
    """What a command said in the end."""
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return lines[-1] if lines else f"ended with {done.returncode}"


def ensure(packages: list[str], kernel: str, check: bool) -> dict[str, Any]:
    """Build what is missing; the result of the module."""
    wanted = [(*one, target) for one in sources(packages) for target in targets(kernel)]
    built = []
    # ssh makes a call twice when its connection breaks, and two builds take away each other's files.
    with contextlib.nullcontext() if check else files.locked("dkms", PATIENCE):
        have = installed() if wanted else set()
        for name, version, target in wanted:
            if (name, version, target) not in have:
                if not check:
                    build(name, version, target)
                built.append(f"{name}/{version} {target}")
    return {"changed": bool(built), "built": built}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "packages": {"type": "list", "elements": "str", "required": True},
            "kernel": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    try:
        result = ensure(module.params["packages"], module.params["kernel"], module.check_mode)
    except BuildError as problem:
        module.fail_json(msg=str(problem), built=[], **problem.details)
    except (OSError, files.FileError) as problem:
        module.fail_json(msg=str(problem), built=[])
    module.exit_json(**result)


if __name__ == "__main__":
    main()
