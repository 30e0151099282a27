# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""The catalogue on the controller: loaded from catalog/, every file checked against its schema."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ansible_collections.dsprov.appliance.plugins.module_utils.problems import (
    ProblemError,
    Problems,
    nearest,
)
from ansible_collections.dsprov.appliance.plugins.module_utils.sizing import indices

ROOT = Path(__file__).resolve().parents[2]
CATALOG = ROOT / "catalog"
TIERS = ROOT / "inventories" / "tiers"
# File stem to the key inside it; `systems` has two keys and is handed on whole.
PARTS = (
    "models", "gpus", "engines", "preference", "software", "channels", "places", "variables", "nvidia",
    "systems",
)  # fmt: skip
# What people call the place of their own models.
OWN_MODELS = "dsprov_models"
# What every tier must say.
TIER_KEYS = ("dsprov_tier", "dsprov_tier_title", "dsprov_model")
# A tier's title as our own files write it: two plain lines, which need no YAML reader to be understood.
_TITLE = re.compile(r"(?m)^    dsprov_tier_title:\n      en: (\w[^#\n]*)\n      zh: (\w[^#\n]*)$")
# A line of a list in catalog/weights.
_LISTED = re.compile(r"(?P<sha256>[0-9a-f]{64}) +(?P<bytes>[1-9]\d*) +(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)")
# A document of people: more than this is a mistake, or made to hurt (aliases of aliases).
MAX_BYTES = 16 * 1024 * 1024
MAX_VALUES = 1_000_000
MAX_DEPTH = 100
MAX_TEXT = 16 * 1024
MAX_BITS = 1024
_FAR_IN = re.compile(f"(?m)^[ ?:-]{{{10 * MAX_DEPTH}}}")
# What would move a terminal's cursor, or the order of what it shows; line ends and tabs are text.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@cache
def problems() -> Problems:
    """The table of problems, with which everything else is reported."""
    import yaml

    path = CATALOG / "problems.yml"
    try:
        document = _parse(path.read_text(encoding="utf-8"))
        unknown = sorted({"schema", "problems"} ^ document.keys())
        if unknown or document["schema"] != 1:
            raise KeyError(
                f"expected the keys schema: 1 and problems, {unknown or document['schema']} is wrong"
            )
        rows = document["problems"]
        for code, row in rows.items():
            missing = [key for key in _BOOTSTRAP if key not in row]
            if missing:
                raise KeyError(f"{code}: key '{missing[0]}' is missing")
        return Problems(rows)
    except (OSError, yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError, re.error) as error:
        # Without its words dsprov cannot word this either: the one message that is written out here.
        detail = " ".join(str(error).split())
        bootstrap = Problems({"document-invalid": _BOOTSTRAP})
        raise bootstrap.error(
            "document-invalid", file=path, where="/", detail=detail, hint="restore the file"
        ) from error


_BOOTSTRAP = {
    "exit": 2,
    "en": "{file}: {where}: {detail}",
    "zh": "{file}:{where}:{detail}",
    "remedy_en": "{hint}",
    "remedy_zh": "{hint}",
}


@cache
def catalogue() -> dict[str, Any]:
    """All parts of the catalogue, checked.

    Raises:
        ProblemError: a file is missing, is not YAML or does not fit its schema; it names file and place.
    """
    definitions = read_yaml(CATALOG / "schema" / "catalog.yml")
    parts: dict[str, Any] = {"problems": problems().rows}
    check({"schema": 1, "problems": parts["problems"]}, definitions, "problems", CATALOG / "problems.yml")
    for part in PARTS:
        path = CATALOG / f"{part}.yml"
        document = read_yaml(path)
        check(document, definitions, part, path)
        parts[part] = document if part == "systems" else document[part]
    for model in parts["models"].values():
        for variant in model["variants"].values():
            if "list" in variant:
                variant["files"] = _listed(CATALOG / "weights" / f"{variant['list']}.txt", variant["sources"])
    return parts


def with_gguf(source: str) -> tuple[str, dict[str, Any]]:
    """The catalogue with one model more: that of a GGUF file or address.

    Returns:
        The model's name, and the catalogue.

    Raises:
        ProblemError: gguf-unreadable.
    """
    from ansible_collections.dsprov.appliance.plugins.module_utils import gguf

    try:
        name, _variant, row = gguf.model_of(gguf.read(source), source)
    except gguf.GgufError as error:
        raise problems().error("gguf-unreadable", detail=error) from error
    rows = catalogue()
    return name, {**rows, "models": {**rows["models"], name: row}}


