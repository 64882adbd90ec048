"""Local attention by torch's cuDNN ops, which return lse and take it back.

Facts about the two ops (torch 2.11 to 2.13): operands are [batch, heads, rows, head_dim] in any
strides with 1 in the last, out lies the same way, lse is [batch, heads, rows, 1] fp32; k and v may
have fewer heads; head_dim is a multiple of 8, up to 128 on every GPU that has them. Causal counts
from the top left; there is no other window and no softcap. None stands for the tensors of dropout,
bias and packed rows.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from tokenfabric.errors import ConfigError
from tokenring.capability import Capability, band_kind
from tokenring.local_protocol import BandBounds, check_block, check_gradients
from tokenring.partial import Partial
from tokenring.pseudo_out import pseudo_out

_HEAD_DIM_STEP = 8
_MAX_HEAD_DIM = 128


class CudnnAttention:
    """See LocalAttention. Enqueued on the current stream; nothing waits for the GPU."""

    @property
    def capability(self) -> Capability:
        has_ops = torch.backends.cudnn.is_available() and hasattr(
            torch.ops.aten, "_cudnn_attention_forward"
        )
        return Capability(
            name="cudnn",
            devices=frozenset({"cuda"}),
            dtypes=frozenset({"bfloat16", "float16"}),
            bands=frozenset({"full", "causal"}),
            max_head_dim=_MAX_HEAD_DIM,
            has_softcap=False,
            has_backward=True,
            is_deterministic=False,
            is_optional=True,
            why_unavailable=None if has_ops else "needs a torch built with cuDNN attention",
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
        is_causal = _is_causal(band, softcap)
        if not q.numel() or not k.numel():
            return []
        head_dim_v = v.shape[3]
        q, k, v = _operands(q, k, v)
        results: Any = torch.ops.aten._cudnn_attention_forward(
            q, k, v, None, None, None, q.shape[2], k.shape[2], True, 0.0, is_causal, False,
            scale=scale,
        )  # fmt: skip
        out, lse = results[:2]
        return [Partial(out.transpose(1, 2)[..., :head_dim_v], _by_row(lse))]

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
        is_causal = _is_causal(band, softcap)
        if not q.numel() or not k.numel():
            return
        head_dim, head_dim_v = q.shape[3], v.shape[3]
        out, dout = pseudo_out(dout, delta)
        q, k, v, out, dout = _operands(q, k, v, out, dout)
        # exp(s - inf) is 0: a row that saw nothing has no gradient.
        lse = lse.transpose(1, 2).masked_fill(torch.isneginf(lse.transpose(1, 2)), math.inf)
        gradients: Any = torch.ops.aten._cudnn_attention_backward(
            dout, q, k, v, out, lse.contiguous()[..., None], None, None, None, None, None,
            q.shape[2], k.shape[2], 0.0, is_causal,
            scale=scale,
        )  # fmt: skip
        for total, part, width in zip(
            (dq, dk, dv), gradients, (head_dim, head_dim, head_dim_v), strict=True
        ):
            total.add_(part.transpose(1, 2)[..., :width])


def _is_causal(band: BandBounds, softcap: float | None) -> bool:
    kind = band_kind(*band)
    if kind not in ("full", "causal"):
        raise ConfigError(f"cudnn has no {kind} mask, got band {band}: choose with its kind")
    if softcap is not None:
        raise ConfigError(f"cudnn has no softcap, got {softcap}: choose with has_softcap=True")
    return kind == "causal"


def _operands(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return [batch, heads, rows, ..] of one head_dim, in memory of its own where it was not whole.

    Zeros behind a shorter head_dim change neither scores nor the outputs before them.
    """
    longest = max(tensor.shape[3] for tensor in tensors)
    head_dim = -(-longest // _HEAD_DIM_STEP) * _HEAD_DIM_STEP
    return tuple(
        pad(tensor, (0, head_dim - tensor.shape[3])).contiguous().transpose(1, 2)
        for tensor in tensors
    )


def _by_row(lse: Tensor) -> Tensor:
    """[batch, heads, rows, 1] or [batch, heads, rows] as [batch, rows, heads]."""
    return lse.flatten(2).transpose(1, 2)
