"""dsprov bundle: all that an install needs, in one folder, for hosts without a network."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from ansible_collections.dsprov.appliance.plugins.module_utils.problems import human_bytes
from ansible_collections.dsprov.appliance.plugins.plugin_utils import bundle as bundles
from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import problems, tier_path
from dsprov import options
from dsprov.bundle import use
from dsprov.bundle.gauge import Gauge, human_seconds
from dsprov.words import problem_line, say, say_problems, t

folders_argument = click.argument(
    "folders", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="DIR..."
)


@click.group(help="Make an offline bundle, verify it, show it, cut it to media.")
def command() -> None:
    """Parent of the verbs."""


def summary(document: dict[str, Any], digest: str) -> dict[str, Any]:
    """What a bundle is, for scripts: the manifest's head, its size, and its digest."""
    files = document["files"]
    kinds: dict[str, dict[str, int]] = {}
    for row in files:
        kind = kinds.setdefault(row["path"].partition("/")[0], {"files": 0, "bytes": 0})
        kind["files"] += 1
        kind["bytes"] += row["bytes"]
    head = {
        key: document[key] for key in ("dsprov", "tier", "arch", "systems", "made_for", "images", "packages")
    }
    return {
        "schema": 1,
        "digest": digest,
        **head,
        "files": len(files),
        "bytes": sum(row["bytes"] for row in files),
        "kinds": dict(sorted(kinds.items())),
    }


def show_summary(found: dict[str, Any]) -> None:
    """The same for people."""
    count = t(f"{found['files']} files", f"{found['files']} 个文件")
    click.echo(
        f"{found['tier']} · {', '.join(found['systems'])} · {found['arch']} · dsprov {found['dsprov']}"
    )
    click.echo(f"{count}, {human_bytes(found['bytes'])}, sha256:{found['digest']}")
    for row in found["made_for"]:
        click.echo(f"  {row['engine']}: {row['model']} {row['variant']}")
    titles = {
        "apt": t("packages", "软件包"),
        "files": t("archives", "归档"),
        "images": t("images", "镜像"),
        "weights": t("weights", "权重"),
        "wheels": t("wheels", "Python 包"),
    }
    for kind, row in found["kinds"].items():
        click.echo(f"  {titles.get(kind, kind)}: {row['files']}, {human_bytes(row['bytes'])}")


@command.command("create")
@options.tier
@click.option(
    "--os",
    "systems",
    multiple=True,
    metavar="OS",
    help="For this system, such as debian-13; may be repeated.",
)
@click.option(
    "--facts", type=click.Path(path_type=Path), metavar="FILE", help="For the machines of a facts file."
)
@click.option(
    "-i", "--inventory", "inventories", multiple=True, type=click.Path(path_type=Path), metavar="HOSTS",
    help="Inventory whose variables count; without --os and --facts its hosts are read.",
)  # fmt: skip
@click.option("--engine", metavar="ENGINE", help="The engine; by default as the plan chooses.")
@click.option("--model", metavar="MODEL", help="Another model than the tier's.")
@click.option("--variant", metavar="VARIANT", help="The model's variant; by default as the plan chooses.")
@options.channel
@options.extra
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), metavar="DIR",
    help="Folder for the bundle. One that is there is brought up to date.",
)  # fmt: skip
@options.as_json
@options.lang
def create(
    tier: str,
    systems: tuple[str, ...],
    facts: Path | None,
    inventories: tuple[Path, ...],
    engine: str | None,
    model: str | None,
    variant: str | None,
    channel: str | None,
    overrides: tuple[str, ...],
    output: Path,
    as_json: bool,
) -> int:
    """Gathers everything that an install needs. The same command goes on where it was interrupted."""
    from dsprov.bundle import create as making
    from dsprov.progress import Progress

    tier_path(tier)
    making.check_systems(systems)
    making.check_output(output)
    named = {"dsprov_engine": engine, "dsprov_model": model, "dsprov_variant": variant}
    chosen = tuple(f"{key}={value}" for key, value in named.items() if value)
    order = making.Order(tier, systems, facts, inventories, (*overrides, *chosen), channel, output)
    try:
        with Progress(verbose=False) as progress:
            needs = making.ask_roles(order, progress)
        say(t("gathering", "收集中"))
        maker = making.Maker(order, needs, say)
        document = maker.make()
    except making.NeedsError as error:
        if as_json:
            click.echo(json.dumps(error.outcome.document("bundle"), ensure_ascii=False))
        say_problems(error.outcome.problems)
        return error.outcome.exit_code
    except KeyboardInterrupt:
        problem = problems().make("interrupted")
        say(problem_line(problem))
        return problems().exit_code("interrupted")
    opened = bundles.open_bundle([output])
    found = {**summary(document, opened.digest), "fetched_bytes": maker.fetched_bytes}
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False))
    else:
        show_summary(found)
        fetched = human_bytes(maker.fetched_bytes)
        line = f"dsprov install --tier {tier} --bundle {output} -i HOSTS"
        say(t(f"{fetched} fetched; next: {line}", f"已下载 {fetched};下一步:{line}"))
    return 0


