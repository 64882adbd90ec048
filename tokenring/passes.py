"""Forward and backward of an attention call on this rank's tensors, whoever differentiates."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokenring.call import Attention, walk_plan
from tokenring.engine import Parts
from tokenring.local_protocol import accumulation_dtype, row_delta

if TYPE_CHECKING:
    from tokenfabric.world import World


def attend(
    world: "World", attention: Attention, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return new out and lse of this rank's rows. Collective; without a graph."""
    inputs: Parts = {"q": (with_plain_rows(q),), "kv": (with_plain_rows(k), with_plain_rows(v))}
    wide_sinks = None if sinks is None else sinks.detach().float()
    results = walk_plan(world, attention, "forward", inputs, wide_sinks)
    if "out" in results:
        lse, out = results["out"]
        return out, lse
    out = q.new_empty((*q.shape[:3], attention.head_dim_v))
    return out, q.new_empty(q.shape[:3], dtype=accumulation_dtype(q.dtype))


def attend_backward(
    world: "World",
    attention: Attention,
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    sinks: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return dq, dk, dv and this rank's share of dsinks, if there are sinks. Collective."""
    delta = row_delta(dout, out, dlse)
    inputs: Parts = {
        "pack": (lse, delta, with_plain_rows(q), with_plain_rows(dout)),
        "kv": (with_plain_rows(k), with_plain_rows(v)),
    }
    results = walk_plan(world, attention, "backward", inputs)
    (dq,) = results.get("dq", (torch.zeros_like(q),))
    dk, dv = results.get("dkv", (torch.zeros_like(k), torch.zeros_like(v)))
    if sinks is None:
        return dq, dk, dv, None
    # out = sum(p v) with p_sink beside the p: d out / d sink = -p_sink out.
    p_sink = torch.exp(sinks.to(lse.dtype) - lse)
    return dq, dk, dv, -(p_sink * delta).sum(dim=(0, 1)).to(sinks.dtype)


def with_plain_rows(x: Tensor) -> Tensor:
    """Return x with its last dimension dense: what local kernels and messages need."""
    return x if x.stride(-1) == 1 else x.contiguous()
