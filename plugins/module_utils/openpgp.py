# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Fingerprints of OpenPGP keys, so that a key is known wherever it came from; needs no gpg on the host. Pure.

Source: RFC 9580, sections 4.2 (packet headers), 5.5.4 (fingerprints), 6 (armour).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator

_PUBLIC_KEY = 6
_ARMOUR = re.compile(
    rb"-----BEGIN PGP PUBLIC KEY BLOCK-----\r?\n(?:[^\r\n]+\r?\n)*\r?\n"
    rb"(.*?)(?:\r?\n=[A-Za-z0-9+/]{4})?\r?\n-----END PGP",
    re.DOTALL,
)


def dearmour(data: bytes) -> bytes:
    """The keys of a file as packets, from text with BEGIN and END or from packets already.

    Raises:
        ValueError: neither.
    """
    if not data:
        raise ValueError("the file is empty")
    if data[0] & 0x80:
        return data
    blocks = _ARMOUR.findall(data)
    if not blocks:
        raise ValueError("the file holds no OpenPGP public key")
    try:
        return b"".join(base64.b64decode(b"".join(block.split()), validate=True) for block in blocks)
    except binascii.Error as error:
        raise ValueError(f"the key's text is damaged: {error}") from None


def fingerprints(data: bytes) -> list[str]:
    """Fingerprints of all primary keys in a file, in hexadecimal capitals.

    Raises:
        ValueError: it is no key file, or is cut off.
    """
    found = [_fingerprint(body) for tag, body in _packets(dearmour(data)) if tag == _PUBLIC_KEY]
    if not found:
        raise ValueError("the file holds no OpenPGP public key")
    return found


def _fingerprint(body: bytes) -> str:
    if body[:1] == b"\x04":
        return (
            hashlib.sha1(b"\x99" + len(body).to_bytes(2, "big") + body, usedforsecurity=False)
            .hexdigest()
            .upper()
        )
    if body[:1] == b"\x06":
        return hashlib.sha256(b"\x9b" + len(body).to_bytes(4, "big") + body).hexdigest().upper()
    raise ValueError(f"a key of version {body[0] if body else '?'} is not understood")


def _packets(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, body) of each packet."""
    at = 0
    while at < len(data):
        head = data[at]
        at += 1
        if not head & 0x80:
            raise ValueError("the key file is damaged")
        if head & 0x40:
            tag = head & 0x3F
            length, at = _new_length(data, at)
        else:
            tag, size = head >> 2 & 0x0F, head & 0x03
            if size == 3:
                raise ValueError("a packet of unknown length")
            width = 1 << size
            length, at = int.from_bytes(data[at : at + width], "big"), at + width
        if at + length > len(data):
            raise ValueError("the key file is cut off")
        yield tag, data[at : at + length]
        at += length


def _new_length(data: bytes, at: int) -> tuple[int, int]:
    if at >= len(data):
        raise ValueError("the key file is cut off")
    first = data[at]
    if first < 192:
        return first, at + 1
    if first < 224:
        if at + 1 >= len(data):
            raise ValueError("the key file is cut off")
        return (first - 192 << 8) + data[at + 1] + 192, at + 2
    if first == 255:
        return int.from_bytes(data[at + 1 : at + 5], "big"), at + 5
    raise ValueError("a packet in pieces is not understood")
