# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Makes the plan of all hosts of a play from what was probed. Runs once, on the controller."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.dsprov.appliance.plugins.module_utils.planner import Request, digest, plan
from ansible_collections.dsprov.appliance.plugins.plugin_utils import bundle as bundles
from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import (
    OWN_MODELS,
    catalogue,
    problems,
    with_gguf,
)
from ansible_collections.dsprov.appliance.plugins.plugin_utils.controller_action import (
    ControllerAction,
    refusal,
)
from ansible_collections.dsprov.appliance.plugins.plugin_utils.requests import BUNDLE, request_from


class ActionModule(ControllerAction):
    """Option: `gguf`, a file or address whose model is planned in place of the tier's.

    Returns `plan`, `digest` and `facts` (the facts document the plan was made from).
    """

    def decide(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        hostvars = variables["hostvars"]
        facts: dict[str, Any] = {"schema": 1, "hosts": {}}
        requests: dict[str, Request] = {}
        source = self._task.args.get("gguf")
        name, rows = with_gguf(source) if source else ("", catalogue())
        own: dict[str, Any] = {}
        for host in variables["ansible_play_hosts"]:
            known = hostvars[host]
            facts["hosts"][host] = known["dsprov_probed"]["facts"]
            asked = known["dsprov_asked"]["asked"]
            request, found = request_from({**asked, **({"dsprov_model": name} if source else {})})
            if request is None:
                return refusal(found)
            requests[host] = request
            for model, row in asked.get(OWN_MODELS, {}).items():
                if own.setdefault(model, row) != row:
                    detail = f"model {model} is not the same on all hosts"
                    return refusal([problems().make("variable-invalid", key=OWN_MODELS, detail=detail)])
        rows = {**rows, "models": {**rows["models"], **own}}
        first = next(iter(requests.values()))
        parted = [
            {**problems().make("group-host-lost", away=", ".join(away)), "host": host}
            for host, away in _lost(variables, facts["hosts"], requests).items()
        ]
        left = set(facts["hosts"]) - {problem["host"] for problem in parted}
        if not left:
            return refusal(parted)
        if first.channel == BUNDLE:
            rows = {**rows, "channels": {**rows["channels"], BUNDLE: _bundle_places(variables)}}
        made = plan({**facts, "hosts": {host: facts["hosts"][host] for host in left}}, first, rows, requests)
        if parted:
            made |= {"ok": False, "problems": [*parted, *made["problems"]]}
        return {"plan": made, "digest": digest(made), "facts": facts}


def _lost(
    variables: Mapping[str, Any], facts: Mapping[str, Any], requests: Mapping[str, Request]
) -> dict[str, list[str]]:
    """Of hosts that share a model, by their records or by wish, the others that fell out of this play.

    To plan for them without those would take a group apart that only has to be waited for.
    """
    fell = set(variables["ansible_play_hosts_all"]) - facts.keys()
    lost = {}
    for name, host in facts.items():
        nodes, group = requests[name].nodes, host.get("installed_group", [])
        # Where a group has yet to be made, it may be with any of those that fell out.
        away = fell & set(group) if nodes in (0, len(group)) else fell if nodes > 1 else set()
        if away:
            lost[name] = sorted(away)
    return lost


def _bundle_places(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The places of the run's bundle.

    Raises:
        ProblemError: variable-invalid where none is named; all that opening it may raise.
    """
    folders = bundles.split_folders(str(variables.get("dsprov_bundle", "")))
    if not folders:
        detail = "the channel is 'bundle', and no folder is named"
        raise problems().error("variable-invalid", key="dsprov_bundle", detail=detail)
    port = int(variables.get("dsprov_bundle_port", bundles.PORT))
    return bundles.places(bundles.open_bundle(folders), port)
