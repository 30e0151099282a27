#!/usr/bin/python
# Copyright: the dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Ansible module: options of a Docker daemon, beside those that others set."""

from __future__ import annotations

DOCUMENTATION = r"""
module: docker_daemon
short_description: Set options in Docker's daemon.json beside those that others set, and make them take effect
version_added: 0.1.0
description:
  - Merges options into daemon.json. Keys that are not ours survive, list items of ours are added to those
    that are there.
  - Remembers in V(/var/lib/dsprov/docker/daemon-options.json) what it set, so that an option no longer
    wanted is taken out again, if it still has our value.
  - Has a running daemon take the file over by SIGHUP, and waits for its word that it did; a daemon that
    refuses the file gets the old one back.
  - Restarts the daemon only for options that need it, and only where no container dies of it, unless told
    otherwise.
  - Without O(options) and O(defaults) it looks and changes nothing.
options:
  options:
    description: Options that are wanted, whatever is there.
    type: dict
  defaults:
    description: Groups of options, each set as a whole where nobody else set any of its keys.
    type: list
    elements: dict
  owner:
    description:
      - Whose options these are, where several parts of an appliance have some. What an owner no longer wants
        is taken out; what another one set stays.
    type: str
    default: ''
  path:
    description: The file. Without it, the one that the daemon was started with, else
      V(/etc/docker/daemon.json).
    type: path
  restart:
    description:
      - When options need a restart of the daemon.
      - With V(auto), it is restarted when no container runs, when the running ones outlive it
        (live-restore is active), or when all that run are dsprov's own. Otherwise RV(restart_required)
        says that it is still to be done.
    type: str
    choices: [auto, always, never]
    default: auto
  packages:
    description: Debian packages to look for; see RV(missing_packages).
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    description: Says what would change.
    support: full
  diff_mode:
    description: Shows daemon.json before and after.
    support: full
author:
  - The dsprov authors
"""

EXAMPLES = r"""
- name: Ensure Docker rotates its logs and uses the mirror
  dsprov.appliance.docker_daemon:
    options:
      registry-mirrors: ["https://mirror.example.org"]
    defaults:
      - {log-driver: json-file, log-opts: {max-size: 50m, max-file: "3"}}
      - {live-restore: true}
"""

RETURN = r"""
path:
  description: The file.
  returned: always
  type: str
changed_keys:
  description: Top-level keys that changed.
  returned: when options were given
  type: list
  elements: str
skipped_defaults:
  description: Default keys left as the owner of the host has them.
  returned: when options were given
  type: list
  elements: str
backup:
  description: Copy of the file as somebody else left it; empty when there was nothing to keep.
  returned: when options were given
  type: str
reloaded:
  description: Whether the daemon took the file over without a restart.
  returned: when options were given
  type: bool
restarted:
  description: Whether the daemon was restarted.
  returned: when options were given
  type: bool
reload_required:
  description: Whether the daemon has yet to read the file; true only in check mode.
  returned: always
  type: bool
restart_required:
  description: Whether options wait for a restart of the daemon.
  returned: always
  type: bool
pending_keys:
  description: The options that wait for it.
  returned: always
  type: list
  elements: str
missing_packages:
  description: Those of O(packages) that are not installed.
  returned: always
  type: list
  elements: str
docker:
  description: What is there.
  returned: always
  type: dict
  contains:
    installed: {description: Whether there is a daemon at all., type: bool}
    running: {description: Whether it answers., type: bool}
    enabled: {description: Whether it starts with the host., type: bool}
    version: {description: Its version; empty when it does not answer., type: str}
    live_restore: {description: Whether containers outlive a restart of the daemon., type: bool}
    swarm: {description: Whether the host is part of a swarm., type: bool}
    containers: {description: Names of the running containers., type: list, elements: str}
    foreign_containers: {description: Those that are not dsprov's., type: list, elements: str}
    registry_mirrors: {description: Mirrors in effect., type: list, elements: str}
    insecure_registries: {description: Registries spoken to without TLS., type: list, elements: str}
    runtimes: {description: Names of the runtimes that it knows., type: list, elements: str}
    cdi_folders: {description: Where it looks for devices by CDI., type: list, elements: str}
    apt_sources: {description: apt source files that name Docker's repository., type: list, elements: str}
"""

