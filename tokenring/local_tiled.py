"""Local attention in plain torch, in tiles, for what no kernel takes: any band, softcap, any dtype.

Readable before fast: it is what the kernels are compared with, and the fallback with a name.
Everything is computed in fp32 (fp64 for fp64); the memory is one tile of scores per head.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from tokenring.capability import Capability
from tokenring.local_protocol import (
    BandBounds,
    accumulation_dtype,
    check_block,
    check_gradients,
)
from tokenring.partial import Partial
from tokenring.tiles import trim

_TILE_Q, _TILE_KV = 256, 512


class _Tile(NamedTuple):
    kv: slice
    hidden: Tensor | None
    """bool [q rows, kv rows] of the tile, true where not visible; None if all are."""


class Tiled:
    """See LocalAttention."""

    @property
    def capability(self) -> Capability:
        return Capability(
            name="tiled",
            devices=frozenset({"cpu", "cuda"}),
            dtypes=frozenset({"float32", "bfloat16", "float16", "float64"}),
            bands=frozenset({"full", "causal", "offset", "window"}),
            max_head_dim=None,
            has_softcap=True,
            has_backward=True,
            is_deterministic=True,
        )

    @torch.no_grad()
    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float,
        band: BandBounds = (None, None),
        softcap: float | None = None,
    ) -> list[Partial]:
        check_block(q, k, v, scale, softcap)
        whole = trim(q.shape[1], k.shape[1], *band)
        if whole is None or not q.shape[0] * q.shape[2]:
            return []
        wide, heads_kv = accumulation_dtype(q.dtype), k.shape[2]
        rows = whole.q_stop - whole.q_start
        out = q.new_empty(q.shape[0], rows, q.shape[2], v.shape[3], dtype=wide)
        lse = q.new_empty(q.shape[0], rows, q.shape[2], dtype=wide)
        for start in range(whole.q_start, whole.q_stop, _TILE_Q):
            stop = min(start + _TILE_Q, whole.q_stop)
            q_tile = _by_group(q[:, start:stop].to(wide), heads_kv)
            highest = q_tile.new_full((*q_tile.shape[:3], 1), -math.inf)
            total = torch.zeros_like(highest)
            sums = q_tile.new_zeros(*q_tile.shape[:3], v.shape[3])
            for kv, hidden in _tiles_of(start, stop, k, band):
                scores = _scores(q_tile, k[:, kv].to(wide), scale, softcap)
                _hide(scores, hidden)
                before = highest
                highest = torch.maximum(highest, scores.amax(dim=-1, keepdim=True))
                # Nothing seen yet: -inf - -inf is NaN, and what it would scale is 0.
                level = highest.masked_fill(torch.isneginf(highest), 0)
                weights = torch.exp(scores - level)
                rescale = torch.exp(before - level)
                total = total * rescale + weights.sum(dim=-1, keepdim=True)
                sums = sums * rescale + weights @ _by_head(v[:, kv].to(wide))
            here = slice(start - whole.q_start, stop - whole.q_start)
            out[:, here] = _by_row(sums / total, stop - start)
            lse[:, here] = _by_row(highest + torch.log(total), stop - start)[..., 0]
        return [Partial(out, lse, row_start=whole.q_start)]

    @torch.no_grad()
    def backward(
        self,
        dout: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        lse: Tensor,
        delta: Tensor,
        *,
        scale: float,
        band: BandBounds = (None, None),
        softcap: float | None = None,
        dq: Tensor,
        dk: Tensor,
        dv: Tensor,
    ) -> None:
        check_block(q, k, v, scale, softcap)
        check_gradients(dout, q, k, v, (lse, delta), (dq, dk, dv))
        whole = trim(q.shape[1], k.shape[1], *band)
        if whole is None or not q.shape[0] * q.shape[2]:
            return
        wide, heads_kv = accumulation_dtype(q.dtype), k.shape[2]
        # exp(s - inf) is 0: a row that saw nothing has no gradient.
        lse = lse.masked_fill(torch.isneginf(lse), math.inf)
        for start in range(whole.q_start, whole.q_stop, _TILE_Q):
            stop = min(start + _TILE_Q, whole.q_stop)
            q_tile = _by_group(q[:, start:stop].to(wide), heads_kv)
            dout_tile = _by_group(dout[:, start:stop].to(wide), heads_kv)
            lse_tile = _by_group(lse[:, start:stop, :, None], heads_kv)
            delta_tile = _by_group(delta[:, start:stop, :, None], heads_kv)
            for kv, hidden in _tiles_of(start, stop, k, band):
                k_tile, v_tile = k[:, kv].to(wide), v[:, kv].to(wide)
                scores = _scores(q_tile, k_tile, scale, softcap)
                slope = scale if softcap is None else scale * (1 - (scores / softcap).square())
                _hide(scores, hidden)
                weights = torch.exp(scores - lse_tile)
                dv[:, kv].add_((weights.mT @ dout_tile).transpose(1, 2))
                dweights = dout_tile @ _by_head(v_tile).mT
                dscores = weights * (dweights - delta_tile) * slope
                dq[:, start:stop].add_(_by_row(dscores @ _by_head(k_tile), stop - start))
                dk[:, kv].add_((dscores.mT @ q_tile).transpose(1, 2))


def _tiles_of(start: int, stop: int, k: Tensor, band: BandBounds) -> Iterator[_Tile]:
    """Yield the tiles of kv rows that any of the q rows [start, stop) sees."""
    lower, upper = band
    kv_rows = k.shape[1]
    first = 0 if lower is None else max(0, start + lower)
    last = kv_rows if upper is None else min(kv_rows, stop + upper)
    for kv_start in range(first, last, _TILE_KV):
        kv_stop = min(kv_start + _TILE_KV, last)
        # From the bounds, not from the mask: on a GPU that question would wait for it.
        sees_all = (upper is None or kv_stop - 1 - start <= upper) and (
            lower is None or kv_start - (stop - 1) >= lower
        )
        if sees_all:
            yield _Tile(slice(kv_start, kv_stop), None)
            continue
        apart = (
            torch.arange(kv_start, kv_stop, device=k.device)
            - torch.arange(start, stop, device=k.device)[:, None]
        )
        hidden = torch.zeros_like(apart, dtype=torch.bool)
        if upper is not None:
            hidden |= apart > upper
        if lower is not None:
            hidden |= apart < lower
        yield _Tile(slice(kv_start, kv_stop), hidden)


def _scores(q_tile: Tensor, k_tile: Tensor, scale: float, softcap: float | None) -> Tensor:
    scores = (q_tile @ _by_head(k_tile).mT) * scale
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


def _hide(scores: Tensor, hidden: Tensor | None) -> None:
    if hidden is not None:
        scores.view(*scores.shape[:2], -1, *hidden.shape).masked_fill_(hidden, -math.inf)


def _by_head(tensor: Tensor) -> Tensor:
    """[batch, rows, heads, dim] as [batch, heads, rows, dim]."""
    return tensor.transpose(1, 2)


def _by_group(tensor: Tensor, heads_kv: int) -> Tensor:
    """[batch, rows, heads_q, dim] to [batch, heads_kv, group * rows, dim]: K is never repeated."""
    batch, rows, _, dim = tensor.shape
    groups = tensor.reshape(batch, rows, heads_kv, -1, dim)
    return groups.permute(0, 2, 3, 1, 4).flatten(2, 3)


def _by_row(tensor: Tensor, rows: int) -> Tensor:
    """Undo `_by_group`."""
    batch, heads_kv, _, dim = tensor.shape
    return tensor.view(batch, heads_kv, -1, rows, dim).permute(0, 3, 1, 2, 4).flatten(2, 3)
