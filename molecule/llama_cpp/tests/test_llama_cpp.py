"""llama.cpp as others see it: the port, the answers, the unit, the build, and its parser."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.fixtures.emitted import commands

UNIT = "dsprov-llama-server.service"
PREFIX = "/opt/dsprov/llama_cpp"
KEY = "/etc/dsprov/secrets/llama-server-api-key"
PORT = 11435

# Runs each command with a model that is not there: a parser that accepts it comes as far as opening the file.
PARSE = """
import json, subprocess, sys
refused = []
for words in json.load(sys.stdin):
    words[words.index("--model") + 1] = "/nonexistent.gguf"
    words[words.index("--port") + 1] = "28999"  # Its own is taken by the service.
    done = subprocess.run([sys.argv[1], *words[1:]], capture_output=True, text=True, timeout=60)
    said = done.stdout + done.stderr
    if "failed to open GGUF file" not in said:
        refused.append([" ".join(words), said[-300:]])
print(json.dumps(refused))
"""


@pytest.fixture(autouse=True)
def root(host: Any) -> Any:
    """Look as root does."""
    with host.sudo():
        yield


def ask(host: Any, path: str, body: dict[str, Any] | None = None, key: bool = True) -> tuple[int, str]:
    """Ask the server on the host itself: status and text."""
    program = (
        "import sys,urllib.error as e,urllib.request as r;"
        f"h={{'Content-Type':'application/json'}};"
        f"h.update({{'Authorization':'Bearer '+open('{KEY}').read().strip()}} if sys.argv[3] else {{}});"
        f"q=r.Request('http://127.0.0.1:{PORT}'+sys.argv[1],sys.argv[2].encode() or None,h)\n"
        "try: a=r.urlopen(q,timeout=300)\n"
        "except e.HTTPError as x: a=x\n"
        "print(a.status,a.read().decode())"
    )
    done = host.run(
        "/usr/bin/python3 -c %s %s %s %s", program, path, json.dumps(body) if body else "", "k" if key else ""
    )
    assert done.rc == 0, done.stderr
    status, _, text = done.stdout.partition(" ")
    return int(status), text


def test_it_runs_as_its_own_user_and_starts_at_boot(host: Any) -> None:
    service = host.service(UNIT)
    assert service.is_running
    assert service.is_enabled
    pid = int(service.systemd_properties["MainPID"])
    assert host.process.get(pid=pid).user.startswith("dsprov-")
    build = host.file(f"{PREFIX}/current").linked_to
    assert build.startswith(f"{PREFIX}/b11434-")
    assert host.file(f"/proc/{pid}/exe").linked_to == f"{build}/bin/llama-server"


def test_it_listens_on_loopback_alone(host: Any) -> None:
    assert host.socket(f"tcp://127.0.0.1:{PORT}").is_listening
    assert not [s for s in host.socket.get_listening_sockets() if f":{PORT}" in s and "127.0.0.1" not in s]


def test_the_process_has_the_plans_words(host: Any) -> None:
    pid = host.service(UNIT).systemd_properties["MainPID"]
    words = host.file(f"/proc/{pid}/cmdline").content_string.split("\0")[1:-1]
    told = {words[i]: words[i + 1] for i in range(len(words) - 1) if words[i].startswith("--")}
    assert told["--alias"] == "smollm2:135m"
    assert told["--model"].startswith("/var/lib/dsprov/models/smollm2-135m/")
    assert (told["--ctx-size"], told["--parallel"]) == ("8192", "2")
    assert (told["--flash-attn"], told["--cache-type-k"], told["--cache-type-v"]) == ("on", "q8_0", "q8_0")
    assert {"--metrics", "--offline"} <= set(words)


def test_an_answer_makes_sense(host: Any) -> None:
    body = {
        "model": "smollm2:135m",
        # By the system prompt of its own template the small model sings.
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "What is the capital of France?"},
        ],
        "temperature": 0,
        "max_tokens": 12,
    }
    status, text = ask(host, "/v1/chat/completions", body)
    answer = json.loads(text)
    assert (status, answer["system_fingerprint"].split("-")[0]) == (200, "b11434")
    assert "Paris" in answer["choices"][0]["message"]["content"]


@pytest.mark.parametrize("path", ["/v1/models", "/props", "/metrics", "/slots"])
def test_nothing_is_told_without_the_key(host: Any, path: str) -> None:
    assert ask(host, path, key=False)[0] == 401
    assert ask(host, path)[0] == 200


def test_metrics_are_prometheus_ones(host: Any) -> None:
    assert "# TYPE llamacpp:" in ask(host, "/metrics")[1]


def test_the_key_is_the_one_that_people_chose_and_nobody_else_can_read_it(host: Any) -> None:
    assert host.file(KEY).content_string.strip() == "chosen-by-people-0123456789"
    for path in (KEY, "/etc/dsprov/secrets/llama-server.env"):
        assert (host.file(path).user, host.file(path).mode) == ("root", 0o600)
    key = host.file(KEY).content_string.strip()
    for look in (
        f"systemctl show {UNIT}",
        f"journalctl --unit {UNIT} --no-pager",
        "ps -eo args",
        f"cat /etc/systemd/system/{UNIT}",
    ):
        assert key not in host.check_output(look)


def test_context_flash_attention_and_cache_took_effect(host: Any) -> None:
    slots = json.loads(ask(host, "/slots")[1])
    assert [slot["n_ctx"] for slot in slots] == [4096, 4096]


def test_the_unit_is_hardened(host: Any) -> None:
    text = host.run(f"systemd-analyze security {UNIT} --no-pager").stdout
    score = float(text.rsplit(f"Overall exposure level for {UNIT}:", 1)[1].split()[0])
    assert score <= 2.5, text


@pytest.mark.parametrize("tool", ["llama-bench", "llama-gguf-split", "llama-quantize", "llama-fit-params"])
def test_the_tools_run(host: Any, tool: str) -> None:
    said = host.run(f"{PREFIX}/current/bin/{tool} --help")
    assert "usage" in (said.stdout + said.stderr).lower()


def test_a_benchmark_runs(host: Any) -> None:
    model = "/var/lib/dsprov/models/smollm2-135m/Q4_1/SmolLM2-135M-Instruct.Q4_1.gguf"
    text = host.check_output(f"{PREFIX}/current/bin/llama-bench -m {model} -p 8 -n 4 -r 1 -o json")
    assert all(row["avg_ts"] > 0 for row in json.loads(text))


def test_the_server_accepts_every_command_that_the_planner_can_emit(host: Any) -> None:
    emitted = commands("llama_cpp")
    assert len(emitted) > 50
    words = {word for command in emitted for word in command}
    assert {"--n-cpu-moe", "--tensor-split", "--main-gpu", "--numa", "on"} <= words
    done = host.run(
        "printf %%s %s | /usr/bin/python3 -c %s %s",
        json.dumps(emitted),
        PARSE,
        f"{PREFIX}/current/bin/llama-server",
    )
    assert done.rc == 0, done.stderr
    assert json.loads(done.stdout) == []


def test_a_refused_word_would_be_seen(host: Any) -> None:
    """The proof above can fail."""
    done = host.run(
        "printf %%s %s | /usr/bin/python3 -c %s %s",
        json.dumps([["llama-server", "--model", "x", "--port", "1", "--mlock"]]),
        PARSE,
        f"{PREFIX}/current/bin/llama-server",
    )
    assert len(json.loads(done.stdout)) == 1


def test_nothing_is_left_behind(host: Any) -> None:
    left = "find /var/lib/dsprov /opt/dsprov -name '*.part' -o -name '.dsprov-*.tmp' -o -name '.*.dsprov-new'"
    assert host.check_output(left) == ""
    builds = host.check_output(f"find {PREFIX} -mindepth 1 -maxdepth 1 -type d").splitlines()
    assert len(builds) == 1
