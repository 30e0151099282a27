# Copyright: the dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Docker's daemon.json: put our options into what is there, and take them out again; standard library alone.

What we set is remembered as a list of rows `{"path": [keys], "set": value, "had": value}` for scalars (`had`
is left out where nothing was there) and `{"path": [keys], "added": [items]}` for lists. An option that is no
longer wanted goes only while it still has the value that we gave it; what we replaced then comes back.
"""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass, field
from typing import Any

# What dockerd takes over on SIGHUP (its reference, "configuration reloading"); all else needs a restart.
RELOADABLE = frozenset(
    {
        "allow-nondistributable-artifacts",
        "authorization-plugins",
        "debug",
        "default-runtime",
        "features",
        "insecure-registries",
        "labels",
        "live-restore",
        "max-concurrent-downloads",
        "max-concurrent-uploads",
        "max-download-attempts",
        "registry-mirrors",
        "runtimes",
        "shutdown-timeout",
    }
)
# Of those, what it still reads only when it starts: whether devices are given by CDI.
AT_START = {"features": "cdi"}
# Flags of dockerd whose name differs from the key they set.
FLAG_KEYS = {
    "H": "hosts",
    "host": "hosts",
    "D": "debug",
    "l": "log-level",
    "G": "group",
    "b": "bridge",
    "s": "storage-driver",
    "g": "data-root",
    "graph": "data-root",
    "log-opt": "log-opts",
    "label": "labels",
    "registry-mirror": "registry-mirrors",
    "insecure-registry": "insecure-registries",
    "add-runtime": "runtimes",
    "storage-opt": "storage-opts",
    "exec-opt": "exec-opts",
    "dns-opt": "dns-opts",
    "default-ulimit": "default-ulimits",
    "default-address-pool": "default-address-pools",
    "authorization-plugin": "authorization-plugins",
    "cdi-spec-dir": "cdi-spec-dirs",
}


class DaemonJsonError(Exception):
    """daemon.json cannot be read, or cannot hold what is wanted; the text is one line for people."""


def parse(text: str, path: str) -> dict[str, Any]:
    """Read daemon.json; an empty file is an empty object. Raises DaemonJsonError with line and column."""
    text = text.removeprefix("\ufeff")
    if not text.strip():
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        where = (
            f"line {error.lineno} column {error.colno}: {error.msg}"
            if isinstance(error, json.JSONDecodeError)
            else str(error)
        )
        raise DaemonJsonError(
            f"{path}: not JSON ({where}); mend or move the file, nothing was changed"
        ) from error
    if not isinstance(value, dict):
        found = {list: "a list", str: "a string", bool: "a truth value", type(None): "null"}.get(
            type(value), "a number"
        )
        raise DaemonJsonError(
            f"{path}: line 1 column 1: an object {{...}} is needed, found {found}; mend or move the file"
        )
    return value


def dump(value: dict[str, Any], like: str = "") -> str:
    """Write daemon.json, indented as the text `like` is."""
    found = re.search(r"^([ \t]+)\S", like, re.MULTILINE)
    indent: str | int = found[1] if found else 2
    return json.dumps(value, indent=indent, ensure_ascii=False) + "\n"


def flags_of(command: list[str]) -> set[str]:
    """Return the keys that dockerd's command line sets, which daemon.json must not set too."""
    keys: set[str] = set()
    for word in command[1:]:
        match = re.match(r"--?([A-Za-z][A-Za-z0-9-]*)", word)
        if match:
            keys.add(FLAG_KEYS.get(match[1], match[1]))
    return keys - {"config-file", "validate", "containerd"}


