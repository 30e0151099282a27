"""What all tests share: a command line without the developer's own settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from dsprov import words

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Said:
    """What one call of the command line ended with."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Stdout as the one JSON document that --json promises."""
        lines = self.out.splitlines()
        assert len(lines) == 1, f"not one line of JSON: {self.out!r}"
        return json.loads(lines[0])

    def one_line(self) -> str:
        """Stderr, which must be one line: what, where, remedy."""
        lines = self.err.splitlines()
        assert len(lines) == 1, f"not one line: {self.err!r}"
        assert "Traceback" not in self.err
        return lines[0]


Dsprov = Callable[..., Said]


@pytest.fixture(autouse=True)
def _own_world(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No log, lock or setting of the developer's account is read or written."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    monkeypatch.delenv("ANSIBLE_CONFIG", raising=False)
    words.choose("en")
    yield
    words.choose("en")


@pytest.fixture
def dsprov(capsys: pytest.CaptureFixture[str]) -> Dsprov:
    """Runs the command line in this process."""
    from dsprov.cli import run

    def call(*arguments: object) -> Said:
        capsys.readouterr()
        words.choose("en")
        code = run([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return call


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, Any], Path]:
    """Writes a file of text, of bytes, or of a document as YAML."""

    def make(name: str, content: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        else:
            path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
        return path

    return make
