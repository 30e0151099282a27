"""vLLM as others see it: the port, the key, the answers, the unit, the process."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.lab.reach import address_of, open_ports

UNIT = "dsprov-vllm.service"
KEY = "/etc/dsprov/secrets/vllm-api-key"
MODEL = "/var/lib/dsprov/models/tiny-llama/BF16"
# By the plan: catalog and inventory say so, and nothing else.
COMMAND = [
    "serve", MODEL, "--served-model-name", "tiny-llama", "--host", "127.0.0.1", "--port", "11436",
    "--tensor-parallel-size", "1", "--pipeline-parallel-size", "1", "--max-model-len", "2048",
    "--max-num-seqs", "2", "--max-num-batched-tokens", "2048", "--enforce-eager",
]  # fmt: skip


@pytest.fixture(autouse=True)
def root(host: Any) -> Any:
    """Look as root does."""
    with host.sudo():
        yield


def ask(host: Any, path: str, body: dict[str, Any] | None = None, key: bool = True) -> tuple[int, Any]:
    """Ask the server on the host itself; the key is read there."""
    program = (
        "import json,sys,urllib.request as r,urllib.error as e;"
        "b=sys.argv[2].encode() or None;"
        "h={'Content-Type':'application/json'};"
        f"h.update({{'Authorization':'Bearer '+open('{KEY}').read().strip()}} if sys.argv[3] else {{}});"
        "q=r.Request('http://127.0.0.1:11436'+sys.argv[1],b,h)\n"
        "try: a=r.urlopen(q,timeout=120); print(a.status, a.read().decode())\n"
        "except e.HTTPError as x: print(x.code, '{}')"
    )
    text = json.dumps(body) if body else ""
    done = host.run("/usr/bin/python3 -c %s %s %s %s", program, path, text, "yes" if key else "")
    assert done.rc == 0, done.stderr
    status, _, answer = done.stdout.partition(" ")
    return int(status), json.loads(answer)


def process(host: Any) -> int:
    return int(host.service(UNIT).systemd_properties["MainPID"])


def test_it_runs_as_its_own_user_and_starts_at_boot(host: Any) -> None:
    assert host.service(UNIT).is_running
    assert host.service(UNIT).is_enabled
    assert host.process.get(pid=process(host)).user == "dsprov-vllm"


def test_it_runs_exactly_the_plans_command(host: Any) -> None:
    (line,) = [
        line.removeprefix("ExecStart=")
        for line in host.file(f"/etc/systemd/system/{UNIT}").content_string.splitlines()
        if line.startswith("ExecStart=")
    ]
    assert line.split() == ["/opt/dsprov/vllm/current/bin/vllm", *COMMAND]
    shown = host.check_output(f"systemctl show {UNIT} --property Environment --value").split()
    assert {"HF_HUB_OFFLINE=1", "TORCH_COMPILE_DISABLE=1", "VLLM_CPU_KVCACHE_SPACE=1"} <= set(shown)


def test_it_is_there_for_this_host_alone(host: Any) -> None:
    assert host.socket("tcp://127.0.0.1:11436").is_listening
    assert open_ports(host) == {22}
    assert f" {address_of(host)}:" not in host.check_output("ss -Hltn")


def test_an_answer_comes_to_those_with_the_key_alone(host: Any) -> None:
    body = {"model": "tiny-llama", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
    status, answer = ask(host, "/v1/chat/completions", {**body, "temperature": 0})
    assert status == 200
    assert answer["usage"]["completion_tokens"] > 0
    assert ask(host, "/v1/chat/completions", body, key=False)[0] == 401
    assert ask(host, "/v1/models", key=False)[0] == 401
    status, listed = ask(host, "/v1/models")
    assert [row["id"] for row in listed["data"]] == ["tiny-llama"]
    assert listed["data"][0]["max_model_len"] == 2048


def test_the_release_is_the_pinned_one(host: Any) -> None:
    assert ask(host, "/version") == (200, {"version": "0.32.0"})
    current = host.file("/opt/dsprov/vllm/current")
    assert current.is_symlink
    assert current.linked_to.startswith("/opt/dsprov/vllm/0.32.0-cpu-")


def test_the_unit_is_hardened(host: Any) -> None:
    text = host.run(f"systemd-analyze security {UNIT} --no-pager").stdout
    score = float(text.rsplit(f"Overall exposure level for {UNIT}:", 1)[1].split()[0])
    assert score <= 2.5, text


def test_the_key_is_nowhere_but_in_its_files(host: Any) -> None:
    for path in (KEY, "/etc/dsprov/secrets/vllm.env"):
        assert host.file(path).mode == 0o600
        assert host.file(path).user == "root"
    key = host.file(KEY).content_string.strip()
    assert len(key) >= 24
    for place in (
        host.file(f"/etc/systemd/system/{UNIT}").content_string,
        host.check_output("ps -eww -o args"),
        host.check_output(f"journalctl --unit {UNIT} --output cat --no-pager"),
        host.check_output(f"systemctl show {UNIT}"),
    ):
        assert key not in place


def test_what_it_compiles_and_caches_is_its_own(host: Any) -> None:
    data = host.file("/var/lib/dsprov/vllm")
    assert (data.user, data.mode) == ("dsprov-vllm", 0o750)
    assert host.file("/opt/dsprov/vllm/current/bin/vllm").user == "root"
    # Packages were compiled when they were installed: the service may not do so.
    assert host.file("/opt/dsprov/vllm/current").exists
    assert host.run("ls -d /opt/dsprov/vllm/current/lib/python3*/site-packages/vllm/__pycache__").rc == 0


def test_nothing_is_left_behind(host: Any) -> None:
    # uv's own lock stays in an environment that it made. grep fails where nothing is left, as is wanted.
    assert (
        host.check_output(
            "find /var/lib/dsprov /opt/dsprov -name '*.part' -o -name '.dsprov-*.tmp' -o -name '*.lock'"
            " | grep -v /site-packages/ | grep -v /vllm/cache/ | grep -v -- '-cpu-[0-9a-f]*/.lock$' || true"
        )
        == ""
    )
    assert not host.file("/opt/dsprov/vllm/.cache").exists
