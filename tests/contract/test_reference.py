"""docs/reference says what the repository says today, whoever's machine writes it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "reference.py"), *words],
        env={"PATH": os.environ["PATH"], **environment},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_pages_are_up_to_date() -> None:
    done = run("--check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_pages_do_not_depend_on_locale_or_terminal() -> None:
    done = run("--check", LANG="zh_CN.UTF-8", LC_ALL="C", COLUMNS="40", PYTHONHASHSEED="7")
    assert done.returncode == 0, done.stdout + done.stderr