@dataclass
class Merge:
    """The new content, what we must remember about it, and the top-level keys that changed.

    `restart_keys` are those of the changed ones that dockerd reads only when it starts.
    """

    content: dict[str, Any]
    remembered: list[dict[str, Any]] = field(default_factory=list)
    changed_keys: list[str] = field(default_factory=list)
    restart_keys: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def merge(
    current: dict[str, Any],
    options: dict[str, Any],
    defaults: list[dict[str, Any]],
    remembered: list[dict[str, Any]],
    flags: set[str],
) -> Merge:
    """Put `options` into `current`, over what has the same key, and groups of `defaults` where nobody chose.

    A group of defaults goes in as a whole, and only when the host's owner set none of its keys, in the
    file or among dockerd's flags; once it went in, an edit of it by hand is mended. `remembered` is what
    the last call returned.
    """
    base = copy.deepcopy(current)
    ours = {row["path"][0] for row in remembered}
    _take_out(base, remembered)
    wanted = copy.deepcopy(options)
    skipped: list[str] = []
    for group in defaults:
        taken = sorted(
            key for key in group if (key in base and key not in ours) or key in flags or key in options
        )
        if taken:
            skipped.extend(sorted(set(group) - set(options)))
        else:
            wanted.update(copy.deepcopy(group))
    clash = sorted(set(wanted) & flags)
    if clash:
        raise DaemonJsonError(
            f"dockerd has {', '.join(clash)} on its command line, so that the file must not; "
            "take the flag out of the unit or the option out of docker_daemon_options"
        )
    result = Merge(base, skipped=skipped)
    _put_in(base, wanted, [], result.remembered)
    _keep_order(base, current)
    result.changed_keys = sorted(key for key in {*base, *current} if base.get(key) != current.get(key))
    result.restart_keys = [
        key for key in result.changed_keys if key not in RELOADABLE or _at_start(key, base, current)
    ]
    return result


def _at_start(key: str, one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two contents differ in what dockerd reads of a key only when it starts."""
    rows = [row if isinstance(row := side.get(key), dict) else {} for side in (one, other)]
    return key in AT_START and rows[0].get(AT_START[key]) != rows[1].get(AT_START[key])


def _keep_order(content: dict[str, Any], like: dict[str, Any]) -> None:
    """Order keys as they were, new ones last, so that a diff shows what changed and nothing else."""
    for key in [
        *(name for name in like if name in content),
        *(name for name in list(content) if name not in like),
    ]:
        value = content.pop(key)
        if isinstance(value, dict) and isinstance(like.get(key), dict):
            _keep_order(value, like[key])
        elif isinstance(value, list) and isinstance(like.get(key), list) and _same_items(value, like[key]):
            value = like[key]
        content[key] = value


def _same_items(one: list[Any], other: list[Any]) -> bool:
    return (
        len(one) == len(other) and all(item in other for item in one) and all(item in one for item in other)
    )


def _put_in(
    target: dict[str, Any], wanted: dict[str, Any], path: list[str], remembered: list[dict[str, Any]]
) -> None:
    for key, value in wanted.items():
        here = [*path, key]
        there = target.get(key)
        if isinstance(value, dict) and (isinstance(there, dict) or key not in target):
            _put_in(target.setdefault(key, {}), value, here, remembered)
        elif isinstance(value, list) and (isinstance(there, list) or key not in target):
            added = [item for item in value if item not in (there or [])]
            target[key] = [*(there or []), *added]
            remembered.append({"path": here, "added": added})
        else:
            row: dict[str, Any] = {"path": here, "set": value}
            if key in target:
                if there == value:
                    # The owner chose the same: it is theirs, and stays when we stop wanting it.
                    continue
                row["had"] = there
            target[key] = value
            remembered.append(row)


def _take_out(target: dict[str, Any], remembered: list[dict[str, Any]]) -> None:
    """Undo what we remember, as far as it still stands."""
    for row in remembered:
        *parents, key = row["path"]
        trail: list[tuple[dict[str, Any], str]] = []
        node: Any = target
        for name in parents:
            if not isinstance(node, dict) or name not in node:
                node = None
                break
            trail.append((node, name))
            node = node[name]
        if not isinstance(node, dict) or key not in node:
            continue
        if "added" in row:
            if isinstance(node[key], list):
                node[key] = [item for item in node[key] if item not in row["added"]]
                if not node[key]:
                    del node[key]
        elif node[key] == row["set"]:
            if "had" in row:
                node[key] = row["had"]
            else:
                del node[key]
        for parent, name in reversed(trail):
            if parent[name] == {}:
                del parent[name]
