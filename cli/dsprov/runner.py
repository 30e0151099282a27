"""The only module that runs Ansible: an Invocation in, an Outcome out, events to whoever watches."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from ansible_collections.dsprov.appliance.plugins.module_utils.store import progress_line, read_progress
from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import problems
from dsprov.invocation import Invocation, ansible_environment, log_path
from dsprov.paths import runtime_dir

Event = dict[str, Any]
Watch = Callable[[Event], None]

KEPT_LOGS = 50
PROGRESS_SECONDS = 60.0
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
# Results that the command line hands on: the task's action, and the key of the result that matters.
_RESULTS = {
    "dsprov.appliance.probe": "facts",
    "dsprov.appliance.plan": "plan",
    "dsprov.appliance.status": "status",
    "dsprov.appliance.state": "document",
    "dsprov.appliance.needs": "needs",
    "dsprov.appliance.system": "facts",
}


@dataclass
class HostOutcome:
    """What happened on one host. `state`: ok, failed or unreachable."""

    state: str = "ok"
    changed: list[str] = field(default_factory=list)
    problems: list[dict[str, Any]] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)


@dataclass
class Outcome:
    """What a run came to.

    Attributes:
        exit_code: by the contract of the command line.
        hosts: per host of the inventory that a play entered.
        plan: the plan, where the run made one.
        problems: problems of the whole run, and all hosts' own.
        log: file with all that Ansible said.
    """

    exit_code: int
    seconds: float
    log: Path
    hosts: dict[str, HostOutcome] = field(default_factory=dict)
    plan: dict[str, Any] | None = None
    problems: list[dict[str, Any]] = field(default_factory=list)

    def document(self, verb: str) -> dict[str, Any]:
        """The outcome as the JSON document of a verb."""
        return {
            "schema": 1,
            "verb": verb,
            "ok": self.exit_code == 0,
            "exit": self.exit_code,
            "seconds": round(self.seconds, 1),
            "log": str(self.log),
            "hosts": {
                name: {
                    "state": host.state,
                    "changed": len(host.changed),
                    "changed_tasks": host.changed,
                    "problems": host.problems,
                    **host.results,
                }
                for name, host in sorted(self.hosts.items())
            },
            "plan": self.plan,
            "problems": self.problems,
        }


class Recorder:
    """Turns Ansible's events into an Outcome, and writes the log as they come."""

    def __init__(self, outcome: Outcome, log: Any, watch: Watch) -> None:
        self.outcome = outcome
        self.log = log
        self.watch = watch
        self.no_hosts = False
        self.said: list[str] = []
        self._told: dict[str, float] = {}

    def __call__(self, event: Event) -> bool:
        """ansible-runner's event handler; False keeps it from writing a file an event."""
        text = _ANSI.sub("", event.get("stdout") or "")
        if kept := self._for_log(text):
            self.log.write(kept.replace("\r\n", "\n") + "\n")
            self.log.flush()
        kind, data = event["event"], event.get("event_data") or {}
        if kind in ("verbose", "error") and kept:
            self.said.append(text)
        elif kind == "playbook_on_no_hosts_matched":
            self.no_hosts = True
        elif kind == "playbook_on_stats":
            self._settle(data)
        elif "host" in data:
            self._host_event(kind, data)
        self.watch(event)
        return False

    def _for_log(self, text: str) -> str:
        """Of what weights have come the log gets a line a minute; the terminal shows it every few seconds."""
        found = read_progress(text)
        if not found:
            return text
        host, now = found[0], time.monotonic()
        if now - self._told.get(host, -PROGRESS_SECONDS) < PROGRESS_SECONDS:
            return ""
        self._told[host] = now
        return progress_line(*found)

    def _host_event(self, kind: str, data: dict[str, Any]) -> None:
        host = self.outcome.hosts.setdefault(data["host"], HostOutcome())
        result = data.get("res") or {}
        if kind in ("runner_on_ok", "runner_on_failed"):
            self._keep_result(host, data, result)
        if kind == "runner_on_ok" and result.get("changed"):
            host.changed.append(task_name(data))
        elif kind == "runner_on_unreachable":
            host.state = "unreachable"
            # Ansible says again that it is unreachable; what ssh says after that is the cause.
            detail = _one_line(result.get("msg", "")).rpartition("can be reached over ssh: ")[2]
            host.problems.append(problems().make("unreachable", data["host"], detail=detail))
        elif kind == "runner_on_failed" and not data.get("ignore_errors"):
            if host.state == "failed":
                # A host goes on after a failure only where a rescue took it up: this says what that came to.
                host.problems = [problem for problem in host.problems if problem["severity"] == "warning"]
            host.state = "failed"
            host.problems += self._failures(data, result, host)

    def _settle(self, stats: dict[str, Any]) -> None:
        """A failure that a rescue block mended is none: Ansible's own count at the end says so."""
        for name, host in self.outcome.hosts.items():
            if (
                host.state == "failed"
                and stats.get("rescued", {}).get(name)
                and not stats.get("failures", {}).get(name)
            ):
                host.state = "ok"
                host.problems = [problem for problem in host.problems if problem["severity"] == "warning"]

    def _keep_result(self, host: HostOutcome, data: dict[str, Any], result: dict[str, Any]) -> None:
        key = _RESULTS.get(data.get("resolved_action") or data.get("task_action", ""))
        if key and key in result:
            if key == "plan":
                self.outcome.plan = result[key]
            else:
                host.results[key] = result[key]
        for problem in result.get("dsprov_problems") or []:
            if problem["severity"] == "warning" and problem not in host.problems:
                host.problems.append(problem)

    def _failures(
        self, data: dict[str, Any], result: dict[str, Any], host: HostOutcome
    ) -> list[dict[str, Any]]:
        """What a failed task means: its own problems, a known kind of failure, or its bare message."""
        own = result.get("dsprov_problems") or []
        if own:
            return [problem for problem in own if problem not in host.problems]
        item = next((row for row in result.get("results") or [] if row.get("failed")), result)
        words = [
            str(item.get(key) or "")
            for key in ("msg", "module_stderr", "module_stdout", "stderr", "exception")
        ]
        code = problems().recognise(" ".join(words)) or "task-failed"
        detail = next((_one_line(word) for word in words if word.strip()), "?")
        return [
            problems().make(
                code, data["host"], task=task_name(data), detail=detail, log=str(self.outcome.log)
            )
        ]


