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
NATIVE_DTYPE = {torch.float32: 0, torch.bfloat16: 1}
NATIVE_OUTPUT: dict[Output, int] = {"private": 0, "own_rows": 1, "shared": 2}


def address(x: torch.Tensor | None) -> int:
    """Return where x lies; 0 for an absent tensor."""
    return 0 if x is None else x.data_ptr() or _ADDRESS_OF_NOTHING


class PreparedReduction:
    """A planned reduction of one shape: everything but the addresses is settled once.

    A call costs about 2 us of Python, which matters where a token makes sixty of them. Calling it
    is
    collective, with tensors that the caller has checked: contiguous, on the CPU, of this shape and
    dtype, without gradients.
    """

    __slots__ = ("_after", "_before", "_run")

    def __init__(
        self,
        world: "World",
        plan: ReductionPlan,
        operation: int,
        *,
        num_tokens: int,
        hidden: int,
        dtype: torch.dtype,
        weight_dtype: torch.dtype | None = None,
    ) -> None:
        weave = native.weave
        self._run = weave.allreduce_rmsnorm
        self._before = (world.comm, world.row_kernels, operation)
        self._after = (
            (num_tokens, hidden, NATIVE_DTYPE[dtype], NATIVE_DTYPE[weight_dtype or dtype]),
            (
                plan.residual_layout == "row_sharded",
                weave.ONE_SHOT if plan.algorithm == "one_shot" else weave.TWO_SHOT,
                NATIVE_OUTPUT[plan.output],
                plan.block_rows,
                plan.is_streaming,
            ),
        )

    def __call__(
        self,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        bias: torch.Tensor | None,
        weight: torch.Tensor | None,
        out_address: int,
        residual_out: torch.Tensor | None,
        eps: float,
        weight_offset: float,
    ) -> None:
        """Reduce. See `tokenweave.allreduce_rmsnorm` for what each tensor is."""
        shape, plan = self._after
        self._run(
            *self._before,
            address(x),
            address(residual),
            address(bias),
            address(weight),
            out_address,
            address(residual_out),
            *shape,
            eps,
            weight_offset,
            *plan,
        )