def _listed(path: Path, sources: list[dict[str, str]]) -> list[dict[str, Any]]:
    """The files of a list, as rows of `files` in models.yml.

    Thousands of lines: YAML and its schema would take longer over them than a whole plan does.

    Raises:
        ProblemError: file-missing, or document-invalid with the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise problems().error("file-missing", file=path) from error
    except (OSError, ValueError) as error:
        raise _bad_list(path, "/", getattr(error, "strerror", None) or str(error)) from error
    rows: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        if line.startswith("#"):
            continue
        match = _LISTED.fullmatch(line)
        if match is None:
            raise _bad_list(path, f"line {number}", "not a sha256, a number of bytes and a name")
        name = match["name"]
        if name in rows:
            raise _bad_list(path, f"line {number}", f"{name} is there twice")
        rows[name] = {
            "name": name,
            "bytes": int(match["bytes"]),
            "sha256": match["sha256"],
            "sources": [
                {**source, "file": f"{source['folder']}/{name}" if "folder" in source else name}
                for source in sources
            ],
        }
    if not rows:
        raise _bad_list(path, "/", "names no file")
    return list(rows.values())


def _bad_list(path: Path, where: str, detail: str) -> ProblemError:
    return problems().error(
        "document-invalid", file=path, where=where, detail=detail, hint="restore the file"
    )


def with_models(own: Mapping[str, Any]) -> dict[str, Any]:
    """The catalogue with somebody's own models (`dsprov_models`) laid over it.

    Raises:
        ProblemError: a row does not fit the schema, or its layers are not those of its shape.
    """
    if not own:
        return catalogue()
    check({"schema": 1, "models": own}, read_yaml(CATALOG / "schema" / "catalog.yml"), "models", OWN_MODELS)
    for model, row in own.items():
        wanted = range(row["attention"]["layers"])
        for name, variant in row["variants"].items():
            where = f"models.{model}.variants.{name}"
            named = chain.from_iterable(indices(part["at"]) for part in variant["weights"]["layers"])
            # One more than there can be shows that they are too many.
            if sorted(islice(named, len(wanted) + 1)) != list(wanted):
                detail = f"does not name each layer 0-{len(wanted) - 1} once"
                hint = "give every layer of attention.layers exactly once in 'at'"
                raise _bad_models(f"{where}.weights.layers", detail, hint)
            if "list" in variant:
                raise _bad_models(f"{where}.list", "lists are the catalogue's own", "give 'files'")
    return {**catalogue(), "models": {**catalogue()["models"], **own}}


def _bad_models(where: str, detail: str, hint: str) -> ProblemError:
    return problems().error("document-invalid", file=OWN_MODELS, where=where, detail=detail, hint=hint)


def read_yaml(path: Path) -> Any:
    """A YAML or JSON file's content.

    Raises:
        ProblemError: file-missing, or document-invalid with line and column.
    """
    import yaml

    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES // 1024 // 1024} MiB")
        document = _parse(raw.decode("utf-8"))
        _weigh(document)
        return document
    except FileNotFoundError as error:
        raise problems().error("file-missing", file=path) from error
    except (OSError, ValueError, RecursionError, OverflowError) as error:
        raise problems().error(
            "document-invalid",
            file=path,
            where="/",
            detail=getattr(error, "strerror", None) or str(error),
            hint="give a readable UTF-8 text file, written as the documentation says",
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "/"
        raise problems().error(
            "document-invalid",
            file=path,
            where=where,
            detail=getattr(error, "problem", None) or "not YAML",
            hint="correct the syntax there",
        ) from error


def _parse(text: str) -> Any:
    import yaml  # A third of what `dsprov tiers list` would take.

    _look(text)
    return yaml.load(text, Loader=_loader())  # noqa: S506 - the safe loader, in C where PyYAML has it


def _look(text: str) -> None:
    """Refuses a text that is nested so deeply that PyYAML's C code would run out of stack, and with it we.

    Raises:
        ValueError: more brackets open at once, or more indentation, than any real document has.
    """
    depth = deepest = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        depth = depth + 1 if bracket in "[{" else max(0, depth - 1)
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH or _FAR_IN.search(text):
        raise ValueError("it is nested too deeply")


@cache
def _loader() -> Any:
    """PyYAML's safe loader, which takes the last of equal keys, made to refuse them."""
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(base):  # type: ignore[misc]  # either of two classes
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key, _value in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if (key.tag, key.value) in seen:
                        text = f"key {_short(key.value)} is given twice"
                        raise yaml.constructor.ConstructorError(None, None, text, key.start_mark)
                    seen.add((key.tag, key.value))
            return super().construct_mapping(node, deep)

    return Loader


def _weigh(document: Any) -> None:
    """Refuses what no document of people holds, and what would hurt to check or to show.

    Raises:
        ValueError: it holds itself, or more values, larger numbers or longer texts than any real one.
    """
    left = MAX_VALUES
    waiting = [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict | list):
            left -= len(value)
            if left < 0:
                raise ValueError(f"more than {MAX_VALUES} values once its aliases are followed")
            waiting += [*value, *value.values()] if isinstance(value, dict) else value
        elif isinstance(value, str):
            if len(value) > MAX_TEXT:
                raise ValueError(f"a text of {len(value)} characters, which begins {value[:40]!r}")
            if _CONTROL.search(value):
                raise ValueError(f"a control character in {_short(value)}")
        elif isinstance(value, int):
            if value.bit_length() > MAX_BITS:
                raise ValueError(f"a number of {value.bit_length()} bits")
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{value} is no number")


