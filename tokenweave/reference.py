"""The fused operation in plain torch: what the kernels are measured against, and a page to read
first.
"""

import torch

from tokenweave.forms import NormKind


def allreduce_rmsnorm_reference(
    x_partials: list[torch.Tensor],
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    *,
    eps: float,
    bias: torch.Tensor | None = None,
    weight_offset: float = 0.0,
    compute_dtype: torch.dtype = torch.float64,
    norm: NormKind = "rms_norm",
    norm_bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (normed, residual) of all ranks' partial sums, unrounded, in `compute_dtype`.

        s = sum(x_partials) + bias + residual
        normed = s * rsqrt(mean(s ** 2) + eps) * (weight_offset + weight);   residual = s

    With layer_norm: (s - mean(s)) * rsqrt(var(s) + eps) * (weight_offset + weight) + norm_bias.

    Args:
        x_partials: [..., hidden] of every rank.
        residual: [..., hidden] or None.
        weight, bias: [hidden]; bias may be None.
        compute_dtype: float64 for an oracle.
        norm, norm_bias: see `tokenweave.allreduce_rmsnorm`.
    """
    total = torch.stack([x.to(compute_dtype) for x in x_partials]).sum(0)
    if bias is not None:
        total = total + bias.to(compute_dtype)
    if residual is not None:
        total = total + residual.to(compute_dtype)
    centered = total - total.mean(-1, keepdim=True) if norm == "layer_norm" else total
    scale = torch.rsqrt(centered.square().mean(-1, keepdim=True) + eps)
    normed = centered * scale * (weight_offset + weight.to(compute_dtype))
    return (normed if norm_bias is None else normed + norm_bias.to(compute_dtype)), total
