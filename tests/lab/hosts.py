"""Real hosts in containers: systemd as PID 1, sshd with key login, a sudo user, able to run Docker inside."""

from __future__ import annotations

import base64
import io
import random
import socket
import subprocess
import tarfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import engine
from .artifacts import base
from .artifacts.common import Log, key_of
from .engine import CUT_NETWORK, LABEL, NETWORK, ROLE, SPEC, LabError, Traits, docker

USER = "integrator"
RELEASES = {"debian-12": False, "debian-13": True}  # whether its systemd refuses cgroup v1
DEFAULT = {"deb12": "debian-12", "deb13": "debian-13"}
CCACHE = "/var/cache/lab-ccache"
AUTHORITIES = Path("/usr/local/share/ca-certificates")

# What a site's installer would leave on a machine: a user, its key, the site's CA, its apt proxy. The unit
# gives Docker 26 the writable /proc/sys that a machine has and an unprivileged container has not.
_SETUP = r"""
set -eu
umask 022
id -u integrator >/dev/null 2>&1 || useradd --create-home --shell /bin/bash integrator
usermod --append --groups sudo integrator
printf 'integrator ALL=(ALL) NOPASSWD: ALL\n' > /etc/sudoers.d/integrator
chmod 0440 /etc/sudoers.d/integrator
install -d -m 0700 -o integrator -g integrator /home/integrator/.ssh
printf '%s\n' '@KEY@' > /home/integrator/.ssh/authorized_keys
chown integrator:integrator /home/integrator/.ssh/authorized_keys
chmod 0600 /home/integrator/.ssh/authorized_keys
cat > /etc/apt/apt.conf.d/01lab-mirror <<'EOF'
Acquire::http::Proxy "@APT@";
Acquire::https::Proxy "DIRECT";
Acquire::Retries "3";
EOF
if [ -n '@CA@' ]; then
  printf '%s' '@CA@' | base64 -d | tar -x --no-same-owner -C /usr/local/share/ca-certificates
  update-ca-certificates >/dev/null
fi
cat > /etc/systemd/system/lab-proc-sys.service <<'EOF'
[Unit]
Description=Lab: kernel settings of this network namespace can be written
DefaultDependencies=no
Before=sysinit.target docker.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/mount -o remount,rw /proc/sys
# A container has 64 MiB of shared memory, a machine half of its own.
ExecStart=/bin/mount -o remount,size=50%% /dev/shm
[Install]
WantedBy=sysinit.target
EOF
systemctl enable --now lab-proc-sys.service 2>/dev/null
systemctl reset-failed
mkdir -p /run/sshd
"""


@dataclass(frozen=True)
class Host:
    """One host of a project; `cut`: it reaches nothing but this machine and other such hosts."""

    project: str
    name: str
    release: str
    cut: bool = False

    @property
    def container(self) -> str:
        return f"dsprov-lab-{self.project}-{self.name}"

    @property
    def shared(self) -> dict[str, str]:
        """Volumes that all projects have in common: what compilers made once is not made again."""
        return {"dsprov-lab-ccache": CCACHE}

    @property
    def volumes(self) -> dict[str, str]:
        return {
            f"{self.container}-docker": "/var/lib/docker",
            f"{self.container}-containerd": "/var/lib/containerd",
        }


@dataclass(frozen=True)
class Running:
    """A host that answers."""

    host: Host
    address: str
    host_keys: tuple[str, ...]
    state: str


def parse(words: tuple[str, ...] | list[str]) -> dict[str, str]:
    """NAME=RELEASE words as a table; none gives the two default hosts."""
    if not words:
        return dict(DEFAULT)
    table: dict[str, str] = {}
    for word in words:
        name, _, release = word.partition("=")
        if not name.replace("-", "").isalnum() or name in table:
            raise LabError(
                f"--host {word}: wants a NAME=RELEASE with a name of its own, of letters, digits and dashes"
            )
        if release not in RELEASES:
            raise LabError(f"--host {word}: the release is one of {', '.join(RELEASES)}")
        table[name] = release
    return table


