"""What a fused reduction settles once per shape and options, and finds again at the next call."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import torch

from tokenfabric import native
from tokenfabric.errors import ConfigError
from tokenweave import checks
from tokenweave.forms import NormKind, Numerics
from tokenweave.plan import Algorithm, Output, ResidualLayout
from tokenweave.plan_on_world import residual_shape
from tokenweave.prepare import Prepared, prepare_reduction
from tokenweave.quantized_output import QuantizedOutput

if TYPE_CHECKING:
    from tokenfabric.world import World

# (shape and dtype of x_partial, dtype of weight, residual layout, algorithm, whether out is shared,
# norm, numerics, dtype of the residual if it is said, quantised output): a plain tuple, since a
# call makes one in 0.1 us.
Key = tuple[
    torch.Size, torch.dtype, torch.dtype, ResidualLayout, Algorithm, bool, NormKind, Numerics,
    torch.dtype | None, QuantizedOutput | None,
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class FusedCall:
    """What is the same at every call of one key."""

    reduce: Prepared
    rows_shape: torch.Size
    """Of this rank's residual."""
    residual_dtype: torch.dtype
    weight_shape: torch.Size
    device: torch.device

    def check(
        self,
        key: Key,
        x_partial: torch.Tensor,
        residual: torch.Tensor | None,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        norm_bias: torch.Tensor | None,
    ) -> None:
        """Check the inputs of a call, quickly if nothing is wrong.

        Raises:
            ConfigError: names what is.
        """
        is_ready, dtype, shape = checks.is_ready, key[1], self.weight_shape
        device, rows, kept = self.device, self.rows_shape, self.residual_dtype
        gpu, is_rms = device.index, key[6] == "rms_norm"
        if not (
            is_ready(x_partial, key[0], dtype, gpu)
            and is_ready(weight, shape, key[2], gpu)
            and (residual is None or is_ready(residual, rows, kept, gpu))
            and (bias is None or is_ready(bias, shape, dtype, gpu))
            and (norm_bias is None or (not is_rms and is_ready(norm_bias, shape, key[2], gpu)))
        ):
            checks.any_dtype("x_partial", x_partial, device)
            checks.like("weight", weight, shape, key[2], device)
            checks.like("residual", residual, rows, kept, device)
            checks.like("bias", bias, shape, dtype, device)
            checks.like("norm_bias", norm_bias, shape, key[2], device)
            if norm_bias is not None and key[6] == "rms_norm":
                raise ConfigError("norm_bias is for layer_norm: rms_norm has none")
        checks.no_gradient(
            x_partial=x_partial, residual=residual, weight=weight, bias=bias, norm_bias=norm_bias
        )


def prepare_fused(
    world: "World", key: Key, x_partial: torch.Tensor, weight: torch.Tensor
) -> FusedCall:
    """Return the call of `key`, from now on in world.prepared.

    Raises:
        ConfigError: the options are not to be had together, or the shapes do not fit.
    """
    call = _prepare(world, key, x_partial, weight)
    world.prepared.remember(key, call)
    return call


def check_residual_dtype(residual: torch.Tensor | None, residual_dtype: torch.dtype) -> None:
    """Check that a residual has the dtype that is asked for.

    Raises:
        ConfigError: it has another.
    """
    if residual is not None and residual.dtype != residual_dtype:
        raise ConfigError(f"residual is {residual.dtype}, but residual_dtype is {residual_dtype}")


def _prepare(world: "World", key: Key, x_partial: torch.Tensor, weight: torch.Tensor) -> FusedCall:
    _, dtype, _, residual_layout, algorithm, is_shared, norm, numerics, kept_dtype, quantized = key
    num_tokens, hidden = checks.activation("x_partial", x_partial, world.device)
    for name, value, options in (
        ("norm", norm, get_args(NormKind)),
        ("numerics", numerics, get_args(Numerics)),
    ):
        if value not in options:
            raise ConfigError(f"{name} must be one of {options}, got {value!r}")
    residual_dtype = dtype if kept_dtype is None else kept_dtype
    is_drop_in = numerics == "drop_in"
    if residual_dtype != dtype and (residual_dtype != torch.float32 or is_drop_in):
        wanted = dtype if is_drop_in else f"{dtype} or torch.float32"
        raise ConfigError(f"a residual beside {dtype} must be {wanted}, got {residual_dtype}")
    weight_dtypes = (dtype,) if is_drop_in else (dtype, torch.float32)
    checks.vector("weight", weight, hidden, weight_dtypes, world.device)
    output: Output = "shared" if is_shared else "private"
    reduce = prepare_reduction(
        world,
        native.weave.OP_ALLREDUCE_RMSNORM,
        num_tokens=num_tokens,
        hidden=hidden,
        dtype=dtype,
        weight_dtype=weight.dtype,
        algorithm=algorithm,
        output=output,
        residual_layout=residual_layout,
        residual_dtype=residual_dtype,
        norm=norm,
        numerics=numerics,
        quantized=quantized,
    )
    rows_shape = residual_shape(x_partial, world, num_tokens, hidden, residual_layout)
    return FusedCall(reduce, rows_shape, residual_dtype, torch.Size((hidden,)), world.device)
