"""Roles keep the house's promises: inputs, argument specs, entry points, what tasks may not do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

ROLES = sorted(path.parent.parent.name for path in (ROOT / "roles").glob("*/tasks/main.yml"))
TASK_FILES = sorted([*(ROOT / "roles").glob("*/tasks/*.yml"), *(ROOT / "roles").glob("*/handlers/*.yml")])
# What a task file's top level may hold beside a module.
KEYWORDS = {
    "always", "any_errors_fatal", "args", "async", "become", "become_user", "block", "changed_when",
    "check_mode", "delay", "delegate_to", "diff", "environment", "failed_when", "listen", "loop",
    "loop_control", "name", "no_log", "notify", "poll", "register", "rescue", "retries", "run_once", "tags",
    "throttle", "until", "vars", "when",
}  # fmt: skip
COMMANDS = {f"ansible.builtin.{name}" for name in ("command", "shell", "raw", "script")}


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def defaults(role: str) -> dict[str, Any]:
    path = ROOT / "roles" / role / "defaults" / "main.yml"
    return (load(path) or {}) if path.exists() else {}


def specs(role: str) -> dict[str, Any]:
    document: dict[str, Any] = load(ROOT / "roles" / role / "meta" / "argument_specs.yml")
    return document["argument_specs"]


def flat(tasks: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """All tasks, those inside blocks too."""
    for task in tasks or []:
        yield task
        for key in ("block", "rescue", "always"):
            yield from flat(task.get(key, []))


ALL_TASKS = [(path.relative_to(ROOT).as_posix(), task) for path in TASK_FILES for task in flat(load(path))]
NAMED = [f"{place}:{task.get('name', '?')}" for place, task in ALL_TASKS]


def test_there_are_roles() -> None:
    assert {"common", "docker", "ollama", "open_webui", "preflight"} <= set(ROLES)
    assert len(ALL_TASKS) > 20


@pytest.mark.parametrize("role", ROLES)
def test_defaults_and_argument_spec_have_the_same_keys(role: str) -> None:
    options = specs(role)["main"].get("options", {})
    assert set(defaults(role)) == set(options)


@pytest.mark.parametrize("role", ROLES)
def test_argument_spec_gives_type_description_and_the_same_default(role: str) -> None:
    main = specs(role)["main"]
    assert main["short_description"]
    values = defaults(role)
    for key, option in main.get("options", {}).items():
        assert option.get("description"), key
        assert option.get("type"), key
        assert option.get("type") != "list" or "elements" in option, key
        if "default" in option:
            assert option["default"] == values[key], key
        else:
            # A default that is empty or made of other variables may go unsaid, a plain value may not.
            assert values[key] in (None, "", [], {}) or "{{" in str(values[key]), key


@pytest.mark.parametrize("role", ROLES)
def test_inputs_carry_the_roles_name_and_a_reason(role: str) -> None:
    path = ROOT / "roles" / role / "defaults" / "main.yml"
    if not path.exists():
        return
    before = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        key = re.match(r"([A-Za-z_]\w*):", line)
        if key:
            assert key[1].startswith(f"{role}_"), key[1]
            # One comment may stand above several lines that belong together.
            assert before.startswith("#") or re.match(r"\w+:", before), f"{key[1]} has no reason"
        if line.strip():
            before = line.strip()


@pytest.mark.parametrize("role", ROLES)
def test_internals_are_marked_as_such(role: str) -> None:
    path = ROOT / "roles" / role / "vars" / "main.yml"
    for key in load(path) or {} if path.exists() else {}:
        # ROLE_contract is what a role publishes to others.
        assert key.startswith(f"__{role}_") or key == f"{role}_contract", key


@pytest.mark.parametrize("role", ROLES)
def test_role_has_what_a_role_has(role: str) -> None:
    folder = ROOT / "roles" / role
    info = load(folder / "meta" / "main.yml")["galaxy_info"]
    assert info["license"] == "Apache-2.0"
    assert info["description"]
    assert (folder / "README.md").is_file()


def entered() -> set[str]:
    """Roles that an install enters, the engines that it may choose among them."""
    plays = load(ROOT / "playbooks" / "install.yml")
    rows = [row["role"] for play in plays for row in play.get("roles", [])]
    rows += [
        task[how]["name"]
        for play in plays
        for task in play.get("pre_tasks", []) + play.get("tasks", [])
        for how in ("ansible.builtin.include_role", "ansible.builtin.import_role")
        if how in task
    ]
    named = {str(row).rpartition(".")[2] for row in rows}
    engines = load(ROOT / "catalog" / "engines.yml")["engines"]
    return (named - {"preflight"}) | {name for name, row in engines.items() if row["provisioned"]}


@pytest.mark.parametrize("role", sorted(entered()))
def test_a_role_says_what_it_takes_from_outside(role: str) -> None:
    """What it does not say is in no offline bundle; tasks/needs.yml of other roles show how."""
    tasks = ROOT / "roles" / role / "tasks" / "needs.yml"
    assert tasks.is_file(), f"{role}: add the entry point needs (docs/design.md)"
    assert "needs" in specs(role)


def test_a_bundle_asks_the_roles_that_an_install_enters() -> None:
    asked = load(ROOT / "roles" / "preflight" / "vars" / "main.yml")["__preflight_needs"]
    engines = load(ROOT / "catalog" / "engines.yml")["engines"]
    for role in entered() - engines.keys():
        assert f"'{role}'" in asked, f"{role}: add it to __preflight_needs"


@pytest.mark.parametrize("role", ROLES)
def test_main_is_a_table_of_contents(role: str) -> None:
    for task in load(ROOT / "roles" / role / "tasks" / "main.yml"):
        module = next(key for key in task if key not in KEYWORDS)
        assert re.fullmatch(r"ansible\.builtin\.(include|import)_(tasks|role)", module), task["name"]
        assert task.get("tags"), f"{task['name']} has no tag"


@pytest.mark.parametrize("role", ROLES)
def test_every_file_a_role_includes_is_there(role: str) -> None:
    for path in (ROOT / "roles" / role).glob("tasks/*.yml"):
        for task in flat(load(path)):
            for key in ("ansible.builtin.include_tasks", "ansible.builtin.import_tasks"):
                target = task.get(key)
                target = target.get("file") if isinstance(target, dict) else target
                if target and "{{" not in target:
                    assert (path.parent / target).is_file(), f"{path.name}: {target}"


@pytest.mark.parametrize(("place", "task"), ALL_TASKS, ids=NAMED)
def test_a_task_keeps_the_rules(place: str, task: dict[str, Any]) -> None:
    assert task.get("name"), place
    assert "ignore_errors" not in task
    modules = [key for key in task if key not in KEYWORDS]
    assert len(modules) <= 1, modules
    for module in modules:
        assert module.count(".") >= 2, f"{module} is not a full name"
        if module in COMMANDS:
            assert "changed_when" in task, "a command must say when it changes something"
        arguments = task[module] if isinstance(task[module], dict) else {}
        assert arguments.get("state") != "latest"
        mode = arguments.get("mode")
        assert mode is None or isinstance(mode, str), "an unquoted mode is a decimal number"


@pytest.mark.parametrize("role", ROLES)
def test_collection_wide_variables_appear_only_in_defaults(role: str) -> None:
    for path in sorted((ROOT / "roles" / role).rglob("*")):
        relative = path.relative_to(ROOT / "roles" / role)
        if path.suffix not in (".yml", ".j2") or relative.parts[0] in ("defaults", "meta"):
            continue
        text = re.sub(r"(?m)#.*$", "", path.read_text(encoding="utf-8"))
        used = set(re.findall(r"(?<![\w.])dsprov_[a-z_]+", text))
        if role == "preflight":  # It makes them.
            used -= {"dsprov_asked", "dsprov_plan", "dsprov_planned", "dsprov_probed", "dsprov_sources"}
        assert used <= {"dsprov_problems"}, f"{relative}: {sorted(used)}"


@pytest.mark.parametrize("role", ROLES)
def test_nothing_is_written_in_people_s_trees(role: str) -> None:
    """No secret is a task's argument: it would be in logs and in process lists."""
    for path in (ROOT / "roles" / role).rglob("*.yml"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(?i)lookup\(.*password", text), path
        assert "curl |" not in text
