"""The lab's decisions that need no engine."""

from __future__ import annotations

from ipaddress import IPv4Network

import pytest

from tests.lab import engine, hosts
from tests.lab.engine import LabError, Traits


def net(text: str) -> IPv4Network:
    return IPv4Network(text)


def traits(cgroup: int = 2, unified: bool = False, sys_resource: bool = True) -> Traits:
    return Traits("28.0", "Debian", "overlay2", cgroup, unified, sys_resource, True)


@pytest.mark.parametrize(
    ("taken", "free"),
    [
        ([], "10.213.0.0/24"),
        (["10.213.0.0/24"], "10.213.1.0/24"),
        (["10.213.0.0/23", "172.17.0.0/16"], "10.213.2.0/24"),
        (["10.213.1.128/25", "10.213.0.7/32"], "10.213.2.0/24"),
    ],
)
def test_subnet_overlaps_nothing_in_use(taken: list[str], free: str) -> None:
    assert engine.free_subnet([net(text) for text in taken]) == net(free)


def test_no_subnet_left_is_said() -> None:
    with pytest.raises(LabError, match="no free /24"):
        engine.free_subnet([net("10.0.0.0/8")])


def test_hosts_by_default_are_both_debians() -> None:
    assert hosts.parse([]) == {"deb12": "debian-12", "deb13": "debian-13"}


@pytest.mark.parametrize("word", ["deb12", "a=debian-11", "=debian-12", "a b=debian-12"])
def test_bad_host_words_are_refused(word: str) -> None:
    with pytest.raises(LabError, match="--host"):
        hosts.parse([word])


def test_a_name_given_twice_is_refused() -> None:
    with pytest.raises(LabError, match="name of its own"):
        hosts.parse(["a=debian-12", "a=debian-13"])


@pytest.mark.parametrize(
    ("found", "needs_v2", "tree"),
    [
        (traits(), False, "/sys/fs/cgroup"),
        (traits(), True, "/sys/fs/cgroup"),
        (traits(cgroup=1, unified=True), False, "/sys/fs/cgroup"),
        (traits(cgroup=1, unified=True), True, "/sys/fs/cgroup/unified"),
    ],
)
def test_cgroup_tree_follows_release_and_engine(found: Traits, needs_v2: bool, tree: str) -> None:
    assert f"{tree}:/sys/fs/cgroup:rw" in engine.run_options(found, needs_v2)


def test_cgroup_v1_alone_cannot_run_a_release_that_needs_v2() -> None:
    with pytest.raises(LabError, match="cgroup v2"):
        engine.run_options(traits(cgroup=1), True)


def test_a_capability_that_the_engine_lacks_is_dropped() -> None:
    assert "SYS_RESOURCE" in engine.run_options(traits(sys_resource=False), False)
    assert "SYS_RESOURCE" not in engine.run_options(traits(), False)


def test_no_host_is_privileged() -> None:
    assert "--privileged" not in engine.run_options(traits(), True)
