# Copyright: the dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Which connection fills which range of a part; the part's lock guards all of it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ansible_collections.dsprov.appliance.plugins.module_utils import wire
from ansible_collections.dsprov.appliance.plugins.module_utils.part import Part
from ansible_collections.dsprov.appliance.plugins.module_utils.pieces import MIB

# A file up to this size is asked for at once, without ranges.
SMALL = 4 * MIB
# Less than twice this is not worth sharing between two connections.
LEAST_STEAL = MIB
# An end that nobody knows yet.
NOWHERE = 1 << 62


@dataclass(eq=False)
class Claim:
    """A range that one connection fills: `at` moves from its beginning to `stop`."""

    at: int
    stop: int
    began: float
    # Everything from the beginning to whatever end, for a server that knows no ranges.
    whole: bool = False
    line: wire.Line | None = None
    moved: float = 0.0
    hurried: bool = False


class Claims:
    """The ranges that connections of one source fill at present."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.rows: list[Claim] = []

    def take(self, ranges: bool | None) -> Claim | None:
        """Give a connection something to fill, or None where it is not needed.

        ranges: whether the source knows them; None while nobody can tell.
        """
        part = self.part
        small = part.total is not None and part.total <= SMALL and not part.coverage.bytes
        if part.total is not None and ranges is not False and not small:
            claim = self._piece() or self._half()
        elif self.rows:
            return None
        elif ranges is False or part.total is not None or not part.coverage.bytes:
            claim = Claim(0, NOWHERE if part.total is None else part.total, time.monotonic(), whole=True)
        else:
            # The answer to the first range says how long the file is.
            first = part.coverage.frontier()
            claim = Claim(first, first + MIB, time.monotonic())
        if claim:
            self.rows.append(claim)
        return claim

    def release(self, claim: Claim) -> None:
        """A connection is done with its range, filled or not."""
        if claim in self.rows:
            self.rows.remove(claim)

    def wanted(self) -> int:
        """Count what more connections could take up now: gaps that nobody fills, by pieces; else halves."""
        piece = self.part.piece
        free = sum((end - first + piece - 1) // piece for first, end in self._gaps())
        return free or sum(1 for claim in self.rows if claim.stop - claim.at >= 2 * LEAST_STEAL)

    def _piece(self) -> Claim | None:
        gaps = self._gaps()
        if not gaps:
            return None
        first, end = gaps[0]
        piece = self.part.piece
        stop = min(end, (first // piece + 1) * piece)
        # A short rest is not worth a request.
        return Claim(first, end if end - stop < max(SMALL, piece) // 4 else stop, time.monotonic())

    def _half(self) -> Claim | None:
        """At the end the idle help the slow."""
        slow = max(self.rows, key=lambda one: one.stop - one.at, default=None)
        if slow is None or slow.whole or slow.stop - slow.at < 2 * LEAST_STEAL:
            return None
        middle = slow.at + (slow.stop - slow.at) // 2
        claim = Claim(middle, slow.stop, time.monotonic())
        slow.stop = middle
        return claim

    def _gaps(self) -> list[tuple[int, int]]:
        """Return the ranges that nobody has and nobody fills."""
        gaps = self.part.coverage.missing(0, self.part.total or 0)
        for claim in self.rows:
            kept: list[tuple[int, int]] = []
            for first, end in gaps:
                if claim.stop <= first or claim.at >= end:
                    kept.append((first, end))
                    continue
                if first < claim.at:
                    kept.append((first, claim.at))
                if claim.stop < end:
                    kept.append((claim.stop, end))
            gaps = kept
        return gaps
