"""How far a long work with bytes is: bytes, rate and time left, on stderr."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable

from ansible_collections.dsprov.appliance.plugins.module_utils.problems import human_bytes
from dsprov.show import width
from dsprov.words import say, t

TERMINAL_SECONDS = 0.5
# Where no terminal redraws its last line, a line now and then.
LOG_SECONDS = 10.0


class Gauge:
    """Shows progress while it is entered.

    Args:
        title: what is being done.
        total: bytes in all; may grow.
        done: gives the bytes done so far; asked from another thread.
    """

    def __init__(self, title: str, total: Callable[[], int], done: Callable[[], int]) -> None:
        self.title = title
        self.total = total
        self.done = done
        self._terminal = sys.stderr is not None and sys.stderr.isatty()
        self._begun = time.monotonic()
        self._first = done()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Gauge:
        self._thread.start()
        return self

    def __exit__(self, *_details: object) -> None:
        self._end.set()
        self._thread.join()
        if self._terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._begun

    def _run(self) -> None:
        while not self._end.wait(TERMINAL_SECONDS if self._terminal else LOG_SECONDS):
            line = self._line()
            if self._terminal:
                room = shutil.get_terminal_size().columns - 1
                while width(line) > room:
                    line = line[:-1]
                sys.stderr.write("\r\x1b[K" + line)
                sys.stderr.flush()
            else:
                say(line)

    def _line(self) -> str:
        done, total = self.done(), self.total()
        rate = (done - self._first) / max(self.seconds, 0.001)
        left = (total - done) / rate if rate else 0.0
        share = f"{done / total:.0%}" if total else "?"
        line = f"{self.title}  {human_bytes(done)} / {human_bytes(total)} ({share})  {human_bytes(rate)}/s"
        remains = human_seconds(left)
        return line + t(f"  {remains} left", f"  剩余 {remains}") if rate and total >= done else line


def human_seconds(count: float) -> str:
    """Seconds as people say them: 75 is '1:15', 4000 is '1:06:40'."""
    minutes, seconds = divmod(round(count), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
