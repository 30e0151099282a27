"""Live progress of a run on the terminal: a line a stage, what changes on each host, what takes long."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from ansible_collections.dsprov.appliance.plugins.module_utils.problems import human_bytes
from ansible_collections.dsprov.appliance.plugins.module_utils.store import duration, read_progress
from dsprov.runner import task_name
from dsprov.words import say, t

STAGES = {
    "Needs": ("Asking every role what it needs", "询问各角色所需内容"),
    "Probe": ("Reading the hosts", "读取主机"),
    "Preflight": ("Preflight: variables, hosts, plan", "预检:变量、主机、方案"),
    "Converge": ("Converge: bring every part to its state", "部署:使各部分达到目标状态"),
    "Status": ("Looking at the services", "查看服务"),
}
HEARTBEAT_SECONDS = 20


class Progress:
    """Prints as events come. A terminal's last line shows what runs now; elsewhere long tasks are named."""

    def __init__(self, verbose: bool) -> None:
        self.verbose = verbose
        self.terminal = sys.stderr.isatty() and not verbose
        self.start = time.monotonic()
        self.running: dict[str, tuple[str, float]] = {}
        # How far each host's weights have come, in words.
        self.weights: dict[str, str] = {}
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(self, *_details: object) -> None:
        self._done.set()
        self._thread.join()
        self._clear()

    def __call__(self, event: dict[str, Any]) -> None:
        kind, data = event["event"], event.get("event_data") or {}
        if self.verbose:
            if event.get("stdout"):
                say(event["stdout"].replace("\r\n", "\n"))
            return
        host = data.get("host", "")
        if kind == "verbose":
            self._weights(event.get("stdout") or "")
        elif kind == "playbook_on_play_start":
            stage = STAGES.get(data.get("play", ""))
            if stage:
                self._line(f"{self._elapsed()} {t(*stage)}")
        elif kind == "runner_on_start":
            with self._lock:
                self.running[host] = (task_name(data), time.monotonic())
        elif kind == "runner_retry" and (data.get("res") or {}).get("progress"):
            # Work that goes on by itself on the host is asked for again and again, and says how far it is.
            with self._lock:
                _name, began = self.running.get(host, ("", time.monotonic()))
                self.running[host] = (f"{task_name(data)}: {data['res']['progress']}", began)
        elif kind in ("runner_on_ok", "runner_on_failed", "runner_on_skipped", "runner_on_unreachable"):
            with self._lock:
                _name, began = self.running.pop(host, ("", time.monotonic()))
                self.weights.pop(host, None)
            name = task_name(data)
            took = time.monotonic() - began
            result = data.get("res") or {}
            if kind == "runner_on_ok" and result.get("changed"):
                self._line(f"        {host}  {t('changed', '已更改')}  {name}{_seconds(took)}")
            elif kind == "runner_on_failed" and not data.get("ignore_errors"):
                self._line(f"        {host}  {t('FAILED', '失败')}  {name}{_seconds(took)}")
            elif kind == "runner_on_unreachable":
                self._line(f"        {host}  {t('UNREACHABLE', '无法连接')}")

    def _weights(self, text: str) -> None:
        """Take note of how far a host's weights have come."""
        found = read_progress(text)
        if found:
            host, status = found
            with self._lock:
                self.weights[host] = weights_line(status)

    def _tick(self) -> None:
        """Shows what runs now: every half second on a terminal, now and then elsewhere."""
        told = time.monotonic()
        while not self._done.wait(0.5):
            with self._lock:
                running = sorted(self.running.items())
            now = time.monotonic()
            if self.terminal and running:
                parts = [
                    f"{host}: {self.weights.get(host) or f'{name} {now - began:.0f} s'}"
                    for host, (name, began) in running
                ]
                width = shutil.get_terminal_size().columns - 1
                line = f"{self._elapsed()} {' | '.join(parts)}"
                sys.stderr.write("\r\x1b[K" + line[:width])
                sys.stderr.flush()
            elif not self.terminal and now - told >= HEARTBEAT_SECONDS and not self.verbose:
                told = now
                for host, (name, began) in running:
                    if now - began >= HEARTBEAT_SECONDS / 2:
                        what = self.weights.get(host) or f"{name}{_seconds(now - began)}"
                        self._line(f"        {host}  {t('working', '进行中')}  {what}")

    def _line(self, text: str) -> None:
        self._clear()
        say(text)

    def _clear(self) -> None:
        if self.terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def _elapsed(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self.start), 60)
        return f"[{minutes:2d}:{seconds:02d}]"


def _seconds(count: float) -> str:
    return f" ({count:.0f} s)" if count >= 1 else ""


def weights_line(status: Mapping[str, Any]) -> str:
    """How far weights have come, for people: bytes, rate, time left, and where from."""
    done, total, rate = (int(status[key]) for key in ("done", "total", "rate"))
    words = [f"{human_bytes(done)} / {human_bytes(total)} ({100 * done // total if total else 0} %)"]
    if status["state"] == "checking":
        words.append(t("checking what is there", "正在校验已有内容"))
    else:
        words.append(f"{human_bytes(rate)}/s")
        if rate and total > done:
            left = duration((total - done) / rate)
            words.append(t(f"{left} left", f"剩余 {left}"))
        if status["source"]:
            words.append(t(f"from {status['source']}", f"来自 {status['source']}"))
    return ", ".join(words)
