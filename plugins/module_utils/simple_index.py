# Copyright: the dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Python package indexes (PEP 503 HTML, PEP 691 JSON): from a project's file to its address."""

from __future__ import annotations

import html.parser
import json
import re
import urllib.parse
from typing import NamedTuple

from ansible_collections.dsprov.appliance.plugins.module_utils import wire

SIMPLE_JSON = "application/vnd.pypi.simple.v1+json"


class Link(NamedTuple):
    """A file of a project.

    Attributes:
        url: its address.
        sha256: its digest; None where the page does not say it.
        bytes: its size; 0 where the page does not say it, as HTML never does.
    """

    url: str
    sha256: str | None
    bytes: int = 0


class _Anchors(html.parser.HTMLParser):
    """Collect (text, href) of a PEP 503 page."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[tuple[str, str]] = []
        self._href: str | None = None
        self._text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self._href = dict(attrs).get("href")
            self._text = ""

    def handle_data(self, data: str) -> None:
        self._text += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "a" and self._href is not None:
            self.links.append((self._text.strip(), self._href))
            self._href = None


def links_of_simple_page(page: bytes, content_type: str, page_url: str) -> dict[str, Link]:
    """Read a project's page of a Python index (PEP 691 and 700 JSON, PEP 503 HTML): file name -> link."""
    found: dict[str, Link] = {}
    if "json" in content_type:
        for row in json.loads(page)["files"]:
            size = row.get("size")
            found[row["filename"]] = Link(
                urllib.parse.urljoin(page_url, row["url"]),
                row.get("hashes", {}).get("sha256"),
                size if isinstance(size, int) else 0,
            )
        return found
    parser = _Anchors()
    parser.feed(page.decode("utf-8", "replace"))
    for text, href in parser.links:
        url, _, fragment = urllib.parse.urljoin(page_url, href).partition("#")
        kind, _, digest = fragment.partition("=")
        name = text or urllib.parse.unquote(url.rsplit("/", 1)[-1])
        found[name] = Link(url, digest if kind == "sha256" else None)
    return found


def find_in_index(source: str, index: str, sha256: str, connect_timeout: float, stall: float) -> str:
    """Return the address of `pypi:PROJECT/FILE` in the index at `index`.

    Raises SourceError where the index does not answer, lacks the file, or lists another digest than `sha256`.
    """
    project, _, filename = source[len("pypi:") :].partition("/")
    page_url = f"{index.rstrip('/')}/{re.sub(r'[-_.]+', '-', project).lower()}/"
    line = wire.Line(wire.Route(page_url, {}), connect_timeout, stall)
    try:
        response = line.get({"Accept": f"{SIMPLE_JSON}, text/html;q=0.5"})
        refusal = wire.refuse(response)
        if refusal:
            raise wire.SourceError(
                f"{wire.shown(page_url)} {refusal}", refusal.again, refusal.wait, refusal.busy
            )
        page_at = line.route.target or line.route.url
        links = links_of_simple_page(response.read(), response.headers.get("Content-Type", ""), page_at)
    finally:
        line.close()
    if filename not in links:
        raise wire.SourceError(f"{wire.shown(page_url)} has no {filename}")
    link = links[filename]
    if link.sha256 and link.sha256.lower() != sha256:
        raise wire.SourceError(
            f"{wire.shown(page_url)} lists {filename} with sha256 {link.sha256}, wanted {sha256}"
        )
    return link.url
