"""The docker_daemon module on real files, where no daemon runs; the real daemon is Molecule's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.dsprov.appliance.plugins.module_utils import files
from ansible_collections.dsprov.appliance.plugins.modules import docker_daemon
from tests.unit.modules.harness import ModuleFailedError, run_module

DEFAULTS = [{"log-driver": "json-file", "log-opts": {"max-size": "50m"}}, {"live-restore": True}]


@pytest.fixture(autouse=True)
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of a daemon.json on a host where no daemon runs, whatever runs on this machine."""
    monkeypatch.setattr(files, "DATA_ROOT", str(tmp_path / "data"))
    monkeypatch.setattr(docker_daemon, "PIDFILES", (str(tmp_path / "docker.pid"),))
    monkeypatch.setattr(docker_daemon, "SOCKETS", (str(tmp_path / "docker.sock"),))
    monkeypatch.setattr(docker_daemon, "APT_SOURCES", (str(tmp_path / "apt/*.sources"),))
    monkeypatch.setattr(docker_daemon, "SEARCH", str(tmp_path / "bin"))
    monkeypatch.setattr(docker_daemon.Daemon, "systemd", lambda self, *properties: {})
    return tmp_path / "etc" / "daemon.json"


def apply(conf: Path, **more: Any) -> dict[str, Any]:
    return run_module(
        "docker_daemon", path=str(conf), **{"options": {"debug": True}, "defaults": DEFAULTS, **more}
    )


def test_written_once_then_left(conf: Path) -> None:
    first = apply(conf)
    assert first["changed"] and first["backup"] == "" and not first["restart_required"]
    assert json.loads(conf.read_text())["log-opts"] == {"max-size": "50m"}
    stamp = conf.stat().st_mtime_ns
    second = apply(conf)
    assert not second["changed"] and second["changed_keys"] == [] and conf.stat().st_mtime_ns == stamp
    assert apply(conf, options={}, defaults=[])["changed"]
    assert json.loads(conf.read_text()) == {}


def test_a_key_of_others_survives_and_their_file_is_kept(conf: Path) -> None:
    conf.parent.mkdir()
    conf.write_text('{\n    "data-root": "/srv/docker",\n    "log-driver": "journald"\n}\n')
    conf.chmod(0o600)
    result = apply(conf)
    assert json.loads(conf.read_text()) == {
        "data-root": "/srv/docker",
        "log-driver": "journald",
        "debug": True,
        "live-restore": True,
    }
    assert conf.read_text().startswith('{\n    "data-root"') and conf.stat().st_mode & 0o777 == 0o600
    assert result["skipped_defaults"] == ["log-driver", "log-opts"]
    assert '"journald"' in Path(result["backup"]).read_text()
    assert apply(conf, options={"debug": False})["backup"] == "", "what we wrote ourselves needs no copy"


@pytest.mark.parametrize("text", ['{"a": 1,}', "[]", "no json"])
def test_what_is_not_json_is_left_alone(conf: Path, tmp_path: Path, text: str) -> None:
    conf.parent.mkdir()
    conf.write_text(text)
    with pytest.raises(ModuleFailedError, match=f"{conf}: .*line 1 column"):
        apply(conf)
    assert conf.read_text() == text
    assert not (tmp_path / "data/docker").exists()


def test_check_mode_writes_nothing(conf: Path, tmp_path: Path) -> None:
    result = apply(conf, check=True)
    assert result["changed"] and '"debug": true' in result["diff"]["after"]
    assert list(tmp_path.iterdir()) == []


def test_a_run_killed_before_the_file_was_written_is_finished(
    conf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: Any, text: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(docker_daemon.DockerDaemon, "_put", killed)
        with pytest.raises(KeyboardInterrupt):
            apply(conf)
    assert not conf.exists()
    assert apply(conf)["changed"] and json.loads(conf.read_text())["debug"] is True
    assert not apply(conf)["changed"]


def test_look_alone_changes_nothing(conf: Path, tmp_path: Path) -> None:
    (tmp_path / "apt").mkdir()
    (tmp_path / "apt/d.sources").write_text("# docker-ce\nURIs: https://download.docker.com/linux/debian\n")
    (tmp_path / "apt/e.sources").write_text("# docker-ce\n")
    result = run_module("docker_daemon", packages=["dpkg", "no-such-package"])
    assert not result["changed"] and result["missing_packages"] == ["no-such-package"]
    assert result["docker"]["installed"] is False and result["docker"]["apt_sources"] == [
        str(tmp_path / "apt/d.sources")
    ]
