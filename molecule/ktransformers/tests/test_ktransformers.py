"""KTransformers without a GPU: packages, kernels, parser, unit. Serving needs one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.emitted import commands

UNIT = "dsprov-ktransformers.service"
PREFIX = "/opt/dsprov/ktransformers"
PYTHON = f"{PREFIX}/current/bin/python"
HERE = Path(__file__).parent
# Beside what the answer has lost anyway: it is 16 bit wide, and activations are rounded to 8 bit.
TOLERANCE = {"BF16": 0.02, "FP8": 0.05, "LLAMAFILE": 0.05}


@pytest.fixture(autouse=True)
def root(host: Any) -> Any:
    """Look as root does; only at the host that it was installed on."""
    if host.check_output("hostname") != "deb12":
        pytest.skip("Debian 13 has no Python for it, and was refused in converge")
    with host.sudo():
        yield


def test_the_pinned_release_is_whole(host: Any) -> None:
    release = host.check_output(f"readlink {PREFIX}/current")
    assert re.fullmatch(r"0\.7\.2-[0-9a-f]{8}", release)
    assert host.file(f"{PREFIX}/{release}/.dsprov-stamp").content_string.strip().endswith(" 3.11")
    assert not host.file(f"{PREFIX}/.cache").exists


def test_kt_says_what_it_is(host: Any) -> None:
    said = host.run(f"cd / && HOME=/tmp/kt-home {PREFIX}/current/bin/kt doctor")
    assert said.rc == 0, said.stdout + said.stderr
    assert "0.7.2" in said.stdout


@pytest.mark.parametrize("variant", ["", "avx2"])
def test_the_cpus_kernels_compute_what_torch_does(host: Any, variant: str) -> None:
    program = (HERE / "experts.py").read_text(encoding="utf-8")
    done = host.run(f"KT_KERNEL_CPU_VARIANT={variant} {PYTHON} -c %s {' '.join(TOLERANCE)}", program)
    assert done.rc == 0, done.stderr[-2000:]
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert [row[1] for row in rows] == list(TOLERANCE)
    for _mark, method, loaded, error in rows:
        assert loaded == (variant or loaded)
        assert float(error) < TOLERANCE[method], method


def test_the_servers_parser_takes_every_command_of_the_planner(host: Any) -> None:
    emitted = commands("ktransformers")
    assert {"LLAMAFILE", "FP8", "AMXINT4"} <= {word for command in emitted for word in command}
    program = (HERE / "parse.py").read_text(encoding="utf-8")
    done = host.run(f"printf %%s %s | {PYTHON} -c %s", json.dumps(emitted), program)
    assert done.rc == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == f"READ {len(emitted)}"
    assert not re.findall(r"(?m)^(?:REFUSED|UNKNOWN|MISREAD).*$", done.stdout)
    # And the proof can fail.
    wrong = [[*emitted[0], "--no-such-word"]]
    done = host.run(f"printf %%s %s | {PYTHON} -c %s", json.dumps(wrong), program)
    assert "UNKNOWN ['--no-such-word']" in done.stdout


def test_the_unit_is_there_hardened_and_off(host: Any) -> None:
    assert host.service(UNIT).exists
    assert not host.service(UNIT).is_running
    assert not host.service(UNIT).is_enabled
    text = host.file(f"/etc/systemd/system/{UNIT}").content_string
    assert f"ExecStart={PYTHON} -m sglang.launch_server --host 127.0.0.1 --port 11437" in text
    shown = host.check_output(f"systemd-analyze security --no-pager {UNIT}")
    found = re.search(r"Overall exposure level.*: ([0-9.]+)", shown)
    assert found, shown
    assert float(found[1]) <= 2.5
