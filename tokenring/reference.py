"""Attention as defined, on one device, with all scores at once: what everything is tested against.

O(tokens_q * tokens_kv) memory. Run it in fp64; gradients come from autograd. The implementation
that ranks can use without a kernel is local_tiled.py.
"""

import math

import torch
from torch import Tensor

from tokenfabric.errors import ConfigError


def visible(
    q_positions: Tensor,
    kv_positions: Tensor,
    *,
    is_causal: bool = False,
    window: tuple[int | None, int | None] = (None, None),
) -> Tensor:
    """Return which keys each query sees, bool [tokens_q, tokens_kv].

    A query at p sees a key at k iff p - left <= k <= p + right, and k <= p if causal.

    Args:
        q_positions: integers [tokens_q].
        kv_positions: integers [tokens_kv].
        is_causal: no key after the query.
        window: (left, right), each None without end.
    """
    apart = kv_positions[None, :] - q_positions[:, None]
    left, right = window
    mask = torch.ones_like(apart, dtype=torch.bool)
    if is_causal:
        mask &= apart <= 0
    if left is not None:
        mask &= apart >= -left
    if right is not None:
        mask &= apart <= right
    return mask


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    mask: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return out = softmax(s) v and lse = log(sum(exp(s))), over the keys that a query sees.

    s = scale * q k^T, then softcap * tanh(s / softcap). A sink is one more score of its head, with
    no value: it is in the denominator and in lse. A row that sees no key has out 0; its lse is -inf
    without a sink. Differentiable in q, k, v and sinks, through out and lse.

    Args:
        q: [batch, tokens_q, heads_q, head_dim].
        k: [batch, tokens_kv, heads_kv, head_dim]; query head h reads KV head h // group.
        v: [batch, tokens_kv, heads_kv, head_dim_v].
        scale: 1 / sqrt(head_dim) if None.
        mask: bool, true where visible, broadcast to [batch, heads_q, tokens_q, tokens_kv].
        softcap: None for none, else above 0.
        sinks: [heads_q].

    Returns:
        out [batch, tokens_q, heads_q, head_dim_v] and lse [batch, tokens_q, heads_q], new tensors
        in the dtype of q.

    Raises:
        ConfigError: heads_q is not a multiple of heads_kv, or softcap is not above 0.
    """
    heads_q, heads_kv = q.shape[2], k.shape[2]
    if heads_kv == 0 or heads_q % heads_kv:
        raise ConfigError(f"{heads_q} query heads are not a multiple of {heads_kv} KV heads")
    if softcap is not None and not softcap > 0:
        raise ConfigError(f"softcap is {softcap}: pass a number above 0, or None")
    group = heads_q // heads_kv
    k, v = k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k)
    scores = scores * (1 / math.sqrt(q.shape[3]) if scale is None else scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    if sinks is not None:
        sink = sinks.to(scores.dtype)[None, :, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat((scores, sink), dim=3)
    # A row without a key: any other values in its place keep the gradients free of NaN.
    is_empty = torch.isneginf(scores).all(dim=3, keepdim=True)
    scores = scores.masked_fill(is_empty, 0)
    lse = torch.logsumexp(scores, dim=3)
    weights = torch.exp(scores - lse[..., None])[..., : v.shape[1]].masked_fill(is_empty, 0)
    out = torch.einsum("bhqk,bkhd->bqhd", weights, v)
    lse = lse.masked_fill(is_empty[..., 0], -math.inf)
    return out, lse.transpose(1, 2)
