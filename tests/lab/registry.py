"""An image registry of a test's own: the real program behind TLS, which notes every request.

The mirror's registry is all projects' and keeps no log; here a test sees who asked for what, and may damage
what is stored.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import engine
from .artifacts import base
from .artifacts.common import Log
from .engine import NETWORK, ROLE, LabError, docker

PORT = 5000
_STORE = "/var/lib/registry"
_SETTINGS = f"""
version: 0.1
log: {{level: warn, accesslog: {{disabled: false}}}}
storage: {{filesystem: {{rootdirectory: {_STORE}}}}}
http: {{addr: ":{PORT}", tls: {{certificate: /etc/registry/tls.crt, key: /etc/registry/tls.key}}}}
"""
# The key is made where it is used; nobody else ever has it.
_ENTRY = """
set -eu
mkdir -p /etc/registry
printf '%s' "$REGISTRY_SETTINGS" > /etc/registry/settings.yml
address=$(hostname -i | cut -d' ' -f1)
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -days 30 -subj "/CN=lab registry" \
  -addext "subjectAltName=IP:$address" -keyout /etc/registry/tls.key -out /etc/registry/tls.crt 2>/dev/null
exec docker-registry serve /etc/registry/settings.yml
"""


@dataclass(frozen=True)
class Registry:
    """A registry that runs.

    Attributes:
        address: host and port, as hosts of the lab say them.
        here: the same as this machine's Docker says them.
        authority: the certificate that hosts have to trust.
    """

    container: str
    address: str
    here: str
    authority: str

    def push(self, image: str, path: str) -> str:
        """Put a local image into it; its digest."""
        name = f"{self.here}/{path}:lab"
        docker("tag", image, name)
        try:
            said = docker("push", name).stdout
        finally:
            docker("rmi", name, check=False)
        found = re.search(r"digest: (sha256:[0-9a-f]{64})", said)
        if not found:
            raise LabError(f"docker push {name} names no digest")
        return found[1]

    def asked(self) -> list[str]:
        """The requests so far, as METHOD PATH."""
        done = docker("logs", self.container)
        return re.findall(r'"((?:GET|HEAD) /v2/[^ ]*) HTTP', done.stdout + done.stderr)

    def damage(self, digest: str) -> None:
        """Spoil the first layer of an image where it is stored."""
        manifest = json.loads(docker("exec", self.container, "cat", self._path(digest)).stdout)
        file = self._path(manifest["layers"][0]["digest"])
        script = f"printf 'spoilt' | dd of={file} bs=1 seek=4096 conv=notrunc status=none"
        docker("exec", self.container, "sh", "-c", script)

    @staticmethod
    def _path(digest: str) -> str:
        kind, _, value = digest.partition(":")
        return f"{_STORE}/docker/registry/v2/blobs/{kind}/{value[:2]}/{value}/data"


@contextmanager
def running(name: str, cache: Path, log: Log) -> Iterator[Registry]:
    """A new, empty registry in the lab's network while the block runs."""
    container = f"dsprov-lab-{name}-registry"
    image = str(base.build_image("mirror", cache, log).extra["image"])
    docker("rm", "-f", "-v", container, check=False)
    docker(
        *("run", "-d", "--name", container, "--network", NETWORK, "--label", f"{ROLE}=registry"),
        *("-p", f"127.0.0.1::{PORT}", "-e", f"REGISTRY_SETTINGS={_SETTINGS}"),
        *("--init", image, "/bin/bash", "-c", _ENTRY),
    )
    try:
        there = engine.inspect("container", container) or {}
        address = there["NetworkSettings"]["Networks"][NETWORK]["IPAddress"]
        port = docker("port", container, f"{PORT}/tcp").stdout.split()[0].rpartition(":")[2]
        yield Registry(container, f"{address}:{PORT}", f"127.0.0.1:{port}", _authority(container))
    finally:
        docker("rm", "-f", "-v", container, check=False)


def _authority(container: str) -> str:
    """The certificate, once the registry answers with it."""
    script = (
        f"openssl s_client -connect 127.0.0.1:{PORT} </dev/null >/dev/null 2>&1 && cat /etc/registry/tls.crt"
    )
    until = time.monotonic() + 120
    while time.monotonic() < until:
        done = docker("exec", container, "sh", "-c", script, check=False)
        if done.returncode == 0:
            return done.stdout
        time.sleep(0.3)
    raise LabError(f"{container} does not answer: {docker('logs', container).stderr.strip()[-300:]}")