def _is_integer(_checker: Any, value: Any) -> bool:
    """A whole number as Python has it; 8.0 is none, whatever JSON Schema says."""
    return isinstance(value, int) and not isinstance(value, bool)


@cache
def _validator() -> Any:
    import jsonschema

    base = jsonschema.Draft202012Validator
    extend: Any = jsonschema.validators.extend
    return extend(base, type_checker=base.TYPE_CHECKER.redefine("integer", _is_integer))


def check(document: Any, schema: dict[str, Any], definition: str | None, path: Path | str) -> None:
    """Checks a document against a schema, or against one definition of it.

    Raises:
        ProblemError: document-invalid; names the file, the place and the nearest key that exists.
    """
    target = {**schema, "$ref": f"#/$defs/{definition}"} if definition else schema
    errors = _validator()(target).iter_errors(document)
    # A misspelt key is also a missing one: the misspelt one is what people want to hear of.
    error = min(
        errors,
        key=lambda e: (len(e.absolute_path), e.validator != "additionalProperties", str(e.message)),
        default=None,
    )
    if error is None:
        return
    where = ".".join(str(part) for part in error.absolute_path) or "/"
    raise problems().error("document-invalid", file=path, where=where, **_explain(error))


def _explain(error: Any) -> dict[str, str]:
    """What a schema error means, and how to mend it, in a few words."""
    if error.validator == "additionalProperties" and isinstance(error.schema.get("properties"), dict):
        known = error.schema["properties"]
        unknown = sorted(str(key) for key in error.instance if key not in known)
        return {
            "detail": f"unknown key '{unknown[0]}'",
            "hint": f"did you mean '{nearest(unknown[0], known)}'? known keys: {', '.join(known)}",
        }
    if error.validator == "required":
        missing = [key for key in error.validator_value if key not in error.instance]
        return {"detail": f"key '{missing[0]}' is missing", "hint": f"add '{missing[0]}'"}
    if error.validator == "type":
        wanted = error.validator_value
        wanted = " or ".join(wanted) if isinstance(wanted, list) else wanted
        return {"detail": f"{_short(error.instance)} is not of type {wanted}", "hint": f"give {wanted}"}
    if error.validator in ("enum", "const"):
        wanted = error.validator_value
        choices = ", ".join(map(str, wanted)) if isinstance(wanted, list) else str(wanted)
        return {"detail": f"{_short(error.instance)} is not allowed", "hint": f"use one of: {choices}"}
    return {
        "detail": f"{_short(error.instance)} does not fit {error.validator} {_short(error.validator_value)}",
        "hint": "correct the value",
    }


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def facts_schema() -> dict[str, Any]:
    """The JSON schema of a facts document."""
    schema: dict[str, Any] = read_yaml(CATALOG / "schema" / "facts.yml")
    return schema


def tier_names() -> list[str]:
    """Names of all tiers: one inventory file each."""
    return sorted(path.stem for path in TIERS.glob("*.yml"))


def tier_path(name: str) -> Path:
    """The inventory file of a tier.

    Raises:
        ProblemError: tier-unknown, with the nearest name.
    """
    names = tier_names()
    if name not in names:
        raise problems().error("tier-unknown", tier=name, nearest=nearest(name, names))
    return TIERS / f"{name}.yml"


def tier_title(name: str) -> dict[str, str]:
    """What a tier is for, in both languages."""
    found = _TITLE.search(tier_path(name).read_text(encoding="utf-8"))
    if found and ": " not in found[1] + found[2]:
        return {"en": found[1].strip(), "zh": found[2].strip()}
    title: dict[str, str] = tier_variables(name)["dsprov_tier_title"]
    return title


def tier_variables(name: str) -> dict[str, Any]:
    """The variables that a tier's inventory sets for all hosts."""
    path = tier_path(name)
    document = read_yaml(path)
    try:
        variables: dict[str, Any] = document["all"]["vars"]
        missing = [key for key in TIER_KEYS if key not in variables]
        titles = variables["dsprov_tier_title"] if not missing else {}
    except (KeyError, TypeError) as error:
        raise problems().error(
            "document-invalid", file=path, where="all.vars", detail="no variables", hint="add all.vars"
        ) from error
    if not missing and not (isinstance(titles, dict) and {"en", "zh"} <= titles.keys()):
        missing = ["dsprov_tier_title.en and .zh"]
    if missing:
        raise problems().error(
            "document-invalid",
            file=path,
            where="all.vars",
            detail=f"{missing[0]} is missing",
            hint=f"add {missing[0]}",
        )
    return variables
