"""The version: one line of galaxy.yml, which wheel and collection share."""

from __future__ import annotations

from dsprov.paths import COLLECTION


def version() -> str:
    """The version, such as "0.1.0"."""
    with open(COLLECTION / "galaxy.yml", encoding="utf-8") as file:
        return next(line.split(":", 1)[1].strip() for line in file if line.startswith("version:"))
