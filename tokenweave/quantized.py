"""The fused reduction with 8-bit results. All of tokenweave/ops.py's page applies."""

from typing import TYPE_CHECKING, NamedTuple

import torch

from tokenfabric.errors import ConfigError
from tokenweave import checks, torch_quantized
from tokenweave.forms import NormKind, Numerics
from tokenweave.fused_call import FusedCall, Key, check_residual_dtype, prepare_fused
from tokenweave.hierarchical import HierarchicalReduction
from tokenweave.plan import Algorithm, ResidualLayout
from tokenweave.quantized_output import QuantizedOutput

if TYPE_CHECKING:
    from tokenfabric.world import World


class QuantizedRows(NamedTuple):
    """What `allreduce_rmsnorm_quantized` returns."""

    quantized: torch.Tensor
    """[..., hidden] torch.float8_e4m3fn or torch.int8, on all ranks."""
    scales: torch.Tensor
    """fp32, [...], [..., ceil(hidden / 128)] or, static, a scalar: see QuantizedOutput."""
    residual: torch.Tensor
    """As residual_layout and residual_dtype say."""
    normed: torch.Tensor | None
    """[..., hidden], if the output keeps it."""


def allreduce_rmsnorm_quantized(
    x_partial: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    *,
    output: QuantizedOutput,
    world: "World",
    eps: float = 1e-6,
    bias: torch.Tensor | None = None,
    weight_offset: float = 0.0,
    residual_layout: ResidualLayout = "replicated",
    algorithm: Algorithm = "auto",
    norm: NormKind = "rms_norm",
    norm_bias: torch.Tensor | None = None,
    numerics: Numerics = "fused",
    residual_dtype: torch.dtype | None = None,
    out: QuantizedRows | None = None,
) -> QuantizedRows:
    """All-reduce, add bias and residual, normalize, quantise: one kernel.

        normed, residual = allreduce_rmsnorm(...)
        quantized = round(normed * (1 / scale)), to nearest even, saturating

    normed is what `tokenweave.allreduce_rmsnorm` returns for these arguments, to the bit. In
    two-shot the owner of a row quantises it, so that codes travel and not activations. Collective.

    Args:
        output: format, scales, and whether normed is wanted too. Equal on all ranks.
        x_partial, residual, weight, world, eps, bias, weight_offset, residual_layout, algorithm,
            norm, norm_bias, numerics, residual_dtype: see `tokenweave.allreduce_rmsnorm`.
        out: where the results go, such as those of an earlier call; out.residual may be residual.

    Returns:
        QuantizedRows(quantized, scales, residual, normed or None): private memory of the rank.

    Raises:
        ConfigError, MismatchError, PeerLostError, CommTimeoutError: as `allreduce_rmsnorm`.
    """
    if torch.compiler.is_compiling() and out is None:
        results = torch_quantized.traced(
            x_partial, residual, weight, bias, eps, weight_offset, residual_layout, algorithm,
            world.group_name, norm, norm_bias, numerics, residual_dtype, output,
        )  # fmt: skip
        return QuantizedRows(*results)
    if not isinstance(output, QuantizedOutput):
        raise ConfigError(f"output must be a QuantizedOutput, got {output!r}")
    if residual_dtype is not None:
        check_residual_dtype(residual, residual_dtype)
    kept_dtype = residual_dtype if residual is None else residual.dtype
    key: Key = (x_partial.shape, x_partial.dtype, weight.dtype, residual_layout, algorithm, False,
                norm, numerics, kept_dtype, output)  # fmt: skip
    call: FusedCall = world.prepared.get(key) or prepare_fused(world, key, x_partial, weight)
    call.check(key, x_partial, residual, weight, bias, norm_bias)
    if out is None:
        codes, scales, normed = torch_quantized.empty_results(x_partial, output)
        new_residual = x_partial.new_empty(call.rows_shape, dtype=call.residual_dtype)
        out = QuantizedRows(codes, scales, new_residual, normed)
    else:
        _check_out(out, x_partial, output, call)
    assert not isinstance(call.reduce, HierarchicalReduction), "refused by prepare_fused"
    call.reduce.quantized(
        world, x_partial, residual, bias, weight, norm_bias, out.normed, out.residual,
        out.quantized, None if output.scale is not None else out.scales, eps, weight_offset,
    )  # fmt: skip
    return out


def _check_out(
    out: QuantizedRows, x: torch.Tensor, output: QuantizedOutput, call: FusedCall
) -> None:
    code_dtype = torch_quantized.CODE_DTYPE[output.format]
    scales_shape = torch.Size(output.scales_shape(x.shape[:-1], x.shape[-1]))
    checks.like("out.quantized", out.quantized, x.shape, code_dtype, x.device)
    checks.like("out.scales", out.scales, scales_shape, torch.float32, x.device)
    checks.like("out.residual", out.residual, call.rows_shape, call.residual_dtype, x.device)
    checks.like("out.normed", out.normed, x.shape, x.dtype, x.device)
    if (out.normed is not None) != output.keeps_normed:
        raise ConfigError(f"out.normed must be there exactly if it is kept, which {output} says")
    if output.scale is not None:
        out.scales.fill_(output.scale)
