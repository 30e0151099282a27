"""What the terminal says about weights that come, in both languages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ansible_collections.dsprov.appliance.plugins.module_utils.store import progress_mark
from dsprov import words
from dsprov.progress import Progress, weights_line

STATUS = {
    "state": "fetching",
    "done": 12_300_000_000,
    "total": 131_000_000_000,
    "rate": 108_000_000,
    "source": "gpu02",
}


@pytest.fixture(autouse=True)
def _language() -> Iterator[None]:
    yield
    words.choose(None)


@pytest.mark.parametrize(
    ("language", "more", "line"),
    [
        ("en", {}, "12.3 GB / 131.0 GB (9 %), 108.0 MB/s, 18:19 left, from gpu02"),
        ("zh", {}, "12.3 GB / 131.0 GB (9 %), 108.0 MB/s, 剩余 18:19, 来自 gpu02"),
        ("en", {"rate": 0, "source": ""}, "12.3 GB / 131.0 GB (9 %), 0 B/s"),
        ("en", {"state": "checking"}, "12.3 GB / 131.0 GB (9 %), checking what is there"),
        ("zh", {"state": "checking"}, "12.3 GB / 131.0 GB (9 %), 正在校验已有内容"),
        ("en", {"done": 0, "total": 0}, "0 B / 0 B (0 %), 108.0 MB/s, from gpu02"),
    ],
)
def test_how_far_weights_have_come(language: str, more: dict[str, Any], line: str) -> None:
    words.choose(language)
    assert weights_line({**STATUS, **more}) == line


def test_a_hosts_line_goes_with_its_task() -> None:
    words.choose("en")
    progress = Progress(verbose=False)
    task = {"host": "gpu01", "task": "Ensure the weights are present"}
    progress({"event": "runner_on_start", "event_data": task})
    progress({"event": "verbose", "stdout": "gpu01: something else"})
    assert progress.weights == {}
    progress({"event": "verbose", "stdout": progress_mark("gpu01", STATUS)})
    assert progress.weights["gpu01"].startswith("12.3 GB / 131.0 GB")
    progress({"event": "runner_on_ok", "event_data": {**task, "res": {"changed": False}}})
    assert progress.weights == {}
