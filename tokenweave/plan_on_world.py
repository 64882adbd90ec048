"""Plans for the tensors of a call on a given world; plan.py itself knows only integers."""

import math
from typing import TYPE_CHECKING

import torch

from tokenfabric.errors import ConfigError
from tokenweave.plan import (
    Algorithm,
    Output,
    ReductionPlan,
    ResidualLayout,
    plan_reduction,
    split_rows,
)

if TYPE_CHECKING:
    from tokenfabric.world import World

# Elements of one row of a tensor that is reduced without a norm: its shape does not matter there.
_FLAT_ROW = 512


def plan_on(
    world: "World",
    dtype: torch.dtype,
    num_tokens: int,
    hidden: int,
    algorithm: Algorithm,
    output: Output,
    residual_layout: ResidualLayout,
    has_residual: bool = True,
    exchanged_row_bytes: int | None = None,
) -> ReductionPlan:
    """Plan a reduction of [num_tokens, hidden] on `world`; what cannot be done is a ConfigError."""
    try:
        return plan_reduction(
            num_tokens=num_tokens,
            hidden=hidden,
            element_size=dtype.itemsize,
            world_size=world.size,
            staging_bytes=world.comm.staging_bytes,
            algorithm=algorithm,
            output=output,
            residual_layout=residual_layout,
            has_residual=has_residual,
            exchanged_row_bytes=exchanged_row_bytes,
            is_oversubscribed=world.placement.is_oversubscribed,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None


def residual_shape(
    x: torch.Tensor, world: "World", num_tokens: int, hidden: int, layout: ResidualLayout
) -> torch.Size:
    """Return the shape of this rank's residual of x."""
    if layout == "replicated":
        return x.shape
    start, stop = split_rows(num_tokens, world.size)[world.rank]
    return torch.Size((stop - start, hidden))


def flat_rows(x: torch.Tensor) -> tuple[int, int]:
    """Cut a tensor of any shape into equal rows; return their number and length."""
    count = x.numel()
    row_elems = math.gcd(count, _FLAT_ROW) if count else 1
    return count // row_elems, row_elems
