"""Local attention by torch's flash kernels for GPUs, which return lse and take it back.

Facts about the two ops (torch 2.11 to 2.13), beside those of local_window.py: head_dim up to 256, a
negative bound means none, backward adds dq with atomics (not the same bits every time), there is no
softcap.
"""

from typing import Any

import torch
from torch import Tensor

from tokenring.capability import Capability
from tokenring.local_window import WindowAttention

_MAX_HEAD_DIM = 256


class FlashCuda(WindowAttention):
    """See LocalAttention."""

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
        """See WindowAttention."""
        results: Any = torch.ops.aten._flash_attention_forward(
            q, k, v, None, None, q.shape[1], k.shape[1], 0.0, False, False,
            scale=scale, window_size_left=left, window_size_right=right,
        )  # fmt: skip
        out, lse = results[:2]
        return out, lse

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
        """See WindowAttention."""
        no_seed = torch.zeros(2, dtype=torch.int64, device=q.device).view(torch.uint64)
        gradients: Any = torch.ops.aten._flash_attention_backward(
            dout, q, k, v, out, lse, None, None, q.shape[1], k.shape[1], 0.0, False,
            no_seed, no_seed[:0],
            scale=scale, window_size_left=left, window_size_right=right,
        )  # fmt: skip
        dq, dk, dv = gradients
        return dq, dk, dv
