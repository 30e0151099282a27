"""Root file systems of the lab: hosts as a Debian server installer leaves them, and their mirror."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from . import common
from .common import Artifact, BuildError, Log

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
DEFAULT_MIRROR = "http://deb.debian.org/debian"
DEFAULT_SECURITY = "http://deb.debian.org/debian-security"

# What a Debian server with the SSH task has; Docker, curl, zstd and the rest are the roles' own business.
# python3-apt comes with a real server's standard task and with cloud images.
HOST_PACKAGES = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "libpam-systemd",
    "openssh-server",
    "python3",
    "python3-apt",
    "sudo",
    "iproute2",
    "iputils-ping",
    "ca-certificates",
    "procps",
    "kmod",
    "netbase",
    "less",
)

# A container that plays a site's mirrors: files over HTTP, an image registry, an apt cache.
MIRROR_PACKAGES = ("nginx-light", "docker-registry", "apt-cacher-ng", "ca-certificates", "procps", "tini")


@dataclass(frozen=True)
class Recipe:
    """All that decides what an image holds."""

    name: str
    suite: str
    version: str
    packages: tuple[str, ...]
    hooks: tuple[str, ...]
    changes: tuple[str, ...]
    revision: int = 1


# A service that a package's installation would start, or that has no place in a container, stays off; the
# machine id and the SSH host keys are made on the first boot of each host, so that no two share them.
_HOST_HOOKS = (
    'rm -f "$1"/etc/ssh/ssh_host_*_key*',
    ': > "$1"/etc/machine-id',
    'rm -f "$1"/var/lib/dbus/machine-id',
    'mkdir -p "$1"/etc/systemd/system/ssh.service.d',
    r"""printf '[Service]\nExecStartPre=\nExecStartPre=/usr/bin/ssh-keygen -A"""
    r"""\nExecStartPre=/usr/sbin/sshd -t\n'"""
    ' > "$1"/etc/systemd/system/ssh.service.d/lab-host-keys.conf',
    'chroot "$1" systemctl mask systemd-firstboot.service systemd-udevd.service systemd-udev-trigger.service'
    " systemd-udevd-control.socket systemd-udevd-kernel.socket systemd-networkd-wait-online.service"
    " getty.target console-getty.service e2scrub_reap.service e2scrub_all.timer",
    'chroot "$1" systemctl enable ssh.service',
    'chroot "$1" systemctl set-default multi-user.target',
    'rm -rf "$1"/var/log/journal',
)

_HOST_CHANGES = ('CMD ["/sbin/init"]', "ENV container=docker")

RECIPES = {
    "debian-12": Recipe("debian-12", "bookworm", "12", HOST_PACKAGES, _HOST_HOOKS, _HOST_CHANGES),
    "debian-13": Recipe("debian-13", "trixie", "13", HOST_PACKAGES, _HOST_HOOKS, _HOST_CHANGES),
    "mirror": Recipe(
        "mirror",
        "bookworm",
        "12",
        MIRROR_PACKAGES,
        (),
        ('CMD ["/bin/bash"]',),
    ),
}


def apt_sources() -> tuple[str, str]:
    """The mirrors that this machine's own apt uses, where it is Debian; else the defaults."""
    if common.os_release().get("ID") != "debian":
        return DEFAULT_MIRROR, DEFAULT_SECURITY
    files = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    text = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files if path.is_file())
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    urls = [url.rstrip("/") for line in lines for url in re.findall(r"https?://\S+", line)]
    main = next((url for url in urls if url.endswith("/debian")), DEFAULT_MIRROR)
    security = next((url for url in urls if url.endswith("/debian-security")), None)
    return main, security or DEFAULT_SECURITY


def _apt_proxies() -> list[str]:
    dump = common.run(["apt-config", "dump"]) if shutil.which("apt-config") else ""
    found = re.findall(r'^(Acquire::https?::Proxy(?:-Auto-Detect)?) "(.+)";$', dump, re.MULTILINE)
    return [f'--aptopt={name} "{value}"' for name, value in found]


