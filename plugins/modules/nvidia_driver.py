#!/usr/bin/python
# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Ansible module: what a host has of NVIDIA's driver, and what it could have."""

from __future__ import annotations

DOCUMENTATION = r"""
module: nvidia_driver
short_description: Look at a host's NVIDIA driver and decide what becomes of it
version_added: 0.1.0
description:
  - The part on the host only reads. The part on the controller decides from it by catalog/nvidia.yml; what
    stands in the way is named before anything changes.
options:
  names:
    description: Packages whose available versions are wanted. The part on the controller sets it.
    type: list
    elements: str
    default: []
  kernel:
    description: Release of the kernel that counts; the running one where it is empty.
    type: str
    default: ''
  facts:
    description: The host's row of a facts document; only for the part on the controller, as all that follow.
    type: dict
  wishes:
    description: The role's inputs by name.
    type: dict
  resolve:
    description: Whether the repositories are listed, so that a version can be chosen.
    type: bool
    default: false
  headers:
    description: Whether package lists are fresh, so that missing headers of the kernel can be named already.
    type: bool
    default: false
attributes:
  check_mode:
    description: Reads only.
    support: full
author:
  - The dsprov authors
"""

EXAMPLES = r"""
- name: Decide what becomes of the driver
  dsprov.appliance.nvidia_driver:
    facts: "{{ dsprov_probed.facts }}"
    wishes: {source: auto}
  register: decided
"""

RETURN = r"""
look:
  description: What the host has.
  returned: always
  type: dict
decision:
  description: What becomes of the driver.
  returned: always
  type: dict
resolution:
  description: The version and its packages; empty before the repositories are listed.
  returned: always
  type: dict
"""


import json
import os
import platform
import re
import shutil
import subprocess
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.dsprov.appliance.plugins.module_utils import files
from ansible_collections.dsprov.appliance.plugins.module_utils.host import read, run
from ansible_collections.dsprov.appliance.plugins.module_utils.nvidia_driver import (
    RECEIPT,
    key_enrolled,
    signed_by,
)

# Ours say what is missing in those of others, so they do not count among them.
OWN_LISTS = "dsprov-nvidia"
# Files of the .run installer, and where it wrote its version.
RUNFILE_PROGRAMS = ("/usr/bin/nvidia-uninstall", "/usr/local/bin/nvidia-uninstall")
RUNFILE_LOG = "/var/log/nvidia-installer.log"
_TARGET = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(SOURCESENTRY)"


def packages() -> list[dict[str, str]]:
    """dpkg's packages that may belong to a driver: name, version, status, origin of the version."""
    patterns = ("*nvidia*", "libcuda1*", "cuda-drivers*", "dkms")
    fields = "${binary:Package}|${Version}|${db:Status-Status}|${db:Status-Want}\\n"
    # dpkg-query fails where one pattern finds nothing, and still prints what the others find.
    done = subprocess.run(
        ["dpkg-query", "--show", f"--showformat={fields}", *patterns],
        capture_output=True,
        text=True,
        check=False,
    )
    rows = []
    for line in done.stdout.splitlines():
        name, version, status, want = line.split("|")
        if status != "not-installed":
            rows.append(
                {
                    "name": name.partition(":")[0],
                    "version": version,
                    "status": status,
                    "want": want,
                    "origin": "",
                }
            )
    return rows


def origins(rows: list[dict[str, str]]) -> None:
    """Says of installed packages which repository has their version: its label, where apt knows."""
    there = [row for row in rows if row["status"] != "config-files"]
    if not there:
        return
    text = run("apt-cache", "policy", *(row["name"] for row in there))
    releases = {
        line.split()[1]: label[1]
        for line in run("apt-cache", "policy").replace("\n     release", " release").splitlines()
        if (label := re.search(r"\bl=([^,]*)", line)) and len(line.split()) > 1 and "://" in line.split()[1]
    }
    name, current = "", ""
    by_name = {row["name"]: row for row in there}
    for line in text.splitlines():
        if line and not line.startswith(" "):
            name = line.rstrip(":").partition(":")[0]
        elif re.match(r" (\*\*\*|   ) \S", line):
            current = line[5:].split()[0]
        elif "://" in line and name in by_name and current == by_name[name]["version"]:
            label = releases.get(line.split()[1], "")
            by_name[name]["origin"] = by_name[name]["origin"] or label


def runfile() -> str:
    """The version that a .run installer left, or nothing."""
    if not any(os.path.exists(path) for path in RUNFILE_PROGRAMS):
        return ""
    found = re.search(r"NVIDIA-Linux-[\w]+-(\d+[\d.]+\d)|driver version:?\s*(\d+[\d.]+\d)", read(RUNFILE_LOG))
    return (found[1] or found[2]) if found else "unknown"


def kernels() -> list[dict[str, Any]]:
    """Kernels of this host by release: whether their headers and their image are there."""
    return [
        {
            "release": name,
            "headers": os.path.exists(f"/lib/modules/{name}/build/Makefile"),
            "image": os.path.exists(f"/boot/vmlinuz-{name}"),
        }
        for name in sorted(os.listdir("/lib/modules") if os.path.isdir("/lib/modules") else [])
    ]


def targets() -> list[dict[str, str]]:
    """Package lists that others told apt of: address, release, component, and the key it trusts for them."""
    rows = []
    for line in run("apt-get", "indextargets", "--format", _TARGET, "Created-By: Packages").splitlines():
        uri, release, component, entry = line.split("|")
        file = entry.rpartition(":")[0]
        if os.path.basename(file).startswith(OWN_LISTS):
            continue
        key = signed_by(read(file), uri, release)
        rows.append({"uri": uri, "release": release, "component": component, "signed_by": key})
    return rows


def available(names: list[str]) -> dict[str, list[str]]:
    """Versions that apt could install, newest first, by package."""
    rows: dict[str, list[str]] = {name: [] for name in names}
    for line in run("apt-cache", "madison", *names).splitlines() if names else []:
        name, version, where = (cell.strip() for cell in line.split("|"))
        if name in rows and version not in rows[name] and where.endswith(" Packages"):
            rows[name].append(version)
    return rows


def look(names: list[str], kernel: str) -> dict[str, Any]:
    """What the host has and could have."""
    rows = packages()
    receipt = files.load_json(RECEIPT)
    if not receipt:
        origins(rows)
    # A run of ours that was cut off left its file; any other is the owner's.
    half_done = receipt.get("state") == "installing"
    return {
        "packages": rows,
        "runfile": runfile(),
        "receipt": receipt,
        "loaded": read("/sys/module/nvidia/version").strip(),
        "kernel": kernel or platform.release(),
        "kernels": kernels(),
        "targets": targets(),
        "available": available(names),
        "key_enrolled": key_enrolled(),
        "initramfs": bool(shutil.which("update-initramfs", path="/usr/sbin:/sbin")),
        "no_autoinstall": os.path.exists("/etc/dkms/no-autoinstall") and not half_done,
        "holds": sorted(row["name"] for row in rows if row["want"] == "hold"),
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "names": {"type": "list", "elements": "str", "default": []},
            "kernel": {"type": "str", "default": ""},
            "facts": {"type": "dict"},
            "wishes": {"type": "dict"},
            "resolve": {"type": "bool", "default": False},
            "headers": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    seen = look(module.params["names"], module.params["kernel"])
    module.exit_json(changed=False, look=json.loads(json.dumps(seen)), decision={}, resolution={})


if __name__ == "__main__":
    main()
