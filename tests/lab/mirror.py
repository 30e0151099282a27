"""The lab's stand-in for a site's mirrors: files, a Python index, an image registry, an apt cache."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPResponse
from ipaddress import IPv4Network
from pathlib import Path
from urllib.parse import urlsplit

from . import engine
from .artifacts import base, common
from .artifacts.common import Artifact, Log, key_of, step
from .engine import NETWORK, ROLE, SPEC, LabError, docker

NAME = "dsprov-lab-mirror"
VOLUMES = {
    "dsprov-lab-mirror-registry": "/var/lib/lab-registry",
    "dsprov-lab-mirror-apt": "/var/cache/lab-apt",
}
BUSYBOX = "1.35.0"

_NGINX = """
daemon off;
pid /run/lab-nginx.pid;
error_log stderr;
events {}
http {
  include /etc/nginx/mime.types;
  default_type application/octet-stream;
  access_log /dev/stdout;
  sendfile on;
  server {
    listen 80;
    root /srv/www;
    autoindex on;
    location /simple/ { try_files $uri $uri/index.html @upstream; }
    location @upstream { return 302 @INDEX@; }
  }
}
"""

_REGISTRY = """
version: 0.1
log: {level: warn, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: /var/lib/lab-registry}, delete: {enabled: true}}
http: {addr: ":5000", headers: {X-Content-Type-Options: [nosniff]}}
"""

_APT = """
CacheDir: /var/cache/lab-apt
LogDir: /var/log/lab-apt
Port: 3142
ForeGround: 1
PassThroughPattern: .*
ExThreshold: 30
@PROXY@
"""

_ENTRY = """
set -eu
mkdir -p /etc/lab-apt /var/log/lab-apt /var/lib/nginx
chown -R apt-cacher-ng: /var/cache/lab-apt /var/log/lab-apt
printf '%s' "$LAB_NGINX" > /etc/lab-nginx.conf
printf '%s' "$LAB_REGISTRY" > /etc/lab-registry.yml
printf '%s' "$LAB_APT" > /etc/lab-apt/acng.conf
for page in /usr/lib/apt-cacher-ng /etc/apt-cacher-ng; do
  for file in "$page"/*.css "$page"/*.html; do
    [ -e "$file" ] && cp -n "$file" /etc/lab-apt/ || true
  done
done
nginx -c /etc/lab-nginx.conf &
docker-registry serve /etc/lab-registry.yml &
setpriv --reuid apt-cacher-ng --regid apt-cacher-ng --init-groups apt-cacher-ng -c /etc/lab-apt &
wait -n
"""


@dataclass(frozen=True)
class Mirror:
    """Where hosts find the mirror, and where this machine reaches its registry."""

    address: str
    registry_here: str

    @property
    def registry(self) -> str:
        return f"{self.address}:5000"

    @property
    def files(self) -> str:
        return f"http://{self.address}"

    @property
    def apt_proxy(self) -> str:
        return f"http://{self.address}:3142"

    def through(self, archive: str) -> str:
        """An apt archive's address by way of the apt cache."""
        return f"{self.apt_proxy}/{archive.partition('://')[2]}"


def _upstream_index() -> str:
    """This machine's Python index as a redirect target; one that holds credentials is not handed to hosts."""
    index = common.pypi_index()
    parts = urlsplit(index)
    if parts.scheme not in ("http", "https") or "@" in parts.netloc:
        index = "https://pypi.org/simple"
    return re.sub(r"/simple$", "", index.rstrip("/"))


def _apt_upstream() -> str:
    if not shutil.which("apt-config"):
        return ""
    dump = common.run(["apt-config", "dump"])
    found = re.search(r'^Acquire::http::Proxy "(http[^"]+)";$', dump, re.MULTILINE)
    return f"Proxy: {found[1]}" if found else ""


def ensure(cache: Path, subnet: IPv4Network, log: Log) -> Mirror:
    """See that the mirror runs as this version of the lab wants it."""
    image = str(base.build_image("mirror", cache, log).extra["image"])
    files = cache / "www"
    files.mkdir(parents=True, exist_ok=True)
    address = str(subnet[2])
    settings = {
        "LAB_NGINX": _NGINX.replace("@INDEX@", _upstream_index() + "$request_uri"),
        "LAB_REGISTRY": _REGISTRY,
        "LAB_APT": _APT.replace("@PROXY@", _apt_upstream()),
    }
    spec = key_of({"image": image, "files": str(files), "address": address, "entry": _ENTRY, **settings})
    found = engine.inspect("container", NAME)
    if found is not None and ROLE not in (found["Config"]["Labels"] or {}):
        raise LabError(f"a container {NAME} is there that the lab did not make: rename or remove it")
    if found is not None and found["Config"]["Labels"].get(SPEC) == spec:
        if not found["State"]["Running"]:
            docker("start", NAME)
    else:
        if found is not None:
            docker("rm", "-f", NAME)
        for volume in VOLUMES:
            docker("volume", "create", "--label", f"{ROLE}=cache", volume)
        with step(log, "starting the mirror"):
            docker(
                *("run", "-d", "--name", NAME, "--hostname", "mirror", "--network", NETWORK, "--ip", address),
                *("--label", f"{ROLE}=mirror", "--label", f"{SPEC}={spec}", "--restart", "on-failure"),
                *("-p", "127.0.0.1::5000", "-v", f"{files}:/srv/www:ro"),
                *(word for volume, path in VOLUMES.items() for word in ("-v", f"{volume}:{path}")),
                *(word for name, text in settings.items() for word in ("-e", f"{name}={text}")),
                *("--init", image, "/bin/bash", "-c", _ENTRY),
            )
    port = docker("port", NAME, "5000/tcp").stdout.split()[0].rsplit(":", 1)[1]
    mirror = Mirror(address, f"127.0.0.1:{port}")
    _wait(mirror)
    return mirror


def _wait(mirror: Mirror) -> None:
    until = time.monotonic() + 30
    wanted = {f"{mirror.files}/", f"http://{mirror.registry}/v2/", f"{mirror.apt_proxy}/acng-report.html"}
    last: Exception | None = None
    while wanted and time.monotonic() < until:
        for url in sorted(wanted):
            try:
                _direct(url, timeout=5).close()
                wanted.discard(url)
            except urllib.error.HTTPError as error:  # an answer all the same: the service is up
                error.close()
                wanted.discard(url)
            except OSError as error:
                last = error
        if wanted:
            time.sleep(0.2)
    if wanted:
        said = docker("logs", "--tail", "3", NAME, check=False)
        raise LabError(
            f"the mirror does not answer at {', '.join(sorted(wanted))} ({last}); its last words: "
            f"{' / '.join((said.stdout + said.stderr).split(chr(10)))}; from a Docker engine in a virtual "
            "machine container addresses are not reachable, run the lab on the engine's own Linux"
        )


# --- what the mirror holds ----------------------------------------------------------------------------


KINDS = ", ".join(
    f"application/vnd.{kind}+json"
    for kind in (
        "docker.distribution.manifest.v2",
        "oci.image.manifest.v1",
        "docker.distribution.manifest.list.v2",
        "oci.image.index.v1",
    )
)


def _direct(url: str, headers: dict[str, str] | None = None, timeout: float = 10) -> HTTPResponse:
    """Open an address of the lab: never by way of this machine's proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    answer: HTTPResponse = opener.open(urllib.request.Request(url, headers=headers or {}), timeout=timeout)
    return answer


def _manifest(mirror: Mirror, path: str, tag: str) -> tuple[str, str]:
    """The digest of an image in the registry and the digest of its configuration; empty where it is not."""
    try:
        with _direct(
            f"http://{mirror.registry_here}/v2/{path}/manifests/{tag}", headers={"Accept": KINDS}
        ) as answer:
            config = json.load(answer).get("config") or {}
            return str(answer.headers["Docker-Content-Digest"]), str(config.get("digest", ""))
    except OSError:
        return "", ""


def push(mirror: Mirror, image: str, path: str, tag: str, log: Log) -> str:
    """Put a local image into the registry as PATH:TAG; its digest. One that is there is not sent again."""
    image_id = common.image_id(image)
    if image_id is None:
        raise LabError(f"there is no local image {image}")
    digest, config = _manifest(mirror, path, tag)
    if image_id in (digest, config):  # the id is the one or the other, by the engine's image store
        return digest
    name = f"{mirror.registry_here}/{path}:{tag}"
    with step(log, f"putting {path}:{tag} into the registry"):
        docker("tag", image, name)
        try:
            docker("push", "-q", name)
        finally:
            docker("rmi", "--no-prune", name, check=False)
    digest, _ = _manifest(mirror, path, tag)
    if not digest:
        raise LabError(
            f"{path}:{tag} was pushed and the registry does not know it: read `docker logs {NAME}`"
        )
    return digest


def busybox(cache: Path, mirror: Mirror, log: Log) -> Artifact:
    """A real small image (Debian's static busybox alone), for tests of Docker itself."""
    host = str(base.build_image("debian-12", cache, log).extra["image"])
    recipe = {"name": "busybox", "package": "busybox-static", "suite": "bookworm", "revision": 2}
    tag = f"dsprov-lab/busybox:{key_of(recipe)}"
    script = """
set -e
exec 3>&1 >&2
cd /tmp
apt-get -q update
apt-get -q download busybox-static
dpkg -x busybox-static_*.deb unpacked
mkdir -p root/bin root/tmp
cp "$(find unpacked -path '*/bin/busybox' -type f)" root/bin/busybox
root/bin/busybox true
for tool in $(root/bin/busybox --list); do [ -e "root/bin/$tool" ] || ln -s busybox "root/bin/$tool"; done
tar -C root -c . >&3
"""

    def make(out: Path) -> Artifact:
        archive = out / "busybox.tar"
        with archive.open("wb") as stream:
            done = subprocess.run(
                [
                    *("docker", "run", "--rm", "--network", NETWORK, "--label", f"{ROLE}=build"),
                    *("-e", f"http_proxy={mirror.apt_proxy}", host, "sh", "-c", script),
                ],
                stdout=stream,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        if done.returncode:
            raise LabError(f"busybox: {(done.stderr.strip() or 'no output').splitlines()[-1]}")
        return Artifact(archive, common.sha256_of(archive), archive.stat().st_size, BUSYBOX, {"image": tag})

    made = common.cached(cache, "busybox", recipe, make, log)
    with common.locked(cache, "image-busybox", log):
        if common.image_id(tag) is None:
            docker("import", "--change", 'CMD ["sh"]', made.path, tag)
    return made


def serve(cache: Path, artifact: Artifact, path: str) -> str:
    """Put an artifact's file into the folder that the mirror serves, as PATH; a link on the same disk."""
    dest = cache / "www" / path
    dest.parent.mkdir(parents=True, exist_ok=True)
    if dest.exists() and dest.stat().st_size == artifact.bytes and _same(dest, artifact):
        return path
    part = dest.with_name(dest.name + ".part")
    part.unlink(missing_ok=True)
    try:
        part.hardlink_to(artifact.path)
    except OSError:
        shutil.copyfile(artifact.path, part)
    part.replace(dest)
    return path


def _same(dest: Path, artifact: Artifact) -> bool:
    return dest.samefile(artifact.path) or common.sha256_of(dest) == artifact.sha256
