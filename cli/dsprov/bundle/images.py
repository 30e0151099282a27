"""What an image by digest consists of, read from a registry: index, manifest, configuration, layers."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.dsprov.appliance.plugins.module_utils.wire import Source
from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import problems
from dsprov.bundle.gather import Wanted

ACCEPT = ", ".join(
    f"application/vnd.{kind}+json"
    for kind in (
        "oci.image.index.v1",
        "oci.image.manifest.v1",
        "docker.distribution.manifest.list.v2",
        "docker.distribution.manifest.v2",
    )
)
PLATFORM = {"x86_64": ("linux", "amd64")}
# A manifest is a few kilobytes; who sends more has something else in mind.
_MAX_MANIFEST = 4 * 1024 * 1024
_TIMEOUT = 60
# Docker Hub's registry has another name than its images.
_HUB = {"docker.io": "registry-1.docker.io"}


class Registry:
    """One repository of a registry, read without an account.

    Args:
        image: "registry.example.org[:port]/repository", where the channel has it.
        insecure: registries that are spoken to without TLS.
    """

    def __init__(self, image: str, insecure: Sequence[str]) -> None:
        self.image = image
        host, _, self.repository = image.partition("/")
        loopback = re.match(r"(127\.|localhost(:|$)|\[::1\])", host)
        self._base = f"{'http' if host in insecure or loopback else 'https'}://{_HUB.get(host, host)}"
        self._token = ""

    def manifest(self, digest: str) -> bytes:
        """The bytes of a manifest, which have the digest.

        Raises:
            ProblemError: bundle-source.
        """
        url = self.url("manifests", digest)
        try:
            raw = self._get(url, {"Accept": ACCEPT})
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._failed(str(error)) from error
        got = f"sha256:{hashlib.sha256(raw).hexdigest()}"
        if got != digest:
            raise self._failed(f"{url} gives {got}, wanted {digest}")
        return raw

    def url(self, kind: str, digest: str) -> str:
        """The address of a manifest or of a blob."""
        return f"{self._base}/v2/{self.repository}/{kind}/{digest}"

    @property
    def headers(self) -> dict[str, str]:
        """What blobs are asked with, once a manifest was."""
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}

    def _failed(self, detail: str) -> Exception:
        return problems().error("bundle-source", name=self.image, detail=detail)

    def _get(self, url: str, headers: Mapping[str, str], again: bool = True) -> bytes:
        request = urllib.request.Request(url, headers=dict(headers))  # noqa: S310 - http or https, made above
        for name, value in self.headers.items():
            request.add_unredirected_header(name, value)
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:  # noqa: S310 - as above
                raw: bytes = answer.read(_MAX_MANIFEST + 1)
        except urllib.error.HTTPError as error:
            with error:
                challenge = error.headers.get("WWW-Authenticate", "")
                if error.code != 401 or not again or not challenge.lower().startswith("bearer "):
                    raise ValueError(f"{url} answers {error.code} {error.reason}") from error
            self._token = self._anonymous(challenge)
            return self._get(url, headers, again=False)
        if len(raw) > _MAX_MANIFEST:
            raise ValueError(f"{url} sends more than {_MAX_MANIFEST} bytes")
        return raw

    def _anonymous(self, challenge: str) -> str:
        """A token for somebody without an account, from where the registry says."""
        words = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
        query = {key: words[key] for key in ("service", "scope") if key in words}
        url = f"{words.get('realm', '')}?{urllib.parse.urlencode(query)}"
        if not url.startswith(("https://", "http://")):
            raise ValueError(f"{self.image} asks for a login that has no address")
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer:  # noqa: S310 - checked above
            given = json.load(answer)
        return str(given.get("token") or given.get("access_token") or "")


def parts(registry: Registry, digest: str, arch: str, write: Any) -> list[Wanted]:
    """Every blob of an image, for one architecture.

    Args:
        write: called with the digest and the bytes of each manifest, which are small and at hand.

    Raises:
        ProblemError: bundle-source; also where the image has nothing for this architecture.
    """
    raw = registry.manifest(digest)
    write(digest, raw)
    document = json.loads(raw)
    if "manifests" in document:
        os_name, machine = PLATFORM[arch]
        fitting = [
            row["digest"]
            for row in document["manifests"]
            if (row.get("platform") or {}).get("os") == os_name
            and (row.get("platform") or {}).get("architecture") == machine
        ]
        if not fitting:
            detail = f"{digest} has nothing for {os_name}/{machine}"
            raise problems().error("bundle-source", name=registry.image, detail=detail)
        return parts(registry, fitting[0], arch, write)
    return [
        Wanted(
            path=blob_path(row["digest"]),
            name=f"{registry.image} {row['digest'][:19]}",
            sha256=row["digest"].removeprefix("sha256:"),
            bytes=int(row["size"]),
            sources=(Source(registry.url("blobs", row["digest"]), registry.headers),),
        )
        for row in [document["config"], *document["layers"]]
    ]


def blob_path(digest: str) -> str:
    """Where a blob lies in a bundle: as in an OCI image layout."""
    return f"images/blobs/{digest.replace(':', '/')}"