import glob
import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import time
import urllib.parse
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.dsprov.appliance.plugins.module_utils import daemon_json, files

DEFAULT_FILE = "/etc/docker/daemon.json"
SOCKETS = ("/run/docker.sock", "/var/run/docker.sock")
PIDFILES = ("/run/docker.pid", "/var/run/docker.pid")
SEARCH = os.pathsep.join(
    ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin", "/snap/bin")
)
APT_SOURCES = ("/etc/apt/sources.list", "/etc/apt/sources.list.d/*.list", "/etc/apt/sources.list.d/*.sources")
OWN = "dsprov"


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Daemon:
    """The Docker daemon of this host: its process, its socket, its unit."""

    def __init__(self) -> None:
        self.program = shutil.which("dockerd", path=SEARCH)

    def ask(self, path: str, timeout: float = 10) -> Any:
        """GET `path` of the Engine API; raises OSError when nobody answers with JSON."""
        where = next((name for name in SOCKETS if os.path.exists(name)), SOCKETS[0])
        connection = _UnixConnection(where, timeout)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read()
            if response.status != 200:
                raise OSError(f"{path}: {response.status}")
            if path.startswith("/events"):
                return [json.loads(line) for line in body.splitlines() if line.strip()]
            return json.loads(body)
        except (http.client.HTTPException, ValueError) as error:
            raise OSError(str(error)) from error
        finally:
            connection.close()

    def pid(self) -> int | None:
        """Return the daemon's process, if it runs."""
        for name in (*PIDFILES, ""):
            try:
                number = int(_text(name) if name else self.systemd("MainPID").get("MainPID", ""))
                with open(f"/proc/{number}/comm", encoding="utf-8") as handle:
                    if handle.read().strip() == "dockerd":
                        return number
            except (OSError, ValueError):
                continue
        return None

    def command(self) -> list[str]:
        """Return the command line of the running daemon, else the one in its unit."""
        number = self.pid()
        if number:
            try:
                with open(f"/proc/{number}/cmdline", "rb") as handle:
                    return handle.read().decode("utf-8", "replace").rstrip("\0").split("\0")
            except OSError:
                pass
        for part in self.systemd("ExecStart").get("ExecStart", "").split(" ; "):
            if part.startswith("argv[]="):
                return part.removeprefix("argv[]=").split()
        return ["dockerd"]

    def started_at(self) -> float | None:
        """Return when the running daemon started, in seconds since boot."""
        number = self.pid()
        if not number:
            return None
        with open(f"/proc/{number}/stat", encoding="utf-8", errors="replace") as handle:
            ticks = int(handle.read().rpartition(")")[2].split()[19])
        return ticks / os.sysconf("SC_CLK_TCK")

    def systemd(self, *properties: str) -> dict[str, str]:
        """Return properties of the unit docker.service; empty without systemd."""
        try:
            done = subprocess.run(
                ["systemctl", "show", f"--property={','.join(properties)}", "docker.service"],
                capture_output=True,
                text=True,
                check=False,
            )
        except OSError:
            return {}
        return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)

    def look(self) -> dict[str, Any]:
        """Return what RV(docker) documents."""
        seen: dict[str, Any] = {
            "installed": self.program is not None,
            "running": False,
            "enabled": False,
            "version": "",
            "live_restore": False,
            "swarm": False,
            "containers": [],
            "foreign_containers": [],
            "registry_mirrors": [],
            "insecure_registries": [],
            "runtimes": [],
            "cdi_folders": [],
            "apt_sources": [],
        }
        for name in sorted(path for pattern in APT_SOURCES for path in glob.glob(pattern)):
            with open(name, encoding="utf-8", errors="replace") as handle:
                live = [line for line in handle if not line.lstrip().startswith("#")]
            if any("download.docker.com" in line or "docker-ce" in line for line in live):
                seen["apt_sources"].append(name)
        if self.program:
            seen["enabled"] = self.systemd("UnitFileState").get("UnitFileState", "").startswith("enabled")
        # Without a process nobody is asked: a connection would have systemd start the daemon by its socket.
        if self.pid() is None:
            return seen
        try:
            info = self.ask("/info")
            running = self.ask("/containers/json")
        except OSError:
            return seen
        registries = info.get("RegistryConfig") or {}
        seen.update(
            installed=True,
            running=True,
            version=info.get("ServerVersion", ""),
            live_restore=bool(info.get("LiveRestoreEnabled")),
            swarm=(info.get("Swarm") or {}).get("LocalNodeState", "inactive") not in ("", "inactive"),
            registry_mirrors=registries.get("Mirrors") or [],
            runtimes=sorted(info.get("Runtimes") or {}),
            cdi_folders=info.get("CDISpecDirs") or [],
            insecure_registries=sorted(
                name
                for name, row in (registries.get("IndexConfigs") or {}).items()
                if not row.get("Secure", True)
            ),
        )
        for row in running:
            name = (row.get("Names") or ["/?"])[0].lstrip("/")
            seen["containers"].append(name)
            if not name.startswith(OWN) and not any(
                label.startswith(OWN) for label in row.get("Labels") or {}
            ):
                seen["foreign_containers"].append(name)
        return seen

    def reload(self, patience: float = 10) -> bool:
        """Send SIGHUP and wait for the daemon's event that it took the file over; return whether it came."""
        number = self.pid()
        if number is None:
            return False
        since = time.time()
        os.kill(number, signal.SIGHUP)
        deadline = time.monotonic() + patience
        filters = urllib.parse.quote(json.dumps({"type": ["daemon"], "event": ["reload"]}))
        while time.monotonic() < deadline:
            time.sleep(0.05)
            try:
                if self.ask(f"/events?since={since:.9f}&until={time.time():.9f}&filters={filters}"):
                    return True
            except OSError:
                continue
        return False

    def restart(self, patience: float = 90) -> str:
        """Restart the unit, wait until the daemon answers; return what went wrong, empty when nothing did."""
        subprocess.run(["systemctl", "reset-failed", "docker.service"], capture_output=True, check=False)
        done = subprocess.run(
            ["systemctl", "restart", "docker.service"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            return (done.stderr.strip().splitlines() or ["systemctl restart docker.service failed"])[0]
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            try:
                self.ask("/info")
            except OSError:
                time.sleep(0.2)
            else:
                return ""
        return f"the daemon does not answer {patience:.0f} s after its restart"

    def refuses(self, text: str, near: str) -> str:
        """Ask dockerd whether it would start with `text`; return its complaint, empty without one."""
        if not self.program:
            return ""
        candidate = near + ".dsprov-check"
        files.atomic_write(candidate, text.encode(), 0o600)
        try:
            done = subprocess.run(
                [self.program, "--validate", f"--config-file={candidate}"],
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
        finally:
            os.unlink(candidate)
        # Releases before 23.0 do not know the flag.
        if not done.returncode or "unknown flag" in done.stderr:
            return ""
        return (done.stderr.strip().splitlines() or ["no reason given"])[-1].replace(candidate, near)


class DockerDaemon:
    """One call: the file, what we remember about it, and the daemon that reads it."""

    def __init__(self, module: AnsibleModule, daemon: Daemon) -> None:
        self.module = module
        self.daemon = daemon
        owner = module.params["owner"]
        self.memory_path = files.data_path(
            "docker", f"daemon-options-{owner}.json" if owner else "daemon-options.json"
        )
        self.memory = files.load_json(self.memory_path)
        self.before = dict(self.memory)
        self.command = daemon.command()
        self.path = os.path.realpath(module.params["path"] or self._file_of_command())
        self.result: dict[str, Any] = {
            "changed": False,
            "path": self.path,
            "reload_required": False,
            "restart_required": False,
            "pending_keys": [],
            "missing_packages": missing_packages(module.params["packages"]),
        }

    def _file_of_command(self) -> str:
        for number, word in enumerate(self.command):
            if word.startswith("--config-file="):
                return word.partition("=")[2]
            if word == "--config-file" and number + 1 < len(self.command):
                return self.command[number + 1]
        return DEFAULT_FILE

    def look(self) -> None:
        """Report what is there."""
        self.result["docker"] = self.daemon.look()
        self._report_pending()

    def _report_pending(self) -> None:
        keys = self._pending_keys()
        self.result.update(restart_required=bool(keys), pending_keys=keys)

    def _pending_keys(self) -> list[str]:
        """Return the options that the running daemon started too early to know."""
        pending = self.memory.get("pending") or {}
        started = self.daemon.started_at()
        if (
            not pending.get("keys")
            or started is None
            or pending.get("boot") != _boot()
            or started > pending["at"]
        ):
            return []
        keys: list[str] = pending["keys"]
        return keys

    def apply(self) -> None:
        """Bring file and daemon into the wanted state."""
        seen = self.daemon.look()
        text = _read(self.path)
        options = dict(self.module.params["options"] or {})
        groups = list(self.module.params["defaults"] or [])
        if seen["swarm"]:
            if options.get("live-restore"):
                raise daemon_json.DaemonJsonError(
                    f"{self.path}: live-restore does not work in a swarm, which this host is part of; "
                    "take it out of docker_daemon_options"
                )
            groups = [group for group in groups if "live-restore" not in group]
        merged = daemon_json.merge(
            daemon_json.parse(text or "", self.path),
            options,
            groups,
            self.memory.get("rows") or [],
            daemon_json.flags_of(self.command),
        )
        self.result.update(
            changed_keys=merged.changed_keys,
            skipped_defaults=merged.skipped,
            backup="",
            reloaded=False,
            restarted=False,
        )
        after = daemon_json.dump(merged.content, text or "") if merged.changed_keys else text
        if merged.changed_keys:
            self.result["changed"] = True
            if self.module._diff:
                self.result["diff"] = {
                    "before": text or "",
                    "after": after,
                    "before_header": self.path,
                    "after_header": self.path,
                }
        reload_due = bool(merged.changed_keys) or bool(self.memory.get("reload"))
        restart_keys = sorted({*self._pending_keys(), *merged.restart_keys}) if seen["running"] else []
        if self.module.check_mode:
            self.result.update(
                reload_required=reload_due and seen["running"],
                restart_required=bool(restart_keys),
                pending_keys=restart_keys,
                docker=seen,
                changed=bool(merged.changed_keys or self.memory.get("reload")),
            )
            return
        if merged.changed_keys:
            self._write(text, after or "", merged, restart_keys)
        elif merged.remembered != self.memory.get("rows"):
            self._remember(rows=merged.remembered)
        if reload_due and seen["running"]:
            self._reload(text, bool(merged.changed_keys))
            seen = self.daemon.look()
        elif reload_due:
            self._remember(reload=False)
        self._report_pending()
        if self.result["restart_required"] and self._may_restart(seen):
            self._restart(text, bool(merged.changed_keys))
            seen = self.daemon.look()
            self._report_pending()
        self.result["docker"] = seen

    def _write(
        self, text: str | None, after: str, merged: daemon_json.Merge, restart_keys: list[str]
    ) -> None:
        complaint = self.daemon.refuses(after, self.path)
        if complaint:
            raise daemon_json.DaemonJsonError(
                f"{self.path}: dockerd would not start with {', '.join(merged.changed_keys)} ({complaint}); "
                "correct docker_daemon_options, nothing was changed"
            )
        if text is not None and self.memory.get("sha256") != _digest(text):
            self.result["backup"] = files.back_up(self.path)
        # Remembered before it is written: a run killed in between is finished by the next one.
        now = {"boot": _boot(), "at": time.clock_gettime(time.CLOCK_BOOTTIME), "keys": restart_keys}
        self._remember(rows=merged.remembered, sha256=_digest(after), reload=True, pending=now)
        self._put(after)

    def _put(self, text: str) -> None:
        mode, uid, gid = 0o644, 0, 0
        if os.path.exists(self.path):
            found = os.stat(self.path)
            mode, uid, gid = stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid
        elif os.getuid():
            uid, gid = -1, -1
        files.atomic_write(self.path, text.encode(), mode, uid, gid)

    def _remember(self, **what: Any) -> None:
        self.memory.update(what)
        files.dump_json(self.memory_path, self.memory, 0o600)

    def _back_to(self, text: str | None) -> None:
        if text is None:
            os.unlink(self.path)
        else:
            self._put(text)
        self.memory = dict(self.before)
        self._remember(reload=False)

    def _reload(self, text: str | None, written: bool) -> None:
        if self.daemon.reload():
            self._remember(reload=False)
            self.result.update(reloaded=True, changed=True)
            return
        if written:
            self._back_to(text)
            self.daemon.reload(2)
        raise daemon_json.DaemonJsonError(
            f"{self.path}: the running daemon refused the options {', '.join(self.result['changed_keys'])}, "
            "the file is as it was; journalctl -u docker says why, correct docker_daemon_options"
        )

    def _may_restart(self, seen: dict[str, Any]) -> bool:
        choice = self.module.params["restart"]
        if choice != "auto":
            return bool(choice == "always")
        return not seen["foreign_containers"] or seen["live_restore"]

    def _restart(self, text: str | None, written: bool) -> None:
        self.result["changed"] = True
        problem = self.daemon.restart()
        if not problem:
            self.result["restarted"] = True
            return
        end = "look at journalctl -u docker"
        if written:
            self._back_to(text)
            again = self.daemon.restart()
            end = (
                "the old file is back and Docker runs with it"
                if not again
                else f"nor with the old file, which is back ({again})"
            )
        raise daemon_json.DaemonJsonError(
            f"{self.path}: Docker did not start with {', '.join(self.result['pending_keys'])} ({problem}); "
            f"{end}"
        )


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as handle:
            return handle.read()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise daemon_json.DaemonJsonError(
            f"{path}: not UTF-8 at byte {error.start}; mend or move the file"
        ) from error


def _text(path: str) -> str:
    with open(path, encoding="ascii") as handle:
        return handle.read()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _boot() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as handle:
        return handle.read().strip()


def missing_packages(names: list[str]) -> list[str]:
    """Return those of `names` that dpkg has not installed; all of them where there is no dpkg."""
    if not names:
        return []
    try:
        done = subprocess.run(
            ["dpkg-query", "--show", "--showformat=${db:Status-Status} ${Package}\n", *names],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return names
    there = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("installed ")}
    return [name for name in names if name not in there]


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "options": {"type": "dict"},
            "defaults": {"type": "list", "elements": "dict"},
            "owner": {"type": "str", "default": ""},
            "path": {"type": "path"},
            "restart": {"type": "str", "choices": ["auto", "always", "never"], "default": "auto"},
            "packages": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    try:
        work = DockerDaemon(module, Daemon())
    except OSError as problem:
        module.fail_json(msg=str(problem))
    try:
        if module.params["options"] is None and module.params["defaults"] is None:
            work.look()
        elif module.check_mode:
            work.apply()
        else:
            with files.locked("docker-daemon", 120):
                work.apply()
    except (daemon_json.DaemonJsonError, files.FileError, OSError) as problem:
        module.fail_json(msg=str(problem), **{**work.result, "changed": False})
    module.exit_json(**work.result)


if __name__ == "__main__":
    main()