@command.command("verify")
@folders_argument
@options.as_json
@options.lang
def verify(folders: tuple[Path, ...], as_json: bool) -> int:
    """Reads every byte and compares it with the manifest. Several folders are parts of one bundle."""
    checked = use.verify(bundles.open_bundle(folders))
    if as_json:
        document = {
            "schema": 1,
            "ok": not checked.problems,
            "digest": checked.bundle.digest,
            "bytes": checked.bytes,
            "seconds": round(checked.seconds, 3),
            "problems": checked.problems,
        }
        click.echo(json.dumps(document, ensure_ascii=False))
    say_problems(checked.problems)
    if not checked.problems and not as_json:
        count, size, took = (
            len(checked.bundle.rows),
            human_bytes(checked.bytes),
            human_seconds(checked.seconds),
        )
        speed = human_bytes(checked.bytes / max(checked.seconds, 0.001))
        click.echo(
            t(
                f"whole: {count} files, {size} in {took} ({speed}/s)",
                f"完好:{count} 个文件,{size},用时 {took}({speed}/s)",
            )
        )
    return 2 if checked.problems else 0


@command.command("show")
@folders_argument
@click.option("--files", "with_files", is_flag=True, help="List every file, too.")
@options.as_json
@options.lang
def show(folders: tuple[Path, ...], with_files: bool, as_json: bool) -> int:
    """Says what a bundle is for and what is in it, by its manifest."""
    opened = bundles.open_bundle(folders)
    found = summary(dict(opened.document), opened.digest)
    if with_files:
        found["rows"] = [row.document() for row in opened.rows]
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False))
        return 0
    show_summary(found)
    for row in opened.rows if with_files else ():
        click.echo(f"{row.sha256}  {row.bytes:>12}  {row.path}")
    return 0


@command.command("split")
@folders_argument
@click.option("--size", required=True, metavar="SIZE", help="Of one medium, such as 25GB or 4GiB.")
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), metavar="DIR",
    help="Folder for the media: medium-01, medium-02, ...",
)  # fmt: skip
@options.as_json
@options.lang
def split(folders: tuple[Path, ...], size: str, output: Path, as_json: bool) -> int:
    """Cuts a bundle to media. They are used together (--bundle for each), or copied into one folder again."""
    from dsprov.bundle import split as cutting

    opened = bundles.open_bundle(folders)
    media = cutting.lay_out(opened, cutting.read_size(size))
    counts = [0]

    def count(copied: int) -> None:
        counts[0] += copied

    with Gauge(t("copying", "复制"), lambda: opened.bytes, lambda: counts[0]):
        cutting.write(opened, media, output, count)
    rows = [{"folder": str(output / one.name), "bytes": one.bytes, "files": len(one.parts)} for one in media]
    if as_json:
        click.echo(json.dumps({"schema": 1, "digest": opened.digest, "media": rows}, ensure_ascii=False))
        return 0
    for row in rows:
        click.echo(f"{row['folder']}  {human_bytes(int(str(row['bytes'])))}")
    return 0


@command.command("serve")
@folders_argument
@options.inventory
@options.extra
@options.lang
def serve(folders: tuple[Path, ...], inventories: tuple[Path, ...], overrides: tuple[str, ...]) -> int:
    """Serves a bundle until Ctrl-C, for the line that `install --bundle --print-command` shows."""
    import threading

    from dsprov.bundle import server
    from dsprov.invocation import compose

    opened = bundles.open_bundle(folders)
    checked = use.verify(opened)
    if checked.problems:
        say_problems(checked.problems)
        return 2
    port = use.bundle_port(overrides)
    path = server.socket_path(compose("install", inventories).inventories[-1])
    with server.serve(opened, path, port):
        say(t(f"serving at {path}; Ctrl-C ends it", f"正在 {path} 提供服务;按 Ctrl-C 结束"))
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
    return 0
