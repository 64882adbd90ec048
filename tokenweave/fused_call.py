"""What the fused operation settles once per shape, dtype and options, and keeps with the world."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tokenfabric import native
from tokenweave import checks
from tokenweave.plan import Algorithm, Output, ResidualLayout
from tokenweave.plan_on_world import residual_shape
from tokenweave.prepare import Prepared, prepare_reduction

if TYPE_CHECKING:
    from tokenfabric.world import World


@dataclass(frozen=True, slots=True)
class FusedCall:
    """What `allreduce_rmsnorm` settles once per shape and options."""

    reduce: Prepared
    rows_shape: torch.Size
    """Of this rank's residual."""
    weight_shape: torch.Size


def prepare_fused(
    world: "World",
    x_partial: torch.Tensor,
    weight: torch.Tensor,
    residual_layout: ResidualLayout,
    algorithm: Algorithm,
    is_shared: bool,
) -> FusedCall:
    """Check what a key of `World.prepared` stands for, and settle it. Not collective.

    Raises:
        ConfigError: shape, dtype or options cannot be had.
    """
    num_tokens, hidden = checks.activation("x_partial", x_partial)
    checks.vector("weight", weight, hidden, (x_partial.dtype, torch.float32))
    output: Output = "shared" if is_shared else "private"
    reduce = prepare_reduction(
        world,
        native.weave.OP_ALLREDUCE_RMSNORM,
        num_tokens=num_tokens,
        hidden=hidden,
        dtype=x_partial.dtype,
        weight_dtype=weight.dtype,
        algorithm=algorithm,
        output=output,
        residual_layout=residual_layout,
    )
    rows_shape = residual_shape(x_partial, world, num_tokens, hidden, residual_layout)
    return FusedCall(reduce, rows_shape, torch.Size((hidden,)))


# A server meets a few hundred shapes; more than this are not worth the memory of keeping them.
_MOST_PREPARED = 4096


def remember(world: "World", key: Hashable, call: FusedCall) -> None:
    """Keep a call for the next one of its shape and options."""
    if len(world.prepared) >= _MOST_PREPARED:
        world.prepared.clear()
    world.prepared[key] = call
