# Copyright: the dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Rates as people write them, and how they are kept to."""

from __future__ import annotations

import re
import threading
import time

# A rate below this is a slip of the pen, and no download would end under it.
LEAST = 1000
_RATE = re.compile(r"(?i)(\d+(?:\.\d+)?)\s*(?:([kmgt])(i)?)?\s*(bits?|b)?\s*(?:/s)?")
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_rate(value: object) -> int:
    """Bytes a second from words such as 20M, 20 MB/s, 1.5GiB/s or 100Mbit/s; 0 for none.

    Raises:
        ValueError: it is no rate; the message says how to write one.
    """
    word = str(value if value is not None else "").strip()
    if not word:
        return 0
    match = _RATE.fullmatch(word)
    if not match:
        raise ValueError(f"{word!r} is no rate; write one such as 20MB/s, 1.5GiB/s or 100Mbit/s")
    number, prefix, binary, unit = match.groups()
    rate = float(number) * (1024 if binary else 1000) ** _POWERS[(prefix or "").lower()]
    if (unit or "").lower().startswith("bit"):
        rate /= 8
    if 0 < rate < LEAST:
        raise ValueError(f"{word!r} is less than 1 kB/s; write one such as 20MB/s")
    return int(rate)


class Limiter:
    """Holds all connections together under `limit` bytes a second; 0 is no limit. May be changed meanwhile,
    and shared between fetchers."""

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._next = 0.0

    def grant(self, wanted: int) -> tuple[int, float]:
        """Return how many bytes may be read, and after how many seconds."""
        limit = self.limit
        if limit <= 0:
            return wanted, 0.0
        granted = min(wanted, max(4096, limit // 20))
        with self._lock:
            now = time.monotonic()
            self._next = max(self._next, now - 0.1) + granted / limit
            return granted, max(0.0, self._next - now)
