"""Engines on one living host: another takes over, or stands beside, and no chat is lost; whatever breaks one,
people are served.

Slow: llama.cpp is built on the host. What the lab has compiled once is compiled no more.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import pytest

from ansible_collections.dsprov.appliance.plugins.module_utils.planner import plan
from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import catalogue, tier_variables
from ansible_collections.dsprov.appliance.plugins.plugin_utils.requests import request_from
from tests.lab import chat

from .conftest import DSPROV, LAB, PROJECT, Lab, Run, dsprov, hosts_of

pytestmark = pytest.mark.slow

OLLAMA, LLAMA = "ollama.service", "dsprov-llama-server.service"
BUILDS = "/var/lib/dsprov/build"
LIMIT = f"/etc/systemd/system/{LLAMA}.d/limit.conf"


@dataclass(frozen=True)
class Appliance:
    """The host t12 (Debian 12), which people chat with."""

    lab: Lab

    def sh(self, script: str, check: bool = True) -> str:
        return self.lab.sh("t12", script, check)

    def words(self, engine: str, **variables: Any) -> list[str]:
        given = [] if engine == "ollama" else ["-e", f"dsprov_engine={engine}"]
        # What is no plain text goes to Ansible as it is.
        rest = ["--", "-e", json.dumps(variables)] if variables else []
        return ["install", "--tier", "demo", "-i", str(self.lab.inventory), "--json", *given, *rest]

    def install(self, engine: str, **variables: Any) -> Run:
        return dsprov(*self.words(engine, **variables), timeout=7200)

    def serve(self, engine: str) -> None:
        """See that this engine serves, whatever a test before has left."""
        if self.record()["engine"] != engine or self.unit(self.record_unit())["ActiveState"] != "active":
            run = self.install(engine)
            assert run.code == 0, run.err

    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.sh("cat /etc/dsprov/state.json"))
        return found

    def record_unit(self) -> str:
        return {"ollama": OLLAMA, "llama_cpp": LLAMA}[self.record()["engine"]]

    def unit(self, name: str) -> dict[str, str]:
        keys = "LoadState,ActiveState,UnitFileState,MainPID,NRestarts,InvocationID"
        rows = self.sh(f"systemctl show {name} --property={keys}").splitlines()
        return dict(row.split("=", 1) for row in rows)

    def chat(self) -> dict[str, Any]:
        """A question through Open WebUI and one to the engine itself."""
        done = subprocess.run(
            [sys.executable, "-m", "tests.lab.chat", "-i", str(self.lab.inventory), "--json"],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    @contextmanager
    def web(self) -> Iterator[Callable[..., Any]]:
        """Open WebUI's API as its administrator sees it: path, and body where something is sent."""
        host = chat.target(self.lab.inventory, "t12")
        password = chat.read_on_host(host, chat.ON_HOST)
        with chat.tunnel(host, 8080) as (base,):
            account = {"email": chat.EMAIL, "password": password}
            token = str(chat.call("sign-in", f"{base}/api/v1/auths/signin", account)["token"])
            yield lambda path, body=None: chat.call(path, f"{base}/api/v1{path}", body, token)

    def ask(self, model: str) -> dict[str, Any]:
        """One question to the engine itself."""
        host = chat.target(self.lab.inventory, "t12")
        port, key = chat.engine_of(host)
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
        with chat.tunnel(host, port) as (base,):
            found: dict[str, Any] = chat.call(model, f"{base}/v1/chat/completions", body, key)
        return found

    def engines(self) -> dict[str, str]:
        """Every engine that the record names, with an answer of its own."""
        host, answers = chat.target(self.lab.inventory, "t12"), {}
        for name, row in self.record()["engines"].items():
            key = chat.read_on_host(host, row["api_key_file"]) if "api_key_file" in row else ""
            with chat.tunnel(host, urlsplit(row["base_url"]).port or 0) as (base,):
                answers[name] = chat.ask(name, f"{base}/v1/chat/completions", row["model"], "hi", key)
        return answers

    def offered(self) -> dict[str, str]:
        """Every model that Open WebUI offers, with an answer through it."""
        host = chat.target(self.lab.inventory, "t12")
        password = chat.read_on_host(host, chat.ON_HOST)
        with chat.tunnel(host, 8080) as (base,):
            account = {"email": chat.EMAIL, "password": password}
            token = str(chat.call("sign-in", f"{base}/api/v1/auths/signin", account)["token"])
            rows = chat.call("models", f"{base}/api/models", token=token)["data"]
            url = f"{base}/api/chat/completions"
            return {row["id"]: chat.ask(row["id"], url, row["id"], "hi", token) for row in rows}

    def chats(self) -> dict[str, Any]:
        """Every chat that people have had: its id and all that was said."""
        with self.web() as call:
            return {row["id"]: call(f"/chats/{row['id']}")["chat"] for row in call("/chats/")}

    def have_chats(self) -> None:
        """Three chats, as a browser leaves them."""
        with self.web() as call:
            for number in range(3):
                said = [{"role": "user", "content": f"question {number}"}]
                said += [{"role": "assistant", "content": f"answer {number}: 42 \N{SNOWMAN}"}]
                body = {"title": f"chat {number}", "models": ["smollm2:135m"], "messages": said}
                call("/chats/new", {"chat": body})

    def healthy(self) -> dict[str, bool]:
        run = dsprov("status", "-i", self.lab.inventory, "--json")
        services = run.document["hosts"]["t12"]["services"]
        return {row["name"]: row["healthy"] for row in services}

    def assert_people_are_served(self, engine: str) -> None:
        assert self.healthy() == {"docker": True, engine: True, "open_webui": True}
        answers = self.chat()
        assert answers["models"] == [answers["model"]]
        assert answers["webui"]["answer"]
        assert answers["engine"]["answer"]


