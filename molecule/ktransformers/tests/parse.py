"""Runs on the host, in the role's virtual environment: does the server's own parser take each command?

Reads a JSON list of commands, and prints a line for each that it does not take as it was meant.
"""

from __future__ import annotations

import argparse
import json
import sys

from sglang.srt.server_args import ServerArgs


def main() -> None:
    """Say what is wrong, and how many were read."""
    parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    ServerArgs.add_cli_args(parser)
    commands = json.load(sys.stdin)
    for command in commands:
        try:
            taken, unknown = parser.parse_known_args(command[3:])
        except argparse.ArgumentError as error:
            print(f"REFUSED {error}")
            continue
        if unknown:
            print(f"UNKNOWN {unknown}")
        if (taken.host, str(taken.port)) != ("127.0.0.1", command[command.index("--port") + 1]):
            print(f"MISREAD {taken.host}:{taken.port}")
    print(f"READ {len(commands)}")


if __name__ == "__main__":
    main()
