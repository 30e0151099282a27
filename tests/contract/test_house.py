"""Data, code and names agree across the house."""

from __future__ import annotations

import ast
import itertools
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.dsprov.appliance.plugins.module_utils.problems import ProblemError
from ansible_collections.dsprov.appliance.plugins.module_utils.variables import INTERNAL
from ansible_collections.dsprov.appliance.plugins.plugin_utils import catalogue
from dsprov.version import version
from tests.conftest import ROOT

CATALOG_FILES = sorted(path.name for path in (ROOT / "catalog").glob("*.yml"))
MODULES = sorted(path.stem for path in (ROOT / "plugins" / "modules").glob("*.py"))
ACTIONS = sorted(path.stem for path in (ROOT / "plugins" / "action").glob("*.py"))


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


# -- version -------------------------------------------------------------------------------------


def test_one_version() -> None:
    assert load(ROOT / "galaxy.yml")["version"] == version()
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


# -- variables -----------------------------------------------------------------------------------


def test_every_variable_that_is_used_is_known() -> None:
    known = set(catalogue.catalogue()["variables"]) | INTERNAL | {"dsprov_problems"}
    files = [
        path
        for folder in ("roles", "playbooks", "inventories", "molecule")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".yml", ".j2", ".ini")
    ]
    assert len(files) > 20
    for path in files:
        text = re.sub(r"(?m)(^|\s)#.*$", "", path.read_text(encoding="utf-8"))
        used = set(re.findall(r"(?<![\w./-])dsprov_[a-z_]+", text))
        assert used <= known, f"{path.relative_to(ROOT)}: {sorted(used - known)}"


def test_every_known_variable_is_used() -> None:
    folders = ("roles", "playbooks", "inventories", "plugins", "cli/dsprov")
    text = "".join(
        path.read_text(encoding="utf-8")
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".yml", ".j2", ".py")
    )
    for key in catalogue.catalogue()["variables"]:
        # The planner reads them as fields of Request.
        assert key in text or re.search(rf"\b{key.removeprefix('dsprov_')}: ", text), key


# -- catalogue -----------------------------------------------------------------------------------


