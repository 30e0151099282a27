"""The Docker engine under the lab: found, or installed and started, and asked what it lets containers do."""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .artifacts.common import BuildError, Log, need_tools, os_release, step

LABEL = "dsprov.lab"
ROLE = "dsprov.lab.role"
SPEC = "dsprov.lab.spec"


class LabError(BuildError):
    """The lab cannot go on; the message is one line for people."""


def docker(
    *words: str | Path, check: bool = True, stdin: str | None = None, timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run one docker command; with check, a failure is one line that names it."""
    argv = ["docker", *(str(word) for word in words)]
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False, timeout=timeout)
    if check and done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise LabError(f"{' '.join(argv[:3])} ended with {done.returncode}: {last}")
    return done


def lines(*words: str | Path) -> list[str]:
    """The non-empty lines that a docker command prints."""
    return [line for line in docker(*words).stdout.splitlines() if line.strip()]


def inspect(kind: str, name: str) -> dict[str, Any] | None:
    """What docker knows of a container, network or volume, or None."""
    done = docker(kind, "inspect", name, check=False)
    if done.returncode:
        return None
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows[0]


def labelled(kind: str, *filters: str) -> list[str]:
    """Names of containers, networks or volumes that carry these labels."""
    words: list[str] = {"container": ["ps", "-a"], "network": ["network", "ls"], "volume": ["volume", "ls"]}[
        kind
    ]
    shown = {"container": "{{.Names}}", "network": "{{.Name}}", "volume": "{{.Name}}"}[kind]
    picks = [word for one in filters for word in ("--filter", f"label={one}")]
    return sorted(lines(*words, *picks, "--format", shown))


@dataclass(frozen=True)
class Traits:
    """What the engine is and what it lets a container do."""

    version: str
    system: str
    storage: str
    cgroup: int  # 1 or 2
    unified: bool  # cgroup v1 with a v2 tree beside it at /sys/fs/cgroup/unified
    sys_resource: bool
    privileged: bool

    def describe(self) -> str:
        tree = f"cgroup v{self.cgroup}" + (
            " with a v2 tree beside it" if self.cgroup == 1 and self.unified else ""
        )
        parts = [f"Docker {self.version} on {self.system}", f"storage {self.storage}", tree]
        parts.append(f"privileged containers {'work' if self.privileged else 'are refused'}")
        if not self.sys_resource:
            parts.append("no CAP_SYS_RESOURCE")
        return ", ".join(parts)


def _info() -> dict[str, Any] | str:
    """`docker info` as data, or the reason there is none."""
    if not shutil.which("docker"):
        return "there is no docker command"
    done = docker("info", "--format", "{{json .}}", check=False, timeout=30)
    try:
        info: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        return (done.stderr.strip() or "docker info printed nothing").splitlines()[-1]
    errors = info.get("ServerErrors") or []
    if done.returncode or errors or not info.get("ServerVersion"):
        return str(errors[0]) if errors else (done.stderr.strip() or "no server answered").splitlines()[-1]
    return info


def _is_debian() -> bool:
    release = os_release()
    return "debian" in {release.get("ID", ""), *release.get("ID_LIKE", "").split()}


def _start(cache: Path, log: Log, reason: str) -> None:
    """Install Docker and start its daemon; only as root on Debian, only when nothing answers."""
    if os.environ.get("DOCKER_HOST"):
        raise LabError(f"no Docker engine answers at DOCKER_HOST={os.environ['DOCKER_HOST']}: {reason}")
    if "permission denied" in reason.lower():
        raise LabError("the Docker engine refuses this user: add it to the group docker, or run as root")
    if os.geteuid() != 0 or not _is_debian():
        raise LabError(f"no Docker engine answers ({reason}): start one, or run this as root on Debian")
    separate = os_release().get("VERSION_CODENAME") not in ("buster", "bullseye", "bookworm")
    client = "docker-cli" if os_release().get("ID") == "debian" and separate else "docker.io"
    need_tools({"dockerd": "docker.io", "docker": client, "iptables": "iptables"}, log)
    if Path("/run/systemd/system").is_dir():
        with step(log, "starting docker.service"):
            subprocess.run(["systemctl", "start", "docker.service"], check=False)
    else:
        log_file = cache / "logs" / "dockerd.log"
        log_file.parent.mkdir(parents=True, exist_ok=True)
        log(f"starting dockerd by hand, its log is {log_file}")
        _drop_stale_pid(Path("/var/run/docker.pid"))
        with log_file.open("ab") as stream:
            subprocess.Popen(
                ["dockerd"],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
                cwd="/",
            )
    until = time.monotonic() + 60
    answer: dict[str, Any] | str = reason
    while time.monotonic() < until:
        answer = _info()
        if isinstance(answer, dict):
            return
        time.sleep(0.5)
    raise LabError(f"dockerd does not answer after 60 s ({answer}): read {cache / 'logs' / 'dockerd.log'}")


def _drop_stale_pid(file: Path) -> None:
    """A dockerd that was killed leaves its pid file, and a new one takes even a zombie for its owner."""
    try:
        stat = Path(f"/proc/{int(file.read_text(encoding='ascii'))}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        stat = ""
    except ValueError:
        return
    if "(dockerd)" not in stat or stat.rpartition(")")[2].split()[0] == "Z":
        file.unlink(missing_ok=True)


def find(cache: Path, log: Log, *, start: bool = True) -> dict[str, Any]:
    """The running engine's own description; starts one where there is none and that is possible."""
    answer = _info()
    if isinstance(answer, str):
        if not start:
            raise LabError(f"no Docker engine answers: {answer}")
        _start(cache, log, answer)
        answer = _info()
    if isinstance(answer, str):
        raise LabError(f"no Docker engine answers: {answer}")
    if answer.get("OSType") != "linux":
        raise LabError(
            f"the lab needs an engine that runs Linux containers, this one runs {answer.get('OSType')}"
        )
    return answer


_PROBE = """
[ -e /hostcgroup/cgroup.controllers ] && echo v2
[ -e /hostcgroup/unified/cgroup.controllers ] && echo unified
true
"""


def traits(info: Mapping[str, Any], image: str) -> Traits:
    """Try on a throw-away container what this engine allows."""
    base = ["run", "--rm", "--label", f"{ROLE}=probe", "--network", "none", "--entrypoint", "/bin/sh"]
    tree = ["-v", "/sys/fs/cgroup:/hostcgroup:ro"]
    said = docker(*base, *tree, image, "-c", _PROBE).stdout.split()
    resource = docker(*base, "--cap-add", "ALL", image, "-c", "true", check=False).returncode == 0
    privileged = docker(*base, "--privileged", image, "-c", "true", check=False).returncode == 0
    return Traits(
        version=str(info["ServerVersion"]),
        system=str(info.get("OperatingSystem", "Linux")),
        storage=str(info.get("Driver", "?")),
        cgroup=2 if "v2" in said else 1,
        unified="unified" in said,
        sys_resource=resource,
        privileged=privileged,
    )


def run_options(found: Traits, suite_needs_v2: bool) -> list[str]:
    """Options for a container whose PID 1 is systemd and that runs Docker itself.

    Never --privileged, even where it works: the machine's devices stay out of reach, and every engine
    gets the same hosts.
    """
    tree = "/sys/fs/cgroup"
    if suite_needs_v2 and found.cgroup == 1:
        if not found.unified:
            raise LabError(
                "this release's systemd needs cgroup v2, the engine's machine has v1 alone: mount a cgroup2 "
                "tree at /sys/fs/cgroup/unified, or boot with systemd.unified_cgroup_hierarchy=1"
            )
        tree = "/sys/fs/cgroup/unified"
    dropped = [] if found.sys_resource else ["--cap-drop", "SYS_RESOURCE"]
    return [
        *("--cap-add", "ALL"),
        *dropped,
        *("--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined"),
        *("--tmpfs", "/run", "--tmpfs", "/run/lock", "--tmpfs", "/tmp:exec,mode=1777"),
        # Nodes of imitated cards may be given to containers within; no driver answers behind them.
        *("--device-cgroup-rule", "c 195:* rwm"),
        *("--cgroupns", "host", "-v", f"{tree}:/sys/fs/cgroup:rw"),
        *("--stop-signal", "SIGRTMIN+3", "-e", "container=docker"),
    ]


# --- network ------------------------------------------------------------------------------------------

NETWORK = "dsprov-lab"
# Here hosts reach nothing but this machine and each other: no mirror, no registry, no name server.
CUT_NETWORK = "dsprov-lab-cut"


def _taken() -> list[ipaddress.IPv4Network]:
    """Every IPv4 range that this machine routes or that Docker has given out."""
    taken: list[ipaddress.IPv4Network] = []
    table = Path("/proc/net/route")
    if table.exists():
        for row in table.read_text(encoding="ascii").splitlines()[1:]:
            words = row.split()
            base, mask = (int.from_bytes(bytes.fromhex(words[i]), "little") for i in (1, 7))
            if mask:
                taken.append(ipaddress.IPv4Network((base, mask.bit_count()), strict=False))
    names = lines("network", "ls", "--format", "{{.Name}}")
    for row in json.loads(docker("network", "inspect", *names).stdout):
        for pool in (row.get("IPAM") or {}).get("Config") or []:
            net = ipaddress.ip_network(pool.get("Subnet", "::/128"), strict=False)
            if isinstance(net, ipaddress.IPv4Network):
                taken.append(net)
    return taken


def free_subnet(taken: Sequence[ipaddress.IPv4Network]) -> ipaddress.IPv4Network:
    """The first /24 of the lab's range that overlaps nothing that is in use."""
    for subnet in ipaddress.IPv4Network("10.213.0.0/16").subnets(new_prefix=24):
        if not any(subnet.overlaps(other) for other in taken):
            return subnet
    raise LabError("no free /24 in 10.213.0.0/16: remove Docker networks that are not used any more")


def ensure_network(log: Log, name: str = NETWORK) -> ipaddress.IPv4Network:
    """See that one of the lab's networks is there; its range."""
    found = inspect("network", name)
    if found is None:
        subnet = free_subnet(_taken())
        cut = ["--internal"] if name == CUT_NETWORK else []
        docker("network", "create", "--label", f"{ROLE}=network", *cut, "--subnet", str(subnet), name)
        log(f"network {name}: {subnet}")
        return subnet
    if ROLE not in (found.get("Labels") or {}):
        raise LabError(f"a network {name} is there that the lab did not make: rename or remove it")
    return ipaddress.IPv4Network(found["IPAM"]["Config"][0]["Subnet"])


def remove_unused_networks() -> None:
    """Takes away the lab's networks that no container is in, not even a stopped one."""
    used: set[str] = set()
    for name in lines("ps", "-a", "--format", "{{.Names}}"):
        used |= set(((inspect("container", name) or {}).get("NetworkSettings") or {}).get("Networks") or {})
    for network in labelled("network", f"{ROLE}=network"):
        if network not in used:
            docker("network", "rm", network)
