"""Local attention by the package flash-attn 2, if it is installed.

Facts about `flash_attn.flash_attn_interface` from version 2.7 on, beside those of local_window.py:
head_dim up to 256, GPUs from compute capability 8.0 on, a window bound of -1 means none, softcap 0
means none. The functions called are those under its autograd, which return lse and take it back.
"""

import importlib
from typing import Any

import torch
from torch import Tensor

from tokenring.capability import Capability
from tokenring.installed import why_not_installed, why_not_on_this_gpu
from tokenring.local_window import WindowAttention

_LEAST_VERSION = (2, 7)
_MAX_HEAD_DIM = 256


class FlashAttn2(WindowAttention):
    """See LocalAttention."""

    @property
    def capability(self) -> Capability:
        return Capability(
            name="flash_attn_2",
            devices=frozenset({"cuda"}),
            dtypes=frozenset({"bfloat16", "float16"}),
            bands=frozenset({"full", "causal", "offset", "window"}),
            max_head_dim=_MAX_HEAD_DIM,
            has_softcap=True,
            has_backward=True,
            is_deterministic=False,
            is_optional=True,
            why_unavailable=why_not_installed("flash-attn", _LEAST_VERSION)
            or why_not_on_this_gpu(8, 9, 10, 12),
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
        out, lse, *_ = _interface()._flash_attn_forward(
            q, k, v,
            dropout_p=0.0,
            softmax_scale=scale,
            causal=False,
            window_size_left=-1 if left is None else left,
            window_size_right=-1 if right is None else right,
            softcap=0.0 if softcap is None else softcap,
            alibi_slopes=None,
            return_softmax=False,
        )  # fmt: skip
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
        dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        _interface()._flash_attn_backward(
            dout, q, k, v, out, lse, dq, dk, dv,
            dropout_p=0.0,
            softmax_scale=scale,
            causal=False,
            window_size_left=-1 if left is None else left,
            window_size_right=-1 if right is None else right,
            softcap=0.0 if softcap is None else softcap,
            alibi_slopes=None,
            deterministic=False,
        )  # fmt: skip
        return dq, dk, dv


def _interface() -> Any:
    return importlib.import_module("flash_attn.flash_attn_interface")
