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

    A call costs about 1 us of Python, which matters where a token makes sixty of them. Calling it
    is collective, with tensors that the caller has checked: contiguous, on the CPU, of this shape
    and dtype, without gradients. It keeps no world alive: calls name theirs.
    """

    __slots__ = ("_run",)

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
        out_dtype: torch.dtype | None = None,
    ) -> None:
        """Settle the call.

        Args:
            world: whose row kernels are used.
            plan: how it is done.
            operation: native.weave.OP_*.
            num_tokens, hidden, dtype: the partial sums.
            weight_dtype: of the norm; default: dtype.
            out_dtype: of the result; default: dtype. float32 keeps a reduce-scatter's sums
                unrounded.
        """
        weave = native.weave
        self._run = weave.PreparedReduction(
            world.row_kernels,
            operation,
            num_tokens,
            hidden,
            NATIVE_DTYPE[dtype],
            NATIVE_DTYPE[weight_dtype or dtype],
            NATIVE_DTYPE[out_dtype or dtype],
            plan.residual_layout == "row_sharded",
            weave.ONE_SHOT if plan.algorithm == "one_shot" else weave.TWO_SHOT,
            NATIVE_OUTPUT[plan.output],
            plan.block_rows,
            plan.is_streaming,
        ).run

    def __call__(
        self,
        world: "World",
        x: torch.Tensor,
        residual: torch.Tensor | None,
        bias: torch.Tensor | None,
        weight: torch.Tensor | None,
        out_address: int,
        residual_out: torch.Tensor | None,
        eps: float,
        weight_offset: float,
    ) -> None:
        """Reduce on `world`. See `tokenweave.allreduce_rmsnorm` for what each tensor is."""
        self._run(
            world.comm,
            address(x),
            address(residual),
            address(bias),
            address(weight),
            out_address,
            address(residual_out),
            eps,
            weight_offset,
        )