@pytest.fixture(scope="module")
def appliance() -> Iterator[Appliance]:
    """Ollama serves, and people have had chats with it."""
    for lab in hosts_of(
        f"{LAB}-engines", "--artifacts", "ollama,model,open_webui,llama_cpp", t12="debian-12"
    ):
        one = Appliance(lab)
        run = one.install("ollama")
        assert run.code == 0, run.err
        if not one.chats():
            one.have_chats()
        yield one


def test_an_engine_that_does_not_start_leaves_the_one_before(appliance: Appliance) -> None:
    appliance.serve("ollama")
    before, record = appliance.chats(), appliance.record()
    run = appliance.install("llama_cpp", llama_cpp_arguments=["--ctx-size", "nonsense"])
    assert run.code == 1
    assert len(run.errors) == 1
    for words in ("llama-server.service starts and falls over", "--ctx-size", "ollama serves as before"):
        assert words in run.errors[0]
    assert appliance.unit(LLAMA)["ActiveState"] == "inactive"
    assert appliance.unit(LLAMA)["UnitFileState"] == "disabled"
    assert appliance.unit(OLLAMA)["UnitFileState"] == "enabled"
    assert appliance.sh(f"ls /etc/systemd/system/{LLAMA}.d 2>/dev/null", check=False) == ""
    assert appliance.record() == record
    appliance.assert_people_are_served("ollama")
    assert appliance.chats() == before


def test_another_engine_takes_over_and_the_way_back(appliance: Appliance) -> None:
    appliance.serve("ollama")
    before = appliance.chats()
    assert len(before) >= 3
    weights = "find /var/lib/dsprov/ollama /var/lib/dsprov/models -type f -size +1M -printf '%p %s\\n' | sort"
    had = appliance.sh(weights).splitlines()
    assert had

    run = appliance.install("llama_cpp")
    assert run.code == 0, run.err
    assert appliance.unit(OLLAMA) | {"LoadState": "loaded"} == appliance.unit(OLLAMA)
    assert appliance.unit(OLLAMA)["ActiveState"] == "inactive"
    assert appliance.unit(OLLAMA)["UnitFileState"] == "disabled"
    assert appliance.unit(LLAMA)["UnitFileState"] == "enabled"
    assert set(had) <= set(appliance.sh(weights).splitlines())
    appliance.assert_people_are_served("llama_cpp")
    assert appliance.chats() == before
    key = appliance.sh("cat /etc/dsprov/secrets/llama-server-api-key")
    build = appliance.sh("readlink /opt/dsprov/llama_cpp/current")

    run = appliance.install("ollama")
    assert run.code == 0, run.err
    assert appliance.unit(LLAMA)["ActiveState"] == "inactive"
    assert appliance.unit(LLAMA)["UnitFileState"] == "disabled"
    assert appliance.unit(OLLAMA)["UnitFileState"] == "enabled"
    appliance.assert_people_are_served("ollama")
    assert appliance.chats() == before
    # The other one is kept whole, for the next change of mind.
    assert appliance.sh("cat /etc/dsprov/secrets/llama-server-api-key") == key
    assert appliance.sh("readlink /opt/dsprov/llama_cpp/current") == build


