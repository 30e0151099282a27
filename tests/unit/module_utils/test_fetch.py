"""The downloader against a real HTTP server that misbehaves in every way a hub or a network does."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import signal
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.dsprov.appliance.plugins.module_utils import fetch, files, pace, pieces, rates, wire
from tests.fixtures.downloads import SIZE, content, fetcher, killed_again_and_again, noted
from tests.fixtures.hub import MIB, Answer, Ask, Hub


@pytest.fixture(autouse=True)
def plain_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "DATA_ROOT", str(tmp_path / "data"))
    for name in (
        "http_proxy",
        "https_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "all_proxy",
        "ALL_PROXY",
        "no_proxy",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(content()[0]) as served:
        yield served


@pytest.fixture
def other() -> Iterator[Hub]:
    with Hub(content()[0]) as served:
        yield served


def whole(folder: Path, size: int = SIZE, seed: int = 1) -> bool:
    return files.sha256_file(str(folder / "model.part")) == content(size, seed)[1]


def results(work: fetch.Fetcher) -> list[str]:
    return [row["result"] for row in work.outcome.attempts]


@pytest.mark.parametrize("size", [None, SIZE], ids=["size-unknown", "size-known"])
def test_a_good_server_is_asked_for_each_byte_once(hub: Hub, tmp_path: Path, size: int | None) -> None:
    work = fetcher(tmp_path, size)
    outcome = work.fetch([hub.url + "/m"])
    assert whole(tmp_path) and outcome.bytes_fetched == SIZE and outcome.source == hub.url + "/m"
    assert outcome.size == SIZE and results(work) == ["ok"]
    assert len(hub.asks) >= 24 and hub.connections <= 17, "connections are kept"
    if size:
        assert hub.sent == SIZE
        asked = sorted(ask.range for ask in hub.asks if ask.range)
        assert all(before[1] == after[0] for before, after in itertools.pairwise(asked))
    work.place(str(tmp_path / "model"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    assert (tmp_path / "model").stat().st_mode & 0o7777 == 0o644


def test_one_connection_is_kept_for_all_requests(hub: Hub, tmp_path: Path) -> None:
    fetcher(tmp_path, connections=1, most_connections=1).fetch([hub.url])
    assert whole(tmp_path) and len(hub.asks) >= 24 and hub.connections == 1


def test_several_connections_work_at_once(hub: Hub, tmp_path: Path) -> None:
    seen: list[fetch.Progress] = []
    hub.behave = lambda ask: Answer(rate=4e6)
    started = time.monotonic()
    fetcher(tmp_path, progress=seen.append, every=0.1).fetch([hub.url])
    # One connection would take six seconds; more than four are opened, for each is slow.
    assert time.monotonic() - started < 4 and whole(tmp_path)
    assert max(row.connections for row in seen) > 4
    assert [row.done for row in seen] == sorted(row.done for row in seen)
    assert seen[-1].done == seen[-1].hashed == seen[-1].total == SIZE


@pytest.mark.parametrize("size", [0, 1, 1000, 4 * MIB, 4 * MIB + 1])
def test_small_files_take_one_request(tmp_path: Path, size: int) -> None:
    made, sha256 = content(size, 5)
    with Hub(made) as hub:
        fetcher(tmp_path, size, sha256=sha256).fetch([hub.url])
        assert (tmp_path / "model.part").stat().st_size == size
        assert len(hub.asks) == (1 if 0 < size <= 4 * MIB else 0 if not size else len(hub.asks))


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("size", [None, SIZE], ids=["size-unknown", "size-known"])
def test_cuts_at_random_cost_little(hub: Hub, tmp_path: Path, size: int | None, reset: bool) -> None:
    chance = random.Random(7)
    hub.behave = lambda ask: Answer(cut_after=chance.randrange(1, 3 * MIB), reset=reset)
    work = fetcher(tmp_path, size)
    outcome = work.fetch([hub.url])
    assert whole(tmp_path) and any("cut off" in text or "reset" in text for text in results(work))
    assert outcome.bytes_fetched <= SIZE * 1.05
    if not reset:
        assert hub.sent <= SIZE * 1.05


def test_a_stall_lets_the_second_source_go_on(hub: Hub, other: Hub, tmp_path: Path) -> None:
    hub.behave = lambda ask: Answer(stall_after=500_000)
    started = time.monotonic()
    outcome = fetcher(tmp_path).fetch([hub.url + "/a", other.url + "/b"])
    assert whole(tmp_path) and time.monotonic() - started < 8
    assert outcome.source == other.url + "/b" and "no byte for 2 s" in outcome.attempts[0]["result"]
    # What the first gave is not asked for again.
    assert hub.sent + other.sent <= SIZE * 1.05 and other.sent < SIZE


def test_a_hanging_connection_beside_lively_ones_is_made_anew(hub: Hub, tmp_path: Path) -> None:
    hub.behave = lambda ask: Answer(stall_after=1000) if ask.number == 2 else Answer(rate=8e6)
    started = time.monotonic()
    outcome = fetcher(tmp_path, stall=40.0, takeover=3.0).fetch([hub.url])
    assert whole(tmp_path) and time.monotonic() - started < 15
    assert outcome.bytes_fetched <= SIZE * 1.05


def test_a_lone_source_that_stalls_is_asked_again(hub: Hub, tmp_path: Path) -> None:
    hub.behave = lambda ask: Answer(stall_after=3 * MIB) if ask.number < 3 else Answer()
    fetcher(tmp_path, stall=1.0).fetch([hub.url])
    assert whole(tmp_path)


def test_a_source_slower_than_it_should_be_is_left(
    hub: Hub, other: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "WINDOW", 1.0)
    hub.behave = lambda ask: Answer(rate=20_000)
    outcome = fetcher(tmp_path).fetch([wire.Source(hub.url, min_rate=10_000_000), other.url + "/b"])
    assert whole(tmp_path) and outcome.source == other.url + "/b"
    assert "MB/s" in outcome.attempts[0]["result"]


@pytest.mark.parametrize("code", [401, 403, 404, 410, 451])
def test_a_refusal_leads_to_the_next_source_at_once(hub: Hub, other: Hub, tmp_path: Path, code: int) -> None:
    hub.behave = lambda ask: Answer(code)
    work = fetcher(tmp_path)
    started = time.monotonic()
    work.fetch([hub.url, other.url])
    assert whole(tmp_path) and len(hub.asks) == 1 and time.monotonic() - started < 2
    assert results(work)[0].startswith(f"answers {code}")


@pytest.mark.parametrize("code", [429, 503])
def test_retry_after_is_honoured(hub: Hub, tmp_path: Path, code: int) -> None:
    moments: list[float] = []

    def behave(ask: Ask) -> Answer:
        moments.append(time.monotonic())
        return Answer(code, {"Retry-After": "1"}) if ask.number == 1 else Answer(rate=50e6)

    hub.behave = behave
    work = fetcher(tmp_path, connections=1, most_connections=1)
    work.fetch([hub.url])
    assert whole(tmp_path) and moments[2] - moments[1] >= 1.0
    assert any(text.startswith(f"answers {code}") for text in results(work))


def test_a_long_retry_after_leads_to_the_next_source(hub: Hub, other: Hub, tmp_path: Path) -> None:
    hub.behave = lambda ask: Answer(429, {"Retry-After": "3600"})
    started = time.monotonic()
    fetcher(tmp_path).fetch([hub.url, other.url])
    assert whole(tmp_path) and time.monotonic() - started < 3 and len(hub.asks) == 1


def test_a_busy_server_gets_fewer_connections(hub: Hub, tmp_path: Path) -> None:
    busy = threading.Semaphore(2)

    def behave(ask: Ask) -> Answer:
        # More than two at once are refused, as a hub does that counts connections.
        if not busy.acquire(blocking=False):
            return Answer(429, {"Retry-After": "0"})
        threading.Timer(0.2, busy.release).start()
        return Answer(rate=10e6)

    hub.behave = behave
    fetcher(tmp_path).fetch([hub.url])
    assert whole(tmp_path)


@pytest.mark.parametrize("code", [500, 502, 504])
def test_server_errors_pass(hub: Hub, tmp_path: Path, code: int) -> None:
    hub.behave = lambda ask: Answer(code) if ask.number % 3 else Answer()
    fetcher(tmp_path).fetch([hub.url])
    assert whole(tmp_path)


def test_server_errors_that_do_not_pass(hub: Hub, tmp_path: Path) -> None:
    hub.behave = lambda ask: Answer(500)
    with pytest.raises(files.FileError, match=r"no source gave the file.*answers 500.*try again later"):
        fetcher(tmp_path).fetch([hub.url])
    assert list(tmp_path.iterdir()) == [] and len(hub.asks) <= 4


def test_redirects_do_not_carry_credentials(hub: Hub, other: Hub, tmp_path: Path) -> None:
    hub.behave = lambda ask: Answer(302, {"Location": other.url + "/signed?sig=secret"})
    named = hub.url.replace("//", "//me:word@")
    work = fetcher(tmp_path)
    outcome = work.fetch([wire.Source(named, headers={"X-Token": "canary"})])
    assert whole(tmp_path)
    assert all(ask.headers["Authorization"].startswith("Basic ") for ask in hub.asks)
    assert all(ask.headers["X-Token"] == "canary" for ask in hub.asks)
    assert not any("Authorization" in ask.headers or "X-Token" in ask.headers for ask in other.asks)
    assert "word" not in json.dumps(outcome.attempts) + outcome.source
    # The hub is asked where to once, not for each range.
    assert len(hub.asks) == 1 and len(other.asks) > 4


def test_a_signed_address_that_expires_is_asked_for_anew(hub: Hub, tmp_path: Path) -> None:
    valid = {"now": 0, "left": 0}

    def behave(ask: Ask) -> Answer:
        if ask.path == "/m":
            valid.update(now=valid["now"] + 1, left=3)
            return Answer(307, {"Location": f"/signed?{valid['now']}"})
        if ask.path != f"/signed?{valid['now']}" or not valid["left"]:
            return Answer(403)
        valid["left"] -= 1
        return Answer()

    hub.behave = behave
    fetcher(tmp_path, connections=1, most_connections=1).fetch([hub.url + "/m"])
    assert whole(tmp_path) and valid["now"] > 3


@pytest.mark.parametrize("where", ["/m", "ftp://127.0.0.1/x", "http:///nohost", "http://127.0.0.1:99999/"])
def test_redirects_to_nowhere_are_left(hub: Hub, other: Hub, tmp_path: Path, where: str) -> None:
    hub.behave = lambda ask: Answer(301, {"Location": where})
    fetcher(tmp_path).fetch([hub.url + "/m", other.url])
    assert whole(tmp_path)


@pytest.mark.parametrize("size", [None, SIZE], ids=["size-unknown", "size-known"])
def test_a_server_without_ranges(hub: Hub, tmp_path: Path, size: int | None) -> None:
    hub.behave = lambda ask: Answer(ranges=False, cut_after=5 * MIB if ask.number == 0 else None)
    work = fetcher(tmp_path, size, stall=30.0)
    work.fetch([hub.url])
    assert whole(tmp_path) and len(hub.asks) == 2, results(work)


@pytest.mark.parametrize("size", [None, SIZE], ids=["size-unknown", "size-known"])
@pytest.mark.parametrize("how", [{"chunked": True}, {"length": None}], ids=["chunked", "no-length"])
def test_a_body_without_length(hub: Hub, tmp_path: Path, how: dict[str, Any], size: int | None) -> None:
    hub.behave = lambda ask: Answer(ranges=False, **how)
    fetcher(tmp_path, size).fetch([hub.url])
    assert whole(tmp_path)


@pytest.mark.parametrize("by", [-1000, 1000])
@pytest.mark.parametrize("ranges", [False, True])
@pytest.mark.parametrize("size", [None, SIZE], ids=["size-unknown", "size-known"])
def test_a_wrong_length_is_never_believed(
    hub: Hub, other: Hub, tmp_path: Path, by: int, ranges: bool, size: int | None
) -> None:
    hub.behave = lambda ask: Answer(length=by, ranges=ranges)
    fetcher(tmp_path, size, stall=1.0).fetch([hub.url + "/a", other.url + "/b"])
    assert whole(tmp_path)


def test_another_size_is_refused_before_a_byte_is_taken(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(files.FileError, match=f"offers {SIZE} bytes, wanted {SIZE - 1}"):
        fetcher(tmp_path, SIZE - 1).fetch([hub.url])
    assert list(tmp_path.iterdir()) == []


def test_wrong_bytes_are_deleted_and_both_digests_told(hub: Hub, tmp_path: Path) -> None:
    hub.behave = lambda ask: Answer(wrong_at=9 * MIB)
    with pytest.raises(
        files.FileError, match=f"sha256 is [0-9a-f]{{64}}, wanted {content()[1]}; the bytes are deleted"
    ):
        fetcher(tmp_path).fetch([hub.url])
    assert list(tmp_path.iterdir()) == []


def test_wrong_bytes_of_one_source_are_replaced_by_another(hub: Hub, other: Hub, tmp_path: Path) -> None:
    hub.behave = lambda ask: Answer(wrong_at=9 * MIB)
    outcome = fetcher(tmp_path).fetch([hub.url, other.url])
    assert whole(tmp_path) and outcome.source == other.url and other.sent == SIZE


@pytest.mark.parametrize("liar", [0, 1])
def test_of_two_sources_one_lies(hub: Hub, other: Hub, tmp_path: Path, liar: int) -> None:
    """The first breaks off after 5 MiB, the second gives the rest; either may have been the wrong one."""
    wrong = [2 * MIB if liar == 0 else None, 15 * MIB if liar == 1 else None]
    left = {"bytes": 5}

    def first(ask: Ask) -> Answer:
        left["bytes"] -= 1
        return (
            Answer(wrong_at=wrong[0])
            if left["bytes"] >= 0
            else Answer(502 if liar == 0 or left["bytes"] > -5 else 0)
        )

    hub.behave = first
    other.behave = lambda ask: Answer(wrong_at=wrong[1])
    fetcher(tmp_path).fetch([hub.url, other.url])
    assert whole(tmp_path)
    assert other.sent <= SIZE + 64 * 1024


@pytest.mark.parametrize("liar", [0, 1])
def test_one_breaks_off_for_good_and_one_lies(hub: Hub, other: Hub, tmp_path: Path, liar: int) -> None:
    def first(ask: Ask) -> Answer:
        return Answer(wrong_at=2 * MIB if liar == 0 else None) if ask.number < 15 else Answer(502)

    hub.behave = first
    other.behave = lambda ask: Answer(wrong_at=20 * MIB if liar == 1 else None)
    work = fetcher(tmp_path)
    if liar == 1:
        with pytest.raises(files.FileError, match="no source gave the file"):
            work.fetch([hub.url, other.url])
    else:
        work.fetch([hub.url, other.url])
        assert whole(tmp_path)
    assert other.sent <= 2 * SIZE


def test_a_file_that_changes_midway_is_never_spliced(hub: Hub, tmp_path: Path) -> None:
    old, _ = content(SIZE, 2)

    def behave(ask: Ask) -> Answer:
        return Answer(content=old, etag='"old"', rate=60e6) if ask.number < 8 else Answer()

    hub.behave = behave
    work = fetcher(tmp_path)
    work.fetch([hub.url])
    assert whole(tmp_path) and "the file there changed; begun again" in results(work)


def test_a_file_that_always_changes_is_left(hub: Hub, other: Hub, tmp_path: Path) -> None:
    hub.behave = lambda ask: Answer(etag=f'"{ask.number}"')
    work = fetcher(tmp_path)
    work.fetch([hub.url, other.url])
    assert whole(tmp_path) and "the file there keeps changing" in results(work)


def test_a_limit_holds_for_all_connections_together(hub: Hub, tmp_path: Path) -> None:
    made, sha256 = content(8 * MIB, 3)
    hub.content = made
    started = time.monotonic()
    fetcher(tmp_path, 8 * MIB, sha256=sha256, limiter=rates.Limiter(4 * MIB)).fetch([hub.url])
    assert 1.6 < time.monotonic() - started < 4.0


def test_a_proxy_of_the_environment_is_used(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", hub.url.replace("//", "//me:pass@"))
    fetcher(tmp_path).fetch(["http://hub.invalid/m?x=1"])
    assert whole(tmp_path)
    assert {ask.path for ask in hub.asks} == {"http://hub.invalid/m?x=1"}
    assert all(ask.headers["Proxy-Authorization"].startswith("Basic ") for ask in hub.asks)
    monkeypatch.setenv("no_proxy", "hub.invalid")
    (tmp_path / "b").mkdir()
    with pytest.raises(files.FileError, match="does not resolve"):
        fetcher(tmp_path / "b").fetch(["http://hub.invalid/m"])


@pytest.mark.parametrize("hidden", ["http://nobody:canary@127.0.0.1:1/x?sig=canary", "socks5h://canary@h/x"])
def test_what_is_told_holds_no_secret(tmp_path: Path, hidden: str) -> None:
    with pytest.raises(files.FileError) as failure:
        fetcher(tmp_path).fetch([hidden])
    assert "canary" not in str(failure.value)


def test_tls_is_checked_and_kept(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = tmp_path / "pair.pem"
    words = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=hub -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run(
        [*words.split(), "-keyout", pair, "-out", tmp_path / "cert.pem"], check=True, capture_output=True
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", pair)
    hub.socket = context.wrap_socket(hub.socket, server_side=True)
    url = hub.url.replace("http:", "https:")
    wire.tls_context.cache_clear()
    with pytest.raises(files.FileError, match="certificate not accepted"):
        fetcher(tmp_path).fetch([url])
    wire.tls_context.cache_clear()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    hub.behave = lambda ask: Answer(stall_after=100_000) if ask.number == 9 else Answer()
    fetcher(tmp_path, stall=2.0).fetch([url])
    assert whole(tmp_path) and hub.connections < len(hub.asks)
    wire.tls_context.cache_clear()


def test_a_token_that_http_cannot_carry_is_not_shown(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(files.FileError, match="does not allow") as failure:
        fetcher(tmp_path).fetch([wire.Source(hub.url, headers={"Authorization": "Bearer canary\n"})])
    assert "canary" not in str(failure.value)


def test_a_server_that_ignores_a_range_now_and_then(hub: Hub, tmp_path: Path) -> None:
    hub.behave = lambda ask: Answer(ranges=ask.number % 5 != 3)
    outcome = fetcher(tmp_path).fetch([hub.url])
    assert whole(tmp_path) and outcome.bytes_fetched <= SIZE * 1.05


# What the disk does


def test_room_is_looked_for_first(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(files.FileError, match=r"needs \d+ bytes \(10 % to spare\)"):
        fetcher(tmp_path, 1 << 60).fetch([hub.url])
    assert hub.asks == [] and list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", place], check=False).returncode
    ):
        pytest.skip("mounting a small disk needs root")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_disk_that_fills_up_in_the_middle(hub: Hub, small_disk: Path) -> None:
    hub.behave = lambda ask: Answer(rate=10e6)
    work = fetcher(small_disk, connections=1, most_connections=1)

    def fill() -> None:
        time.sleep(0.7)
        (small_disk / "hog").write_bytes(b"")
        with open(small_disk / "hog", "wb", buffering=0) as hog:
            try:
                while hog.write(bytes(MIB)):
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC

    hog = threading.Thread(target=fill)
    hog.start()
    with pytest.raises(
        files.FileError, match="No space left on device; free some space, then run the same command"
    ):
        work.fetch([hub.url])
    hog.join()
    came = hub.sent
    (small_disk / "hog").unlink()
    hub.behave = lambda ask: Answer()
    again = fetcher(small_disk)
    again.fetch([hub.url])
    assert whole(small_disk)
    assert again.outcome.bytes_kept >= came - 2 * MIB > 0


def test_a_read_only_disk(hub: Hub, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(files.FileError, match="Read-only file system; make the folder writable"):
        fetcher(small_disk).fetch([hub.url])


# Kills, restarts, damage


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM])
def test_kills_lose_nothing_that_was_noted(tmp_path: Path, kind: signal.Signals) -> None:
    killed_again_and_again(tmp_path, 64 * MIB, kind, 2e6, 4, 0.8)


def part_of_an_earlier_run(hub: Hub, folder: Path, after: int = 12 * MIB) -> int:
    """Stop a fetch when about `after` bytes are there and hashed; return how many are noted."""

    def look(now: fetch.Progress) -> None:
        if now.hashed >= after:
            work.stop()

    hub.behave = lambda ask: Answer(rate=20e6)
    work = fetcher(folder, progress=look, every=0.01, connections=2, most_connections=2)
    with pytest.raises(fetch.AbandonedError):
        work.fetch([hub.url])
    hub.behave = lambda ask: Answer()
    hub.asks.clear()
    return noted(folder).bytes


def test_a_torn_journal_keeps_what_stood_before(hub: Hub, tmp_path: Path) -> None:
    kept = part_of_an_earlier_run(hub, tmp_path)
    with open(tmp_path / "model.part.journal", "ab") as journal:
        journal.write(b'{"there":[[0,999999')
    outcome = fetcher(tmp_path).fetch([hub.url])
    assert whole(tmp_path) and outcome.bytes_kept == kept and hub.sent == SIZE - kept


@pytest.mark.parametrize(
    "spoil", [b"", b"\\x00" * 100, b'{"schema":1}\\n', b"[]\\n[]\\n", b'{"schema":2,"size":1}\\n']
)
def test_a_journal_that_says_nothing_is_no_help_and_no_harm(hub: Hub, tmp_path: Path, spoil: bytes) -> None:
    part_of_an_earlier_run(hub, tmp_path)
    (tmp_path / "model.part.journal").write_bytes(spoil)
    fetcher(tmp_path).fetch([hub.url])
    assert whole(tmp_path) and hub.sent == SIZE


def test_damage_on_disk_costs_one_piece(hub: Hub, tmp_path: Path) -> None:
    kept = part_of_an_earlier_run(hub, tmp_path)
    with open(tmp_path / "model.part", "r+b") as part:
        part.seek(3 * MIB + 5)
        part.write(b"flip")
    work = fetcher(tmp_path)
    work.fetch([hub.url])
    assert whole(tmp_path) and hub.sent == SIZE - kept + MIB
    assert f"bytes {3 * MIB}-{4 * MIB - 1} were damaged on disk; fetched again" in results(work)


def test_a_finished_part_needs_no_server(hub: Hub, tmp_path: Path) -> None:
    fetcher(tmp_path).fetch([hub.url])
    journal = pieces.Journal(str(tmp_path / "model.part.journal"))
    journal.write(
        pieces.Saved(content()[1], SIZE, MIB, [[0, SIZE, 0]], [{"key": "k", "name": "n", "validator": ""}])
    )
    hub.asks.clear()
    outcome = fetcher(tmp_path).fetch([hub.url])
    assert whole(tmp_path) and hub.asks == [] and outcome.bytes_kept == SIZE


@pytest.mark.parametrize("places", [[5 * MIB], [0, 7 * MIB + 1, SIZE - 1], [SIZE - 5]])
def test_a_damaged_file_is_repaired_piece_by_piece(hub: Hub, tmp_path: Path, places: list[int]) -> None:
    outcome = fetcher(tmp_path).fetch([hub.url])
    path = tmp_path / "model"
    (tmp_path / "model.part").replace(path)
    arguments = (outcome.piece, outcome.prefixes, content()[1])
    assert pieces.first_damage(str(path), *arguments) is None
    with open(path, "r+b") as handle:
        for place in places:
            handle.seek(place)
            byte = handle.read(1)[0]
            handle.seek(place)
            handle.write(bytes([byte ^ 16]))
    first = places[0] // MIB * MIB
    assert pieces.first_damage(str(path), *arguments) == (first, min(first + MIB, SIZE))
    hub.asks.clear()
    fetch.reopen(str(path), content()[1], SIZE, outcome.piece, outcome.prefixes)
    assert not path.exists()
    fetcher(tmp_path).fetch([hub.url])
    assert whole(tmp_path) and 0 < hub.sent <= len(places) * MIB
