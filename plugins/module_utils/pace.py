# Copyright: the dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""How fast a source is, and how many connections it is given. Pure: the caller tells the time."""

from __future__ import annotations

from collections import deque

MIB = 1 << 20
# A connection faster than this (bytes a second) needs no others beside it.
FAST = 64 * MIB
# Seconds over which the rate is taken.
WINDOW = 10.0
# Seconds between two looks, of a trial of more connections, until the next trial after one in vain, and
# without trouble until a source that had too many of them may have more again.
LOOK, TRIAL, REST, CALM = 0.3, 1.0, 60.0, 30.0


class Pace:
    """One source's. target: connections wanted now. most: connections it may have at present."""

    def __init__(self, first: int, most: int, now: float) -> None:
        self.target = 1
        self.most = most
        self._first = first
        self._allowed = most
        self._calm_since = 0.0
        self._window: deque[tuple[float, int]] = deque([(now, 0)])
        self._measured = (now, 0)
        # A trial of more connections: since when, how many there were, bytes a second these brought.
        self._trial: tuple[float, int, float] | None = None
        self._next_trial = 0.0

    @property
    def rate(self) -> float:
        """Bytes a second over the last while."""
        first, last = self._window[0], self._window[-1]
        return (last[1] - first[1]) / (last[0] - first[0]) if last[0] > first[0] else 0.0

    def below(self, rate: int, now: float, since: float) -> bool:
        """Whether it brought less than `rate` bytes a second over a whole window that began after `since`."""
        return now - max(self._window[0][0], since) >= WINDOW and self.rate < rate

    def add(self, now: float, got: int) -> None:
        """Note that `got` bytes have come in all."""
        if now - self._window[-1][0] >= 0.2:
            self._window.append((now, got))
            while len(self._window) > 2 and now - self._window[1][0] >= WINDOW:
                self._window.popleft()

    def trouble(self, now: float) -> None:
        """Note that a connection failed."""
        self._calm_since = now

    def fewer(self, running: int) -> None:
        """The source has more to do than it can."""
        self.most = self.target = max(1, min(self.target, running) // 2)
        self._trial = None

    def adapt(self, now: float, got: int, limit: int, busy: bool) -> None:
        """Want more connections where each is slow and more of them bring more.

        limit: bytes a second that may come, 0 for all. busy: what they bring cannot be worked up as it is.
        """
        if self.target < min(self._first, self.most):
            self.target = min(self._first, self.most)
            self._measured = (now, got)
            return
        began, had = self._measured
        if now - began < LOOK:
            return
        if self.most < self._allowed and now - self._calm_since > CALM:
            self.most, self._calm_since = self.most * 2, now
        rate = (got - had) / (now - began)
        self._measured = (now, got)
        if self._trial:
            tried_at, before, rate_before = self._trial
            if now - tried_at < TRIAL:
                return
            self._trial = None
            if rate < 1.1 * rate_before:
                # No faster: the link is full, and more connections are only a burden to others.
                self.target = before
                self._next_trial = now + REST
                return
        if busy or (limit and rate >= 0.9 * limit) or not rate or now < self._next_trial:
            return
        each = rate / self.target
        if self.target < self.most and each < FAST:
            self._trial = (now, self.target, rate)
            self.target = min(self.most, self.target * (4 if each < FAST / 2 else 2))
