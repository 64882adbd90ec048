"""The native calls of a reduction over several hosts: what each host does in its shared memory.

What goes between hosts is in host_partials.py and host_sums.py.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from tokenfabric import native
from tokenfabric.errors import ConfigError
from tokenweave.native_call import NATIVE_DTYPE, PreparedReduction, address
from tokenweave.plan import plan_reduction

if TYPE_CHECKING:
    from tokenfabric.world import World


class UnroundedReduceScatter:
    """A reduce-scatter of [rows, hidden] among the ranks of a host, with fp32 sums.

    Calling it is collective over the host. Each rank gets the rows that split_rows deals it.
    """

    def __init__(self, world: "World", rows: int, hidden: int, dtype: torch.dtype) -> None:
        """Settle the shape. ConfigError: a row does not fit into the staging memory."""
        try:
            plan = plan_reduction(
                num_tokens=rows,
                hidden=hidden,
                element_size=dtype.itemsize,
                world_size=world.layout.local_size,
                staging_bytes=world.host_comm.staging_bytes,
                output="own_rows",
                has_residual=False,
                is_oversubscribed=world.placement.is_oversubscribed,
            )
        except ValueError as error:
            raise ConfigError(str(error)) from None
        self._reduction = PreparedReduction(
            world,
            # The sums are read at once: by this rank, or by what sends them.
            replace(plan, is_streaming=False),
            native.weave.OP_REDUCE_SCATTER,
            num_tokens=rows,
            hidden=hidden,
            dtype=dtype,
            out_dtype=torch.float32,
        )

    def __call__(self, world: "World", x_address: int, out_address: int) -> None:
        """Add the ranks' rows at `x_address` in rank order; out: [own rows, hidden] fp32."""
        self._reduction.sum_only(world.host_comm, x_address, out_address)


@dataclass(frozen=True, kw_only=True, slots=True)
class Addresses:
    """Where a call's tensors lie in this rank's memory; 0 for an absent one."""

    residual: int
    """[tokens, hidden] or, row-sharded, this rank's rows. As residual_out."""
    out: int
    """[tokens, hidden], or this rank's rows."""
    residual_out: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Finish:
    """What becomes of rows that came together: added, rounded once, then bias, residual, norm."""

    hidden: int
    dtype: torch.dtype
    """Of residual, bias and the results."""
    weight_dtype: torch.dtype
    bias: torch.Tensor | None = None
    weight: torch.Tensor | None = None
    """None: no norm, the result is the rounded sum."""
    eps: float = 0.0
    weight_offset: float = 0.0
    is_streaming: bool = False
    """Whether the result is written around the caches."""

    def __call__(
        self,
        world: "World",
        inputs: Sequence[int],
        rows: int,
        input_dtype: torch.dtype,
        *,
        out: int,
        out_copy: int = 0,
        residual: int = 0,
        residual_out: int = 0,
    ) -> None:
        """Add [rows, hidden] inputs in the order given and finish them. Not collective.

        Args:
            world: whose threads and row kernels are used.
            inputs: addresses of partial sums in rank order, of sums in host order, or of one sum
                that is rounded already.
            rows: of each.
            input_dtype: dtype, or float32 for sums that are not rounded yet.
            out, out_copy, residual, residual_out: addresses of as many rows; 0 for none. The copy
                is for others to read.
        """
        native.weave.finish_rows(
            world.host_comm,
            world.row_kernels,
            inputs,
            residual,
            address(self.bias),
            address(self.weight),
            out,
            out_copy,
            residual_out,
            rows,
            self.hidden,
            NATIVE_DTYPE[input_dtype],
            NATIVE_DTYPE[self.dtype],
            NATIVE_DTYPE[self.weight_dtype],
            self.eps,
            self.weight_offset,
            self.is_streaming,
        )

    def only_adds(self) -> "Finish":
        """Return what adds and rounds and does no more."""
        return Finish(hidden=self.hidden, dtype=self.dtype, weight_dtype=self.weight_dtype)


def gather_inside(
    world: "World", source: int, target: int, rows: int, column_bytes: Sequence[int]
) -> None:
    """Put the columns of a host's ranks side by side. Collective over the host.

    Args:
        world: whose host.
        source: address of this rank's [rows, column_bytes[local rank]] bytes; may be its place in
            the target when there is one row.
        target: address of [rows, sum(column_bytes)] bytes.
        rows: 1 for flat tensors.
        column_bytes: widths by local rank.
    """
    if world.layout.local_size > 1:
        native.weave.all_gather(world.host_comm, source, target, rows, column_bytes)
    elif source != target:
        ctypes.memmove(target, source, rows * column_bytes[0])
