"""Fingerprints of keys against the standard's own example, and files that are none."""

from __future__ import annotations

import base64

import pytest

from ansible_collections.dsprov.appliance.plugins.module_utils import openpgp

# RFC 9580, appendix A.1, with its fingerprint.
KEY = bytes.fromhex(
    "98330453f35f0b16092b06010401da470f010107403f098994bdd916ed4053197934e4a87c80733a1280d62f8010992e43ee3b2406"
)
FINGERPRINT = "C959BDBAFA32A2F89A153B678CFDE12197965A9A"
# The same body under a header of the new kind.
NEW = bytes([0xC6, len(KEY) - 2]) + KEY[2:]


def armoured(data: bytes, end: str = "\n") -> bytes:
    lines = ["-----BEGIN PGP PUBLIC KEY BLOCK-----", "Comment: one", "", base64.b64encode(data).decode()]
    return (end.join([*lines, "=AbCd", "-----END PGP PUBLIC KEY BLOCK-----", ""])).encode()


@pytest.mark.parametrize(
    "data",
    [KEY, NEW, armoured(KEY), armoured(KEY, "\r\n"), b"\n" + armoured(NEW)],
    ids=["packets", "new header", "text", "text of Windows", "blank line first"],
)
def test_the_fingerprint(data: bytes) -> None:
    assert openpgp.fingerprints(data) == [FINGERPRINT]


def test_every_key_of_a_file_is_told() -> None:
    """A second key in the file could sign as well as the first."""
    other = KEY[:-1] + b"\x07"
    both = openpgp.fingerprints(KEY + other)
    assert both[0] == FINGERPRINT
    assert len(set(both)) == 2
    assert openpgp.fingerprints(armoured(KEY) + armoured(other)) == both


def test_packets_that_are_no_keys_are_passed_over() -> None:
    name = b"A name"
    assert openpgp.fingerprints(KEY + bytes([0xB4, len(name)]) + name) == [FINGERPRINT]
    with pytest.raises(ValueError, match="no OpenPGP public key"):
        openpgp.fingerprints(bytes([0xB4, len(name)]) + name)


@pytest.mark.parametrize(
    "data",
    [b"", b"<html>404</html>", KEY[:-3], KEY[:1], armoured(KEY)[:60], bytes([0xC6, 0xFF]), b"\x98\x01\x03"],
    ids=["empty", "a page", "cut off", "one byte", "text cut off", "no length", "version 3"],
)
def test_what_is_no_key_file_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        openpgp.fingerprints(data)
