"""Local attention by flash kernels that take one window: what is around them, whosever they are.

What all of them have in common, and what shapes this file:

    - operands are [batch, rows, heads, head_dim], the last stride 1, every row at a multiple of 16
      bytes, head_dim a multiple of 8; k and v may have fewer heads. out lies the same way, lse as
      [batch, heads, rows], natural logarithm, fp32.
    - windows count from the bottom right: see windows.py. One without a left bound and with 0 on
      the right is the causal kernel.
    - a row that sees nothing gets an lse that is not -inf: there is none here, the window is
      trimmed.
    - backward reads `out` only for rowsum(dout * out), see pseudo_out.py; an lse of +inf means no
      gradient.
"""

import math
from abc import ABC, abstractmethod

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


class WindowAttention(ABC):
    """See LocalAttention. Enqueued on the current stream; nothing waits for the GPU."""

    @property
    @abstractmethod
    def capability(self) -> Capability:
        """What the kernels can do."""

    @abstractmethod
    def forward_window(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float,
        left: int | None,
        right: int | None,
        softcap: float | None,
    ) -> tuple[Tensor, Tensor]:
        """Return out and lse of one window, as the head of the file says."""

    @abstractmethod
    def backward_window(
        self,
        dout: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        *,
        scale: float,
        left: int | None,
        right: int | None,
        softcap: float | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return dq, dk and dv of one window; lse is contiguous."""

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
        self._refuse_softcap(softcap)
        window = window_of_band(q.shape[1], k.shape[1], *band)
        if window is None or not q.shape[0] * q.shape[2]:
            return []
        head_dim_v = v.shape[3]
        rows, columns = _slices(window)
        q, k, v = _operands(q[:, rows], k[:, columns], v[:, columns])
        out, lse = self.forward_window(
            q, k, v, scale=scale, left=window.left, right=window.right, softcap=softcap
        )
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
        self._refuse_softcap(softcap)
        window = window_of_band(q.shape[1], k.shape[1], *band)
        if window is None or not q.shape[0] * q.shape[2]:
            return
        head_dim, head_dim_v = q.shape[3], v.shape[3]
        rows, columns = _slices(window)
        out, dout = pseudo_out(dout[:, rows], delta[:, rows])
        q, k, v, out, dout = _operands(q[:, rows], k[:, columns], v[:, columns], out, dout)
        lse = lse[:, rows].transpose(1, 2)
        lse = lse.masked_fill(torch.isneginf(lse), math.inf).contiguous()
        part_q, part_k, part_v = self.backward_window(
            dout, q, k, v, out, lse,
            scale=scale, left=window.left, right=window.right, softcap=softcap,
        )  # fmt: skip
        dq[:, rows].add_(part_q[..., :head_dim])
        dk[:, columns].add_(part_k[..., :head_dim])
        dv[:, columns].add_(part_v[..., :head_dim_v])

    def _refuse_softcap(self, softcap: float | None) -> None:
        capability = self.capability
        if softcap is not None and not capability.has_softcap:
            raise ConfigError(
                f"{capability.name} has no softcap, got {softcap}: choose with has_softcap=True"
            )


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
