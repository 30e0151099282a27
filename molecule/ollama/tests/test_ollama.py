"""Ollama as others see it: the port, the answers, the unit, the process that holds the model."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

MODELS = "/var/lib/dsprov/ollama/models"
WANTED = {
    "OLLAMA_HOST": "127.0.0.1:11434",
    "OLLAMA_MODELS": MODELS,
    "OLLAMA_CONTEXT_LENGTH": "2048",
    "OLLAMA_NUM_PARALLEL": "2",
    "OLLAMA_FLASH_ATTENTION": "1",
    "OLLAMA_KV_CACHE_TYPE": "q8_0",
    "OLLAMA_KEEP_ALIVE": "24h",
    "OLLAMA_NO_CLOUD": "1",
    "OLLAMA_ORIGINS": "https://chat.example.org",
}


@pytest.fixture(autouse=True)
def root(host: Any) -> Any:
    """Look as root does."""
    with host.sudo():
        yield


def ask(host: Any, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Ask the server on the host itself."""
    program = (
        "import json,sys,urllib.request as r;"
        "b=sys.argv[2].encode() or None;"
        "q=r.Request('http://127.0.0.1:11434'+sys.argv[1],b,{'Content-Type':'application/json'});"
        "print(r.urlopen(q,timeout=300).read().decode())"
    )
    text = json.dumps(body) if body else ""
    done = host.run("/usr/bin/python3 -c %s %s %s", program, path, text)
    assert done.rc == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def chat(host: Any, model: str, question: str) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0, "seed": 1}
    answer = ask(host, "/v1/chat/completions", {**body, "max_tokens": 32})
    return str(answer["choices"][0]["message"]["content"])


def test_it_runs_as_its_own_user_and_starts_at_boot(host: Any) -> None:
    service = host.service("ollama.service")
    assert service.is_running
    assert service.is_enabled
    pid = host.service("ollama.service").systemd_properties["MainPID"]
    assert host.process.get(pid=int(pid)).user == "ollama"
    assert host.file(f"/proc/{pid}/exe").linked_to == "/opt/dsprov/ollama/0.32.7/bin/ollama"


def test_it_listens_on_loopback_alone(host: Any) -> None:
    assert host.socket("tcp://127.0.0.1:11434").is_listening
    assert not [s for s in host.socket.get_listening_sockets() if ":11434" in s and "127.0.0.1" not in s]


def test_systemd_and_the_process_have_the_settings(host: Any) -> None:
    pid = host.service("ollama.service").systemd_properties["MainPID"]
    words = host.file(f"/proc/{pid}/environ").content_string.split("\0")
    process = dict(word.split("=", 1) for word in words if "=" in word)
    shown = host.check_output("systemctl show ollama.service --property Environment --value").split()
    for name, value in WANTED.items():
        assert process[name] == value
        assert f"{name}={value}" in shown


def test_version_and_models(host: Any) -> None:
    assert ask(host, "/api/version") == {"version": "0.32.7"}
    names = {row["name"] for row in ask(host, "/api/tags")["models"]}
    assert names == {"smollm2:135m", "terse:135m"}


def test_an_answer_makes_sense(host: Any) -> None:
    assert "Paris" in chat(host, "smollm2:135m", "What is the capital of France?")


def test_context_flash_attention_and_cache_took_effect(host: Any) -> None:
    chat(host, "smollm2:135m", "Hello")
    loaded = {row["name"]: row["context_length"] for row in ask(host, "/api/ps")["models"]}
    assert loaded["smollm2:135m"] == 2048
    commands = [p.args for p in host.process.filter(comm="llama-server")]
    assert commands
    for command in commands:
        assert "--flash-attn on" in command
        assert "--cache-type-k q8_0 --cache-type-v q8_0" in command
    log = host.check_output("journalctl --unit ollama.service --output cat --no-pager")
    assert re.search(r"llama_context: flash_attn += enabled", log)
    assert re.search(r"llama_kv_cache: size = .* K \(q8_0\): .* V \(q8_0\):", log)


def test_the_derived_model_has_its_description(host: Any) -> None:
    said = ask(host, "/api/show", {"model": "terse:135m"})
    assert said["system"] == "Answer in one short sentence."
    parameters = dict(line.split(None, 1) for line in said["parameters"].splitlines())
    assert parameters["num_ctx"] == "1024"
    assert parameters["stop"].strip('"') == "."


def test_the_unit_is_hardened(host: Any) -> None:
    text = host.run("systemd-analyze security ollama.service --no-pager").stdout
    score = float(text.rsplit("Overall exposure level for ollama.service:", 1)[1].split()[0])
    assert score <= 2.5, text


def test_nothing_is_left_behind(host: Any) -> None:
    assert (
        host.check_output(
            "find /var/lib/dsprov /opt/dsprov -name '*.part' -o -name '.dsprov-*.tmp' -o -name '*.lock'"
        )
        == ""
    )
    assert not host.file("/var/lib/dsprov/models/SmolLM2-135M-Instruct.Q4_1.gguf").exists
    # Every blob belongs to a model: no second copy of the weights is kept.
    manifests = host.check_output("find %s/manifests -type f -exec cat {} +", MODELS)
    blobs = host.check_output("ls %s/blobs", MODELS).split()
    assert [blob for blob in blobs if blob.replace("sha256-", "sha256:") not in manifests] == []
