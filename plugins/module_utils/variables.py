# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""The collection-wide `dsprov_*` variables: known by name, converted to their type. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ansible_collections.dsprov.appliance.plugins.module_utils.problems import Problem, Problems, nearest
from ansible_collections.dsprov.appliance.plugins.module_utils.rates import parse_rate

PREFIX = "dsprov_"
# What the preflight role sets for the roles after it. Nobody else may.
INTERNAL = frozenset({"dsprov_asked", "dsprov_plan", "dsprov_planned", "dsprov_probed", "dsprov_sources"})

# As many digits as any setting can need; Python itself refuses to read numbers of thousands.
_WHOLE = re.compile(r"-?[0-9]{1,18}")
_TRUE = {"true", "yes", "on", "1"}
_FALSE = {"false", "no", "off", "0"}


def check_variables(
    given: Mapping[str, Any],
    rows: Mapping[str, Mapping[str, Any]],
    problems: Problems,
    origins: Mapping[str, str] | None = None,
) -> tuple[dict[str, Any], list[Problem]]:
    """Converts the `dsprov_*` variables among `given`, and says what is wrong with them.

    Args:
        given: variables by name; those without our prefix are passed over.
        rows: `variables` of catalog/variables.yml.
        problems: the table of problems.
        origins: "FILE:LINE" of a variable, where it is known.

    Returns:
        The converted values, and the problems: variable-unknown, variable-invalid.
    """
    values: dict[str, Any] = {}
    found: list[Problem] = []
    for key in sorted(given):
        if not key.startswith(PREFIX) or key in INTERNAL:
            continue
        where = f"{origins[key]}: {key}" if origins and key in origins else key
        if key not in rows:
            found.append(problems.make("variable-unknown", key=where, nearest=nearest(key, rows)))
            continue
        try:
            values[key] = convert(given[key], rows[key]["type"], rows[key].get("choices"))
        except ValueError as error:
            found.append(problems.make("variable-invalid", key=where, detail=str(error)))
    return values, found


def convert(value: Any, kind: str, choices: list[str] | None = None) -> Any:
    """A value as its type; text becomes a number or a truth value, as Ansible's own options allow.

    Raises:
        ValueError: it is not one; the message says what was expected.
    """
    shown = repr(value) if len(repr(value)) <= 40 else repr(value)[:37] + "..."
    if kind == "str":
        if isinstance(value, bool) and choices:  # YAML reads a bare `off` as a truth value.
            value = {True: "on", False: "off"}[value]
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{shown} is not text")
        if choices and value not in choices:
            raise ValueError(f"{shown} is not one of {', '.join(choices)}")
        return str(value)
    if kind == "rate":
        parse_rate(value)
        return str(value)
    if kind == "int":
        if isinstance(value, bool) or not _WHOLE.fullmatch(str(value).strip()):
            raise ValueError(f"{shown} is not a whole number")
        return int(value)
    if kind == "bool":
        word = str(value).strip().lower()
        if word not in _TRUE | _FALSE:
            raise ValueError(f"{shown} is not yes or no")
        return word in _TRUE
    if kind == "dict" and not isinstance(value, Mapping):
        raise ValueError(f"{shown} is not a mapping of keys to values")
    if kind == "list" and not isinstance(value, list):
        raise ValueError(f"{shown} is not a list")
    return value
