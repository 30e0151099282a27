"""Hosts that share a model: the network between them is measured for real, a lost peer is noticed."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import pwd
import socket
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from ansible_collections.dsprov.appliance.plugins.module_utils.units import Unit
from ansible_collections.dsprov.appliance.plugins.modules import peer_link, service_joined
from tests.conftest import ROOT

WORD = "w" * 32


def load() -> ModuleType:
    """The program that hosts run beside vLLM."""
    path = ROOT / "roles" / "vllm" / "files" / "vllm_watch.py"
    spec = importlib.util.spec_from_file_location("vllm_watch", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


watch = load()
A, B = "10.0.0.1", "10.0.0.2"


# -- the watch -----------------------------------------------------------------------------------


def rounds(
    one: object, count: int, connected: set[str], answer: bool | None = True, run: str = "x", port: int = 1
) -> list[str]:
    links = {watch.Link(address, 29500, port) for address in connected}
    return [one.round(run, links, lambda _address: answer) for _ in range(count)]  # type: ignore[attr-defined]


def test_a_group_that_has_not_met_yet_is_left_alone() -> None:
    assert not any(rounds(watch.Watch([A]), 1000, set(), False))


def test_a_peer_that_closed_its_connections_is_lost() -> None:
    one = watch.Watch([A, B])
    assert not any(rounds(one, 5, {A, B}))
    said = rounds(one, watch.ROUNDS_UNCONNECTED, {A})
    assert said == ["", "", f"{B} closed its connections"]


def test_a_moment_without_connections_is_forgiven() -> None:
    one = watch.Watch([A])
    for _ in range(10):
        assert not any(rounds(one, 1, {A}))
        assert not any(rounds(one, watch.ROUNDS_UNCONNECTED - 1, set()))


def test_a_peer_that_was_started_anew_is_lost_however_soon_it_is_back() -> None:
    one = watch.Watch([A, B])
    assert not any(rounds(one, watch.ROUNDS_STANDING, {A, B}))
    said = [
        one.round("x", {watch.Link(A, 29500, 1), watch.Link(B, 29500, 2)}, lambda _address: True)
        for _ in range(watch.ROUNDS_UNCONNECTED)
    ]
    assert said == ["", "", f"{B} closed its connections"]


def test_connections_of_a_beginning_may_follow_each_other() -> None:
    one = watch.Watch([A])
    for port in range(20):
        assert not any(rounds(one, watch.ROUNDS_STANDING - 1, {A}, port=port))


def test_one_of_several_connections_may_end() -> None:
    one = watch.Watch([A])
    both = {watch.Link(A, 29500, 1), watch.Link(A, 4000, 2)}
    for links in (both, both - {watch.Link(A, 4000, 2)}):
        assert not any(one.round("x", links, lambda _address: True) for _ in range(100))


def test_a_host_that_is_cut_off_is_lost_though_its_connections_stand() -> None:
    one = watch.Watch([A])
    assert not any(rounds(one, 3, {A}, True))
    said = rounds(one, watch.ROUNDS_SILENT, {A}, False)
    assert said[:-1] == [""] * (watch.ROUNDS_SILENT - 1)
    assert said[-1] == f"{A} does not answer any more"


@pytest.mark.parametrize("answer", [False, None])
def test_a_network_that_carries_no_pings_proves_nothing(answer: bool | None) -> None:
    assert not any(rounds(watch.Watch([A]), 100, {A}, answer))


def test_a_new_start_is_a_new_group() -> None:
    one = watch.Watch([A])
    rounds(one, 3, {A})
    rounds(one, watch.ROUNDS_UNCONNECTED - 1, set())
    assert not any(rounds(one, 100, set(), run="y"))


def test_a_service_that_is_stopped_is_left_alone() -> None:
    one = watch.Watch([A])
    rounds(one, 3, {A})
    assert not any(rounds(one, 100, set(), run=""))


@pytest.mark.skipif(sys.byteorder != "little", reason="the sample lines are a little-endian machine's")
def test_connections_are_read_as_the_kernel_writes_them() -> None:
    lines = [
        "   0: 0100007F:2CAC 00000000:0000 0A 00000000:00000000 00:00000000 00000000   990        0 1 1",
        "   1: 0200000A:733C 0100000A:D2F4 01 00000000:00000000 00:00000000 00000000   990        0 2 1",
        "   2: 0200000A:733C 0300000A:D2F4 01 00000000:00000000 00:00000000 00000000  1000        0 3 1",
        "   3: 0200000A:733C 0400000A:D2F4 08 00000000:00000000 00:00000000 00000000   990        0 4 1",
        "   4: 0000000000000000FFFF00000200000A:733C 0000000000000000FFFF00000500000A:D2F4 01 "
        "00000000:00000000 00:00000000 00000000   990        0 5 1",
        "   5: 00000000000000000000000001000000:733C 000080FE000000000000000002000000:D2F4 01 "
        "00000000:00000000 00:00000000 00000000   990        0 6 1",
    ]
    assert watch.connections(990, lines) == {
        ("10.0.0.1", 29500, 54004),
        ("10.0.0.5", 29500, 54004),
        ("fe80::2", 29500, 54004),
    }


def test_this_machines_own_connections_are_seen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
        port = listener.getsockname()[1]
        found = watch.connections(os.getuid(), watch.table())
        assert ("127.0.0.1", port) in {(link.address, link.there) for link in found}


@pytest.mark.skipif(os.geteuid() != 0, reason="raw sockets are root's")
def test_ping() -> None:
    assert watch.ping("127.0.0.1") is True
    # No host can have this address. (Others may be answered for, by the gateway of a machine like CI's.)
    assert watch.ping("240.0.0.1", timeout=0.2) is False
    assert watch.ping("fe80::1") is None


# -- the measurement -----------------------------------------------------------------------------


@pytest.fixture
def listener() -> Iterator[int]:
    """A listener as the module leaves it behind, in a thread of ours; its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=peer_link.serve, args=(server, WORD, 30, 2), daemon=True)
        thread.start()
        yield int(server.getsockname()[1])


