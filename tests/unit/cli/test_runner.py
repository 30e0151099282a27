"""Ansible's events become an outcome, with the exit code of the contract."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import problems
from dsprov import runner
from dsprov.invocation import Invocation
from dsprov.progress import Progress
from dsprov.runner import Outcome, Recorder, task_name

INVOCATION = Invocation(verb="install", inventories=("/tiers/demo.yml", "/home/x/hosts.ini"))


def event(kind: str, host: str = "", *, stdout: str = "", **data: Any) -> dict[str, Any]:
    """One of ansible-runner's events."""
    inside = {
        "playbook": "dsprov.appliance.install",
        "task": "docker : Ensure it runs",
        "role": "docker",
        **data,
    }
    return {"event": kind, "stdout": stdout, "event_data": {**inside, **({"host": host} if host else {})}}


def ok(host: str, *, changed: bool = False, **data: Any) -> dict[str, Any]:
    res = {"changed": changed, **data.pop("res", {})}
    return event("runner_on_ok", host, res=res, **data)


def failed(host: str, msg: str = "boom", **data: Any) -> dict[str, Any]:
    return event("runner_on_failed", host, res={"msg": msg, **data.pop("res", {})}, **data)


def dark(host: str) -> dict[str, Any]:
    return event("runner_on_unreachable", host, res={"msg": "Connection\nrefused", "unreachable": True})


def said(text: str) -> dict[str, Any]:
    return {"event": "verbose", "stdout": text, "event_data": {}}


def problem(code: str, host: str | None = None, **words: Any) -> dict[str, Any]:
    return problems().make(code, host, **words)


def come_to(
    *events: dict[str, Any], code: int = 0, interrupted: bool = False, invocation: Invocation = INVOCATION
) -> Outcome:
    outcome = Outcome(exit_code=0, seconds=1.0, log=Path("/logs/x.log"))
    recorder = Recorder(outcome, io.StringIO(), lambda _event: None)
    for one in events:
        assert recorder(one) is False  # ansible-runner then writes no file an event
    runner._conclude(outcome, invocation, recorder, code, interrupted)
    json.dumps(outcome.document("install"))
    return outcome


def refusal(host: str, *found: dict[str, Any]) -> dict[str, Any]:
    return failed(host, res={"dsprov_problems": list(found)})


EXIT_CODES = [
    ("all is well", [ok("a"), ok("b", changed=True)], 0, 0, {"a": "ok", "b": "ok"}),
    ("one unreachable", [ok("a"), dark("b")], 4, 4, {"a": "ok", "b": "unreachable"}),
    ("one failed", [ok("a"), failed("b")], 2, 1, {"a": "ok", "b": "failed"}),
    ("one failed, one unreachable", [failed("a"), dark("b")], 6, 1, {"a": "failed", "b": "unreachable"}),
    (
        "bad input",
        [refusal("a", problem("variable-unknown", "a", key="x", nearest="y"))],
        2,
        2,
        {"a": "failed"},
    ),
    ("the plan refuses", [refusal("a", problem("host-memory", "a"))], 2, 3, {"a": "failed"}),
    ("refused and unreachable", [refusal("a", problem("host-memory", "a")), dark("b")], 6, 3, None),
    ("bad input and failed", [refusal("a", problem("port-in-use", "a")), failed("b")], 2, 2, None),
    (
        "a warning is none",
        [ok("a", res={"dsprov_problems": [problem("cpu-only", "a")]})],
        0,
        0,
        {"a": "ok"},
    ),
    ("no sudo", [failed("a", "Missing sudo password")], 2, 2, {"a": "failed"}),
    ("no python", [failed("a", "", res={"module_stderr": "/usr/bin/python3: not found"})], 2, 2, None),
    ("disk full", [failed("a", "[Errno 28] No space left on device")], 2, 1, None),
    ("ignored", [failed("a", ignore_errors=True), ok("a")], 0, 0, {"a": "ok"}),
    (
        "rescued",
        [failed("a"), ok("a"), event("playbook_on_stats", rescued={"a": 1}, failures={})],
        0,
        0,
        {"a": "ok"},
    ),
    (
        "rescued once, failed later",
        [failed("a"), failed("a", "again"), event("playbook_on_stats", rescued={"a": 1}, failures={"a": 1})],
        2,
        1,
        {"a": "failed"},
    ),
    ("ansible died without a word", [ok("a")], 250, 1, {"a": "ok"}),
]


@pytest.mark.parametrize(
    ("events", "code", "expected", "states"),
    [row[1:] for row in EXIT_CODES],
    ids=[row[0] for row in EXIT_CODES],
)
def test_exit_code(
    events: list[dict[str, Any]], code: int, expected: int, states: dict[str, str] | None
) -> None:
    outcome = come_to(*events, code=code)
    assert outcome.exit_code == expected
    if states is not None:
        assert {name: host.state for name, host in outcome.hosts.items()} == states
    if expected:
        assert any(found["severity"] == "error" for found in outcome.problems)


def test_an_interruption_outranks_everything() -> None:
    outcome = come_to(failed("a"), dark("b"), code=254, interrupted=True)
    assert outcome.exit_code == 130
    assert "same command" in outcome.problems[-1]["remedy"]["en"]


NO_HOSTS = [
    ([event("playbook_on_no_hosts_matched")], None, "inventory-empty"),
    ([said("[WARNING]: provided hosts list is empty, only localhost is available")], None, "inventory-empty"),
    ([], None, "inventory-empty"),
    (
        [said("\x1b[1;31m[ERROR]: Failed to parse inventory: no plugin\x1b[0m")],
        None,
        "inventory-invalid",
    ),
    (
        [
            said(
                "[ERROR]: Specified inventory, host pattern and/or --limit leaves us with no hosts to target."
            )
        ],
        "nope",
        "limit-empty",
    ),
    ([said("[ERROR]: the role 'x' was not found")], None, "ansible-failed"),
]


