"""The command line from outside: documents, languages, and every way to write it wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import problems
from dsprov import verb
from dsprov.invocation import Invocation
from dsprov.runner import HostOutcome, Outcome
from dsprov.show import show_check
from dsprov.version import version
from tests.conftest import ROOT, Dsprov
from tests.fixtures.machines import GIB, RTX_4090, facts, machine

Write = Callable[[str, Any], Path]
DSPROV = [sys.executable, "-m", "dsprov"]


@pytest.fixture
def facts_file(write: Write) -> Path:
    return write("facts.yml", facts(gpus=[{**RTX_4090, "count": 2}]))


# -- tiers ---------------------------------------------------------------------------------------


def test_tiers_list(dsprov: Dsprov) -> None:
    said = dsprov("tiers", "list")
    assert said.code == 0
    assert [line.split()[0] for line in said.out.splitlines()] == ["basic", "demo", "flagship", "standard"]
    assert said.err == ""
    document = dsprov("tiers", "list", "--json").document
    assert [tier["name"] for tier in document["tiers"]] == ["basic", "demo", "flagship", "standard"]
    assert "试用" in dsprov("tiers", "list", "--lang", "zh").out


def test_tiers_show(dsprov: Dsprov) -> None:
    said = dsprov("tiers", "show", "demo")
    assert said.code == 0
    assert "dsprov_model: smollm2:135m" in said.out
    assert dsprov("tiers", "show", "demo", "--json").document["variables"]["dsprov_tier"] == "demo"


@pytest.mark.parametrize(
    "line", ["tiers show demoo", "install --tier demoo -i {hosts}", "plan --tier demoo --facts {facts}"]
)
def test_an_unknown_tier_suggests_the_nearest(
    line: str, dsprov: Dsprov, write: Write, facts_file: Path
) -> None:
    hosts = write("hosts.ini", "gpu01\n")
    said = dsprov(*line.format(hosts=hosts, facts=facts_file).split())
    assert said.code == 2
    assert said.out == ""
    assert "did you mean 'demo'?" in said.one_line()


# -- plan ----------------------------------------------------------------------------------------


def test_plan_of_a_file_is_a_document(dsprov: Dsprov, facts_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    said = dsprov("plan", "--facts", facts_file, "--tier", "basic", "--json", "-o", out)
    assert said.code == 0
    assert said.document["schema"] == 1
    assert said.document["hosts"][0]["placement"]["gpu_layers"] == 28
    assert json.loads(out.read_text(encoding="utf-8")) == said.document
    assert list(tmp_path.glob(".*")) == []


def test_plan_for_people_in_both_languages(dsprov: Dsprov, facts_file: Path) -> None:
    english = dsprov("plan", "--facts", facts_file, "--tier", "basic")
    assert "deepseek-r1:7b · ollama · fits" in english.out
    assert "28/28 layers on 1 GPU(s)" in english.out
    assert "GPU 0   ████" in english.out
    assert "about 160 named users (estimated)" in english.out
    chinese = dsprov("--lang", "zh", "plan", "--facts", facts_file, "--tier", "basic")
    assert "可行" in chinese.out
    assert "fits" not in chinese.out


def test_why_says_what_was_turned_down_and_the_command(dsprov: Dsprov, write: Write) -> None:
    path = write("f.yml", facts(gpus=[{**RTX_4090, "count": 4}]))
    said = dsprov("plan", "--facts", path, "--tier", "standard", "--why")
    assert said.code == 0
    assert "considered:" in said.out
    assert re.search(r"✓ +vllm +BF16 +fits", said.out)
    assert re.search(r"· +vllm +AWQ +no digests are known of it", said.out)
    assert "vllm serve /var/lib/dsprov/models/deepseek-r1-32b/BF16" in said.out
    assert "GPU 0-3  ██" in said.out
    chinese = dsprov("plan", "--facts", path, "--tier", "standard", "--why", "--lang", "zh")
    assert "考虑过的方案" in chinese.out
    assert "没有已知的校验值" in chinese.out


def test_hosts_with_the_same_plan_are_shown_once(dsprov: Dsprov, write: Write) -> None:
    path = write("f.yml", {"schema": 1, "hosts": {f"h{n:03}": machine() for n in range(200)}})
    said = dsprov("plan", "--facts", path, "--tier", "demo")
    assert said.out.count("█") < 100
    assert len([line for line in said.out.splitlines() if line.startswith("h")]) == 202


def test_check_is_a_table_of_what_to_mend(capsys: pytest.CaptureFixture[str]) -> None:
    def problem(code: str, host: str) -> dict[str, Any]:
        return problems().make(code, host, **dict.fromkeys(("port", "process", "pid", "variable"), "x"))

    found = [problem("port-in-use", "b"), problem("driver-missing", "b"), problem("unreachable", "c")]
    show_check({"a": "ok", "b": "failed", "c": "unreachable"}, found, None)
    head, a, b, c, legend = capsys.readouterr().out.splitlines()
    columns = head.split()
    assert set(a.split()[1:-1]) == {"✓"}
    row = dict(zip(columns, b.split(), strict=False))
    assert (row["ports"], row["driver"], row["disk"]) == ("✗", "!", "✓")
    assert b.endswith("not ready")
    assert dict(zip(columns, c.split(), strict=False))["reach"] == "✗"
    assert "mend it" in legend


@pytest.mark.parametrize(
    ("host", "arguments", "code", "problem"),
    [
        (machine(memory_bytes=4 * GIB), [], 3, "host-memory"),
        (machine(disks=[{"mount": "/", "free_bytes": 9}]), [], 2, "disk-space"),
        (machine(listeners=[{"port": 8080, "process": "nginx", "pid": 5}]), [], 2, "port-in-use"),
        (machine(os={"id": "rhel", "version_id": "9", "arch": "x86_64"}), [], 3, "os-unsupported"),
        (machine(), ["-e", "dsprov_engine=vllm"], 3, "no-gpu"),
        (machine(), ["-e", "dsprov_engine=vlm"], 2, "variable-invalid"),
        (machine(), ["-e", "dsprov_model=gpt"], 2, "model-unknown"),
        (machine(), ["-e", "dsprov_parallel=many"], 2, "variable-invalid"),
        (machine(), ["-e", "dsprov_paralel=2"], 2, "variable-unknown"),
        (machine(), ["-e", "dsprov_mirrors=x"], 2, "variable-invalid"),
        (machine(), ["-e", "dsprov_kv_cache_type=q5"], 2, "variable-invalid"),
        (machine(), ["-e", "nonsense"], 2, "override-invalid"),
        (machine(), ["-e", "my_password=x"], 2, "override-secret"),
    ],
)
def test_a_plan_that_is_refused(
    host: dict[str, Any], arguments: list[str], code: int, problem: str, dsprov: Dsprov, write: Write
) -> None:
    path = write("f.yml", {"schema": 1, "hosts": {"h": host}})
    line = ["plan", "--facts", path, "--tier", "basic", *arguments]
    said = dsprov(*line)
    assert said.code == code
    assert "Traceback" not in said.err
    as_json = dsprov(*line, "--json")
    assert as_json.code == code
    assert as_json.document["ok"] is False
    errors = [row for row in as_json.document["problems"] if row["severity"] == "error"]
    assert [row["code"] for row in errors] == [problem]
    assert set(errors[0]) == {"code", "severity", "host", "message", "remedy"}


def test_plan_wants_one_origin(dsprov: Dsprov, facts_file: Path, write: Write) -> None:
    for line in (["--tier", "demo"], ["--tier", "demo", "--facts", facts_file, "-i", write("h", "a\n")]):
        said = dsprov("plan", *line)
        assert said.code == 2
        assert "either -i HOSTS or --facts FILE" in said.one_line()


@pytest.mark.parametrize("name", [".", "/", "/no/such/folder/plan.json", "{dir}"])
def test_an_output_that_cannot_be_written(
    name: str, dsprov: Dsprov, facts_file: Path, tmp_path: Path
) -> None:
    said = dsprov("plan", "--facts", facts_file, "--tier", "demo", "-o", name.format(dir=tmp_path))
    assert said.code == 2
    said.one_line()


# -- wrong use -----------------------------------------------------------------------------------

WRONG = [
    ([], None),
    (["instal"], "did you mean 'install'?"),
    (["--lang", "fr", "tiers", "list"], "'fr'"),
    (["tiers", "list", "--lang", "fr"], "'fr'"),
    (["--nonsense"], "--nonsense"),
    (["install"], "-i"),
    (["install", "-i", "x"], "--tier"),
    (["install", "--tier", "demo", "-i", "/no/such/file"], "/no/such/file: no such file"),
    (["install", "--tier", "demo", "-i", "h,", "--channel", "moon"], "'moon'"),
    (["install", "--tier", "demo", "-i", "h,", "-e", "x"], "expected KEY=VALUE"),
    (["install", "--tier", "demo", "-i", "h,", "-e", "a_token=x"], "-e a_token"),
    (["plan", "--facts", "/no/such/file", "--tier", "demo"], "/no/such/file: no such file"),
    (["plan", "--facts", "/", "--tier", "demo"], "Is a directory"),
    (["plan", "--facts", "/dev/zero", "--tier", "demo"], "16 MiB"),
    (["plan", "--facts", "/dev/null", "--tier", "demo"], "not of type object"),
    (["plan", "--facts", "x" * 5000, "--tier", "demo"], "name too long"),
    (["tiers", "show"], "NAME"),
]


@pytest.mark.parametrize(("line", "says"), WRONG, ids=[" ".join(row[0])[:60] or "nothing" for row in WRONG])
def test_wrong_use_is_one_line_and_exit_2(line: list[str], says: str | None, dsprov: Dsprov) -> None:
    said = dsprov(*line)
    assert said.code == 2
    if says is None:  # Nothing asked: the help is the answer.
        assert "install" in said.err + said.out
        return
    assert says in said.one_line()
    assert said.out == ""


@pytest.mark.parametrize("line", [row[0] for row in WRONG if row[0]], ids=lambda line: " ".join(line)[:60])
def test_wrong_use_is_one_document_too(line: list[str], dsprov: Dsprov) -> None:
    said = dsprov(*line, "--json")
    assert said.code == 2
    assert said.document["ok"] is False
    assert said.document["exit"] == 2
    assert said.document["problems"][0]["message"]["en"]
    said.one_line()


def test_no_hosts_in_the_facts(dsprov: Dsprov, write: Write) -> None:
    path = write("f.yml", {"schema": 1, "hosts": {}})
    said = dsprov("plan", "--facts", path, "--tier", "demo")
    assert said.code == 2
    assert f"{path}: no facts of any host" in said.one_line()


def test_a_language_chosen_anywhere_holds_for_errors(dsprov: Dsprov) -> None:
    for line in (["--lang", "zh", "tiers", "show", "x"], ["tiers", "show", "x", "--lang=zh"]):
        assert dsprov(*line).one_line().startswith("错误: 没有层级 'x'")


def test_the_locale_chooses_the_language() -> None:
    for locale, word in (("zh_CN.UTF-8", "错误"), ("en_US.UTF-8", "error"), ("C", "error")):
        done = subprocess.run(
            [*DSPROV, "tiers", "show", "x"],
            env={**os.environ, "LC_ALL": locale, "PYTHONUTF8": "1"},
            capture_output=True,
            check=False,
        )
        assert done.stderr.decode().startswith(word)


# -- documents of live verbs ---------------------------------------------------------------------


def outcome_of(verb_name: str, code: int) -> Outcome:
    results: dict[str, Any] = {"facts": machine()} if verb_name == "probe" else {}
    if verb_name == "status":
        service = {"name": "ollama", "healthy": True, "version": "1", "state": "active", "detail": ""}
        results["status"] = {
            "installed": True, "healthy": code == 0, "tier": "demo", "model": "m", "when": "now",
            "services": [service],
        }  # fmt: skip
    host = HostOutcome(results=results, changed=["x"])
    return Outcome(exit_code=code, seconds=1.0, log=Path("/x.log"), hosts={"gpu01": host})


LIVE = [
    ["probe"],
    ["plan", "--tier", "demo"],
    ["check", "--tier", "demo"],
    ["install", "--tier", "demo"],
    ["status"],
]


@pytest.mark.parametrize("code", [0, 1, 4, 130])
@pytest.mark.parametrize("line", LIVE, ids=" ".join)
def test_json_is_one_document_whatever_happened(
    line: list[str], code: int, dsprov: Dsprov, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verb.runner, "run", lambda *_arguments: outcome_of(line[0], code))
    hosts = write("hosts.ini", "gpu01\n")
    said = dsprov(*line, "-i", hosts, "--json")
    assert said.code == code
    assert said.document["schema"] == 1
    for_people = dsprov(*line, "-i", hosts)
    assert for_people.code == code


def test_status_is_not_ok_where_a_service_is_not(
    dsprov: Dsprov, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = outcome_of("status", 0)
    outcome.hosts["gpu01"].results["status"]["healthy"] = False
    monkeypatch.setattr(verb.runner, "run", lambda *_arguments: outcome)
    said = dsprov("status", "-i", write("hosts.ini", "gpu01\n"), "--json")
    assert said.code == 1
    assert said.document["ok"] is False


def test_probe_that_read_nothing_leaves_the_old_file(
    dsprov: Dsprov, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = Outcome(exit_code=4, seconds=1.0, log=Path("/x.log"), hosts={"a": HostOutcome("unreachable")})
    monkeypatch.setattr(verb.runner, "run", lambda *_arguments: empty)
    old = write("facts.yml", "old")
    for more in ([], ["--json"]):
        assert dsprov("probe", "-i", write("hosts.ini", "a\n"), "-o", old, *more).code == 4
        assert old.read_text(encoding="utf-8") == "old"


def test_install_ends_with_address_password_file_and_next_step(
    dsprov: Dsprov, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = outcome_of("install", 0)
    outcome.hosts["gpu01"].results["document"] = {
        "access": {
            "web_ui": "http://127.0.0.1:8080",
            "admin": "admin@appliance.local",
            "password_file": "/etc/dsprov/secrets/admin",
            "tunnel": "ssh -L 8080:127.0.0.1:8080 gpu01",
            "engine": "http://127.0.0.1:11434/v1",
            "engine_key_file": "/etc/dsprov/secrets/engine-key",
            "model": "m",
        }
    }
    monkeypatch.setattr(verb.runner, "run", lambda *_arguments: outcome)
    said = dsprov("install", "--tier", "demo", "-i", write("hosts.ini", "gpu01\n"))
    for words in (
        "http://127.0.0.1:8080",
        "/etc/dsprov/secrets/admin",
        "/etc/dsprov/secrets/engine-key",
        "ssh -L",
        "next: dsprov status",
        "/x.log",
    ):
        assert words in said.err
    assert "1 changed" in said.err


# -- the lock ------------------------------------------------------------------------------------


def test_a_second_run_names_the_first(dsprov: Dsprov, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = write("hosts.ini", "gpu01\n")
    inner: list[Any] = []

    def fake(_invocation: Invocation, _watch: object) -> Outcome:
        inner.append(dsprov("status", "-i", hosts, "--json"))
        return outcome_of("probe", 0)

    monkeypatch.setattr(verb.runner, "run", fake)
    dsprov("probe", "-i", hosts)
    (second,) = inner
    assert second.code == 2
    assert second.document["problems"][0]["code"] == "locked"
    assert f"pid {os.getpid()}" in second.err
    monkeypatch.setattr(verb.runner, "run", lambda *_arguments: outcome_of("probe", 0))
    assert dsprov("probe", "-i", hosts).code == 0


# -- the process ---------------------------------------------------------------------------------


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["bash", "-c", command],
        env={**os.environ, "DSPROV": " ".join(DSPROV), **environment},
        capture_output=True,
        check=False,
        cwd=ROOT,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("$DSPROV tiers list >&-", {0}),
        ("$DSPROV tiers list --json 2>&- | head -c0", {0}),
        ("$DSPROV --help | head -c1 >/dev/null; exit ${PIPESTATUS[0]}", {0}),
        ("$DSPROV tiers show x 2>&-", {2}),
        ("$DSPROV tiers show x >&- 2>&-", {2}),
        ("$DSPROV tiers list >/dev/full", {1, 2}),
        ("$DSPROV tiers list --json >/dev/full", {1, 2}),
        ("$DSPROV tiers list </dev/null", {0}),
    ],
)
def test_closed_and_broken_streams(command: str, code: set[int]) -> None:
    done = shell(command)
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    assert done.returncode in code


def test_errors_stay_off_stdout_where_stderr_is_closed() -> None:
    assert shell("$DSPROV tiers show x 2>&-").stdout == b""


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C"},
        {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "ascii"},
        {"HOME": "", "XDG_STATE_HOME": ""},
    ],
    ids=str,
)
def test_any_environment(environment: dict[str, str]) -> None:
    for line in ("tiers list --lang zh", "--help --lang zh", "tiers show nope --lang zh"):
        done = shell(f"$DSPROV {line}", **environment)
        assert b"Traceback" not in done.stderr, done.stderr.decode()


def test_a_state_folder_that_cannot_be(write: Write) -> None:
    hosts = write("hosts.ini", "gpu01\n")
    done = shell(f"$DSPROV probe -i {hosts} --json", XDG_STATE_HOME="/proc/no")
    assert done.returncode == 2, done.stderr
    assert b"Traceback" not in done.stderr
    assert json.loads(done.stdout)["problems"][0]["code"] == "system-error"


def test_version_is_galaxys(dsprov: Dsprov) -> None:
    line = next(
        row for row in (ROOT / "galaxy.yml").read_text(encoding="utf-8").splitlines() if "version:" in row
    )
    assert version() == line.split(":")[1].strip()
    assert dsprov("--version").out.strip() == f"dsprov {version()}"
    assert subprocess.check_output([*DSPROV, "--version"], text=True).strip() == f"dsprov {version()}"


@pytest.mark.parametrize("word", ["", *(["probe"], ["plan"], ["check"], ["install"], ["status"], ["tiers"])])
def test_help_needs_neither_ansible_nor_the_catalogue(word: Any) -> None:
    """What --help imports is what people wait for."""
    code = (
        "import sys; from dsprov.cli import run; run([*sys.argv[1:], '--help']);"
        "print(*sorted(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *word], capture_output=True, text=True, check=True, timeout=60
    )
    modules = set(done.stderr.split())
    assert not modules & {"ansible", "ansible_runner", "jsonschema", "requests"}
    if not word:
        assert not modules & {"yaml", "asyncio"}