def test_again_changes_nothing_and_restarts_nothing(appliance: Appliance) -> None:
    appliance.serve("llama_cpp")
    look = "docker inspect --format '{{.State.StartedAt}}' dsprov-open-webui"
    before = appliance.unit(LLAMA), appliance.sh(look)
    begun = time.monotonic()
    run = appliance.install("llama_cpp")
    print(f"nothing to do: {time.monotonic() - begun:.1f} s")
    assert run.code == 0
    assert run.document["hosts"]["t12"]["changed"] == 0, run.document["hosts"]["t12"]["changed_tasks"]
    assert (appliance.unit(LLAMA), appliance.sh(look)) == before


SECOND = "second:135m"
BESIDE = {
    "dsprov_beside": True,
    # The same weights by another name, so that both engines' models can be told apart.
    "dsprov_model": SECOND,
    "dsprov_models": {SECOND: catalogue()["models"]["smollm2:135m"]},
}


def test_an_engine_that_does_not_start_leaves_the_one_beside_it(appliance: Appliance) -> None:
    appliance.serve("ollama")
    ollama, record = appliance.unit(OLLAMA), appliance.record()
    run = appliance.install("llama_cpp", llama_cpp_arguments=["--ctx-size", "nonsense"], **BESIDE)
    assert run.code == 1
    assert "ollama serves as before" in run.errors[0]
    assert appliance.unit(LLAMA)["ActiveState"] == "inactive"
    assert appliance.unit(LLAMA)["UnitFileState"] == "disabled"
    assert appliance.unit(OLLAMA) == ollama
    assert appliance.record() == record
    appliance.assert_people_are_served("ollama")


