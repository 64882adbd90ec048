"""Local attention by torch's flash kernel for CPUs, which returns lse and takes it back.

Facts about the two ops (torch 2.13) that shape this file:

    - operands are [batch, heads, rows, head_dim] of any strides but the last, which must be 1:
      others give wrong numbers without a word. out lies as [batch, rows, heads, head_dim] and lse
      as [batch, rows, heads], so that both are seen without a copy here.
    - no q rows or no kv rows end the process with a division by zero.
    - is_causal counts from the top left, also with unequal lengths. There is no window.
    - a mask is added to the scores, in the dtype of q. A row without a visible key gets lse 0:
      there is none here, see tiles.py.
    - a row that sees only NaN scores may get lse 0 and out 0, see `_may_hide_nan`.
    - k and v may have fewer heads; q, k and v have one head_dim.
    - backward reads `out` only for rowsum(dout * out), see pseudo_out.py. An lse of -inf gives NaN
      gradients, one of +inf gives zero: what a row that saw nothing shall get.
    - fp16 is computed by scalar code, backward 15 times slower than fp32: it is widened here.
"""

import math
from typing import Any

import torch
from torch import Tensor

from tokenfabric.errors import ConfigError
from tokenring.capability import Capability
from tokenring.local_protocol import (
    BandBounds,
    check_block,
    check_gradients,
)
from tokenring.local_tiled import Tiled
from tokenring.partial import Partial
from tokenring.pseudo_out import pseudo_out
from tokenring.tiles import Tile, split_band

_FORWARD, _BACKWARD = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention_for_cpu_backward",
)
# Below this many rows the kernel's products have idle lanes: heads of a group then go as rows.
_FEW_ROWS = 32


class FlashCpu:
    """See LocalAttention."""

    @property
    def capability(self) -> Capability:
        missing = [name for name in (_FORWARD, _BACKWARD) if not hasattr(torch.ops.aten, name)]
        return Capability(
            name="flash_cpu",
            devices=frozenset({"cpu"}),
            dtypes=frozenset({"float32", "bfloat16", "float16", "float64"}),
            bands=frozenset({"full", "causal", "offset", "window"}),
            max_head_dim=None,
            has_softcap=False,
            has_backward=True,
            is_deterministic=True,
            why_unavailable=f"needs {missing[0]}, which this torch lacks" if missing else None,
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
        _refuse_softcap(softcap)
        if not q.shape[0] * q.shape[2]:
            return []
        head_dim_v = v.shape[3]
        q, k, v = _operands(q, k, v)
        masks: dict[Tile, Tensor] = {}
        partials = []
        for tile in split_band(q.shape[1], k.shape[1], *band):
            rows, columns = slice(tile.q_start, tile.q_stop), slice(tile.kv_start, tile.kv_stop)
            out, lse = _attend(q[:, rows], k[:, columns], v[:, columns], tile, scale, masks)
            partials.append(Partial(out[..., :head_dim_v], lse, row_start=tile.q_start))
        if any(_may_hide_nan(partial) for partial in partials):
            # Rare, and right also where there was nothing to hide.
            return Tiled().forward(q, k, v[..., :head_dim_v], scale=scale, band=band)
        return partials

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
        _refuse_softcap(softcap)
        tiles = split_band(q.shape[1], k.shape[1], *band) if q.shape[0] * q.shape[2] else ()
        if not tiles:
            return
        head_dim, head_dim_v = q.shape[3], v.shape[3]
        q, k, v, dout = _operands(q, k, v, dout)
        out, dout = pseudo_out(dout, delta)
        lse = lse.masked_fill(torch.isneginf(lse), math.inf)
        masks: dict[Tile, Tensor] = {}
        for tile in tiles:
            rows, columns = slice(tile.q_start, tile.q_stop), slice(tile.kv_start, tile.kv_stop)
            of_q = (_order(x[:, rows], tile) for x in (dout, q, out, lse))
            of_kv = (_order(x[:, columns], tile) for x in (k, v))
            (dout_t, q_t, out_t, lse_t), (k_t, v_t) = of_q, of_kv
            gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                *(x.transpose(1, 2) for x in (dout_t, q_t, k_t, v_t, out_t, lse_t)),
                0.0,
                tile.kind in ("causal", "reversed"),
                attn_mask=_mask_of(tile, q, masks),
                scale=scale,
            )
            part_q, part_k, part_v = (_order(x.transpose(1, 2), tile) for x in gradients)
            dq[:, rows].add_(part_q[..., :head_dim])
            dk[:, columns].add_(part_k[..., :head_dim])
            dv[:, columns].add_(part_v[..., :head_dim_v])


