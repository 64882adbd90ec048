"""How a kernel that computes delta from out is given delta instead."""

import torch
from torch import Tensor

from tokenring.local_protocol import accumulation_dtype


def pseudo_out(dout: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """Return (out', dout) in the dtype of dout, with rowsum(dout * out') = delta.

    out' = delta * dout / |dout|^2, the part of out that lies along dout. So a kernel that takes out
    takes delta, which needs head_dim times less to be sent, and has the gradient of lse in it.

    Where dout is zero, or vanishes against delta (which a gradient of lse alone can cause), no out'
    is finite: such a row gets a dout of 2**-64 * |delta|, too small to be seen in any gradient.
    """
    wide = accumulation_dtype(dout.dtype)
    dout_wide, delta = dout.to(wide), delta[..., None].to(wide)
    largest = dout_wide.abs().amax(dim=-1, keepdim=True)
    least = (delta.abs() * 2.0**-64).clamp(min=2.0**-100)
    is_lost = (largest < least) & (delta != 0)
    # On a GPU the question would wait for it.
    if dout.is_cuda or is_lost.any():
        first = torch.zeros_like(dout_wide)
        first[..., :1] = least
        dout_wide = torch.where(is_lost, first, dout_wide)
        largest = torch.where(is_lost, least, largest)
        dout = dout_wide.to(dout.dtype)
    # Powers of the largest element would leave the range of fp32 where the element itself does not.
    largest = largest.masked_fill(largest == 0, 1)
    unit = dout_wide / largest
    length = unit.square().sum(dim=-1, keepdim=True)
    out = unit * (delta / (length.clamp(min=1) * largest))
    return out.to(dout.dtype), dout
