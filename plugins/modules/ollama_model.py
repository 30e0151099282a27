#!/usr/bin/python
# Copyright: The dsprov authors
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: the models that an Ollama server holds, each made from a described origin."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ollama_model
short_description: Make models in Ollama from local GGUF files or from a tag
version_added: 0.1.0
description:
  - Makes each model from its description (origin, parameters, template, system prompt, stop words) over the
    server's API, and makes it again only when the description, the files or the server's model changed.
  - A note about each model under O(receipts_dir) holds the digests of its inputs, so that files of any size
    are read once, and a source that was removed afterwards is not asked for again. The Modelfile lies
    beside it.
  - Models that are not named here stay as they are. A model of the same name that somebody else made is kept
    as C(NAME-before-dsprov).
options:
  models:
    description: The models.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name by which it is served; C(latest) is added where no tag is given.
        type: str
        required: true
      files:
        description: GGUF files on the host, all parts of a split one.
        type: list
        elements: path
      sha256:
        description: Digests of O(models[].files), where known, in the same order.
        type: list
        elements: str
      artifacts:
        description: In place of files, rows of a plan's C(weights.artifacts); they lie in O(sources_dir).
        type: list
        elements: dict
      tag:
        description: In place of files, a model of a registry or of this server.
        type: str
      parameters:
        description: Parameters such as C(num_ctx) and C(temperature).
        type: dict
        default: {}
      stop:
        description: Words at which an answer ends.
        type: list
        elements: str
        default: []
      template:
        description: Prompt template; the one inside the GGUF file when empty.
        type: str
        default: ""
      system:
        description: System prompt.
        type: str
        default: ""
      keep_source:
        description: Whether to keep the files after the server has taken its own copy.
        type: bool
        default: false
      state:
        description: V(absent) removes the model if dsprov made it.
        type: str
        choices: [present, absent]
        default: present
  url:
    description: Address of the server.
    type: str
    default: http://127.0.0.1:11434
  models_dir:
    description: Folder of the server's models.
    type: path
    required: true
  sources_dir:
    description: Folder in which artifacts lie.
    type: path
    default: /var/lib/dsprov/models
  receipts_dir:
    description: Folder of our notes.
    type: path
    default: /var/lib/dsprov/ollama/models.d
  timeout:
    description: Seconds without a word from the server after which a step counts as failed.
    type: int
    default: 3600
attributes:
  check_mode:
    description: Says which models would be made; does not ask the server.
    support: full
  diff_mode:
    description: Shows the Modelfile before and after.
    support: full
author:
  - The dsprov authors
"""

EXAMPLES = r"""
- name: Ensure the model is served
  dsprov.appliance.ollama_model:
    models_dir: /var/lib/dsprov/ollama/models
    models:
      - name: smollm2:135m
        files: [/var/lib/dsprov/models/SmolLM2-135M-Instruct.Q4_1.gguf]
        parameters: {temperature: 0.2, top_p: 0.9}
        stop: ["<|im_end|>"]
"""

RETURN = r"""
made:
  description: Models that were made, or would be in check mode.
  returned: success
  type: list
  elements: str
removed:
  description: Models that were removed.
  returned: success
  type: list
  elements: str
kept_aside:
  description: Names under which models of others were kept.
  returned: success
  type: list
  elements: str
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.dsprov.appliance.plugins.module_utils import files as disk
from ansible_collections.dsprov.appliance.plugins.module_utils import ollama as known


class MakeError(Exception):
    """Why a model could not be made; names the model and the remedy."""


