"""Ask an appliance a question, once through Open WebUI and once through its engine.

Usage: python -m tests.lab.chat -i INVENTORY [--host HOST] [--model NAME] [--question TEXT]

What a person at another desk does, by program: tunnel to the host, sign in to Open WebUI with the password
that lies on the host, chat. Which engine serves, and by which key, stands in the host's own record. Password
and key are held in memory alone and never shown.
Exit codes: 0 both answered, 1 one did not, 2 wrong use.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

QUESTION = "What is the capital of France? Answer in one short sentence."
ON_HOST = "/etc/dsprov/secrets/open-webui-admin-password"
STATE = "/etc/dsprov/state.json"
EMAIL = "admin@localhost"
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ChatError(Exception):
    """Says what did not work, where, and what to do."""


class UsageError(ChatError):
    """Says what is wrong with the input."""


@dataclass(frozen=True)
class Target:
    """One host of the inventory and how ssh reaches it."""

    name: str
    ssh: tuple[str, ...]


def inventory_hosts(inventory: Path) -> dict[str, dict[str, Any]]:
    """Return the variables of every host, in the inventory's order, as Ansible reads them."""
    if not inventory.exists():
        raise UsageError(f"{inventory}: there is no such inventory; `make lab-up` makes one")
    tool = Path(sys.executable).with_name("ansible-inventory")
    done = subprocess.run(
        [str(tool), "-i", str(inventory), "--list"],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode != 0:
        raise UsageError(f"{inventory}: Ansible cannot read it: {done.stderr.strip().splitlines()[-1:]}")
    listing = json.loads(done.stdout)
    variables: dict[str, dict[str, Any]] = listing.get("_meta", {}).get("hostvars", {})
    names: dict[str, None] = {}
    for group in listing.values():
        names.update(dict.fromkeys(group.get("hosts", [])))
    if not names:
        raise UsageError(f"{inventory}: names no host")
    return {name: variables.get(name, {}) for name in names}


def target(inventory: Path, wanted: str | None) -> Target:
    """Pick one host and turn its variables into an ssh command line."""
    hosts = inventory_hosts(inventory)
    name = wanted or next(iter(hosts))
    if name not in hosts:
        raise UsageError(f"{inventory}: has no host {name}; it has {', '.join(hosts)}")
    values = hosts[name]
    ssh = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "ControlPath=none"]
    ssh += shlex.split(values.get("ansible_ssh_common_args", ""))
    if "ansible_ssh_private_key_file" in values:
        ssh += ["-i", str(values["ansible_ssh_private_key_file"])]
    if "ansible_port" in values:
        ssh += ["-p", str(values["ansible_port"])]
    if "ansible_user" in values:
        ssh += ["-l", str(values["ansible_user"])]
    return Target(name, (*ssh, str(values.get("ansible_host", name))))


