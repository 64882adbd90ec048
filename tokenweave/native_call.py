"""The one call into the native reduction: tensors already checked in, integers out."""

from typing import TYPE_CHECKING

import torch

from tokenfabric import native
from tokenweave.plan import Output, ReductionPlan

if TYPE_CHECKING:
    from tokenfabric.world import World

# A tensor without elements has no address, but is not an absent tensor: a rank without rows must
# still call what the others call. Never read or written.
_ADDRESS_OF_NOTHING = 64
# Values of token::DType and token::weave::Output; a test compares them with the module's.
_NATIVE_DTYPE = {torch.float32: 0, torch.bfloat16: 1}
_NATIVE_OUTPUT: dict[Output, int] = {"private": 0, "own_rows": 1, "shared": 2}


def reduce_planned(
    world: "World",
    plan: ReductionPlan,
    operation: int,
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    out_address: int,
    residual_out: torch.Tensor | None,
    *,
    num_tokens: int,
    hidden: int,
    eps: float,
    weight_offset: float,
) -> None:
    """Run a planned reduction on tensors already checked: the one call into the native kernel."""
    weave = native.weave
    weave.allreduce_rmsnorm(
        world.comm,
        world.row_kernels,
        operation,
        address(x),
        address(residual),
        address(bias),
        address(weight),
        out_address,
        address(residual_out),
        num_tokens,
        hidden,
        _NATIVE_DTYPE[x.dtype],
        _NATIVE_DTYPE[x.dtype if weight is None else weight.dtype],
        eps,
        weight_offset,
        plan.residual_layout == "row_sharded",
        weave.ONE_SHOT if plan.algorithm == "one_shot" else weave.TWO_SHOT,
        _NATIVE_OUTPUT[plan.output],
        plan.block_rows,
    )


def address(x: torch.Tensor | None) -> int:
    """Return where x lies; 0 for an absent tensor."""
    return 0 if x is None else x.data_ptr() or _ADDRESS_OF_NOTHING
