# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Refuses a host that the bundle was not made for, before anything on it is changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ansible_collections.dsprov.appliance.plugins.module_utils import nvidia_driver
from ansible_collections.dsprov.appliance.plugins.module_utils.problems import Problem
from ansible_collections.dsprov.appliance.plugins.plugin_utils import bundle as bundles
from ansible_collections.dsprov.appliance.plugins.plugin_utils import requirements
from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import catalogue, problems
from ansible_collections.dsprov.appliance.plugins.plugin_utils.controller_action import (
    ControllerAction,
    refusal,
)


class ActionModule(ControllerAction):
    """Options: `folders`, `port`; `answer`, what the host got from the bundle's `/digest`; `system`, `arch`;
    what is needed is the fact that the action needs left.
    """

    def decide(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        host = variables["inventory_hostname"]
        made = bundles.open_bundle(bundles.split_folders(self._task.args["folders"]))
        needs = variables["ansible_facts"]["dsprov_needs"]
        return refusal([{**problem, "host": host} for problem in self._problems(made, needs)])

    def _problems(self, made: bundles.Bundle, needs: Mapping[str, Any]) -> Iterator[Problem]:
        table, arguments = problems(), self._task.args
        system, arch = str(arguments["system"]), str(arguments["arch"])
        if system not in made.document["systems"] or arch != made.document["arch"]:
            there = ", ".join(f"{one} {made.document['arch']}" for one in made.document["systems"])
            yield table.make("bundle-system", found=f"{system} {arch}", there=there)
            return
        lacking = list(_lacking(made, needs, system, int(arguments["port"])))
        if lacking:
            more = f" (+{len(lacking) - 3})" if len(lacking) > 3 else ""
            yield table.make("bundle-lacks", what=", ".join(lacking[:3]) + more)
        answer = arguments["answer"]
        if str(answer.get("content", "")).strip() != made.digest:
            detail = "something else answers there" if answer.get("status") == 200 else answer.get("msg", "?")
            yield table.make("bundle-unreachable", port=arguments["port"], detail=detail)


def _lacking(made: bundles.Bundle, needs: Mapping[str, Any], system: str, port: int) -> Iterator[str]:
    """What the roles want and the bundle has not, in words."""
    packages = made.document["packages"].get(system, [])
    yield from (name for name in needs["packages"] if name not in packages)
    for driver in needs["drivers"]:
        if missing := nvidia_driver.lacking(driver, catalogue()["nvidia"], packages):
            yield f"NVIDIA driver ({missing})"
    for file in needs["files"]:
        if not made.by_digest.keys() & {file["sha256"], file.get("member_sha256") or ""}:
            yield str(file["name"])
    name, _, release = system.partition("-")
    own_python = catalogue()["systems"]["systems"][name]["python"][release]
    for wheels in needs["wheels"]:
        python = wheels.get("python") or own_python
        text = Path(wheels["requirements"]).read_text(encoding="utf-8")
        for requirement, digests in requirements.rows(text, python, made.document["arch"]):
            if not made.by_digest.keys() & digests:
                yield f"{requirement} (Python {python})"
    images = [(row["registry"], row["repository"], row["digest"]) for row in made.document["images"]]
    for image in needs["images"]:
        name = f"{image['repository']}@{image['digest'][:19]}"
        if (image["registry"], image["repository"], image["digest"]) not in images:
            yield name
        elif image["image"] != f"127.0.0.1:{port}/{image['registry']}/{image['repository']}":
            yield f"{image['image']} ({name})"
