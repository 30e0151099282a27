"""Entry point. Answers --version before anything is imported that takes time."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line and ends the process with its exit code."""
    if sys.argv[1:] == ["--version"]:
        from dsprov.version import version

        print(f"dsprov {version()}")
        return
    from dsprov.cli import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