class Models:
    """The models of one server."""

    def __init__(self, params: Mapping[str, Any], check_mode: bool) -> None:
        self.api = known.OllamaApi(str(params["url"]))
        self.models_dir = str(params["models_dir"])
        self.receipts_dir = str(params["receipts_dir"])
        self.timeout = float(params["timeout"])
        self.check_mode = check_mode
        self.specs = [known.ModelSpec.of(raw, str(params["sources_dir"])) for raw in params["models"]]
        self.made: list[str] = []
        self.removed: list[str] = []
        self.kept_aside: list[str] = []
        self.before: list[str] = []
        self.after: list[str] = []

    def apply(self) -> None:
        """Bring every model to its description."""
        if all(self._satisfied(spec) for spec in self.specs):
            return
        with contextlib.nullcontext() if self.check_mode else disk.locked("ollama-models", 120):
            # In order, each judged when its turn comes: one may be made from the one before.
            for spec in self.specs:
                if self._satisfied(spec):
                    continue
                if self.check_mode:
                    self._say(spec)
                elif spec.absent:
                    self._remove(spec)
                else:
                    self._make(spec)

    def _satisfied(self, spec: known.ModelSpec) -> bool:
        return known.satisfied(spec, self.models_dir, self.receipts_dir)

    def _say(self, spec: known.ModelSpec) -> None:
        """Note a change, with both Modelfiles for the diff."""
        before = str(self._receipt(spec).get("modelfile") or "")
        (self.removed if spec.absent else self.made).append(spec.name)
        self.before.append(f"# {spec.name}\n{before}")
        self.after.append("" if spec.absent else f"# {spec.name}\n{spec.modelfile()}")

    def _receipt(self, spec: known.ModelSpec) -> dict[str, Any]:
        return known.read_json(known.receipt_path(self.receipts_dir, spec.name))

    def _remove(self, spec: known.ModelSpec) -> None:
        self._say(spec)
        if known.manifest_path(self.models_dir, spec.name).exists():
            self.api.need("DELETE", "/api/delete", {"model": spec.name}, self.timeout)
        receipt = known.receipt_path(self.receipts_dir, spec.name)
        receipt.with_suffix(".Modelfile").unlink(missing_ok=True)
        receipt.unlink(missing_ok=True)

    def _make(self, spec: known.ModelSpec) -> None:
        receipt = self._receipt(spec)
        digests = self._digests(spec)
        self._say(spec)
        if self._already_there(spec):
            self._note(spec, digests, {"adopted": True})
            return
        if not receipt:
            self._keep_aside(spec)
        # Written before the work: after a crash the half-made model is known to be ours.
        begun = {**receipt, "name": spec.name, "inputs": "", "manifest": ""}
        disk.dump_json(str(known.receipt_path(self.receipts_dir, spec.name)), begun)
        if spec.tag and not known.manifest_state(self.models_dir, spec.tag)[1]:
            self._follow(spec, "/api/pull", {"model": spec.tag})
        if spec.tag and spec.tag != spec.name:
            digests = [known.manifest_state(self.models_dir, spec.tag)[0]]
        if spec.files or spec.name != spec.tag or spec.parameters or spec.template or spec.system:
            with self._handed_over(spec, digests):
                self._follow(spec, "/api/create", self._request(spec, digests))
        rows = [
            {"path": path, "sha256": digest, "signature": known.stat_signature(path)}
            for path, digest in zip(spec.files, digests if spec.files else [], strict=True)
        ]
        self._note(spec, digests, {"files": rows})
        self._drop_sources(spec)

    def _already_there(self, spec: known.ModelSpec) -> bool:
        """A tag that the user has pulled and that is wanted as it is needs no second download."""
        plain = spec.tag == spec.name and not (spec.parameters or spec.template or spec.system)
        return plain and known.manifest_state(self.models_dir, spec.name)[1]

    def _note(self, spec: known.ModelSpec, digests: list[str], more: Mapping[str, Any]) -> None:
        manifest, whole = known.manifest_state(self.models_dir, spec.name)
        if not whole:
            raise MakeError(
                f"{spec.name}: the server says it is made, but {self.models_dir} does not hold it; "
                "check that ollama_models_dir is the server's OLLAMA_MODELS"
            )
        path = known.receipt_path(self.receipts_dir, spec.name)
        text = spec.modelfile()
        disk.atomic_write(str(path.with_suffix(".Modelfile")), text.encode(), 0o644)
        disk.dump_json(
            str(path),
            {
                "name": spec.name,
                "inputs": spec.inputs(digests),
                "manifest": manifest,
                "modelfile": text,
                **more,
            },
        )

    def _digests(self, spec: known.ModelSpec) -> list[str]:
        """The sha256 of every file, read only where no receipt vouches for it."""
        for path in spec.files:
            if not os.path.isfile(path):
                raise MakeError(f"{spec.name}: {path} is not there; fetch it first, or name another file")
        result = []
        for index, path in enumerate(spec.files):
            vouched = disk.read_receipt(path)
            found = str(vouched["sha256"]) if vouched else disk.sha256_file(path)
            wanted = spec.digests[index] if spec.digests else found
            if found != wanted:
                raise MakeError(
                    f"{spec.name}: {path} has sha256 {found}, not {wanted}; remove the file and run again"
                )
            result.append(found)
        return result

    def _keep_aside(self, spec: known.ModelSpec) -> None:
        if not known.manifest_state(self.models_dir, spec.name)[0]:
            return
        aside = f"{spec.name}-before-dsprov"
        self.api.need("POST", "/api/copy", {"source": spec.name, "destination": aside}, self.timeout)
        self.kept_aside.append(aside)

    @contextlib.contextmanager
    def _handed_over(self, spec: known.ModelSpec, digests: list[str]) -> Iterator[None]:
        """Give the server the files for as long as it makes its own checked copy of them.

        Files of ours on the same file system go by a second name, which costs no byte; the server has to
        own them meanwhile, since it sets their times. Others are sent, so that the user's are not touched.
        """
        pairs = list(zip(spec.files, digests, strict=True)) if spec.files else []
        size = sum(os.path.getsize(path) for path, _ in pairs)
        room = str(known.blob_path(self.models_dir, "0"))
        if pairs:
            disk.need_space(room, size, f"the server's copy of {spec.name}")
        before: list[tuple[str, os.stat_result]] = []
        try:
            for path, digest in pairs:
                blob = known.blob_path(self.models_dir, digest)
                found = os.stat(path)
                if not blob.exists() and path.startswith(disk.data_path("")):
                    with contextlib.suppress(OSError):
                        os.link(os.path.realpath(path), blob)
                if blob.exists() and os.path.samestat(os.stat(blob), found):
                    before.append((path, found))
                    owner = os.stat(blob.parent)
                    os.chown(blob, owner.st_uid, owner.st_gid)
                elif not self.api.has_blob(digest):
                    disk.need_space(room, 2 * size, f"{spec.name} and the server's copy of it")
                    self.api.send_blob(path, digest, self.timeout)
            yield
        finally:
            for path, was in before:
                os.chown(path, was.st_uid, was.st_gid)
                os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
            for _, digest in pairs:
                blob = known.blob_path(self.models_dir, digest)
                if not self._in_use(blob.name):
                    blob.unlink(missing_ok=True)

    def _request(self, spec: known.ModelSpec, digests: list[str]) -> dict[str, Any]:
        body: dict[str, Any] = {"model": spec.name, "stream": True}
        if spec.files:
            body["files"] = {
                os.path.basename(path): f"sha256:{digest}"
                for path, digest in zip(spec.files, digests, strict=True)
            }
        else:
            body["from"] = spec.tag
        if spec.parameters:
            body["parameters"] = dict(spec.parameters)
        if spec.template:
            body["template"] = spec.template
        if spec.system:
            body["system"] = spec.system
        return body

    def _follow(self, spec: known.ModelSpec, path: str, body: Mapping[str, Any]) -> None:
        last = ""
        for row in self.api.stream(path, body, self.timeout):
            last = str(row.get("status") or last)
        if last != "success":
            raise MakeError(
                f"{spec.name}: the server stopped at '{last or 'nothing'}'; look at journalctl -u ollama"
            )

    def _drop_sources(self, spec: known.ModelSpec) -> None:
        """Remove the fetched files, unless they are to be kept."""
        for path in spec.files:
            # Files that lie elsewhere are the user's, not ours to delete.
            if not spec.keep_source and path.startswith(disk.data_path("")):
                for gone in (path, disk.receipt_path(path)):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(gone)
                # A folder that held nothing else goes, up to the one of all models.
                folder = os.path.dirname(path)
                while os.path.dirname(folder).startswith(disk.data_path("models")):
                    with contextlib.suppress(OSError):
                        os.rmdir(folder)
                    folder = os.path.dirname(folder)

    def _in_use(self, blob: str) -> bool:
        digest = blob.replace("sha256-", "sha256:", 1)
        for path in Path(self.models_dir, "manifests").rglob("*"):
            if path.is_file() and any(
                layer.get("digest") == digest for layer in known.read_json(path).get("layers") or []
            ):
                return True
        return False


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "models": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "files": {"type": "list", "elements": "path"},
                    "sha256": {"type": "list", "elements": "str"},
                    "artifacts": {"type": "list", "elements": "dict"},
                    "tag": {"type": "str"},
                    "parameters": {"type": "dict", "default": {}},
                    "stop": {"type": "list", "elements": "str", "default": []},
                    "template": {"type": "str", "default": ""},
                    "system": {"type": "str", "default": ""},
                    "keep_source": {"type": "bool", "default": False},
                    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
                },
            },
            "url": {"type": "str", "default": "http://127.0.0.1:11434"},
            "models_dir": {"type": "path", "required": True},
            "sources_dir": {"type": "path", "default": "/var/lib/dsprov/models"},
            "receipts_dir": {"type": "path", "default": "/var/lib/dsprov/ollama/models.d"},
            "timeout": {"type": "int", "default": 3600},
        },
        supports_check_mode=True,
    )
    try:
        models = Models(module.params, module.check_mode)
        models.apply()
    except (known.ModelError, known.ApiError, disk.FileError, MakeError, OSError) as error:
        module.fail_json(msg=f"ollama: {error}")
    module.exit_json(
        changed=bool(models.made or models.removed),
        made=models.made,
        removed=models.removed,
        kept_aside=models.kept_aside,
        diff={"before": "\n".join(models.before), "after": "\n".join(models.after)},
    )


if __name__ == "__main__":
    main()
