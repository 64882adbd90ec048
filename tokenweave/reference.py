"""The fused operation in plain torch: what the kernels are measured against, and a page to read
first.
"""

import torch


def allreduce_rmsnorm_reference(
    x_partials: list[torch.Tensor],
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    *,
    eps: float,
    bias: torch.Tensor | None = None,
    weight_offset: float = 0.0,
    compute_dtype: torch.dtype = torch.float64,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (normed, residual) of all ranks' partial sums, unrounded, in `compute_dtype`.

        s = sum(x_partials) + bias + residual
        normed = s * rsqrt(mean(s ** 2) + eps) * (weight_offset + weight);   residual = s

    Args:
        x_partials: [..., hidden] of every rank.
        residual: [..., hidden] or None.
        weight, bias: [hidden]; bias may be None.
        compute_dtype: float64 for an oracle.
    """
    total = torch.stack([x.to(compute_dtype) for x in x_partials]).sum(0)
    if bias is not None:
        total = total + bias.to(compute_dtype)
    if residual is not None:
        total = total + residual.to(compute_dtype)
    scale = torch.rsqrt(total.square().mean(-1, keepdim=True) + eps)
    return total * scale * (weight_offset + weight.to(compute_dtype)), total
