"""A run whose bytes all come from a bundle: verified first, then served through ssh while the run lasts."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ansible_collections.dsprov.appliance.plugins.module_utils.problems import Problem
from ansible_collections.dsprov.appliance.plugins.plugin_utils import bundle as bundles
from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import problems
from ansible_collections.dsprov.appliance.plugins.plugin_utils.requests import BUNDLE
from dsprov.bundle.gauge import Gauge
from dsprov.bundle.server import serve, socket_path, ssh_arguments
from dsprov.invocation import Invocation
from dsprov.words import t


@dataclass(frozen=True)
class Checked:
    """A bundle of which every byte was read: what is wrong with it, and the seconds that took."""

    bundle: bundles.Bundle
    bytes: int
    seconds: float
    problems: list[Problem]


def verify(opened: bundles.Bundle) -> Checked:
    """Reads every byte of a bundle, with progress."""
    counts = [0]

    def count(read: int) -> None:
        counts[0] += read  # A count for people: one lost between threads is no harm.

    with Gauge(t("verifying", "校验"), lambda: opened.bytes, lambda: counts[0]) as gauge:
        verdict = bundles.verify(opened, count)
        return Checked(opened, verdict.bytes, gauge.seconds, verdict.problems)


class BundleRun:
    """An invocation that takes everything from a bundle, which is served while this is entered.

    Attributes:
        invocation: the run with all that leads to the bundle.

    Args:
        folders: the bundle's.
        invocation: the run as it would be without.
        tier: the tier that was asked for.

    Raises:
        ProblemError: the bundle cannot be opened, or was made for another tier.
    """

    def __init__(self, folders: Sequence[Path], invocation: Invocation, tier: str | None) -> None:
        self.bundle = bundles.open_bundle(folders)
        made = self.bundle.document["tier"]
        if tier != made:
            raise problems().error("bundle-tier", made=made, tier=tier)
        self._name = invocation.inventories[-1]
        self._connections = socket_path(self._name).with_suffix(".ssh")
        self.port = bundle_port(invocation.overrides)
        said = os.pathsep.join(str(folder) for folder in self.bundle.folders)
        overrides = (*invocation.overrides, f"dsprov_channel={BUNDLE}", f"dsprov_bundle={said}")
        self.invocation = replace(
            invocation,
            overrides=overrides,
            environment={
                **invocation.environment,
                "ANSIBLE_SSH_EXTRA_ARGS": ssh_arguments(socket_path(self._name), self.port),
                # A connection that a run with another bundle keeps open leads to that one.
                "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self._connections),
            },
        )
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> BundleRun:
        self._stack.enter_context(serve(self.bundle, socket_path(self._name), self.port))
        return self

    def __exit__(self, *_details: object) -> None:
        # What is kept open would hold the hosts' port for a bundle that is not served any more.
        for link in self._connections.glob("*"):
            subprocess.run(["ssh", "-S", link, "-O", "exit", "any"], capture_output=True, check=False)
        self._stack.close()


def bundle_port(overrides: Sequence[str]) -> int:
    """The hosts' loopback port, as -e says it; ssh has to know it before Ansible reads any variable.

    Raises:
        ProblemError: variable-invalid.
    """
    given = [pair.partition("=")[2] for pair in overrides if pair.startswith("dsprov_bundle_port=")]
    text = given[-1] if given else str(bundles.PORT)
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise problems().error("variable-invalid", key="dsprov_bundle_port", detail=f"{text!r} is not a port")
    return int(text)
