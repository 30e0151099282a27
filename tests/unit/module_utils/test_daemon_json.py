"""What becomes of daemon.json, as tables."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ansible_collections.dsprov.appliance.plugins.module_utils import daemon_json
from ansible_collections.dsprov.appliance.plugins.module_utils.daemon_json import DaemonJsonError, merge

LOGS = {"log-driver": "json-file", "log-opts": {"max-size": "50m"}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1,\n "b" 2}', "line 2 column 6"),
        ("{'a': 1}", "line 1 column 2"),
        ("[1]", "an object {...} is needed, found a list"),
        ("null", "found null"),
        ("3", "found a number"),
        ("debug = true", "line 1 column 1"),
    ],
)
def test_what_is_no_object_is_named(text: str, words: str) -> None:
    with pytest.raises(DaemonJsonError) as problem:
        daemon_json.parse(text, "/etc/docker/daemon.json")
    assert str(problem.value).startswith("/etc/docker/daemon.json: ") and words in str(problem.value)


@pytest.mark.parametrize("text", ["", "\n ", "{}", "\ufeff{}"])
def test_empty_is_an_empty_object(text: str) -> None:
    assert daemon_json.parse(text, "x") == {}


@pytest.mark.parametrize(
    ("current", "options", "defaults", "expected", "changed"),
    [
        ({}, {}, [LOGS], LOGS, ["log-driver", "log-opts"]),
        ({"data-root": "/d"}, {"debug": True}, [], {"data-root": "/d", "debug": True}, ["debug"]),
        ({"debug": False}, {"debug": True}, [], {"debug": True}, ["debug"]),
        # The owner chose a log driver: neither it nor its options are ours.
        ({"log-driver": "journald"}, {}, [LOGS], {"log-driver": "journald"}, []),
        ({"log-opts": {"max-size": "1m"}}, {}, [LOGS], {"log-opts": {"max-size": "1m"}}, []),
        # What is asked for by name wins over the owner's and over the defaults.
        (
            {"log-driver": "journald"},
            {"log-driver": "local"},
            [LOGS],
            {"log-driver": "local"},
            ["log-driver"],
        ),
        (
            {"registry-mirrors": ["a"]},
            {"registry-mirrors": ["b", "a"]},
            [],
            {"registry-mirrors": ["a", "b"]},
            ["registry-mirrors"],
        ),
        (
            {"features": {"x": True}},
            {"features": {"y": True}},
            [],
            {"features": {"x": True, "y": True}},
            ["features"],
        ),
        ({"labels": "odd"}, {"labels": ["a"]}, [], {"labels": ["a"]}, ["labels"]),
        ({"debug": True}, {"debug": True}, [], {"debug": True}, []),
    ],
)
def test_merge(
    current: dict[str, Any],
    options: dict[str, Any],
    defaults: list[dict[str, Any]],
    expected: dict[str, Any],
    changed: list[str],
) -> None:
    before = json.dumps(current)
    first = merge(current, options, defaults, [], set())
    assert first.content == expected and first.changed_keys == changed
    assert json.dumps(current) == before
    again = merge(first.content, options, defaults, first.remembered, set())
    assert again.changed_keys == [] and again.remembered == first.remembered
    assert json.dumps(again.content) == json.dumps(first.content), "the order of keys and items holds too"
    # Wanted no more, it is as it was.
    assert merge(again.content, {}, [], again.remembered, set()).content == current


def test_what_was_edited_since_is_not_taken_out() -> None:
    first = merge({}, {"debug": True, "labels": ["a"]}, [], [], set())
    edited = {**first.content, "debug": False, "labels": ["a", "theirs"]}
    assert merge(edited, {}, [], first.remembered, set()).content == {"debug": False, "labels": ["theirs"]}


def test_an_edit_of_a_default_of_ours_is_mended() -> None:
    first = merge({}, {}, [LOGS], [], set())
    edited = {"log-driver": "json-file", "log-opts": {"max-size": "1m"}, "theirs": 1}
    assert merge(edited, {}, [LOGS], first.remembered, set()).content == {**LOGS, "theirs": 1}


def test_the_file_gone_is_written_again() -> None:
    first = merge({}, {"debug": True}, [LOGS], [], set())
    assert merge({}, {"debug": True}, [LOGS], first.remembered, set()).content == first.content


def test_a_flag_of_the_daemon_is_respected() -> None:
    flags = daemon_json.flags_of(
        ["/usr/bin/dockerd", "-H", "fd://", "--log-driver=local", "--registry-mirror", "http://m"]
    )
    assert flags == {"hosts", "log-driver", "registry-mirrors"}
    assert merge({}, {}, [LOGS], [], flags).content == {}
    with pytest.raises(DaemonJsonError, match="registry-mirrors on its command line"):
        merge({}, {"registry-mirrors": ["http://x"]}, [], [], flags)


def test_which_keys_need_a_restart() -> None:
    assert merge({}, {"live-restore": True, "registry-mirrors": ["x"]}, [], [], set()).restart_keys == []
    assert merge({}, {"live-restore": True}, [LOGS], [], set()).restart_keys == ["log-driver", "log-opts"]


@pytest.mark.parametrize(
    ("current", "expected"),
    [
        ({}, ["features"]),
        ({"features": {"buildkit": True, "cdi": False}}, ["features"]),
        ({"features": {"cdi": True}}, []),
        # No object at all: it is replaced.
        ({"features": "x"}, ["features"]),
    ],
)
def test_devices_by_name_need_a_restart(current: dict[str, Any], expected: list[str]) -> None:
    """dockerd reloads its features, but looks only once whether it gives devices by CDI."""
    assert merge(current, {"features": {"cdi": True}}, [], [], set()).restart_keys == expected


@pytest.mark.parametrize(
    ("like", "expected"),
    [
        ("", '{\n  "a": 1\n}\n'),
        ('{\n    "b": 2\n}', '{\n    "a": 1\n}\n'),
        ('{\n\t"b": 2\n}', '{\n\t"a": 1\n}\n'),
    ],
)
def test_the_indent_of_the_owner_is_kept(like: str, expected: str) -> None:
    assert daemon_json.dump({"a": 1}, like) == expected


def test_other_features_need_none() -> None:
    assert (
        merge({"features": {"cdi": True}}, {"features": {"buildkit": True}}, [], [], set()).restart_keys == []
    )