def task_name(data: dict[str, Any]) -> str:
    """A task's name for people: "role: outcome"."""
    name = str(data.get("task") or "?")
    role = str(data.get("role") or "").removeprefix("dsprov.appliance.")
    name = name.removeprefix(f"dsprov.appliance.{role} : ").removeprefix(f"{role} : ")
    return f"{role}: {name}" if role else name


def _one_line(text: Any, limit: int = 300) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def run(invocation: Invocation, watch: Watch) -> Outcome:
    """Runs a playbook.

    Args:
        invocation: what to run.
        watch: called with each of ansible-runner's events, for progress.

    Returns:
        The outcome, with the exit code of the contract: the first of 130, 2, 3, 1, 4 that applies, else 0.
    """
    import ansible_runner

    stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    log_file = log_path(invocation.verb, stamp)
    log_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    outcome = Outcome(exit_code=0, seconds=0.0, log=log_file)
    stopped = _Stop()
    start = time.monotonic()
    private = tempfile.mkdtemp(prefix="dsprov-", dir=runtime_dir())
    try:
        with log_file.open("w", encoding="utf-8") as log, stopped:
            log_file.chmod(0o600)
            log.write(invocation.shell_line() + "\n")
            recorder = Recorder(outcome, log, watch)
            command = invocation.command()
            runner = ansible_runner.interface.init_runner(
                private_data_dir=private,
                playbook=invocation.playbook,
                envvars=ansible_environment(invocation),
                settings={
                    "pexpect_timeout": 1,
                    "suppress_ansible_output": True,
                    "suppress_output_file": True,
                },
                suppress_env_files=True,
                quiet=True,
                event_handler=recorder,
                cancel_callback=stopped.by_force,
            )
            # The very line that --print-command shows; tied to this process, so that no run outlives it.
            runner.config.command = [*_tether(), *command]
            runner.config.cwd = str(Path.cwd())
            runner.run()
    finally:
        shutil.rmtree(private, ignore_errors=True)
    outcome.seconds = time.monotonic() - start
    _forget_old_logs(log_file.parent)
    _conclude(outcome, invocation, recorder, 254 if runner.rc is None else int(runner.rc), stopped.asked)
    return outcome