def _authorities() -> str:
    """This machine's extra CA certificates as a packed folder, for hosts that leave it by the same way."""
    found = sorted(AUTHORITIES.rglob("*.crt")) if AUTHORITIES.is_dir() else []
    if not found:
        return ""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for index, path in enumerate(found):
            data = path.read_bytes()
            entry = tarfile.TarInfo(f"lab-{index}.crt")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return base64.b64encode(packed.getvalue()).decode()


def _create(host: Host, found: Traits, image: str, fresh: bool, log: Log) -> bool:
    """See that the container runs; whether it was made now."""
    options = engine.run_options(found, RELEASES[host.release])
    network = CUT_NETWORK if host.cut else NETWORK
    if host.cut:
        # An address of its own that nothing answers at, lest the engine asks the world for the host.
        options += ["--dns", "127.0.0.254"]
    spec = key_of({"image": image, "options": options, **({"network": network} if host.cut else {})})
    there = engine.inspect("container", host.container)
    if there is not None:
        labels = there["Config"]["Labels"] or {}
        if labels.get(LABEL) != host.project:
            raise LabError(
                f"a container {host.container} is there that the lab did not make: rename or remove it"
            )
        if not fresh and labels.get(SPEC) == spec:
            if not there["State"]["Running"]:
                docker("start", host.container)
            return False
        log(f"{host.name}: made again" + ("" if fresh else ", the lab's recipe has changed"))
        remove(host)
    for volume in host.volumes:
        docker("volume", "create", "--label", f"{LABEL}={host.project}", volume)
    for volume in host.shared:
        docker("volume", "create", "--label", f"{ROLE}=cache", volume)
    labels = {LABEL: host.project, ROLE: "host", SPEC: spec}
    labels |= {"dsprov.lab.name": host.name, "dsprov.lab.release": host.release}
    words = ["--name", host.container, "--hostname", host.name, "--network", network]
    words += [word for key, value in labels.items() for word in ("--label", f"{key}={value}")]
    words += [
        word for name, path in {**host.volumes, **host.shared}.items() for word in ("-v", f"{name}:{path}")
    ]
    _run([*words, *options, image, "/sbin/init"], host.container, _free_addresses(network, log))
    return True


def _run(words: list[str], container: str, addresses: list[str]) -> None:
    """Start a container at the first of some addresses that nobody took meanwhile."""
    for address in addresses:
        done = docker("run", "-d", "--ip", address, *words, check=False)
        if not done.returncode:
            return
        said = (done.stderr.strip() or "no output").splitlines()
        docker("rm", "-f", container, check=False)
        if not any("Address already in use" in line for line in said):
            raise LabError(f"{container} does not start: {said[0]}")
    raise LabError(f"{container} does not start: no address of the lab's network is free; make lab-down")


def _free_addresses(network: str, log: Log) -> list[str]:
    """Addresses that a host keeps when it is started again; left to itself, the engine gives it another one.

    The engine takes the lowest ones, these are of the upper half, in any order: hosts that come up together
    do not know of each other.
    """
    upper = [str(address) for address in list(engine.ensure_network(log, network).subnets())[1].hosts()]
    hosts = [engine.inspect("container", name) or {} for name in engine.labelled("container", f"{ROLE}=host")]
    used = [link for host in hosts for link in host.get("NetworkSettings", {}).get("Networks", {}).values()]
    taken = {str((link.get("IPAMConfig") or {}).get("IPv4Address")) for link in used}
    free = [address for address in upper if address not in taken]
    return random.sample(free, len(free))


def remove(host: Host) -> None:
    """Take away a host and its volumes."""
    docker("rm", "-f", "-v", host.container, check=False)
    for volume in host.volumes:
        docker("volume", "rm", "-f", volume, check=False)


