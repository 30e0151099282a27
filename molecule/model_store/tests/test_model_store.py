"""Weights seen from outside, after they came over a bad line to two hosts and were damaged on both."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

SOURCE = Path(os.environ["STORE_FOLDER"])
FOLDER = "/var/lib/dsprov/models/test/Q4"
PIECE = 1 << 20


def rows() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((SOURCE / "files.json").read_text(encoding="utf-8"))
    return found


def test_every_file_is_whole_and_roots(host: Any) -> None:
    assert sorted(host.check_output(f"ls -A {FOLDER}").split()) == sorted(row["name"] for row in rows())
    for row in rows():
        file = host.file(f"{FOLDER}/{row['name']}")
        assert file.sha256sum == row["sha256"]
        assert (file.user, file.group, file.mode) == ("root", "root", 0o644)


def test_the_slow_line_carried_each_byte_once() -> None:
    """One host went out; cuts cost a little, and the damage one piece or small file a host at most."""
    count = json.loads((SOURCE.parent / "count.json").read_text(encoding="utf-8"))
    for row in rows():
        sent = count["sent"][row["name"]]
        assert row["bytes"] <= sent <= row["bytes"] * 1.05 + 2 * PIECE, row["name"]


def test_nothing_listens_or_runs_any_more(host: Any) -> None:
    listening = host.check_output("ss -Hltn | awk '{print $4}'").split()
    beyond = [one for one in listening if not one.startswith(("127.", "[::1]"))]
    assert {one.rsplit(":", 1)[1] for one in beyond} <= {"22"}
    assert host.check_output("systemctl list-units 'dsprov-fetch-*' --all --plain --no-legend") == ""
    with host.sudo():
        assert host.check_output("find /run/dsprov/fetch -mindepth 1") == ""


def test_the_token_is_nowhere(host: Any) -> None:
    with host.sudo():
        # Written so that sudo's own record of this command is no find.
        assert host.run("journalctl --no-pager | grep '[B]earer'").rc == 1
        assert host.check_output("find / -xdev -name token -path '*dsprov*' 2>/dev/null | cat") == ""


def test_no_unit_fell_over(host: Any) -> None:
    with host.sudo():
        log = host.check_output("journalctl --no-pager --output cat -u 'dsprov-fetch-*'")
    assert "dsprov: weights of test/Q4" in log
    assert "Traceback" not in log