def _tether() -> list[str]:
    """Words before the command that end it when this process is killed, where the system can do that."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM"] if setpriv else []


def _conclude(
    outcome: Outcome, invocation: Invocation, recorder: Recorder, return_code: int, interrupted: bool
) -> None:
    """Gathers the problems, and finds the exit code of the whole."""
    found = outcome.problems
    table = problems()
    for _name, host in sorted(outcome.hosts.items()):
        found += [problem for problem in host.problems if problem not in found]
    if interrupted:
        found.append(table.make("interrupted"))
    elif not outcome.hosts:
        said = _one_line(" ".join(line for line in recorder.said if "ERROR" in line or "WARNING" in line))
        inventory = invocation.inventories[-1]
        if invocation.limit and re.search(r"limit|pattern", said):
            found.append(table.make("limit-empty", limit=invocation.limit))
        elif recorder.no_hosts or "no hosts matched" in said.lower() or "hosts list is empty" in said:
            found.append(table.make("inventory-empty", file=inventory))
        elif re.search(r"inventory|parse", said, re.IGNORECASE):
            detail = _one_line(re.sub(r"\[?(ERROR|WARNING)\]?:?", "", said), 200)
            found.append(table.make("inventory-invalid", file=inventory, detail=detail))
        elif return_code:
            found.append(table.make("ansible-failed", detail=said or "?", log=str(outcome.log)))
        else:
            found.append(table.make("inventory-empty", file=inventory))
    codes = {table.exit_code(problem["code"]) for problem in found if problem["severity"] == "error"}
    outcome.exit_code = next((code for code in (130, 2, 3, 1, 4) if code in codes), 0)
    if not outcome.exit_code and return_code:
        outcome.exit_code = 1
        found.append(table.make("ansible-failed", detail=f"exit {return_code}", log=str(outcome.log)))


def _forget_old_logs(folder: Path) -> None:
    for old in sorted(folder.glob("*.log"))[:-KEPT_LOGS]:
        old.unlink(missing_ok=True)


class _Stop:
    """Notes SIGINT and SIGTERM, and ends the run in order; the second one ends it at once.

    Ansible's workers have left its process group, so ansible-runner's own way, to kill the group, would leave
    the task that runs now alive. Ansible ends its workers itself when it is asked to.
    """

    GRACE_SECONDS = 15.0

    def __init__(self) -> None:
        self.asked = False
        self._since: float | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Stop:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_details: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def by_force(self) -> bool:
        """Asks Ansible to end when we were asked to; True once it has had its time."""
        if not self.asked:
            return False
        if self._since is None:
            self._since = time.monotonic()
            for child in _children():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGTERM)
        return time.monotonic() - self._since > self.GRACE_SECONDS

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def _children() -> list[int]:
    """Processes that this one started; none where there is no /proc to say so."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # "PID (NAME) STATE PARENT ...": the name may hold anything, so count from its end.
            if (
                int(stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1])
                == os.getpid()
            ):
                found.append(int(stat.parent.name))
    return found
