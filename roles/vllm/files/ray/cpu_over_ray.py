# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Lets vLLM's build for CPUs run over Ray, as its own interface for platforms of others allows.

vLLM hands shares of a model to what Ray counts as accelerators, and says of CPUs that Ray counts none. Here a
share on a CPU goes by the name of a GPU, as many of them as `ray symmetric-run --num-gpus` has been told.
"""

from __future__ import annotations

from vllm.platforms.cpu import CpuPlatform


class CpuOverRay(CpuPlatform):
    """vLLM's own CPU platform, but for the name of a share and the way between those of several hosts."""

    ray_device_key = "GPU"

    @classmethod
    def get_device_communicator_cls(cls) -> str:
        """vLLM asks for its dotted name."""
        return "cpu_over_ray_link.CpuCommunicatorOverRay"


def platform() -> str:
    """What vLLM asks each of its entry points for: the class of the platform to use."""
    return f"{__name__}.{CpuOverRay.__name__}"