def keys_of(document: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all keys whose names the schema knows: a typo in one of them must be found."""
    if isinstance(document, dict):
        return [
            path for key, value in document.items() for path in ((*here, key), *keys_of(value, (*here, key)))
        ]
    if isinstance(document, list):
        return [path for index, value in enumerate(document) for path in keys_of(value, (*here, index))]
    return []


def renamed(document: Any, path: tuple[Any, ...], name: str) -> Any:
    copied = dict(document) if isinstance(document, dict) else list(document)
    if len(path) > 1:
        copied[path[0]] = renamed(document[path[0]], path[1:], name)
        return copied
    return {(name if key == path[0] else key): value for key, value in copied.items()}


# Keys that are names of somebody's own: another name is another row, not a typo.
OWN_NAMES = {
    "models": 2,
    "gpus": 2,
    "engines": 2,
    "software": 2,
    "channels": 2,
    "systems": 2,
    "variables": 2,
    "problems": 2,
}

# Keys of these are no fixed words either.
FREE_KEYS = ("sampling", "registries", "variants", "files", "codenames", "python")


def typos() -> list[tuple[str, tuple[Any, ...]]]:
    rows = []
    for name in CATALOG_FILES:
        document = load(ROOT / "catalog" / name)
        part = name.removesuffix(".yml")
        seen: set[tuple[Any, ...]] = set()
        for path in keys_of(document):
            own = len(path) == OWN_NAMES.get(part) and path[0] == part
            free = any(word in path[:-1] for word in FREE_KEYS) and path[-2] in FREE_KEYS
            # The same key of another model, variant or file teaches nothing new.
            shape = (
                part,
                *(w for v, w in itertools.pairwise(path[1:]) if isinstance(w, str) and v != "variants"),
            )
            if own or free or not isinstance(path[-1], str) or shape in seen:
                continue
            seen.add(shape)
            rows.append((name, path))
    return rows


TYPOS = typos()


@pytest.fixture
def copied_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    target = tmp_path / "catalog"
    shutil.copytree(ROOT / "catalog", target)
    monkeypatch.setattr(catalogue, "CATALOG", target)
    catalogue.catalogue.cache_clear()
    catalogue.problems.cache_clear()
    return target


@pytest.fixture(autouse=True)
def _fresh_caches() -> Any:
    yield
    catalogue.catalogue.cache_clear()
    catalogue.problems.cache_clear()


@pytest.mark.parametrize(("name", "path"), TYPOS, ids=lambda value: str(value)[:80])
def test_a_typo_in_the_catalogue_is_named(name: str, path: tuple[Any, ...], copied_catalogue: Path) -> None:
    file = copied_catalogue / name
    misspelt = f"{path[-1]}x"
    file.write_text(yaml.safe_dump(renamed(load(file), path, misspelt), allow_unicode=True), encoding="utf-8")
    with pytest.raises(ProblemError) as caught:
        catalogue.catalogue()
    assert caught.value.exit_code == 2
    words = f"{caught.value.problem['message']['en']} {caught.value.problem['remedy']['en']}"
    assert str(file) in words
    assert path[-1] in words


BROKEN = ["", "[]", "null", "schema: 1", "\tx", "schema: 2\n", b"\xff\xfe", "schema: 1\n{part}: 7\n"]


@pytest.mark.parametrize("content", BROKEN, ids=repr)
@pytest.mark.parametrize("name", CATALOG_FILES)
def test_a_broken_file_of_the_catalogue_is_named(name: str, content: Any, copied_catalogue: Path) -> None:
    file = copied_catalogue / name
    if isinstance(content, str):
        content = content.format(part=name.removesuffix(".yml")).encode()
    file.write_bytes(content)
    with pytest.raises(ProblemError) as caught:
        catalogue.catalogue()
    assert caught.value.exit_code == 2
    assert str(file) in caught.value.problem["message"]["en"]


@pytest.mark.parametrize("name", CATALOG_FILES)
def test_a_missing_file_of_the_catalogue_is_named(name: str, copied_catalogue: Path) -> None:
    (copied_catalogue / name).unlink()
    with pytest.raises(ProblemError) as caught:
        catalogue.catalogue()
    assert name in caught.value.problem["message"]["en"]


BROKEN_LISTS = {
    "empty": b"",
    "only comments": b"# nothing\n",
    "not text": b"\xff\xfe",
    "short digest": b"12ab  7  a.gguf\n",
    "no size": b"0" * 64 + b"  a.gguf\n",
    "size of nothing": b"0" * 64 + b"  0  a.gguf\n",
    "a path for a name": b"0" * 64 + b"  7  ../a.gguf\n",
    "twice": (b"0" * 64 + b"  7  a.gguf\n") * 2,
}


@pytest.mark.parametrize("content", BROKEN_LISTS.values(), ids=BROKEN_LISTS)
def test_a_broken_list_of_weights_is_named(content: bytes, copied_catalogue: Path) -> None:
    file = min((copied_catalogue / "weights").iterdir())
    file.write_bytes(content)
    with pytest.raises(ProblemError) as caught:
        catalogue.catalogue()
    assert caught.value.exit_code == 2
    assert str(file) in caught.value.problem["message"]["en"]


def test_a_missing_list_of_weights_is_named(copied_catalogue: Path) -> None:
    file = min((copied_catalogue / "weights").iterdir())
    file.unlink()
    with pytest.raises(ProblemError) as caught:
        catalogue.catalogue()
    assert str(file) in caught.value.problem["message"]["en"]


def test_every_list_of_weights_is_some_variants_and_says_who_read_it() -> None:
    rows = {
        variant["list"]: (f"{name.replace(':', '-')}.{key}", variant)
        for name, model in catalogue.catalogue()["models"].items()
        for key, variant in model["variants"].items()
        if "list" in variant
    }
    assert set(rows) == {path.name.removesuffix(".txt") for path in (ROOT / "catalog" / "weights").iterdir()}
    for listed, (name, variant) in rows.items():
        assert listed == name
        head = (ROOT / "catalog" / "weights" / f"{listed}.txt").read_text(encoding="utf-8").splitlines()[0]
        source = variant["sources"][0]
        assert head.startswith(f"# {source['huggingface']} at {source['revision']}")
        # Shards are there in order and all of them; engines are pointed at the first one of GGUF.
        shards = [re.fullmatch(r".*-(\d{5})-of-0*(\d+)\.\w+", file["name"]) for file in variant["files"]]
        numbers = [(int(match[1]), int(match[2])) for match in shards if match]
        assert numbers == [(index + 1, len(numbers)) for index in range(len(numbers))]
        assert variant["format"] == "safetensors" or shards[0]


def test_a_regular_expression_that_is_none_is_named(copied_catalogue: Path) -> None:
    file = copied_catalogue / "problems.yml"
    document = load(file)
    document["problems"]["apt-lock"]["match"] = "("
    file.write_text(yaml.safe_dump(document, allow_unicode=True), encoding="utf-8")
    with pytest.raises(ProblemError) as caught:
        catalogue.catalogue()
    assert str(file) in caught.value.problem["message"]["en"]


@pytest.fixture(scope="module")
def copied_house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command line and the collection as a wheel lays them out."""
    target = tmp_path_factory.mktemp("house")
    skip = shutil.ignore_patterns("__pycache__", ".*")
    shutil.copytree(ROOT / "cli" / "dsprov", target / "dsprov", ignore=skip)
    inside = target / "ansible_collections" / "dsprov" / "appliance"
    for folder in ("catalog", "inventories", "plugins"):
        shutil.copytree(ROOT / folder, inside / folder, ignore=skip)
    shutil.copy(ROOT / "galaxy.yml", inside)
    return target


END_TO_END = [
    ("catalog/models.yml", "attention:", "atention:", "did you mean 'attention'"),
    ("catalog/engines.yml", "provisioned: true", "provisioned: perhaps", "boolean"),
    ("catalog/channels.yml", "huggingface: https://huggingface.co", "hugingface: https://x", "huggingface"),
    ("catalog/problems.yml", "remedy_en:", "remedi_en:", "remedy_en"),
    ("catalog/software.yml", '- "{github}/', '- "{githb}/', "software.ollama"),
    ("catalog/variables.yml", "type: str", "type: strg", "use one of: str"),
    ("inventories/tiers/demo.yml", "dsprov_model:", "dsprov_modell:", "dsprov_model is missing"),
]


@pytest.mark.parametrize(("name", "right", "wrong", "says"), END_TO_END, ids=[row[0] for row in END_TO_END])
def test_a_typo_ends_the_command_in_one_line(
    name: str, right: str, wrong: str, says: str, copied_house: Path, write: Callable[[str, Any], Path]
) -> None:
    from tests.fixtures.machines import facts

    file = copied_house / "ansible_collections" / "dsprov" / "appliance" / name
    before = file.read_text(encoding="utf-8")
    assert right in before
    file.write_text(before.replace(right, wrong, 1), encoding="utf-8")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "dsprov", "plan", "--tier", "demo", "--facts", write("f.yml", facts())],
            cwd=copied_house,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "PYTHONPATH": str(copied_house)},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        file.write_text(before, encoding="utf-8")
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert file.name in line
    assert str(copied_house) in line
    assert says in line


