"""The version: one line of galaxy.yml, which wheel and collection share."""

from __future__ import annotations

from dsprov.paths import COLLECTION


def version() -> str:
    """The version, such as "0.1.0"."""
    with (COLLECTION / "galaxy.yml").open(encoding="utf-8") as file:
        return next(line.split(":", 1)[1].strip() for line in file if line.startswith("version:"))
