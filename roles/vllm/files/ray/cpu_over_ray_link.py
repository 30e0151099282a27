# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""How shares of a model on CPUs speak with each other under Ray.

vLLM takes shares that meet at the same port for shares of one host, and lets them speak through that host's
memory. Under Ray all of a group meet at one port, wherever they are. This is a module of its own: what it
is made from asks for the platform, which must be there by then.
"""

from __future__ import annotations

import ray
import torch
from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator


class CpuCommunicatorOverRay(CpuCommunicator):
    """vLLM's own, which takes the way through memory only where all shares are on one of Ray's nodes."""

    def _all_group_ranks_share_shm_group_name(self) -> bool:
        nodes = [""] * self.world_size
        node = ray.get_runtime_context().get_node_id()
        torch.distributed.all_gather_object(nodes, node, group=self.device_group)
        return len(set(nodes)) == 1 and super()._all_group_ranks_share_shm_group_name()
