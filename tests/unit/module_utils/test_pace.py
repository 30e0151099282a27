"""How many connections a source is given, by what they bring."""

from __future__ import annotations

from collections.abc import Callable

from ansible_collections.dsprov.appliance.plugins.module_utils.pace import CALM, FAST, MIB, REST, WINDOW, Pace


class Source:
    """One that brings `brings(connections)` bytes a second, by a clock of its own."""

    def __init__(self) -> None:
        self.pace = Pace(4, 16, 0.0)
        self.now = self.got = 0.0

    def run(self, brings: Callable[[int], float], seconds: float, limit: int = 0, busy: bool = False) -> int:
        """Go on for a while; return how many connections are wanted then."""
        end = self.now + seconds
        while self.now < end:
            self.now += 0.1
            self.got += brings(self.pace.target) * 0.1
            self.pace.add(self.now, int(self.got))
            self.pace.adapt(self.now, int(self.got), limit, busy)
        return self.pace.target


def each(rate: float) -> Callable[[int], float]:
    """So much by each connection."""
    return lambda connections: connections * rate


def full(rate: float) -> Callable[[int], float]:
    """So much by all together, however many they are."""
    return lambda _connections: rate


def test_a_source_that_is_slow_by_connection_gets_all_it_may() -> None:
    source = Source()
    assert source.run(each(25e6), 5) == 16
    source.run(each(25e6), WINDOW)
    assert abs(source.pace.rate - 16 * 25e6) < 1e6


def test_a_fast_source_keeps_its_first() -> None:
    assert Source().run(each(FAST * 1.1), 30) == 4


def test_more_connections_that_bring_no_more_are_given_up_for_a_while() -> None:
    source = Source()
    assert source.run(full(10e6), 5) == 4
    assert source.run(full(10e6), REST - 10) == 4
    assert source.run(each(10e6), 20) == 16, "it was not tried again"


def test_what_a_limit_or_the_machine_holds_back_asks_for_no_more() -> None:
    assert Source().run(full(10e6), 5, limit=10_000_000) == 4
    assert Source().run(each(1e6), 5, busy=True) == 4


def test_a_source_with_too_much_to_do_gets_fewer_until_it_is_calm() -> None:
    source = Source()
    assert source.run(each(25e6), 5) == 16
    source.pace.trouble(source.now)
    source.pace.fewer(16)
    assert source.run(each(25e6), CALM - 5) == 8
    assert source.run(each(25e6), 10) == 16


def test_a_window_has_to_be_whole_before_a_source_is_called_slow() -> None:
    source = Source()
    source.run(full(MIB), WINDOW - 1)
    assert not source.pace.below(2 * MIB, source.now, 0.0)
    source.run(full(MIB), 2)
    assert source.pace.below(2 * MIB, source.now, 0.0)
    assert not source.pace.below(MIB // 2, source.now, 0.0)
    assert not source.pace.below(2 * MIB, source.now, source.now - 1), (
        "it waited meanwhile, as it was asked to"
    )
