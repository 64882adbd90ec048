"""torch.ops.tokenweave.allreduce_rmsnorm_quantized, as tokenweave/torch_ops.py has the others.

An operator returns tensors, never None: normed that is not kept comes back without elements.
"""

import torch

from tokenfabric.world import find_world
from tokenweave.forms import NormKind, Numerics
from tokenweave.plan import Algorithm, ResidualLayout
from tokenweave.quantized_output import QuantizedFormat, QuantizedOutput, Scaling
from tokenweave.torch_ops import NORM_ARGUMENTS, define, fake_residual

Results = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]

CODE_DTYPE = {"fp8_e4m3": torch.float8_e4m3fn, "int8": torch.int8}


def empty_results(
    x: torch.Tensor, output: QuantizedOutput
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return (quantized, scales, normed or None) for x; scales hold a static scale already."""
    quantized = x.new_empty(x.shape, dtype=CODE_DTYPE[output.format])
    scales_shape = output.scales_shape(x.shape[:-1], x.shape[-1])
    scales = x.new_empty(scales_shape, dtype=torch.float32)
    if output.scale is not None:
        scales.fill_(output.scale)
    return quantized, scales, torch.empty_like(x) if output.keeps_normed else None


def traced(
    x_partial: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    weight_offset: float,
    residual_layout: ResidualLayout,
    algorithm: Algorithm,
    group_name: str,
    norm: NormKind,
    norm_bias: torch.Tensor | None,
    numerics: Numerics,
    residual_dtype: torch.dtype | None,
    output: QuantizedOutput,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Express `allreduce_rmsnorm_quantized` by the operator, inside torch.compile."""
    codes, scales, new_residual, normed = torch.ops.tokenweave.allreduce_rmsnorm_quantized(
        x_partial, residual, weight, bias, eps, weight_offset, residual_layout, algorithm,
        group_name, norm, norm_bias, numerics, residual_dtype, output.format, output.scaling,
        output.scale, output.keeps_normed,
    )  # fmt: skip
    return codes, scales, new_residual, normed if output.keeps_normed else None


def _allreduce_rmsnorm_quantized(
    x_partial: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    weight_offset: float,
    residual_layout: ResidualLayout,
    algorithm: Algorithm,
    group_name: str,
    norm: NormKind = "rms_norm",
    norm_bias: torch.Tensor | None = None,
    numerics: Numerics = "fused",
    residual_dtype: torch.dtype | None = None,
    format: QuantizedFormat = "fp8_e4m3",
    scaling: Scaling = "per_token",
    scale: float | None = None,
    keeps_normed: bool = False,
) -> Results:
    from tokenweave import quantized

    codes, scales, new_residual, normed = quantized.allreduce_rmsnorm_quantized(
        x_partial,
        residual,
        weight,
        output=QuantizedOutput(
            format=format, scaling=scaling, scale=scale, keeps_normed=keeps_normed
        ),
        world=find_world(group_name),
        eps=eps,
        bias=bias,
        weight_offset=weight_offset,
        residual_layout=residual_layout,
        algorithm=algorithm,
        norm=norm,
        norm_bias=norm_bias,
        numerics=numerics,
        residual_dtype=residual_dtype,
    )
    return codes, scales, new_residual, x_partial.new_empty(0) if normed is None else normed


def _fake(
    x_partial: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    weight_offset: float,
    residual_layout: ResidualLayout,
    algorithm: Algorithm,
    group_name: str,
    norm: NormKind = "rms_norm",
    norm_bias: torch.Tensor | None = None,
    numerics: Numerics = "fused",
    residual_dtype: torch.dtype | None = None,
    format: QuantizedFormat = "fp8_e4m3",
    scaling: Scaling = "per_token",
    scale: float | None = None,
    keeps_normed: bool = False,
) -> Results:
    output = QuantizedOutput(format=format, scaling=scaling, scale=scale, keeps_normed=keeps_normed)
    codes, scales, normed = empty_results(x_partial, output)
    kept_dtype = residual_dtype if residual is None else residual.dtype
    new_residual = fake_residual(x_partial, residual_layout, kept_dtype, group_name)
    return codes, scales, new_residual, x_partial.new_empty(0) if normed is None else normed


define(
    "allreduce_rmsnorm_quantized",
    f"Tensor x_partial, Tensor? residual, {NORM_ARGUMENTS}, ScalarType? residual_dtype=None, "
    "str format='fp8_e4m3', str scaling='per_token', float? scale=None, bool keeps_normed=False) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _allreduce_rmsnorm_quantized,
    _fake,
)
