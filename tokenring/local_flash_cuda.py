"""Local attention by torch's flash kernels for GPUs, which return lse and take it back.

Facts about the two ops (torch 2.11 to 2.13) that shape this file:

    - operands are [batch, rows, heads, head_dim], the last stride 1, every row at a multiple of 16
      bytes, head_dim a multiple of 8 up to 256; k and v may have fewer heads. out lies the same
      way, lse as [batch, heads, rows], natural logarithm, fp32.
    - windows count from the bottom right, and a negative bound means none: see windows.py. A window
      without a left bound and with 0 on the right is the causal kernel.
    - a row that sees nothing gets an lse of +inf: there is none here, the window is trimmed.
    - backward reads `out` only for rowsum(dout * out), see pseudo_out.py; lse has to be contiguous,
      and +inf means no gradient. It adds dq with atomics: not the same bits every time.
    - there is no softcap.
"""

import math
from typing import Any

import torch
from torch import Tensor

from tokenfabric.errors import ConfigError
from tokenring.capability import Capability
from tokenring.local_protocol import BandBounds, check_block, check_gradients
from tokenring.partial import Partial
from tokenring.pseudo_out import pseudo_out
from tokenring.windows import Window, window_of_band

_ALIGNED_BYTES = 16
_HEAD_DIM_STEP = 8
_MAX_HEAD_DIM = 256


class FlashCuda:
    """See LocalAttention. Enqueued on the current stream; nothing waits for the GPU."""

    @property
    def capability(self) -> Capability:
        has_kernels = torch.backends.cuda.is_flash_attention_available()
        return Capability(
            name="flash_cuda",
            devices=frozenset({"cuda"}),
            dtypes=frozenset({"bfloat16", "float16"}),
            bands=frozenset({"full", "causal", "offset", "window"}),
            max_head_dim=_MAX_HEAD_DIM,
            has_softcap=False,
            has_backward=True,
            is_deterministic=False,
            why_unavailable=None if has_kernels else "needs a torch built with flash attention",
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
        window = window_of_band(q.shape[1], k.shape[1], *band)
        if window is None or not q.shape[0] * q.shape[2]:
            return []
        head_dim_v = v.shape[3]
        rows, columns = _slices(window)
        q, k, v = _operands(q[:, rows], k[:, columns], v[:, columns])
        results: Any = torch.ops.aten._flash_attention_forward(
            q, k, v, None, None, q.shape[1], k.shape[1], 0.0, False, False,
            scale=scale, window_size_left=window.left, window_size_right=window.right,
        )  # fmt: skip
        out, lse = results[:2]
        return [Partial(out[..., :head_dim_v], lse.transpose(1, 2), row_start=window.q_start)]

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
        window = window_of_band(q.shape[1], k.shape[1], *band)
        if window is None or not q.shape[0] * q.shape[2]:
            return
        head_dim, head_dim_v = q.shape[3], v.shape[3]
        rows, columns = _slices(window)
        out, dout = pseudo_out(dout[:, rows], delta[:, rows])
        q, k, v, out, dout = _operands(q[:, rows], k[:, columns], v[:, columns], out, dout)
        lse = lse[:, rows].transpose(1, 2)
        lse = lse.masked_fill(torch.isneginf(lse), math.inf).contiguous()
        no_seed = torch.zeros(2, dtype=torch.int64, device=q.device).view(torch.uint64)
        gradients: Any = torch.ops.aten._flash_attention_backward(
            dout, q, k, v, out, lse, None, None, q.shape[1], k.shape[1], 0.0, False,
            no_seed, no_seed[:0],
            scale=scale, window_size_left=window.left, window_size_right=window.right,
        )  # fmt: skip
        part_q, part_k, part_v = gradients
        dq[:, rows].add_(part_q[..., :head_dim])
        dk[:, columns].add_(part_k[..., :head_dim])
        dv[:, columns].add_(part_v[..., :head_dim_v])


def _refuse_softcap(softcap: float | None) -> None:
    if softcap is not None:
        raise ConfigError(f"flash_cuda has no softcap, got {softcap}: choose with has_softcap=True")


def _slices(window: Window) -> tuple[slice, slice]:
    return slice(window.q_start, window.q_stop), slice(window.kv_start, window.kv_stop)


def _operands(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors as the kernels take them: one head_dim, unit stride, aligned rows.

    Zeros behind a shorter head_dim change neither scores nor the outputs before them.
    """
    longest = max(tensor.shape[3] for tensor in tensors)
    head_dim = -(-longest // _HEAD_DIM_STEP) * _HEAD_DIM_STEP
    result = []
    for tensor in tensors:
        if tensor.shape[3] < head_dim:
            tensor = torch.nn.functional.pad(tensor, (0, head_dim - tensor.shape[3]))
        elif not _is_aligned(tensor):
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        result.append(tensor)
    return tuple(result)


def _is_aligned(tensor: Tensor) -> bool:
    step = _ALIGNED_BYTES // tensor.element_size()
    # A dimension of one element is never stepped along.
    strides = [
        stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1
    ]
    unit = tensor.shape[3] == 1 or tensor.stride(3) == 1
    others = strides[:-1] if tensor.shape[3] > 1 else strides
    return unit and tensor.data_ptr() % _ALIGNED_BYTES == 0 and all(s % step == 0 for s in others)
