"""Downloads at the size of a model's shard from a hub that misbehaves; the small forms are unit tests."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.dsprov.appliance.plugins.module_utils import files
from ansible_collections.dsprov.appliance.plugins.module_utils.part import Outcome
from tests.fixtures.downloads import content, fetcher, killed_again_and_again, run
from tests.fixtures.hub import MIB, Answer, Ask, Hub

pytestmark = pytest.mark.slow
# Fewer MiB try the tests themselves on a machine that has other work.
SIZE = int(os.environ.get("DSPROV_TEST_MIB", "2048")) * MIB


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def bring(folder: Path, *sources: str, **more: Any) -> Outcome:
    _made, sha256 = content(SIZE, 9)
    outcome = fetcher(folder, SIZE, sha256=sha256, **more).fetch(list(sources))
    assert files.sha256_file(str(folder / "model.part")) == sha256
    return outcome


def test_cuts(tmp_path: Path) -> None:
    chance = random.Random(3)
    with Hub(content(SIZE, 9)[0], lambda ask: Answer(cut_after=chance.randrange(1, SIZE // 60))) as hub:
        outcome = bring(tmp_path, hub.url)
        print(f"sent {hub.sent / SIZE - 1:.2%} too much, {len(hub.asks)} requests")
        assert hub.sent <= SIZE * 1.05 and outcome.bytes_fetched <= SIZE * 1.05


def test_everything_at_once(tmp_path: Path) -> None:
    """Each request meets another trouble; the run still ends in a whole file."""
    chance = random.Random(4)

    def behave(ask: Ask) -> Answer:
        return chance.choices(
            [
                Answer(),
                Answer(cut_after=chance.randrange(8 * MIB)),
                Answer(cut_after=chance.randrange(8 * MIB), reset=True),
                Answer(503, {"Retry-After": "0"}),
                Answer(429, {"Retry-After": "1"}),
                Answer(500),
                Answer(stall_after=chance.randrange(8 * MIB)),
                Answer(302, {"Location": f"/r{ask.number}"}),
                Answer(length=5),
            ],
            [40, 10, 4, 2, 1, 2, 1, 5, 1],
        )[0]

    with Hub(content(SIZE, 9)[0], behave) as hub:
        bring(tmp_path, hub.url + "/a", hub.url + "/b", stall=3.0)


def test_stall_with_the_defaults(tmp_path: Path) -> None:
    made = content(SIZE, 9)[0]
    with Hub(made, lambda ask: Answer(stall_after=SIZE // 1000)) as hub, Hub(made) as other:
        seen: list[tuple[float, str]] = []
        began = time.monotonic()
        bring(
            tmp_path,
            hub.url + "/a",
            other.url + "/b",
            stall=60.0,
            takeover=20.0,
            connect_timeout=15.0,
            progress=lambda now: seen.append((time.monotonic() - began, now.source)),
        )
        first = next(moment for moment, source in seen if source.endswith("/b"))
        print(f"the second source took over after {first:.1f} s")
        assert first < 30


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM])
def test_ten_kills(tmp_path: Path, kind: signal.Signals) -> None:
    killed_again_and_again(tmp_path, SIZE, kind, SIZE / 350, 10, 3.0)


def test_memory(tmp_path: Path) -> None:
    with Hub(content(SIZE, 9)[0]) as hub:
        process = run(tmp_path, content(SIZE, 9)[1], SIZE, hub.url)
        _, status, usage = os.wait4(process.pid, 0)
        process.communicate()
        assert status == 0 and usage.ru_maxrss < 100 * 1024, usage.ru_maxrss