@pytest.mark.parametrize(("events", "limit", "code"), NO_HOSTS)
def test_no_hosts_at_all(events: list[dict[str, Any]], limit: str | None, code: str) -> None:
    invocation = Invocation(verb="install", inventories=("/t.yml", "/home/x/hosts.ini"), limit=limit)
    outcome = come_to(*events, code=1 if events else 0, invocation=invocation)
    assert [found["code"] for found in outcome.problems] == [code]
    assert outcome.exit_code == 2
    if code.startswith("inventory"):
        assert "/home/x/hosts.ini" in outcome.problems[0]["message"]["en"]
    assert "\x1b" not in outcome.problems[0]["message"]["en"]


def test_results_are_handed_on_by_the_tasks_action() -> None:
    outcome = come_to(
        ok("a", resolved_action="dsprov.appliance.probe", res={"facts": {"x": 1}}),
        ok("a", task_action="dsprov.appliance.plan", res={"plan": {"ok": True}}),
        ok("a", resolved_action="dsprov.appliance.state", changed=True, res={"document": {"access": {}}}),
        ok("a", resolved_action="ansible.builtin.debug", res={"facts": {"x": 2}}),
    )
    assert outcome.plan == {"ok": True}
    assert outcome.hosts["a"].results == {"facts": {"x": 1}, "document": {"access": {}}}
    assert outcome.document("install")["hosts"]["a"]["changed"] == 1


def test_a_failed_item_of_a_loop_gives_its_own_words() -> None:
    row = failed(
        "a", "One or more items failed", res={"results": [{"msg": "fine"}, {"failed": True, "msg": "this"}]}
    )
    (found,) = come_to(row, code=2).problems
    assert found["message"]["en"] == "docker: Ensure it runs: this"
    assert "/logs/x.log" in found["remedy"]["en"]


def test_a_long_message_becomes_one_short_line() -> None:
    (found,) = come_to(failed("a", "x\n" * 4000), code=2).problems
    assert "\n" not in found["message"]["en"]
    assert len(found["message"]["en"]) < 400


def test_the_same_problem_of_a_host_is_listed_once() -> None:
    one = problem("port-in-use", "a", port=1)
    assert come_to(refusal("a", one), refusal("a", one), code=2).problems == [one]


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (
            {"task": "dsprov.appliance.docker : Ensure x", "role": "dsprov.appliance.docker"},
            "docker: Ensure x",
        ),
        ({"task": "docker : Ensure x", "role": "docker"}, "docker: Ensure x"),
        ({"task": "Ensure x"}, "Ensure x"),
        ({}, "?"),
    ],
)
def test_task_name(data: dict[str, Any], name: str) -> None:
    assert task_name(data) == name


def test_the_log_holds_what_ansible_said_without_colours() -> None:
    log = io.StringIO()
    recorder = Recorder(Outcome(0, 0.0, Path("x")), log, lambda _event: None)
    recorder(event("runner_on_ok", "a", stdout="\x1b[0;33mchanged: [a]\x1b[0m\r\nmore"))
    assert log.getvalue() == "changed: [a]\nmore\n"


# -- progress ------------------------------------------------------------------------------------


def show(capsys: pytest.CaptureFixture[str], *events: dict[str, Any], verbose: bool = False) -> list[str]:
    with Progress(verbose) as progress:
        for one in events:
            progress(one)
    said_now = capsys.readouterr()
    assert said_now.out == ""
    return said_now.err.splitlines()


def test_progress_has_a_line_a_stage_and_a_line_a_change(capsys: pytest.CaptureFixture[str]) -> None:
    lines = show(
        capsys,
        event("playbook_on_play_start", play="Converge"),
        event("playbook_on_play_start", play="Something of ours that is no stage"),
        event("runner_on_start", "a"),
        ok("a"),
        event("runner_on_start", "a"),
        ok("a", changed=True),
        event("runner_on_start", "b"),
        failed("b"),
        failed("b", ignore_errors=True),
        dark("c"),
        event("runner_on_skipped", "a"),
    )
    assert lines[0].startswith("[ 0:00] Converge")
    assert [" ".join(line.split()) for line in lines[1:]] == [
        "a changed docker: Ensure it runs",
        "b FAILED docker: Ensure it runs",
        "c UNREACHABLE",
    ]


def test_work_that_goes_on_by_itself_says_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsprov.progress.HEARTBEAT_SECONDS", 0)
    with Progress(False) as progress:
        progress(event("runner_on_start", "a"))
        progress(event("runner_retry", "a", res={"progress": "41 of 228 steps, about 6 min left"}))
        progress(event("runner_retry", "b", res={}))
        time.sleep(1.2)
    lines = [" ".join(line.split()) for line in capsys.readouterr().err.splitlines()]
    assert lines
    assert all(
        "a working docker: Ensure it runs: 41 of 228 steps, about 6 min left" in line for line in lines
    )


def test_verbose_progress_is_ansibles_own_output(capsys: pytest.CaptureFixture[str]) -> None:
    row = event("runner_on_ok", "a", stdout="ok: [a]\r\nmore", res={"changed": True})
    assert show(capsys, row, said(""), verbose=True) == ["ok: [a]", "more"]


def test_what_a_rescue_says_takes_the_place_of_what_it_took_up() -> None:
    one = problem("port-in-use", "a", port=1)
    assert come_to(failed("a", "the first"), refusal("a", one), code=2).problems == [one]
