# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Requirements files with digests: which packages a host's Python wants, and by which files."""

from __future__ import annotations

import re
from collections.abc import Iterator

from packaging.markers import default_environment
from packaging.requirements import Requirement


def rows(requirements: str, python: str, arch: str) -> Iterator[tuple[Requirement, frozenset[str]]]:
    """The packages of a requirements file that apply to a Python, each with its digests.

    Args:
        requirements: the file's text.
        python: the host's, such as 3.11.
        arch: the host's, such as x86_64.
    """
    environment = {
        **default_environment(),
        "python_version": python,
        "python_full_version": f"{python}.0",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "platform_machine": arch,
        "platform_system": "Linux",
        "sys_platform": "linux",
        "os_name": "posix",
    }
    for line in re.sub(r"\\\n", " ", requirements).splitlines():
        text = re.sub(r"(^|\s)#.*", "", line).strip()
        if not text or text.startswith("-"):
            continue
        requirement = Requirement(re.split(r"\s--hash=", text)[0].strip())
        if requirement.marker is None or requirement.marker.evaluate(
            {k: str(v) for k, v in environment.items()}
        ):
            yield requirement, frozenset(re.findall(r"--hash=sha256:([0-9a-f]{64})", text))
