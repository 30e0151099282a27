# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""From variables to a planner's request, the same way for plays and for `dsprov plan --facts`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.dsprov.appliance.plugins.module_utils.planner import Request
from ansible_collections.dsprov.appliance.plugins.module_utils.problems import Problem
from ansible_collections.dsprov.appliance.plugins.module_utils.variables import (
    INTERNAL,
    PREFIX,
    check_variables,
)
from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import (
    CATALOG,
    catalogue,
    check,
    problems,
    read_yaml,
    with_models,
)

# Role variables that the planner must know too, PORT or ADDRESS:PORT, for these ports must be free.
PORT_VARIABLES = ("ollama_host", "llama_cpp_port", "vllm_port", "ktransformers_port", "open_webui_port")
# Role variables that name a Python of the user's own, where a system has none that an engine wants.
PYTHON_VARIABLES = ("ktransformers_python",)
# The channel whose places are made from a bundle's manifest.
BUNDLE = "bundle"
# What the role nvidia_driver is told: the plan says what comes of it.
DRIVER_VARIABLES = tuple(
    f"nvidia_driver_{name}" for name in ("source", "branch", "version", "flavour", "existing")
)
TOOLKIT_VARIABLE = "cuda_toolkit_version"
ROLE_VARIABLES = (*PORT_VARIABLES, *PYTHON_VARIABLES, *DRIVER_VARIABLES, TOOLKIT_VARIABLE)


def is_asked(key: str) -> bool:
    """Whether the planner reads the variable KEY."""
    return (key.startswith(PREFIX) and key not in INTERNAL) or key in ROLE_VARIABLES


def request_from(
    variables: Mapping[str, Any], origins: Mapping[str, str] | None = None
) -> tuple[Request | None, list[Problem]]:
    """A request from a host's variables.

    Returns:
        The request, or None with the problems that stand in its way.

    Raises:
        ProblemError: mirrors or models of their own are not written as the schema wants.
    """
    rows = catalogue()
    values, found = check_variables(variables, rows["variables"], problems(), origins)
    ports: dict[str, int] = {}
    for key in PORT_VARIABLES:
        if key in variables:
            text = str(variables[key]).rpartition(":")[2]
            if text.isdecimal() and 0 < int(text) < 65536:
                ports[key] = int(text)
            else:
                found.append(problems().make("variable-invalid", key=key, detail=f"{text!r} is not a port"))
    driver: list[tuple[str, Any]] = []
    for key in DRIVER_VARIABLES:
        if key in variables:
            wish: Any = str(variables[key])
            if key.endswith("_branch"):
                if not (wish.isascii() and wish.isdecimal() and len(wish) < 6):
                    found.append(
                        problems().make("variable-invalid", key=key, detail=f"{wish!r} is no driver branch")
                    )
                    continue
                wish = int(wish)
            driver.append((key.removeprefix("nvidia_driver_"), wish))
    if "dsprov_mirrors" in values:
        definitions = read_yaml(CATALOG / "schema" / "catalog.yml")
        check(values["dsprov_mirrors"], definitions, "channel", "dsprov_mirrors")
    with_models(values.get("dsprov_models", {}))
    if found:
        return None, found
    if values.get("dsprov_channel") == BUNDLE:
        values.pop("dsprov_mirrors", None)  # With every other route closed no mirror is one.
    values.setdefault("dsprov_tier", "custom")
    if "dsprov_model" not in values:
        detail = "no model is chosen"
        return None, [problems().make("variable-invalid", key="dsprov_model", detail=detail)]
    python = any(variables.get(key) for key in PYTHON_VARIABLES)
    own = {"dsprov_ports": ports, "dsprov_driver": tuple(driver), "dsprov_own_python": python}
    toolkit = str(variables.get(TOOLKIT_VARIABLE) or "")
    return Request.from_variables({**values, **own, "dsprov_cuda_toolkit": toolkit}), []
