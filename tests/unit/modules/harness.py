"""Run a module of the collection in this process, as Ansible would, and read its answer."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
from typing import Any

from ansible.module_utils.testing import patch_module_args


class ModuleFailedError(Exception):
    """The module said fail_json; `result` is all it said."""

    def __init__(self, result: dict[str, Any]) -> None:
        super().__init__(result.get("msg"))
        self.result = result


def run_module(
    module_name: str, /, *, check: bool = False, diff: bool = True, **options: Any
) -> dict[str, Any]:
    """Return the module's result; raises ModuleFailedError where it fails."""
    module = importlib.import_module(f"ansible_collections.dsprov.appliance.plugins.modules.{module_name}")
    said = io.StringIO()
    arguments = {
        **options,
        "_ansible_check_mode": check,
        "_ansible_diff": diff,
        "_ansible_remote_tmp": "/tmp",
    }
    with patch_module_args(arguments), contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        module.main()
    result: dict[str, Any] = json.loads(said.getvalue())
    if result.get("failed"):
        raise ModuleFailedError(result)
    return result
