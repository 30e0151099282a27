# Copyright: the dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Leads a host's weights home from the controller: looks, starts the unit, tells how it goes to the end."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ansible_collections.dsprov.appliance.plugins.module_utils import store
from ansible_collections.dsprov.appliance.plugins.module_utils.commands import best_nic

# Seconds between two looks at a host; until the first line about it; between two lines, and two live ones.
POLL = 1.0
FIRST_LINE = 3.0
LINES = 15.0
LINES_LIVE = 2.0
LIVE = "DSPROV_PROGRESS"
# A connection that is lost is tried again for so long; the unit on the host goes on meanwhile.
PATIENCE = 120.0
# How often a unit that vanished (its host was restarted, somebody stopped it) is started again.
STARTS = 5


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible has no types
    """Options of its own, beside the module's:

    looks: name of the variable that holds what the phase `look` returned on each host of the play.
    fan_out: `auto` has hosts that want the same weights take them from one another, `off` does not.
    port: where hosts of the run hand weights on.
    """

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """What Ansible calls."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        self.variables = task_vars or {}
        self.host = str(self.variables.get("inventory_hostname"))
        arguments = dict(self._task.args)
        self.looks = str(arguments.pop("looks", ""))
        self.fan_out = str(arguments.pop("fan_out", "auto"))
        self.port = int(arguments.pop("port", 0))
        if arguments.get("phase", "bring") == "bring":
            return {**result, **self.bring(arguments)}
        if arguments["phase"] == "look" and not arguments.get("address"):
            arguments["address"] = self._card()
        return {**result, **self.ask(arguments)}

    def ask(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """One call of the module on the host."""
        answer: dict[str, Any] = self._execute_module(
            module_name="dsprov.appliance.model_store", module_args=arguments, task_vars=self.variables
        )
        # Sources may hold a password, and a token is nobody's business.
        answer.pop("invocation", None)
        return answer

    def _card(self) -> str:
        """The address of the network card that was probed as the best, where the host was probed."""
        probed = self.variables.get("dsprov_probed")
        facts = probed.get("facts") if isinstance(probed, Mapping) else None
        card = best_nic(facts) if facts else None
        return str(card["address"]).partition("/")[0] if card else ""

    # -- the whole ---------------------------------------------------------------------------------

    def bring(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Until all files are there, or the job has failed."""
        arguments.pop("phase", None)
        look = self._looked(self.host) or self.ask({**arguments, "phase": "look"})
        if look.get("failed"):
            return look
        peers, needed = self._neighbours(look)
        missing = list(look["missing"])
        if not missing and not needed:
            return {"changed": False, "missing": [], "serving": False}
        if self._task.check_mode:
            return {"changed": bool(missing), "missing": missing, "serving": False, "diff": _diff(missing)}
        begin = {**arguments, "phase": "begin"}
        if peers or needed:
            begin["token"] = run_token()
            begin["peers"] = [{"host": one.host, "url": self._url(one.address)} for one in peers]
        if needed:
            begin["serve"] = {"address": look["address"], "port": self.port}
        status: dict[str, Any] = {}
        for _start in range(STARTS):
            began = self.ask(begin)
            if began.get("failed"):
                return began
            status = self._watch(began)
            if status.get("state") in store.ENDED:
                break
            look = self.ask({**arguments, "phase": "look"})
            if not look.get("failed") and not look["missing"]:
                # Another controller led it to its end and has put it away.
                status = {**status, "state": "done"}
                break
        else:
            return _failed(f"{began['unit']} ended {STARTS} times before all was there", status)
        ended = self.ask({**arguments, "phase": "end"})
        if ended.get("failed"):
            return ended
        return self._outcome(status, missing)

    def _outcome(self, status: Mapping[str, Any], missing: list[str]) -> dict[str, Any]:
        told = {key: status.get(key) for key in ("fetched", "attempts", "note")}
        if status["state"] == "failed":
            return _failed(str(status["message"]), status)
        if status["state"] == "stopped":
            return _failed(f"{status['message']}; run the same command again to go on", status)
        return {
            "changed": bool(missing),
            "missing": [],
            "serving": status["state"] == "serving",
            **told,
            "diff": _diff(missing),
        }

    # -- other hosts -------------------------------------------------------------------------------

    def _looked(self, host: str) -> dict[str, Any] | None:
        """What a host's look came to, in this run of the play."""
        known = self.variables.get("hostvars", {}).get(host, {}) if self.looks else {}
        look = known.get(self.looks) if self.looks in known else None
        return dict(look) if isinstance(look, Mapping) and "content" in look else None

    def _neighbours(self, mine: Mapping[str, Any]) -> tuple[list[store.Look], bool]:
        if self.fan_out != "auto" or not self.port:
            return [], False
        looks = []
        for host in self.variables.get("ansible_play_hosts", [self.host]):
            look = mine if host == self.host else self._looked(host)
            if look:
                looks.append(store.Look(host, look["content"], not look["missing"], look["address"]))
        return store.fan_out(self.host, looks)

    def _url(self, address: str) -> str:
        return f"http://[{address}]:{self.port}" if ":" in address else f"http://{address}:{self.port}"

    # -- watching ----------------------------------------------------------------------------------

    def _watch(self, began: Mapping[str, Any]) -> dict[str, Any]:
        """Follow the unit until it has an end; its last status, without one of `ENDED` where it vanished."""
        status: dict[str, Any] = dict(began["status"])
        live = bool(os.environ.get(LIVE))
        told = time.monotonic() - LINES + FIRST_LINE
        reached = time.monotonic()
        run, unit = shlex.quote(str(began["run"])), shlex.quote(str(began["unit"]))
        command = f"touch {run}/watched; cat {run}/status.json; echo; systemctl is-active {unit}"
        gone = 0
        while status.get("state") not in store.ENDED:
            time.sleep(POLL)
            try:
                said = self._low_level_execute_command(command)["stdout"]
            except AnsibleConnectionFailure:
                if time.monotonic() - reached > PATIENCE:
                    raise
                time.sleep(POLL)
                continue
            reached = time.monotonic()
            text, _, state = said.strip().rpartition("\n")
            with contextlib.suppress(ValueError):
                found = json.loads(text) if text.strip() else {}
                status = found or status
            # Between two starts of its own the unit is not active either: only twice in a row is the end.
            gone = gone + 1 if state.strip() in ("inactive", "failed", "unknown") else 0
            if gone > 1 and status.get("state") not in store.ENDED:
                return status
            if time.monotonic() - told >= (LINES_LIVE if live else LINES):
                told = time.monotonic()
                say = store.progress_mark if live else store.progress_line
                Display().display(say(self.host, status))
        return status


def run_token() -> str:
    """What hosts of this run know each other by: kept for this run alone, where Ansible keeps such files."""
    path = Path(constants.DEFAULT_LOCAL_TMP, "dsprov-fan-out")
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.touch(mode=0o600, exist_ok=False)
    fresh.write_text(secrets.token_hex(32), encoding="ascii")
    try:
        # Each host has a process of its own here; the first one's token is everybody's.
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(fresh)
    finally:
        fresh.unlink()
    return path.read_text(encoding="ascii")


def _failed(message: str, status: Mapping[str, Any]) -> dict[str, Any]:
    return {"failed": True, "changed": False, "msg": message, "attempts": status.get("attempts") or {}}


def _diff(missing: list[str]) -> dict[str, str]:
    return {"before": "", "after": "".join(f"{name}\n" for name in missing)}
