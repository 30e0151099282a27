# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Questions to the host's own services: JSON over HTTP, past every proxy."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

# Whatever proxy the host has is for the world outside, never for its own service.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def call(
    url: str, token: str = "", body: Mapping[str, Any] | None = None, timeout: float = 20
) -> tuple[int, Any]:
    """One request, sent as POST where it has a body.

    Args:
        url: address of the service.
        token: what shows who asks; empty for a stranger.
        body: what is sent, as JSON.
        timeout: seconds that each step of it may take.

    Returns:
        Status and JSON of the answer; its first 200 letters where it is no JSON. Where nothing answers,
        0 and the reason.
    """
    request = urllib.request.Request(url, data=None if body is None else json.dumps(body).encode())
    request.add_header("Accept", "application/json")
    request.add_header("Content-Type", "application/json")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with DIRECT.open(request, timeout=timeout) as answer:
            status, raw = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            status, raw = error.code, error.read()
    except (OSError, ValueError, http.client.HTTPException) as error:
        return 0, str(getattr(error, "reason", None) or error)
    try:
        return status, json.loads(raw)
    except ValueError:
        return status, raw.decode(errors="replace")[:200]