def test_every_artifact_has_a_digest() -> None:
    parts = catalogue.catalogue()
    rows = [
        file
        for model in parts["models"].values()
        for variant in model["variants"].values()
        for file in variant.get("files", [])
    ]
    for model in parts["models"].values():
        for variant in model["variants"].values():
            assert variant.get("unverified") or variant["bytes"] == sum(f["bytes"] for f in variant["files"])
    for software in parts["software"].values():
        rows += software.get("files", {}).values()
        if "packages" in software:
            text = (ROOT / software["packages"]).read_text(encoding="utf-8")
            packages = re.findall(r"(?m)^([a-z][^ =]*)==\S+.*(?:\n    --hash=sha256:[0-9a-f]{64}.*)+", text)
            # Ray's list has only what joins that of vLLM.
            assert (
                len(packages)
                == len(re.findall(r"(?m)^[a-z]", text))
                > (1 if "-ray-" in software["packages"] else 100)
            )
            continue
        if "apt_key" in software:
            # Its packages change; what they are signed with does not.
            assert all(re.fullmatch(r"[0-9A-F]{40}", one) for one in software["apt_key"]["fingerprints"])
            continue
        assert software.get("files") or re.fullmatch(r"sha256:[0-9a-f]{64}", software["image"]["digest"])
    assert len(rows) >= 3
    assert all(re.fullmatch(r"[0-9a-f]{64}", row["sha256"]) for row in rows)


def test_engines_do_not_share_ports_or_units() -> None:
    engines = catalogue.catalogue()["engines"].values()
    for key in ("port", "unit", "user"):
        values = [row[key] for row in engines]
        assert len(set(values)) == len(values)


def test_every_provisioned_engine_has_a_role() -> None:
    for name, row in catalogue.catalogue()["engines"].items():
        # A role that is not proved yet may be there; install refuses its engine.
        assert (ROOT / "roles" / name).is_dir() or not row["provisioned"]


