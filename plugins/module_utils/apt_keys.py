# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Keys of apt repositories, wherever they come from, known by their fingerprints; standard library alone."""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import Any

from ansible_collections.dsprov.appliance.plugins.module_utils import files, openpgp, wire

MOST_BYTES = 1 << 20
PATIENCE = 30.0


def read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(MOST_BYTES)
    except FileNotFoundError:
        return b""


def wrong(data: bytes, wanted: set[str]) -> str:
    """What is wrong with a key file; nothing where all is well."""
    try:
        foreign = [one for one in openpgp.fingerprints(data) if one not in wanted]
    except ValueError as error:
        return str(error)
    return f"holds the key {foreign[0]}, wanted {' or '.join(sorted(wanted))}" if foreign else ""


def get(url: str) -> bytes:
    """A key file's bytes; raises OSError or ValueError."""
    request = urllib.request.Request(url, headers={"User-Agent": "dsprov"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        data: bytes = answer.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError("far too long for a key")
    return data


def ensure(dest: str, sources: list[str], wanted: set[str], check: bool) -> dict[str, Any]:
    """Bring the file; the result of the module.

    Raises:
        files.FileError: no source has the right key, with what each one said.
    """
    there = read(dest)
    if there and not wrong(there, wanted):
        return {"changed": False, "source": "", "found": openpgp.fingerprints(there)}
    if check:
        return {"changed": True, "source": ""}
    said: list[str] = []
    for url in sources:
        try:
            data = get(url)
            trouble = wrong(data, wanted)
        except (OSError, ValueError, urllib.error.URLError) as error:
            trouble = wire.explain(error, PATIENCE)
        if not trouble:
            files.make_parents(dest)
            files.atomic_write(dest, openpgp.dearmour(data), 0o644)
            return {"changed": True, "source": wire.shown(url), "found": openpgp.fingerprints(data)}
        said.append(f"{wire.shown(url)}: {trouble}")
    raise files.FileError(
        f"no source has the repository's key: {'; '.join(said)}; set a mirror that has it in dsprov_mirrors"
    )
