# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Before the module artifact: in a channel that has files by their digest, that is where they come from."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.dsprov.appliance.plugins.module_utils.sources import blob_source


class ActionModule(ActionBase):
    """Hands everything on to the module; `sources` may become the channel's."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        arguments = dict(self._task.args)
        places = self._templar.template(variables["dsprov_sources"]) if "dsprov_sources" in variables else {}
        blobs = (places or {}).get("blobs")
        if blobs and arguments.get("sha256"):
            name = str(arguments["sources"][0]) if arguments.get("sources") else ""
            arguments["sources"] = [blob_source(blobs, arguments["sha256"], name)]
        module: dict[str, Any] = self._execute_module(
            module_name="dsprov.appliance.artifact", module_args=arguments, task_vars=variables
        )
        return {**result, **module}
