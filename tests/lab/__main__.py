"""The lab's command line: real hosts up and down, a shell on one, the artifacts they install."""

from __future__ import annotations

import fcntl
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from . import channel, engine, hardware, hosts, inventory, mirror
from .artifacts import base
from .artifacts.common import BuildError, cache_root, locked
from .engine import LABEL, NETWORK, ROLE, LabError, docker
from .hosts import Host

_BEGUN = time.monotonic()
_PRINT = threading.Lock()


def say(line: str) -> None:
    """One line of progress for people, on stderr."""
    with _PRINT:
        click.echo(f"lab {time.monotonic() - _BEGUN:6.1f} s  {line}", err=True)


@contextmanager
def one_at_a_time(project: str) -> Iterator[None]:
    """Two runs for one project take turns."""
    folder = cache_root() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"project-{project}.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another run works on project {project}, waiting")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _name(_context: click.Context, _option: click.Parameter, value: str) -> str:
    if not value.replace("-", "").replace("_", "").isalnum():
        raise click.BadParameter("letters, digits, dashes and underscores only")
    return value


project_option = click.option(
    "--project", default="lab", show_default=True, callback=_name, help="Name of the set of hosts."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def lab() -> None:
    """Real hosts in containers, and the mirror that serves them."""


@lab.command()
@project_option
@click.option(
    "--host", "wanted", multiple=True, metavar="NAME=RELEASE", help="A host; debian-12 or debian-13."
)
@click.option(
    "--inventory", "path", type=click.Path(path_type=Path, dir_okay=False), help="Where to write hosts.ini."
)
@click.option("--fresh", is_flag=True, help="Make the hosts anew even where they run.")
@click.option(
    "--artifacts",
    default=",".join(channel.USUAL),
    show_default=True,
    metavar="LIST",
    help="What the mirror must hold; 'none' for bare hosts.",
)
@click.option(
    "--cut", is_flag=True, help="Hosts that reach nothing but this machine: no mirror, no registry, no DNS."
)
def up(
    project: str, wanted: tuple[str, ...], path: Path | None, fresh: bool, artifacts: str, cut: bool
) -> None:
    """Bring up hosts and write their inventory; hosts that run are kept."""
    table = hosts.parse(wanted)
    names = tuple(word for word in artifacts.split(",") if word not in ("", "none"))
    if unknown := [word for word in names if word not in channel.ARTIFACTS + channel.ON_DEMAND]:
        raise LabError(
            f"--artifacts {unknown[0]}: one of {', '.join(channel.ARTIFACTS + channel.ON_DEMAND)}, or none"
        )
    cache = cache_root()
    target = (path or inventory.folder(project) / "hosts.ini").absolute()
    with one_at_a_time(project):
        info = engine.find(cache, say)
        probe = str(base.build_image("debian-12", cache, say).extra["image"])
        found = engine.traits(info, probe)
        say(found.describe())
        with locked(cache, "shared", say):
            subnet = engine.ensure_network(say)
            served = mirror.ensure(cache, subnet, say)
            for host, _, _ in hosts.of(project):
                if host.name not in table:
                    say(f"{host.name}: removed, not among the hosts asked for")
                    hosts.remove(host)
            key = target.parent / "id_ed25519"
            public = hosts.new_key(key)
            if cut:
                engine.ensure_network(say, engine.CUT_NETWORK)
            members = [Host(project, name, release, cut) for name, release in table.items()]
            running = hosts.up(members, found, cache, public, served.apt_proxy, fresh, say)
        data = channel.base(cache, served, say)
        inventory.write(target, running, key, data)  # already now: a long first build needs nobody to wait
        if names:
            inventory.write(target, running, key, data | channel.fill(cache, served, names, say))
    say(f"{len(running)} hosts are up; inventory {inventory.relative(target)}")
    click.echo(str(target))


@lab.command()
@project_option
@click.option(
    "--all", "everything", is_flag=True, help="Also every other project, and the mirror's stored images."
)
def down(project: str, everything: bool) -> None:
    """Remove the hosts of a project, and what no other project needs any more."""
    engine.find(cache_root(), say, start=False)
    with one_at_a_time(project), locked(cache_root(), "shared", say):
        pick = LABEL if everything else f"{LABEL}={project}"
        for name in engine.labelled("container", pick):
            docker("rm", "-f", "-v", name)
            say(f"removed {name}")
        for name in engine.labelled("volume", pick):
            docker("volume", "rm", "-f", name)
        if not engine.labelled("container", LABEL):
            for name in engine.labelled("container", f"{ROLE}=mirror"):
                docker("rm", "-f", "-v", name)
                say("removed the mirror; what it stored is kept" if not everything else "removed the mirror")
            if everything:
                for name in engine.labelled("volume", f"{ROLE}=cache"):
                    docker("volume", "rm", "-f", name)
        engine.remove_unused_networks()
        place = inventory.folder(project)
        for name in ("hosts.ini", "known_hosts", "id_ed25519", "id_ed25519.pub", "group_vars/all.yml"):
            (place / name).unlink(missing_ok=True)


@lab.command()
@project_option
def status(project: str) -> None:
    """Show the engine, the mirror and the project's hosts."""
    info = engine.find(cache_root(), say, start=False)
    system, tree = info["OperatingSystem"], info["CgroupVersion"]
    click.echo(f"engine   Docker {info['ServerVersion']} on {system}, cgroup v{tree}")
    there = engine.inspect("container", mirror.NAME)
    if there is None:
        click.echo("mirror   not there")
    else:
        address = (there["NetworkSettings"]["Networks"].get(NETWORK) or {}).get("IPAddress", "")
        click.echo(f"mirror   {there['State']['Status']} {address}")
    rows = hosts.of(project)
    for host, state, address in rows:
        click.echo(f"host     {host.name} {host.release} {state} {address}")
    if not rows:
        click.echo(f"host     none in project {project}")


@lab.command(context_settings={"ignore_unknown_options": True})
@project_option
@click.argument("host")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def shell(project: str, host: str, command: tuple[str, ...]) -> None:
    """Open a shell on a host by ssh, or run COMMAND there."""
    known = {one.name: address for one, state, address in hosts.of(project) if state == "running"}
    if host not in known:
        raise LabError(
            f"no host {host} runs in project {project}: there are {', '.join(sorted(known)) or 'none'}"
        )
    place = inventory.folder(project)
    argv = ["ssh", "-q", "-i", str(place / "id_ed25519"), "-o", f"UserKnownHostsFile={place / 'known_hosts'}"]
    argv += ["-o", "IdentitiesOnly=yes", f"{hosts.USER}@{known[host]}", *command]
    sys.stdout.flush()
    os.execvp("ssh", argv)  # noqa: S606  the shell is the host's


@lab.command("hardware")
@project_option
@click.argument("host")
@click.argument("machine")
@click.option(
    "--driver",
    default=hardware.DRIVER,
    show_default=True,
    metavar="VERSION",
    help="Version of NVIDIA's library; 'none' for a host that has no driver.",
)
@click.option("--loaded", metavar="VERSION", help="Version in the kernel, where it is another one.")
def imitate(project: str, host: str, machine: str, driver: str, loaded: str | None) -> None:
    """Give HOST cards that it does not have: "8 x H20", "1 x 4090", or none."""
    cards = hardware.parse(machine)
    known = {one.name: one for one, state, _ in hosts.of(project) if state == "running"}
    if host not in known:
        raise LabError(
            f"no host {host} runs in project {project}: there are {', '.join(sorted(known)) or 'none'}"
        )
    hardware.apply(known[host], cards, None if driver == "none" else driver, loaded, cache_root(), say)
    say(f"{host}: {machine}, driver {driver}{f', {loaded} in the kernel' if loaded else ''}")


@lab.command()
@click.argument("what", nargs=-1)
def build(what: tuple[str, ...]) -> None:
    """Build artifacts and images into the cache: all, or those named."""
    cache = cache_root()
    engine.find(cache, say)
    for name in what or (*channel.ARTIFACTS, *base.RECIPES):
        made = base.build_image(name, cache, say) if name in base.RECIPES else channel.build(name, cache, say)
        click.echo(f"{name} {made.version} {made.bytes} {made.sha256} {made.extra.get('image') or made.path}")


def main() -> None:
    """Run, and turn what the lab can explain into one line and exit code 1."""
    try:
        lab(prog_name="python -m tests.lab")
    except BuildError as error:
        click.echo(f"lab: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