def test_two_engines_beside_each_other_and_one_again(appliance: Appliance) -> None:
    appliance.serve("ollama")
    before, ollama = appliance.chats(), appliance.unit(OLLAMA)
    run = appliance.install("llama_cpp", **BESIDE)
    assert run.code == 0, run.err
    assert appliance.unit(OLLAMA) == ollama
    assert appliance.unit(LLAMA)["ActiveState"] == "active"
    assert appliance.unit(LLAMA)["UnitFileState"] == "enabled"
    assert appliance.healthy() == {"docker": True, "llama_cpp": True, "ollama": True, "open_webui": True}
    assert sorted(appliance.engines()) == ["llama_cpp", "ollama"]
    assert sorted(appliance.offered()) == [SECOND, "smollm2:135m"]
    assert appliance.chats() == before

    look = "docker inspect --format '{{.State.StartedAt}}' dsprov-open-webui"
    standing = appliance.unit(OLLAMA), appliance.unit(LLAMA), appliance.sh(look)
    run = appliance.install("llama_cpp", **BESIDE)
    assert run.code == 0, run.err
    assert run.document["hosts"]["t12"]["changed"] == 0, run.document["hosts"]["t12"]["changed_tasks"]
    assert (appliance.unit(OLLAMA), appliance.unit(LLAMA), appliance.sh(look)) == standing

    # A move that was killed in the middle told systemd that one of them ends the other.
    left = f"/etc/systemd/system/{OLLAMA}.d/dsprov-switch.conf"
    appliance.sh(
        f"mkdir -p {left.rpartition('/')[0]} && echo '[Unit]' > {left} && echo Conflicts={LLAMA} >> {left}"
    )
    appliance.sh(f"systemctl daemon-reload && systemctl restart {OLLAMA}")
    assert appliance.unit(LLAMA)["ActiveState"] == "inactive"
    run = appliance.install("llama_cpp", **BESIDE)
    assert run.code == 0, run.err
    assert appliance.sh(f"if test -e {left}; then echo there; else echo gone; fi").strip() == "gone"
    assert appliance.healthy() == {"docker": True, "llama_cpp": True, "ollama": True, "open_webui": True}
    assert sorted(appliance.offered()) == [SECOND, "smollm2:135m"]
    ollama = appliance.unit(OLLAMA)
    standing = ollama, appliance.unit(LLAMA), appliance.sh(look)

    # As many requests at once as the host has memory for, were llama.cpp alone on it.
    facts = dsprov("probe", "-i", appliance.lab.inventory, "--json").document
    assert sorted(facts["hosts"]["t12"].pop("installed_engines")) == ["llama_cpp", "ollama"]
    request, _found = request_from({**tier_variables("demo"), "dsprov_engine": "llama_cpp"})
    assert request is not None

    def refused(parallel: int) -> bool:
        return not plan(facts, replace(request, parallel=parallel), catalogue())["ok"]

    most = bisect_left(range(1, 4096), True, key=refused)
    found = appliance.lab.fingerprint("t12")
    run = appliance.install("llama_cpp", **BESIDE, dsprov_parallel=most)
    assert run.code == 3
    assert len(run.errors) == 1
    assert f"llama_cpp with {SECOND} needs RAM" in run.errors[0]
    assert "beside ollama (smollm2:135m), which has RAM" in run.errors[0]
    assert appliance.lab.fingerprint("t12") == found
    assert (appliance.unit(OLLAMA), appliance.unit(LLAMA), appliance.sh(look)) == standing

    run = appliance.install("ollama")
    assert run.code == 0, run.err
    assert appliance.unit(OLLAMA) == ollama
    assert appliance.unit(LLAMA)["ActiveState"] == "inactive"
    assert appliance.unit(LLAMA)["UnitFileState"] == "disabled"
    assert sorted(appliance.record()["engines"]) == ["ollama"]
    appliance.assert_people_are_served("ollama")
    assert appliance.chats() == before


def test_one_server_for_several_models(appliance: Appliance) -> None:
    """The plan's model from the start, another when asked for; and the way back."""
    appliance.serve("llama_cpp")
    weights = appliance.sh("find /var/lib/dsprov/models -name '*.gguf'").split()[0]
    other = {"name": "second:1b", "path": weights, "settings": {"ctx-size": 1024}}
    run = appliance.install("llama_cpp", llama_cpp_models=[other])
    assert run.code == 0, run.err
    assert appliance.healthy()["llama_cpp"]
    for name in ("smollm2:135m", "second:1b"):
        assert appliance.ask(name)["choices"][0]["message"]["content"]
    listening = appliance.sh("ss -Hltnp | grep llama-server").splitlines()
    assert len(listening) == 3
    assert all(line.split()[3].startswith("127.0.0.1:") for line in listening)
    run = appliance.install("llama_cpp", llama_cpp_models=[{**other, "name": "smollm2:135m"}])
    assert run.code == 1
    assert "two are the same" in run.errors[0]
    run = appliance.install("llama_cpp")
    assert run.code == 0, run.err
    appliance.assert_people_are_served("llama_cpp")


def other_build(commit: str) -> dict[str, Any]:
    """Variables that want another build, of which all but a few files are in the lab's compiler cache."""
    return {"llama_cpp_cmake_options": {"LLAMA_BUILD_COMMIT": commit}}


@pytest.fixture
def small_disk(appliance: Appliance) -> Iterator[Callable[[str], str]]:
    """A disk for builds with room for the sources and little more; what it gives sets another size."""
    appliance.serve("llama_cpp")
    appliance.sh(f"rm -rf {BUILDS}/llama_cpp; mkdir -p {BUILDS}; mount -t tmpfs -o size=230m tmpfs {BUILDS}")
    yield lambda size: appliance.sh(f"mount -o remount,size={size} {BUILDS}")
    appliance.sh(f"umount -l {BUILDS}")


