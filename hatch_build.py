"""Build hook: the version is galaxy.yml's, and the wheel carries the repository's tree as the collection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

INSIDE = "ansible_collections/dsprov/appliance"
# What the wheel carries of the repository's root, beside the command line's package.
FOLDERS = ("catalog", "docs", "inventories", "meta", "playbooks", "plugins", "roles")
FILES = ("galaxy.yml", "ansible.cfg", "README.md", "LICENSE", "CHANGELOG.md")


class VersionFromGalaxy(MetadataHookInterface):
    """Reads the one version there is."""

    def update(self, metadata: dict[str, Any]) -> None:
        galaxy = yaml.safe_load((Path(self.root) / "galaxy.yml").read_text(encoding="utf-8"))
        metadata["version"] = galaxy["version"]


class CollectionTree(BuildHookInterface):
    """Places the collection in wheels; an editable install has a link in its place."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or version == "editable":
            return
        root = Path(self.root)
        include = build_data["force_include"]
        for name in FILES:
            include[str(root / name)] = f"{INSIDE}/{name}"
        for folder in FOLDERS:
            for path in sorted((root / folder).rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts:
                    include[str(path)] = f"{INSIDE}/{path.relative_to(root).as_posix()}"