def test_what_gets_through_is_measured(listener: int) -> None:
    rate = peer_link.measure("127.0.0.1", "127.0.0.1", listener, WORD, 0.2, 5)
    assert rate > 100
    again = peer_link.measure("127.0.0.1", "127.0.0.1", listener, WORD, 0.1, 5)
    assert again > 100


def test_the_listener_ends_after_its_callers(listener: int) -> None:
    for _ in range(2):
        peer_link.measure("127.0.0.1", "127.0.0.1", listener, WORD, 0.05, 5)
    serving = [one for one in threading.enumerate() if one.name.endswith("(serve)")]
    for one in serving:
        one.join(5)
    assert not any(one.is_alive() for one in serving[-1:])


def test_a_stranger_gets_nothing(listener: int) -> None:
    with pytest.raises(peer_link.LinkError, match=r"another program|broke"):
        peer_link.measure("127.0.0.1", "127.0.0.1", listener, "x" * 32, 0.05, 5)


def test_another_program_at_the_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = int(server.getsockname()[1])

        def speak() -> None:
            link, _peer = server.accept()
            with link:
                link.sendall(b"hi")
                while link.recv(1 << 20):
                    pass

        threading.Thread(target=speak, daemon=True).start()
        with pytest.raises(peer_link.LinkError, match="held by another program"):
            peer_link.measure("127.0.0.1", "127.0.0.1", port, WORD, 0.05, 5)


def test_a_closed_way_is_named() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        with pytest.raises(peer_link.LinkError, match=rf"does not reach 127.0.0.1 port {port}"):
            peer_link.measure("127.0.0.1", "127.0.0.1", port, WORD, 0.1, 0.2)


def test_a_slow_link_is_refused(listener: int) -> None:
    wanted = {
        "address": "127.0.0.1",
        "port": listener,
        "token": WORD,
        "listen": False,
        "peers": ["127.0.0.1"],
    }
    wishes = {**wanted, "seconds": 0.1, "patience": 5, "minimum_mbps": 10**9}
    with pytest.raises(peer_link.LinkError, match=r"are wanted"):
        peer_link.run(wishes)
    assert peer_link.run({**wishes, "minimum_mbps": 1})["links"][0]["peer"] == "127.0.0.1"


def test_who_has_the_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        wanted = {"address": "127.0.0.1", "port": taken.getsockname()[1], "token": WORD, "listen": True}
        with pytest.raises(peer_link.LinkError, match=rf"\(process {os.getpid()}\) has it; stop it"):
            peer_link.run(wanted)


def test_a_listener_that_an_earlier_run_left_makes_way() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    wanted = {
        "address": "127.0.0.1", "port": port, "listen": True, "linger": 60, "peers": ["127.0.0.1"],
    }  # fmt: skip
    peer_link.run({**wanted, "token": "a" * 32})
    peer_link.run({**wanted, "token": WORD})
    assert peer_link.measure("127.0.0.1", "127.0.0.1", port, WORD, 0.05, 5) > 0


def test_an_address_of_somebody_else_is_refused() -> None:
    wanted = {"address": "192.0.2.1", "port": 1, "token": WORD, "listen": True, "linger": 1}
    with pytest.raises(peer_link.LinkError, match=r"cannot listen on 192.0.2.1"):
        peer_link.run(wanted)


# -- a host's part on its way to the head -------------------------------------------------------------


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Unit:
    """A service of this process's own account, which runs."""
    unit = Unit(exists=True, active=True, pid=1, user=pwd.getpwuid(os.getuid()).pw_name)
    monkeypatch.setattr(service_joined.Unit, "read", lambda _name: dataclasses.replace(unit))
    monkeypatch.setattr(service_joined, "cause", lambda _name: "out of memory")
    return unit


def test_a_service_that_has_reached_the_head_is_waited_for_no_longer(service: Unit) -> None:
    with socket.create_server(("127.0.0.9", 0)) as head:
        assert not service_joined.joined("x.service", "127.0.0.9", 0.2, 0.05)
        with socket.create_connection(head.getsockname()):
            assert service_joined.joined("x.service", "127.0.0.9", 5, 0.05)
            service.active = False
            assert not service_joined.joined("x.service", "127.0.0.9", 0.2, 0.05)


@pytest.mark.parametrize(("key", "value"), [("restarts", 4), ("failed", True)])
def test_a_service_that_falls_over_is_given_up(service: Unit, key: str, value: Any) -> None:
    service.restarts = 2
    threading.Timer(0.2, setattr, [service, key, value]).start()
    with pytest.raises(service_joined.FellError, match=r"x\.service starts and falls over; out of memory"):
        service_joined.joined("x.service", "127.0.0.9", 20, 0.05)