def _wait_booted(host: Host, seconds: float = 60) -> str:
    until = time.monotonic() + seconds
    state = "unknown"
    while time.monotonic() < until:
        done = docker("exec", host.container, "systemctl", "is-system-running", check=False)
        state = (done.stdout.strip() or done.stderr.strip() or "no answer").splitlines()[-1]
        if state in ("running", "degraded"):
            return state
        there = engine.inspect("container", host.container)
        if there is None or not there["State"]["Running"]:
            said = docker("logs", "--tail", "3", host.container, check=False)
            words = " / ".join((said.stdout + said.stderr).split("\n"))
            raise LabError(f"{host.name}: the container ended while it booted: {words}")
        time.sleep(0.3)
    jobs = docker("exec", host.container, "systemctl", "list-jobs", "--no-legend", check=False).stdout.split(
        "\n"
    )
    raise LabError(f"{host.name}: systemd says {state} after {seconds:.0f} s; jobs: {' / '.join(jobs)}")


def _wait_ssh(host: Host, address: str, seconds: float = 30) -> tuple[str, ...]:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            with socket.create_connection((address, 22), timeout=5) as link:
                link.settimeout(5)
                if link.recv(64).startswith(b"SSH-"):
                    break
        except OSError:
            time.sleep(0.2)
    else:
        raise LabError(
            f"{host.name}: no ssh at {address}:22 after {seconds:.0f} s; container addresses must be "
            "reachable from here, so run the lab on the engine's own Linux, with no firewall in between"
        )
    keys = docker("exec", host.container, "sh", "-c", "cat /etc/ssh/ssh_host_*_key.pub").stdout.splitlines()
    return tuple(" ".join(key.split()[:2]) for key in keys)


def _up(host: Host, found: Traits, image: str, key: str, apt: str, ca: str, fresh: bool, log: Log) -> Running:
    begun = time.monotonic()
    made = _create(host, found, image, fresh, log)
    state = _wait_booted(host)
    script = _SETUP.replace("@KEY@", key).replace("@APT@", apt).replace("@CA@", ca)
    docker("exec", "-i", host.container, "sh", stdin=script)
    there = engine.inspect("container", host.container)
    if there is None:
        raise LabError(f"{host.name}: its container went away while it was set up")
    address = _address(there)
    keys = _wait_ssh(host, address)
    log(
        f"{host.name} ({host.release}) {address}: systemd {state}, "
        f"{'made' if made else 'kept'} in {time.monotonic() - begun:.1f} s"
    )
    return Running(host, address, keys, state)


def _address(container: Mapping[str, Any]) -> str:
    """A host's address in the lab's network that it is in."""
    networks = container["NetworkSettings"]["Networks"]
    return next((str(networks[name]["IPAddress"]) for name in (NETWORK, CUT_NETWORK) if name in networks), "")


def up(
    wanted: list[Host], found: Traits, cache: Path, public_key: str, apt_proxy: str, fresh: bool, log: Log
) -> list[Running]:
    """Bring up these hosts, side by side; their addresses and keys."""
    images = {release: str(base.build_image(release, cache, log).extra["image"]) for release in RELEASES}
    ca = _authorities()
    with ThreadPoolExecutor(max_workers=8) as pool:
        jobs = [
            pool.submit(_up, host, found, images[host.release], public_key, apt_proxy, ca, fresh, log)
            for host in wanted
        ]
        return [job.result() for job in jobs]


def of(project: str) -> list[tuple[Host, str, str]]:
    """The hosts of a project that are there: host, state, address."""
    rows = []
    for name in engine.labelled("container", f"{LABEL}={project}"):
        there = engine.inspect("container", name)
        if there is None:
            continue
        labels = there["Config"]["Labels"]
        host = Host(project, labels.get("dsprov.lab.name", name), labels.get("dsprov.lab.release", "?"))
        rows.append((host, str(there["State"]["Status"]), _address(there)))
    return rows


def new_key(path: Path) -> str:
    """The project's ssh key, made once; its public half."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "dsprov-lab", "-f", str(path)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise LabError(f"ssh-keygen cannot write {path}: {done.stderr.strip()}")
    return path.with_name(path.name + ".pub").read_text(encoding="ascii").strip()
