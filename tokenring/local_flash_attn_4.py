"""Local attention by flash-attn 4, if it is installed: kernels for Hopper and Blackwell.

Facts about its module `flash_attn.cute.interface`, called as torch's own registration of it does
(torch/nn/attention/_fa4.py), beside those of local_window.py: head_dim up to 128 is what all its
kernels take, a window bound of None means none, causal is asked for by name. Its softcap has no
counterpart there and is not used.
"""

import importlib
from typing import Any

from torch import Tensor

from tokenring.capability import Capability
from tokenring.installed import why_not_installed, why_not_on_this_gpu
from tokenring.local_window import WindowAttention

_LEAST_VERSION = (4,)
_MAX_HEAD_DIM = 128


class FlashAttn4(WindowAttention):
    """See LocalAttention."""

    @property
    def capability(self) -> Capability:
        return Capability(
            name="flash_attn_4",
            devices=frozenset({"cuda"}),
            dtypes=frozenset({"bfloat16", "float16"}),
            bands=frozenset({"full", "causal", "offset", "window"}),
            max_head_dim=_MAX_HEAD_DIM,
            has_softcap=False,
            has_backward=True,
            is_deterministic=False,
            is_optional=True,
            why_unavailable=why_not_installed("flash-attn-4", _LEAST_VERSION)
            or why_not_on_this_gpu(9, 10),
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
        out, lse, *_ = _interface()._flash_attn_fwd(
            q, k, v, softmax_scale=scale, return_lse=True, **_mask(left, right)
        )
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
        dq, dk, dv, *_ = _interface()._flash_attn_bwd(
            q, k, v, out, dout, lse, softmax_scale=scale, **_mask(left, right)
        )
        return dq, dk, dv


def _mask(left: int | None, right: int | None) -> dict[str, Any]:
    if (left, right) == (None, 0):
        return {"causal": True, "window_size_left": None, "window_size_right": None}
    return {"causal": False, "window_size_left": left, "window_size_right": right}


def _interface() -> Any:
    return importlib.import_module("flash_attn.cute.interface")