def _refuse_softcap(softcap: float | None) -> None:
    if softcap is not None:
        raise ConfigError(f"flash_cpu has no softcap, got {softcap}: choose with has_softcap=True")


def _operands(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors as the kernel takes them: one head_dim, unit stride, no fp16.

    Zeros behind a shorter head_dim change neither scores nor the outputs before them.
    """
    head_dim = max(tensor.shape[3] for tensor in tensors)
    result = []
    for tensor in tensors:
        if tensor.dtype == torch.float16:
            tensor = tensor.float()
        if tensor.shape[3] < head_dim:
            tensor = torch.nn.functional.pad(tensor, (0, head_dim - tensor.shape[3]))
        result.append(tensor if tensor.stride(3) == 1 else tensor.contiguous())
    return tuple(result)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, tile: Tile, scale: float, masks: dict[Tile, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return out and lse of one tile, as views of what the kernel wrote where that is possible."""
    batch, rows, heads, _ = q.shape
    heads_kv = k.shape[2]
    group = heads // heads_kv
    is_folded = tile.kind == "full" and group > 1 and rows <= _FEW_ROWS
    if is_folded:
        # Every row sees the same keys, so which head of a group a row is of does not matter: the
        # keys are read once for the group and not once for each of its heads.
        q = q.reshape(batch, rows, heads_kv, group, -1).transpose(2, 3).flatten(1, 2)
    q, k, v = (_order(x, tile) for x in (q, k, v))
    results: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *(x.transpose(1, 2) for x in (q, k, v)),
        0.0,
        tile.kind in ("causal", "reversed"),
        attn_mask=_mask_of(tile, q, masks),
        scale=scale,
    )
    out, lse = (_order(x.transpose(1, 2), tile) for x in results)
    if is_folded:
        out = out.view(batch, rows, group, heads_kv, -1).transpose(2, 3).flatten(2, 3)
        lse = lse.view(batch, rows, group, heads_kv).transpose(2, 3).flatten(2, 3)
    return out, lse


def _may_hide_nan(partial: Partial) -> bool:
    """Return whether a row looks as one does whose scores are all NaN, or all infinite."""
    suspects = partial.lse == 0
    return bool(suspects.any()) and bool((partial.out[suspects] == 0).all(dim=-1).any())


def _order(tensor: Tensor, tile: Tile) -> Tensor:
    return tensor.flip(1) if tile.kind == "reversed" else tensor


def _mask_of(tile: Tile, q: Tensor, masks: dict[Tile, Tensor]) -> Tensor | None:
    """Return the tile's mask, [q rows, kv rows] in the dtype of q: 0 where visible, else -inf."""
    if tile.kind != "masked":
        return None
    rows, columns = tile.q_stop - tile.q_start, tile.kv_stop - tile.kv_start
    # All tiles inside a window have the same one.
    key = Tile(0, rows, 0, columns, "masked", tile.lower, tile.upper)
    if key not in masks:
        mask = q.new_zeros(rows, columns)
        apart = torch.arange(columns) - torch.arange(rows)[:, None]
        if tile.upper is not None:
            mask.masked_fill_(apart > tile.upper, -math.inf)
        if tile.lower is not None:
            mask.masked_fill_(apart < tile.lower, -math.inf)
        masks[key] = mask
    return masks[key]