def rootfs(recipe: Recipe, archive: Path, log: Log) -> None:
    """Make a root file system as a compressed archive."""
    common.need_tools({"mmdebstrap": "mmdebstrap", "zstd": "zstd"}, log)
    main, security = apt_sources()
    suite = recipe.suite
    lines = [
        f"deb [signed-by={KEYRING}] {main} {suite} main",
        f"deb [signed-by={KEYRING}] {main} {suite}-updates main",
        f"deb [signed-by={KEYRING}] {security} {suite}-security main",
    ]
    tar = archive.with_suffix("")
    with common.step(log, f"{recipe.name}: mmdebstrap {suite} with {len(recipe.packages)} packages"):
        common.run(
            [
                "mmdebstrap",
                "--quiet",
                "--variant=minbase",
                f"--keyring={KEYRING}",
                f"--include={','.join(recipe.packages)}",
                "--dpkgopt=path-exclude=/usr/share/doc/*",
                "--dpkgopt=path-include=/usr/share/doc/*/copyright",
                "--dpkgopt=path-exclude=/usr/share/man/*",
                "--dpkgopt=path-exclude=/usr/share/locale/*",
                '--aptopt=Acquire::Retries "3"',
                *_apt_proxies(),
                *(f"--customize-hook={hook}" for hook in recipe.hooks),
                '--customize-hook=rm -f "$1"/etc/apt/apt.conf.d/99mmdebstrap',
                '--customize-hook=rm -f "$1"/etc/dpkg/dpkg.cfg.d/99mmdebstrap',
                suite,
                tar,
                *lines,
            ],
            env={"TMPDIR": str(archive.parent)},
        )
    with common.step(log, f"{recipe.name}: packing"):
        common.run(["zstd", "-q", "-3", "-T0", "--rm", "-f", tar, "-o", archive])


def _from_registry(recipe: Recipe, tag: str, folder: Path, log: Log) -> None:
    """The other way, where mmdebstrap cannot be had: the public Debian image with the same packages."""
    chroot = (
        " && ".join(hook.replace('chroot "$1" ', "").replace('"$1"', "") for hook in recipe.hooks) or "true"
    )
    lines = [
        f"FROM debian:{recipe.version}",
        "RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "
        + " ".join(recipe.packages)
        + " && rm -rf /var/lib/apt/lists/*",
        f"RUN {chroot}",
        *recipe.changes,
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "Dockerfile").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with common.step(log, f"{recipe.name}: docker build from debian:{recipe.version}"):
        common.run(["docker", "build", "--quiet", "--tag", tag, folder])


def _can_bootstrap(log: Log) -> bool:
    if not Path(KEYRING).exists():
        return False
    try:
        common.need_tools({"mmdebstrap": "mmdebstrap", "zstd": "zstd"}, log)
    except BuildError:
        return False
    return True


def build_image(name: str, cache: Path, log: Log, recipes: Mapping[str, Recipe] = RECIPES) -> Artifact:
    """See that the local image `dsprov-lab/NAME:KEY` is there; extra["image"] is its tag."""
    recipe = recipes[name]
    content = asdict(recipe)
    tag = f"dsprov-lab/{name}:{common.key_of(content)}"

    def make(out: Path) -> Artifact:
        archive = out / "rootfs.tar.zst"
        if _can_bootstrap(log):
            rootfs(recipe, archive, log)
        else:
            log(f"{name}: no mmdebstrap or Debian keyring here, trying the image debian:{recipe.version}")
            _from_registry(recipe, tag, out / "build", log)
            container = common.run(["docker", "create", tag]).strip()
            try:
                common.run(["docker", "export", "--output", out / "rootfs.tar", container])
            finally:
                common.run(["docker", "rm", container])
            common.run(["zstd", "-q", "-3", "-T0", "--rm", "-f", out / "rootfs.tar", "-o", archive])
        return Artifact(
            archive,
            common.sha256_of(archive),
            archive.stat().st_size,
            recipe.version,
            {"image": tag, "name": name},
        )

    made = common.cached(cache, f"base-{name}", content, make, log)
    with common.locked(cache, f"image-{name}", log):
        if common.image_id(tag) is None:
            with common.step(log, f"{name}: importing {tag}"):
                common.import_rootfs(made.path, tag, recipe.changes)
    return made


def build(cache: Path, log: Log) -> list[Artifact]:
    """All host images and the mirror's."""
    return [build_image(name, cache, log) for name in RECIPES]
