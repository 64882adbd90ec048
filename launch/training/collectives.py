"""FSDP2's collectives on a clock: gathers of parameters, sums of gradients.

On CPUs, FSDP2 waits for each of them in the call that starts it, so that the call's time is the
collective's. The copies around them (into one buffer, out of it) are FSDP2's own and not counted.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_collectives import (
    DefaultAllGather,
    DefaultReduceScatter,
)

from tokenfabric.comm_clock import CommClock


def put_on_clock(module: FSDPModule, clock: CommClock) -> None:
    """Time the collectives of the parameters that `fully_shard` gave to this module."""
    module.set_custom_all_gather(_ClockedAllGather(clock))
    module.set_custom_reduce_scatter(_ClockedReduceScatter(clock))


class _ClockedAllGather(DefaultAllGather):
    def __init__(self, clock: CommClock) -> None:
        self._clock = clock

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        async_op: bool = False,
    ) -> dist.Work | None:
        with self._clock:
            return super().__call__(output_tensor, input_tensor, group, async_op)


class _ClockedReduceScatter(DefaultReduceScatter):
    def __init__(self, clock: CommClock) -> None:
        self._clock = clock

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> dist.Work:
        with self._clock:
            return super().__call__(output_tensor, input_tensor, group, op, async_op)
