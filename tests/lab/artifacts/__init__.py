"""Builders of what the lab cannot download: the real Ollama, the real Open WebUI's image, hosts, a small model."""

from .common import Artifact, BuildError, cache_root

__all__ = ["Artifact", "BuildError", "cache_root"]