def test_a_disk_that_a_build_fills_up(appliance: Appliance, small_disk: Callable[[str], str]) -> None:
    """What serves goes on, the message says what is full, and with more room the same command ends well."""
    serving = appliance.unit(LLAMA)
    other = {**other_build("full"), "llama_cpp_build_bytes": 1000000}
    run = appliance.install("llama_cpp", **other)
    assert run.code == 1
    assert len(run.errors) == 1
    for words in ("a disk ran full", f"{BUILDS}/llama_cpp", "free space, then run the same command again"):
        assert words in run.errors[0]
    assert appliance.unit(LLAMA) == serving
    assert int(appliance.sh(f"find {BUILDS}/llama_cpp/b*/ -name '*.o' | wc -l")) > 0
    small_disk("4g")
    run = appliance.install("llama_cpp", **other)
    assert run.code == 0, run.err
    assert appliance.unit(LLAMA)["InvocationID"] != serving["InvocationID"]
    appliance.assert_people_are_served("llama_cpp")


# The process that builds, and the compilers that hold its lock.
KILL = f"""
for process in /proc/[0-9]*; do
  grep -q '^PPid:[[:space:]]*1$' $process/status 2>/dev/null || continue
  ls -l $process/fd 2>/dev/null | grep -q '{BUILDS}/llama_cpp/b.*/lock$' && kill -KILL ${{process#/proc/}}
done
pkill -KILL -x 'cmake|ninja|ccache|cc1plus|as|ld'
true
"""


def test_a_build_that_is_killed_goes_on(appliance: Appliance) -> None:
    """Once its processes alone, which the run itself mends; then the run, which the same command mends."""
    appliance.serve("llama_cpp")
    appliance.sh(f"rm -rf {BUILDS}/llama_cpp")
    other = other_build("killed")

    def steps() -> tuple[int, int]:
        said = appliance.sh(f"cat {BUILDS}/llama_cpp/b*/build.log 2>/dev/null | grep '^\\[' | tail -1", False)
        done, _, rest = said.strip("[").partition("/")
        return (int(done), int(rest.split("]")[0])) if rest else (0, 0)

    def await_steps(number: int) -> tuple[int, int]:
        until = time.monotonic() + 1800
        while (seen := steps())[0] < number:
            assert run.poll() is None, "the run ended before the build had come so far"
            assert time.monotonic() < until, f"no {number} steps in half an hour"
            time.sleep(0.2)
        return seen

    command = [str(DSPROV), *appliance.words("llama_cpp", **other)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        await_steps(40)
        appliance.sh(KILL)
        done, total = steps()
        appliance.sh(f"rm {BUILDS}/llama_cpp/b*/build.log")
        _, left = await_steps(1)
        run.kill()
        run.communicate()
    # Ninja counts what is left to do: nothing that was finished is compiled again.
    assert left <= total - done + 8
    assert appliance.healthy()["llama_cpp"]
    again = appliance.install("llama_cpp", **other)
    assert again.code == 0, again.err
    appliance.assert_people_are_served("llama_cpp")


def test_a_model_that_memory_does_not_suffice_for(appliance: Appliance) -> None:
    """Somebody bounded the service's memory: its load ends by the kernel's hand, and the message says so."""
    appliance.serve("llama_cpp")
    appliance.sh(f"mkdir -p $(dirname {LIMIT})")
    appliance.sh(
        f"printf '[Service]\\nMemoryMax=60M\\nMemorySwapMax=0\\n' > {LIMIT}; systemctl daemon-reload"
    )
    try:
        run = appliance.install("llama_cpp", dsprov_context_length=2048)
        assert run.code == 1
        assert len(run.errors) == 1
        for words in (LLAMA, "out of memory", "62914560 bytes (MemoryMax)"):
            assert words in run.errors[0]
    finally:
        appliance.sh(f"rm -f {LIMIT}; rmdir $(dirname {LIMIT}); systemctl daemon-reload", check=False)
    run = appliance.install("llama_cpp")
    assert run.code == 0, run.err
    appliance.assert_people_are_served("llama_cpp")
