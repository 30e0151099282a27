"""The host_files module on real files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.dsprov.appliance.plugins.module_utils import files
from ansible_collections.dsprov.appliance.plugins.modules import host_files
from tests.unit.modules.harness import ModuleFailedError, run_module


@pytest.fixture(autouse=True)
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the host, with its units, and dsprov's own tree in `own`."""
    monkeypatch.setattr(files, "DATA_ROOT", str(tmp_path / "data"))
    monkeypatch.setattr(host_files, "UNIT_ROOT", str(tmp_path / "units") + "/")
    monkeypatch.setattr(host_files, "OWN_TREES", (str(tmp_path / "own"),))
    return tmp_path


def apply(*items: dict[str, Any], **more: Any) -> dict[str, Any]:
    mine = {"owner": str(os.getuid()), "group": str(os.getgid())}
    rows = [
        {**(mine if row.get("state", "file") == "file" else {}), **row, "path": str(row["path"])}
        for row in items
    ]
    return run_module("host_files", files=rows, **more)


def test_a_list_in_one_go_and_then_nothing(host: Path) -> None:
    wanted: list[dict[str, Any]] = [
        {"path": host / "own/a", "state": "directory", "mode": "0700"},
        {"path": host / "own/a/f", "content": "text\n", "mode": "0640"},
        {"path": host / "own/l", "state": "link", "target": "a/f"},
        {"path": host / "gone", "state": "absent"},
    ]
    (host / "gone").write_text("x")
    previous = os.umask(0o077)
    try:
        first = apply(*wanted)
    finally:
        os.umask(previous)
    assert first["changed_paths"] == [str(host / name) for name in ("own/a", "own/a/f", "own/l", "gone")]
    assert (host / "own/l").read_text() == "text\n"
    modes = [(host / name).stat().st_mode & 0o7777 for name in ("own", "own/a", "own/a/f")]
    assert modes == [0o755, 0o700, 0o640]
    second = apply(*wanted)
    assert not second["changed"] and second["changed_paths"] == [] and second["diff"] == []


def test_check_mode_writes_nothing(host: Path) -> None:
    result = apply(
        {"path": host / "own/f", "content": "x", "owner": "account-to-be"},
        {"path": host / "own/d", "state": "directory", "owner": "account-to-be"},
        check=True,
        users=[{"name": "account-to-be"}],
    )
    assert result["changed_paths"] == ["user:account-to-be", str(host / "own/f"), str(host / "own/d")]
    assert list(host.iterdir()) == []


def test_what_others_wrote_is_kept_once(host: Path) -> None:
    path = host / "etc/conf"
    path.parent.mkdir()
    path.write_text("by hand\n")
    item = {"path": path, "content": "ours 1\n"}
    first = apply(item)
    copy = Path(first["backups"][str(path)])
    assert copy.read_text() == "by hand\n" and copy.stat().st_mode & 0o777 == 0o600
    assert str(copy).startswith(str(host / "data/backups"))
    assert first["diff"][0]["before"] == "by hand\n" and first["diff"][0]["after"] == "ours 1\n"
    assert apply({**item, "content": "ours 2\n"})["backups"] == {}
    path.write_text("ours 2\nedited\n")
    assert list(apply(item)["backups"]) == [str(path)]
    path.write_text("again\n")
    assert list(apply({"path": path, "state": "absent"})["backups"]) == [str(path)]
    assert not path.exists()


def test_a_file_nobody_else_may_read_shows_no_text(host: Path) -> None:
    result = apply({"path": host / "f", "content": "hidden words", "mode": "0600"})
    assert "hidden" not in str(result["diff"])


def test_mode_alone_is_a_change_with_a_diff(host: Path) -> None:
    item = {"path": host / "f", "content": "x", "mode": "0600"}
    apply(item)
    (host / "f").chmod(0o644)
    result = apply(item)
    assert result["changed_paths"] == [str(host / "f")] and "0644" in result["diff"][0]["before"]
    assert (host / "f").stat().st_mode & 0o777 == 0o600


def test_a_file_behind_a_link_is_written_where_it_is(host: Path) -> None:
    (host / "real").write_text("a")
    (host / "link").symlink_to("real")
    apply({"path": host / "link", "content": "b"})
    assert (host / "link").is_symlink() and (host / "real").read_text() == "b"


def test_a_full_folder_goes_only_where_it_is_ours(host: Path) -> None:
    for name in ("own/tree", "theirs/tree"):
        (host / name).mkdir(parents=True)
        (host / name / "f").write_text("")
    result = apply(*({"path": host / name, "state": "absent"} for name in ("own/tree", "theirs/tree")))
    assert result["changed_paths"] == [str(host / "own/tree")]
    assert (host / "theirs/tree/f").exists()


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"path": "rel", "content": ""}, "not an absolute path"),
        ({"path": "{host}/d", "content": ""}, "not a file"),
        ({"path": "{host}/f", "state": "directory"}, "not a folder"),
        ({"path": "{host}/d", "state": "link", "target": "x"}, "a folder is in the place of the link"),
        ({"path": "{host}/n"}, "needs its content"),
        ({"path": "{host}/n", "state": "link"}, "needs its target"),
        ({"path": "{host}/n", "content": "", "owner": "no-such-account"}, "no owner no-such-account"),
    ],
)
def test_what_cannot_be_is_said(host: Path, item: dict[str, Any], words: str) -> None:
    (host / "d").mkdir()
    (host / "f").write_text("")
    with pytest.raises(ModuleFailedError, match=words):
        apply({**item, "path": item["path"].format(host=host)})
    assert sorted(path.name for path in host.iterdir() if path.name != "data") == ["d", "f"]


def test_a_reload_missed_by_a_killed_run_is_made_good(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_files.HostFiles, "reload", lambda self: False)
    item = {"path": host / "units/x.service", "content": "[Service]\n"}
    apply(item)
    monkeypatch.undo()
    monkeypatch.setattr(files, "DATA_ROOT", str(host / "data"))
    monkeypatch.setattr(host_files, "UNIT_ROOT", str(host / "units") + "/")
    monkeypatch.setenv("PATH", str(host / "bin"), prepend=":")
    (host / "bin").mkdir()
    (host / "bin/systemctl").write_text("#!/bin/sh\n")
    (host / "bin/systemctl").chmod(0o755)
    again = apply(item)
    assert again["daemon_reloaded"] and again["changed"] and again["changed_paths"] == []
    assert not apply(item)["changed"]


def test_existing_account_is_kept_as_it_is() -> None:
    assert not run_module(
        "host_files", users=[{"name": "root", "home": "/elsewhere", "groups": ["no-such-group"]}]
    )["changed"]
