"""Which wheels of a requirements file with digests suit a host: one a package, from a Python index."""

from __future__ import annotations

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from packaging.requirements import Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from ansible_collections.dsprov.appliance.plugins.module_utils import wire
from ansible_collections.dsprov.appliance.plugins.module_utils.simple_index import (
    SIMPLE_JSON,
    Link,
    links_of_simple_page,
)
from ansible_collections.dsprov.appliance.plugins.plugin_utils import requirements as lists
from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import problems
from dsprov.bundle.gather import Wanted

# What manylinux promises stands for every glibc up to that of the oldest supported system (2.35).
_GLIBC = 35
_TIMEOUT = 60
_AT_ONCE = 8


def tags(python: str, arch: str) -> dict[Tag, int]:
    """The tags that a host takes, best first: tag to rank."""
    major, _, minor = python.partition(".")
    version = (int(major), int(minor))
    platforms = [f"manylinux_2_{glibc}_{arch}" for glibc in range(_GLIBC, 4, -1)]
    for glibc, old in ((17, "manylinux2014"), (12, "manylinux2010"), (5, "manylinux1")):
        platforms.insert(platforms.index(f"manylinux_2_{glibc}_{arch}") + 1, f"{old}_{arch}")
    platforms.append(f"linux_{arch}")
    found = [
        *cpython_tags(version, platforms=platforms),
        *compatible_tags(version, interpreter=f"cp{major}{minor}", platforms=platforms),
    ]
    return {tag: rank for rank, tag in reversed(list(enumerate(found)))}


def wanted(requirements: str, python: str, arch: str, index: str) -> list[Wanted]:
    """One file for each package.

    Raises:
        ProblemError: bundle-source; a package has none of the files that its digests name, for this Python.
    """
    ranks = tags(python, arch)
    asked = list(lists.rows(requirements, python, arch))
    with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
        return list(pool.map(lambda row: _choose(row[0], row[1], python, index, ranks), asked))


def _choose(
    requirement: Requirement, digests: frozenset[str], python: str, index: str, ranks: Mapping[Tag, int]
) -> Wanted:
    project = re.sub(r"[-_.]+", "-", requirement.name).lower()
    page = f"{index.rstrip('/')}/{project}/"
    fitting = [
        (rank, name, link)
        for name, link in _links(page).items()
        if link.sha256 in digests and (rank := _rank(name, ranks)) is not None
    ]
    if not fitting:
        detail = f"{wire.shown(page)} has no file for Python {python} among the digests of the requirements"
        raise problems().error("bundle-source", name=str(requirement), detail=detail)
    _, name, link = min(fitting)
    return Wanted(
        path=f"wheels/{project}/{name}",
        name=name,
        sha256=str(link.sha256),
        bytes=link.bytes,
        sources=(f"pypi:{project}/{name}",),
        index=index,
    )


def _links(page: str) -> dict[str, Link]:
    """The files of a project's page by name."""
    line = wire.Line(wire.Route(page, {}), _TIMEOUT, _TIMEOUT)
    try:
        answer = line.get({"Accept": f"{SIMPLE_JSON}, text/html;q=0.5"})
        if refusal := wire.refuse(answer):
            raise refusal
        at = line.route.target or line.route.url
        return links_of_simple_page(answer.read(), answer.headers.get("Content-Type", ""), at)
    except (OSError, ValueError, KeyError, wire.SourceError) as error:
        raise problems().error("bundle-source", name=wire.shown(page), detail=error) from error
    finally:
        line.close()


def _rank(name: str, ranks: Mapping[Tag, int]) -> int | None:
    """How well a file suits; a source archive comes last, None does not suit."""
    if name.endswith((".tar.gz", ".zip")):
        return len(ranks)
    try:
        _name, _version, _build, own = parse_wheel_filename(name)
    except InvalidWheelFilename:
        return None
    return min((ranks[tag] for tag in own if tag in ranks), default=None)
