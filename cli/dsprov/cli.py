"""The command line: verbs are found by name and imported only when called, so that --help is instant."""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from dsprov import options, words
from dsprov.words import t

# Verb to its help, in the order in which people need them. The module is dsprov.commands.<verb>.
VERBS: dict[str, tuple[str, str]] = {
    "tiers": ("List the tiers, or show one.", "列出层级,或查看某一层级。"),
    "probe": ("Read the hosts; change nothing.", "读取主机信息,不作任何更改。"),
    "plan": ("Say what would run where, and why not.", "说明什么会运行在哪里,或为何不行。"),
    "check": (
        "Preflight: reachability, plan, ports, disk; change nothing.",
        "预检:连通、方案、端口、磁盘,不作任何更改。",
    ),
    "bundle": (
        "Offline bundles: create, verify, show, split, serve.",
        "离线包:制作、校验、查看、分割、提供服务。",
    ),
    "install": ("Turn the hosts into appliances.", "把主机装成一体机。"),
    "status": ("Look whether every service is healthy.", "查看各服务是否健康。"),
}


class Verbs(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"dsprov.commands.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS:
            import difflib

            near = difflib.get_close_matches(args[0], VERBS, n=1)
            hint = t(f"; did you mean '{near[0]}'?", f";是否指 '{near[0]}'?") if near else ""
            ctx.fail(t(f"There is no command '{args[0]}'", f"没有命令 '{args[0]}'") + hint)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section(t("Commands", "命令")):
            formatter.write_dl([(verb, t(*texts)) for verb, texts in VERBS.items()])


def _version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        from dsprov.version import version

        print(f"dsprov {version()}")
        context.exit()


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Try it: dsprov install --tier demo -i hosts.ini",
)
@options.lang
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Show the version."
)
def cli() -> None:
    """Provision DeepSeek appliances. 部署 DeepSeek 一体机。"""


def run(arguments: Sequence[str]) -> int:
    """Runs the command line.

    Args:
        arguments: the words after the program's name.

    Returns:
        The exit code: 0 done, 1 a host failed, 2 wrong use or bad input, 3 the plan refuses, 4 a host is
        unreachable, 5 acceptance below target, 130 interrupted.
    """
    as_json = "--json" in arguments
    # What is chosen anywhere on the line holds for the whole line, also for errors of parsing it.
    for index, word in enumerate(arguments):
        if word == "--":
            break
        given = word.partition("=")[2] if word.startswith("--lang=") else ""
        if word == "--lang" and index + 1 < len(arguments):
            given = arguments[index + 1]
        if given in words.LANGUAGES:
            words.choose(given)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None where the caller closed it
            stream.reconfigure(errors="backslashreplace")
    try:
        code = int(cli.main(list(arguments), prog_name="dsprov", standalone_mode=False) or 0)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except click.exceptions.Abort:
        return _fail("interrupted", as_json)
    except click.ClickException as error:
        message = " ".join(error.format_message().split()).rstrip(".")
        hint = t("see `dsprov --help`", "参见 `dsprov --help`")
        context = getattr(error, "ctx", None)
        if context is not None:
            hint = t(f"see `{context.command_path} --help`", f"参见 `{context.command_path} --help`")
        words.say(f"{t('error', '错误')}: {message}{t('; ', ';')}{hint}")
        if as_json:
            _print_failure([_usage_problem(message, hint)], 2)
        return 2
    except OSError as error:
        return _cannot(error, as_json)
    except Exception as error:
        problem = getattr(error, "problem", None)
        if problem is None:
            raise
        words.say(words.problem_line(problem))
        code = int(getattr(error, "exit_code", 1))
        if as_json:
            _print_failure([problem], code)
        return code


def _usage_problem(message: str, hint: str) -> dict[str, Any]:
    """Wrong use in the shape of every other problem; click's own words come in one language."""
    return {
        "code": "usage",
        "severity": "error",
        "host": None,
        "message": {"en": message, "zh": message},
        "remedy": {"en": hint, "zh": hint},
    }


def _fail(code: str, as_json: bool, **details: Any) -> int:
    """Says a problem of the table, and gives its exit code."""
    from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import problems

    problem = problems().make(code, **details)
    words.say(words.problem_line(problem))
    if as_json:
        _print_failure([problem], problems().exit_code(code))
    return problems().exit_code(code)


def _cannot(error: OSError, as_json: bool) -> int:
    """What the operating system refused; a reader of ours that went away is no trouble."""
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    try:
        return _fail(
            "system-error", as_json, file=error.filename or "stdout", detail=error.strerror or str(error)
        )
    except OSError:  # The stream itself is what fails: a full disk behind stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _print_failure(problems: list[Any], code: int) -> None:
    import json

    print(json.dumps({"schema": 1, "ok": False, "exit": code, "problems": problems}, ensure_ascii=False))