def read_on_host(host: Target, path: str) -> str:
    """Read a file that only root of the host may read."""
    done = subprocess.run(
        [*host.ssh, "sudo", "-n", "cat", shlex.quote(path)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0 or not done.stdout.strip():
        raise ChatError(f"{host.name}: {path} cannot be read: {done.stderr.strip() or 'it is empty'}")
    return done.stdout.strip()


def engine_of(host: Target) -> tuple[int, str]:
    """Port and API key of the engine that the host's record names; the key is empty where it has none.

    A host that one role alone was entered on has no record: there Ollama serves on its own port.
    """
    look = f"if test -e {STATE}; then cat {STATE}; else echo '{{}}'; fi"
    done = subprocess.run(
        [*host.ssh, "sudo", "-n", "sh", "-c", shlex.quote(look)], capture_output=True, text=True, check=False
    )
    try:
        access = json.loads(done.stdout).get("access", {})
    except (ValueError, AttributeError):
        raise ChatError(
            f"{host.name}: {STATE} cannot be read: {done.stderr.strip() or done.stdout}"
        ) from None
    port = urllib.parse.urlsplit(access.get("engine", "http://127.0.0.1:11434/v1")).port or 80
    key_file = access.get("engine_key_file", "")
    return port, read_on_host(host, key_file) if key_file else ""


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def tunnel(host: Target, *ports: int) -> Iterator[list[str]]:
    """Give base URLs on this machine that lead to loopback ports of the host."""
    pairs = [(free_port(), port) for port in ports]
    forwards = [part for here, there in pairs for part in ("-L", f"127.0.0.1:{here}:127.0.0.1:{there}")]
    command = [*host.ssh[:-1], "-N", "-o", "ExitOnForwardFailure=yes", *forwards, host.ssh[-1]]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as ssh:
        try:
            deadline = time.monotonic() + 20
            for here, _ in pairs:
                while True:
                    with (
                        contextlib.suppress(OSError),
                        socket.create_connection(("127.0.0.1", here), timeout=1),
                    ):
                        break
                    if ssh.poll() is not None or time.monotonic() > deadline:
                        ssh.kill()
                        said = ssh.stderr.read().strip() if ssh.stderr else ""
                        raise ChatError(
                            f"{host.name}: no ssh tunnel: {said or 'ssh did not get through in 20 s'}"
                        )
                    time.sleep(0.05)
            yield [f"http://127.0.0.1:{here}" for here, _ in pairs]
        finally:
            # OpenSSH 9.2 may note a SIGTERM just before it begins to wait, and then waits for ever.
            ssh.kill()


def call(
    what: str, url: str, body: dict[str, Any] | None = None, token: str = "", timeout: float = 300
) -> Any:
    """Return the JSON answer to one request."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data)
    request.add_header("Content-Type", "application/json")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with DIRECT.open(request, timeout=timeout) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            raise ChatError(
                f"{what} answers {error.code}: {error.read(300).decode(errors='replace')}"
            ) from None
    except (OSError, ValueError) as error:
        raise ChatError(f"{what} gives no answer: {error}") from None


def ask(what: str, url: str, model: str, question: str, token: str = "") -> str:
    """Ask one question and return the answer's text."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "stream": False,
        "max_tokens": 24,
        "temperature": 0,
    }
    answer = call(what, url, body, token)
    try:
        text = str(answer["choices"][0]["message"]["content"]).strip()
    except (KeyError, IndexError, TypeError):
        raise ChatError(
            f"{what} gives something that is no chat completion: {json.dumps(answer)[:300]}"
        ) from None
    if not text:
        raise ChatError(f"{what} gives an empty answer")
    return text


def converse(arguments: argparse.Namespace) -> dict[str, Any]:
    """Do it all and return what came of it."""
    host = target(arguments.inventory, arguments.host)
    password = read_on_host(host, arguments.password_file)
    engine_port, engine_key = engine_of(host)
    with tunnel(host, arguments.webui_port, engine_port) as (webui, engine):
        account = {"email": arguments.email, "password": password}
        token = str(call("Open WebUI's sign-in", f"{webui}/api/v1/auths/signin", account).get("token", ""))
        models = [
            row["id"] for row in call("Open WebUI's model list", f"{webui}/api/models", token=token)["data"]
        ]
        if not models:
            raise ChatError(f"{host.name}: Open WebUI offers no model; does the engine serve one?")
        model = arguments.model or models[0]
        if model not in models:
            raise ChatError(f"{host.name}: Open WebUI does not offer {model}; it offers {', '.join(models)}")
        result: dict[str, Any] = {
            "host": host.name,
            "models": models,
            "model": model,
            "question": arguments.question,
        }
        for name, url, key in (
            ("webui", f"{webui}/api/chat/completions", token),
            ("engine", f"{engine}/v1/chat/completions", engine_key),
        ):
            start = time.monotonic()
            text = ask(
                {"webui": "Open WebUI", "engine": "the engine"}[name], url, model, arguments.question, key
            )
            result[name] = {"answer": text, "seconds": round(time.monotonic() - start, 1)}
    result["address"] = f"http://127.0.0.1:{arguments.webui_port}"
    result["tunnel"] = shlex.join(
        [*host.ssh[:-1], "-N", "-L", f"{arguments.webui_port}:127.0.0.1:{arguments.webui_port}", host.ssh[-1]]
    )
    result["email"] = arguments.email
    result["password_file"] = arguments.password_file
    return result


def show(result: dict[str, Any]) -> None:
    """Print for people."""
    print(f"{result['host']} serves {', '.join(result['models'])}")
    print(f"  question          {result['question']}")
    for name, title in (("webui", "through Open WebUI"), ("engine", "from the engine")):
        print(f"  {title:<19}{' '.join(result[name]['answer'].split())}  ({result[name]['seconds']} s)")
    print(f"  address           {result['address']} on {result['host']}, from here by: {result['tunnel']}")
    print(f"  sign in as        {result['email']}")
    print(f"  password          in {result['host']}:{result['password_file']} (sudo cat)")


def main() -> int:
    """Parse, ask, print."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.lab.chat", description="Ask an appliance a question."
    )
    parser.add_argument("-i", "--inventory", type=Path, required=True)
    parser.add_argument("--host", help="host of the inventory; the first if not given")
    parser.add_argument("--model", help="model to ask; the first that Open WebUI offers if not given")
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--email", default=EMAIL)
    parser.add_argument("--password-file", default=ON_HOST)
    parser.add_argument("--webui-port", type=int, default=8080)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    try:
        result = converse(arguments)
    except ChatError as error:
        print(f"chat: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    if arguments.json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        show(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
