"""The dsprov_* variables: types, choices, unknown names."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.dsprov.appliance.plugins.module_utils.variables import (
    INTERNAL,
    check_variables,
    convert,
)
from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import catalogue, problems
from ansible_collections.dsprov.appliance.plugins.plugin_utils.requests import request_from

GOOD = [
    ("8192", "int", 8192),
    (" 8192 ", "int", 8192),
    (8192, "int", 8192),
    ("-1", "int", -1),
    ("yes", "bool", True),
    ("Off", "bool", False),
    (1, "bool", True),
    (False, "bool", False),
    ("q8_0", "str", "q8_0"),
    ({"a": 1}, "dict", {"a": 1}),
    ([], "list", []),
]
BAD = [
    ("many", "int"),
    ("8.5", "int"),
    (8.0, "int"),
    (True, "int"),
    ("", "int"),
    ("--5", "int"),
    (None, "int"),
    ([8], "int"),
    ("maybe", "bool"),
    (None, "bool"),
    ({}, "bool"),
    ("", "str"),
    ("  ", "str"),
    (7, "str"),
    (None, "str"),
    (["a"], "str"),
    ("a: 1", "dict"),
    ([], "dict"),
    ("a", "list"),
    ({}, "list"),
]


@pytest.mark.parametrize(("value", "kind", "expected"), GOOD)
def test_converts(value: Any, kind: str, expected: Any) -> None:
    assert convert(value, kind) == expected
    assert type(convert(value, kind)) is type(expected)


@pytest.mark.parametrize(("value", "kind"), BAD)
def test_refuses(value: Any, kind: str) -> None:
    with pytest.raises(ValueError, match=r"is not (a whole number|yes or no|text|a mapping|a list)"):
        convert(value, kind)


def test_choices_are_named() -> None:
    with pytest.raises(ValueError, match=r"'q5' is not one of f16, q8_0, q4_0"):
        convert("q5", "str", ["f16", "q8_0", "q4_0"])


def test_a_long_value_is_shown_short() -> None:
    with pytest.raises(ValueError, match=r"is not a whole number") as caught:
        convert("x" * 500, "int")
    assert len(str(caught.value)) < 80


ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers())


@given(value=ANYTHING, kind=st.sampled_from(["str", "int", "bool", "dict", "list"]))
def test_any_value_is_converted_or_refused_in_words(value: Any, kind: str) -> None:
    try:
        convert(value, kind)
    except ValueError as error:
        assert "is not" in str(error)


def check(
    given_values: dict[str, Any], origins: dict[str, str] | None = None
) -> tuple[dict[str, Any], list[Any]]:
    return check_variables(given_values, catalogue()["variables"], problems(), origins)


def test_unknown_variable_names_place_and_nearest() -> None:
    values, found = check({"dsprov_contextlength": 8}, {"dsprov_contextlength": "hosts.ini:3"})
    assert values == {}
    assert [problem["code"] for problem in found] == ["variable-unknown"]
    assert found[0]["message"]["en"] == "hosts.ini:3: dsprov_contextlength: there is no such variable"
    assert "dsprov_context_length" in found[0]["remedy"]["zh"]


def test_wrong_type_names_the_variable_and_the_value() -> None:
    _values, found = check({"dsprov_parallel": "many"})
    assert found[0]["code"] == "variable-invalid"
    assert found[0]["message"]["en"] == "dsprov_parallel: 'many' is not a whole number"


def test_all_that_is_wrong_is_said_at_once() -> None:
    _values, found = check({"dsprov_parallel": "x", "dsprov_nonsense": 1, "dsprov_channel": "moon"})
    assert len(found) == 3


def test_other_peoples_variables_and_our_own_facts_are_passed_over() -> None:
    assert check({"ansible_host": "x", "ollama_host": 1, **dict.fromkeys(INTERNAL, object())}) == ({}, [])


def test_a_request_needs_a_model() -> None:
    request, found = request_from({})
    assert request is None
    assert found[0]["code"] == "variable-invalid"
    assert "dsprov_model" in found[0]["message"]["en"]


def test_a_request_takes_every_planning_variable() -> None:
    request, _found = request_from(
        {
            "dsprov_model": "smollm2:135m",
            "dsprov_context_length": "2048",
            "dsprov_web_ui": "no",
            "dsprov_mirrors": {"github": "http://mirror/gh"},
            "dsprov_tier_title": {"en": "x", "zh": "x"},
            "open_webui_port": "127.0.0.1:9000",
        }
    )
    assert request is not None
    assert (request.tier, request.context_length, request.web_ui) == ("custom", 2048, False)
    assert request.mirrors == {"github": "http://mirror/gh"}
    assert request.ports == {"open_webui_port": 9000}
