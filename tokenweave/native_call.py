"""The one call into the native reduction: tensors already checked in, integers out."""

from typing import TYPE_CHECKING

import torch

from tokenfabric import native
from tokenweave.forms import NormKind, Numerics
from tokenweave.plan import Output, ReductionPlan
from tokenweave.quantized_output import QuantizedFormat, QuantizedOutput

if TYPE_CHECKING:
    from tokenfabric.world import World

# A tensor without elements has no address, but is not an absent tensor: a rank without rows must
# still call what the others call. Never read or written.
_ADDRESS_OF_NOTHING = 64
# Values of the enums of csrc; a test compares them with the module's.
NATIVE_DTYPE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 3}
NATIVE_OUTPUT: dict[Output, int] = {"private": 0, "own_rows": 1, "shared": 2}
NATIVE_NORM: dict[NormKind, int] = {"rms_norm": 0, "layer_norm": 1}
NATIVE_NUMERICS: dict[Numerics, int] = {"fused": 0, "drop_in": 1}
NATIVE_FORMAT: dict[QuantizedFormat, int] = {"fp8_e4m3": 1, "int8": 2}


def address(x: torch.Tensor | None) -> int:
    """Return where x lies; 0 for an absent tensor."""
    return 0 if x is None else x.data_ptr() or _ADDRESS_OF_NOTHING


class PreparedReduction:
    """A planned reduction of one shape: everything but the addresses is settled once.

    A call costs about 1 us of Python, which matters where a token makes sixty of them. Calling it
    is collective, with tensors that the caller has checked: contiguous, on the CPU, of this shape
    and dtype, without gradients. It keeps no world alive: calls name theirs.
    """

    __slots__ = ("_native", "_run")

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
        residual_dtype: torch.dtype | None = None,
        norm: NormKind = "rms_norm",
        numerics: Numerics = "fused",
        quantized: QuantizedOutput | None = None,
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
            residual_dtype: default: that of the result.
            norm, numerics: see tokenweave/forms.py.
            quantized: for calls of `quantized`; None for the others.
        """
        weave = native.weave
        self._native = weave.PreparedReduction(
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
            NATIVE_DTYPE[residual_dtype or out_dtype or dtype],
            NATIVE_NORM[norm],
            NATIVE_NUMERICS[numerics],
            weave.NOT_QUANTIZED if quantized is None else NATIVE_FORMAT[quantized.format],
            0 if quantized is None else quantized.group_elements(hidden),
            0.0 if quantized is None else quantized.scale or 0.0,
        )
        self._run = self._native.run

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
        norm_bias: torch.Tensor | None = None,
    ) -> None:
        """Reduce on `world`. See `tokenweave.allreduce_rmsnorm` for what each tensor is."""
        self._run(
            world.comm,
            address(x),
            address(residual),
            address(bias),
            address(weight),
            address(norm_bias),
            out_address,
            address(residual_out),
            eps,
            weight_offset,
        )

    def sum_only(
        self, comm: "native.fabric.Communicator", x_address: int, out_address: int
    ) -> None:
        """Reduce on `comm`, such as that of one host of a world, without residual and norm."""
        self._run(comm, x_address, 0, 0, 0, 0, out_address, 0, 0.0, 0.0)

    def quantized(
        self,
        world: "World",
        x: torch.Tensor,
        residual: torch.Tensor | None,
        bias: torch.Tensor | None,
        weight: torch.Tensor,
        norm_bias: torch.Tensor | None,
        out: torch.Tensor | None,
        residual_out: torch.Tensor,
        quantized: torch.Tensor,
        scales: torch.Tensor | None,
        eps: float,
        weight_offset: float,
    ) -> None:
        """Reduce to 8-bit codes. See `tokenweave.allreduce_rmsnorm_quantized`."""
        self._native.run_quantized(
            world.comm,
            address(x),
            address(residual),
            address(bias),
            address(weight),
            address(norm_bias),
            address(out),
            address(residual_out),
            address(quantized),
            address(scales),
            eps,
            weight_offset,
        )
