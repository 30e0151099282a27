"""Builders of what the lab cannot download: the real Ollama and Open WebUI, hosts, a small model."""

from .common import Artifact, BuildError, cache_root

__all__ = ["Artifact", "BuildError", "cache_root"]
