"""The secrets module: made once, kept, private, and never shown."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.dsprov.appliance.plugins.modules import secrets as module

WANTED = [
    {"name": "KEY", "kind": "hex", "length": 64},
    {"name": "PASSWORD", "kind": "password", "length": None},
]


def converge(folder: Path, check: bool = False, own_file: bool = True) -> module.Outcome:
    """Run the class as the module does."""
    wanted = [module.Secret(**entry) for entry in WANTED]
    if own_file:
        wanted[1] = module.Secret(name="PASSWORD", file=str(folder / "s" / "password"))
    return module.SecretsFile(str(folder / "s" / "x.env"), wanted, check=check).converge()


def values(folder: Path) -> dict[str, str]:
    """Read back what was written."""
    return module.parse((folder / "s" / "x.env").read_text(), "x.env")


def mode(path: Path) -> int:
    """Return permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


def test_made_once_private_and_kept(tmp_path: Path) -> None:
    os.umask(0o077)
    first = converge(tmp_path)
    made = values(tmp_path)
    assert first.made == ["KEY", "PASSWORD"]
    assert re.fullmatch("[0-9a-f]{64}", made["KEY"])
    assert len(made["PASSWORD"]) == 24
    assert (tmp_path / "s" / "password").read_text() == made["PASSWORD"] + "\n"
    assert mode(tmp_path / "s") == 0o700
    assert mode(tmp_path / "s" / "x.env") == mode(tmp_path / "s" / "password") == 0o600
    second = converge(tmp_path)
    assert (second.made, second.changed_paths, values(tmp_path)) == ([], [], made)
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["password", "x.env"]


def test_two_hosts_never_share_a_value(tmp_path: Path) -> None:
    converge(tmp_path / "a")
    converge(tmp_path / "b")
    assert not set(values(tmp_path / "a").values()) & set(values(tmp_path / "b").values())


def test_check_mode_writes_nothing(tmp_path: Path) -> None:
    outcome = converge(tmp_path, check=True)
    assert outcome.made == ["KEY", "PASSWORD"]
    assert outcome.changed_paths
    assert list(tmp_path.iterdir()) == []


def test_only_the_missing_one_is_made(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "x.env").write_text("# mine\nOTHER=1\nKEY=\nPASSWORD=chosen-by-a-person\n")
    outcome = converge(tmp_path)
    assert outcome.made == ["KEY"]
    text = (tmp_path / "s" / "x.env").read_text()
    assert text.startswith("# mine\nOTHER=1\nPASSWORD=chosen-by-a-person\nKEY=")
    assert (tmp_path / "s" / "password").read_text() == "chosen-by-a-person\n"


@pytest.mark.parametrize("env", ["", "PASSWORD=outdated-outdated\n"], ids=["missing", "outdated"])
def test_what_a_person_wrote_into_the_file_wins(tmp_path: Path, env: str) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "x.env").write_text(env)
    (tmp_path / "s" / "password").write_text("chosen-by-a-person\n")
    assert converge(tmp_path).made == ["KEY"]
    assert values(tmp_path)["PASSWORD"] == "chosen-by-a-person"


def test_a_lost_password_file_comes_back(tmp_path: Path) -> None:
    converge(tmp_path)
    wanted = (tmp_path / "s" / "password").read_text()
    (tmp_path / "s" / "password").unlink()
    assert converge(tmp_path).changed_paths == [str(tmp_path / "s" / "password")]
    assert (tmp_path / "s" / "password").read_text() == wanted


def test_modes_are_set_right(tmp_path: Path) -> None:
    converge(tmp_path)
    (tmp_path / "s" / "x.env").chmod(0o644)
    outcome = converge(tmp_path)
    assert outcome.changed_paths == [str(tmp_path / "s" / "x.env")]
    assert outcome.made == []
    assert mode(tmp_path / "s" / "x.env") == 0o600


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("KEY\n", "line 1 is not NAME=value"),
        ("\n# c\n1KEY=a\n", "line 3 is not NAME=value"),
        ("KEY='canary quoted'\n", "line 1: the value of KEY has quotes"),
        ("KEY=canary$(reboot)\n", "line 1: the value of KEY has quotes"),
    ],
)
def test_a_damaged_file_is_named_and_left_alone(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "x.env").write_text(text)
    with pytest.raises(module.SecretsError, match=re.escape(says)) as raised:
        converge(tmp_path)
    assert str(tmp_path / "s" / "x.env") in str(raised.value)
    assert "canary" not in str(raised.value)
    assert (tmp_path / "s" / "x.env").read_text() == text


def test_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "target").write_text("")
    (tmp_path / "s" / "x.env").symlink_to(tmp_path / "target")
    with pytest.raises(module.SecretsError, match="plain file"):
        converge(tmp_path)


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ([module.Secret("A B")], "not the name"),
        ([module.Secret("A"), module.Secret("A")], "named twice"),
        ([module.Secret("A", length=4)], "use 16 to 512"),
        ([module.Secret("A", file="relative")], "not an absolute path"),
    ],
)
def test_bad_input(tmp_path: Path, wanted: list[module.Secret], says: str) -> None:
    with pytest.raises(module.SecretsError, match=says):
        module.SecretsFile(str(tmp_path / "x.env"), wanted).converge()
    assert list(tmp_path.iterdir()) == []


def test_the_result_holds_no_value(tmp_path: Path) -> None:
    """The real module, run as Ansible runs it, with a diff asked for."""
    arguments: dict[str, Any] = {
        "path": str(tmp_path / "x.env"),
        "secrets": [{"name": "PASSWORD", "file": str(tmp_path / "password")}],
        "_ansible_diff": True,
    }
    done = subprocess.run(
        [sys.executable, "-m", module.__name__, json.dumps({"ANSIBLE_MODULE_ARGS": arguments})],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    password = (tmp_path / "password").read_text().strip()
    assert result["changed"] is True
    assert result["made"] == ["PASSWORD"]
    assert password not in done.stdout + done.stderr
    assert "PASSWORD: made" in result["diff"]["after"]