# -- tiers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", catalogue.tier_names())
def test_a_tier_has_inventory_shim_and_model(name: str) -> None:
    shim = load(ROOT / "playbooks" / f"{name}.yml")
    assert shim[-1]["ansible.builtin.import_playbook"] == "dsprov.appliance.install"
    assert name in (ROOT / "playbooks" / f"{name}.yml").read_text(encoding="utf-8")
    variables = catalogue.tier_variables(name)
    parts = catalogue.catalogue()
    assert variables["dsprov_model"] in parts["models"]
    options = {
        key
        for path in (ROOT / "roles").glob("*/meta/argument_specs.yml")
        for key in load(path)["argument_specs"]["main"].get("options", {})
    }
    assert set(variables) <= set(parts["variables"]) | options


@pytest.mark.parametrize("verb", ["probe", "plan", "check", "install", "status"])
def test_every_verb_has_a_playbook(verb: str) -> None:
    assert (ROOT / "playbooks" / f"{verb}.yml").is_file()
    assert (ROOT / "cli" / "dsprov" / "commands" / f"{verb}.py").is_file()


# -- modules -------------------------------------------------------------------------------------


def constants(module: str) -> dict[str, Any]:
    """DOCUMENTATION, EXAMPLES and RETURN, as YAML."""
    tree = ast.parse((ROOT / "plugins" / "modules" / f"{module}.py").read_text(encoding="utf-8"))
    return {
        node.targets[0].id: yaml.safe_load(node.value.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id in ("DOCUMENTATION", "EXAMPLES", "RETURN")
        and isinstance(node.value, ast.Constant)
    }


def argument_spec(module: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the module really hands to AnsibleModule."""
    import importlib

    loaded = importlib.import_module(f"ansible_collections.dsprov.appliance.plugins.modules.{module}")
    given: dict[str, Any] = {}

    class Caught(Exception):  # noqa: N818 - a signal, not an error
        pass

    def spy(*_arguments: Any, **keywords: Any) -> Any:
        given.update(keywords)
        raise Caught

    monkeypatch.setattr(loaded, "AnsibleModule", spy)
    with pytest.raises(Caught):
        loaded.main()
    return given


def compare(documented: dict[str, Any], spec: dict[str, Any], here: str) -> None:
    assert set(documented) == set(spec), here
    for key, option in spec.items():
        row, place = documented[key], f"{here}.{key}"
        assert row.get("description"), place
        assert row.get("type", "str") == option.get("type", "str"), place
        assert row.get("required", False) == option.get("required", False), place
        assert row.get("elements") == option.get("elements"), place
        assert row.get("default") == option.get("default"), place
        assert row.get("choices") == option.get("choices"), place
        if "options" in option or "suboptions" in row:
            compare(row["suboptions"], option["options"], place)


@pytest.mark.parametrize("module", MODULES)
def test_a_modules_documentation_is_what_it_takes(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = constants(module)
    documentation = found["DOCUMENTATION"]
    assert documentation["module"] == module
    assert documentation["short_description"]
    assert isinstance(found["EXAMPLES"], list)
    for task in found["EXAMPLES"]:
        assert any(key.startswith("dsprov.appliance.") for key in task), task
    assert all(row["description"] and row["type"] for row in found["RETURN"].values())
    given = argument_spec(module, monkeypatch)
    assert given.get("supports_check_mode") is True
    compare(documentation.get("options", {}), given["argument_spec"], module)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_needs_only_the_standard_library(module: str) -> None:
    """It runs with the host's own Python."""
    tree = ast.parse((ROOT / "plugins" / "modules" / f"{module}.py").read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).split(".")[0])
    assert names <= set(sys.stdlib_module_names) | {"ansible", "ansible_collections"}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "plugins" / "module_utils").glob("*.py")), ids=lambda p: p.stem
)
def test_module_utils_are_pure(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            top = str(node.module)
            assert not top.startswith(("ansible.", "dsprov")), top
            assert top.split(".")[0] in {*sys.stdlib_module_names, "ansible_collections"}
        elif isinstance(node, ast.Import):
            for alias in node.names:
                assert alias.name.split(".")[0] in sys.stdlib_module_names, alias.name


def test_plugins_never_import_the_command_line() -> None:
    for path in (ROOT / "plugins").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(?m)^\s*(from|import) dsprov\b", text), path


@pytest.mark.parametrize("module", [name for name in ACTIONS if name not in MODULES])
def test_an_action_has_no_module_to_fall_back_on(module: str) -> None:
    """An action plugin alone is found by its full name, as plays write it."""
    text = "".join(
        path.read_text(encoding="utf-8")
        for folder in ("roles", "playbooks")
        for path in (ROOT / folder).rglob("*.yml")
    )
    assert f"dsprov.appliance.{module}:" in text
