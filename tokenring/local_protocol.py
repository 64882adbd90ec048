"""What an implementation of local attention must do: one block on one device, no communication.

A block is some q rows over some kv rows. Its mask is a band: row a sees row b iff
lower <= b - a <= upper, both counted from the block's own rows, either bound None for none.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from tokenfabric.errors import ConfigError
from tokenring.capability import Capability
from tokenring.partial import Partial

BandBounds = tuple[int | None, int | None]


class LocalAttention(Protocol):
    """One way to compute blocks of attention."""

    @property
    def capability(self) -> Capability:
        """What it can do; calls outside of it are not checked again."""
        ...

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
        """Return partials whose merge is the block's result; see Partial and merge.py.

        They may overlap in rows: what a kernel cannot do in one call comes in several, and one
        merge at the end of everything rounds less than a merge here would. A row in none of them
        sees nothing; an empty block gives an empty list.

        Args:
            q: [batch, q_rows, heads_q, head_dim].
            k: [batch, kv_rows, heads_kv, head_dim]; query head h reads KV head h // group.
            v: [batch, kv_rows, heads_kv, head_dim_v].
            scale: of the scores.
            band: (lower, upper).
            softcap: scores become softcap * tanh(scores / softcap).

        Returns:
            New tensors. out is in fp32 or the dtype of q; lse in fp32, or fp64 for fp64.

        NaN in q or k makes NaN of out and lse of the rows that see it. NaN in v does so for out,
        and may do so for rows of the same kernel call that do not see it.
        """
        ...

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
        """Add this block's part of the gradients to dq, dk and dv.

        p = exp(s - lse); ds = p * (dout v^T - delta); dv += p^T dout; dq += scale * ds k;
        dk += scale * ds^T q. With lse and delta of whole rows, the sum over the blocks of a row is
        its gradient. A row with lse -inf, which saw nothing anywhere, has none.

        Args:
            dout: [batch, q_rows, heads_q, head_dim_v], in the dtype of q.
            q: as in forward, like k, v, scale, band and softcap.
            lse: [batch, q_rows, heads_q], over all keys of the row (with its sink), fp32 or fp64.
            delta: the same shape: rowsum(dout * out) - dlse; see `row_delta`.
            dq: [batch, q_rows, heads_q, head_dim], fp32 (fp64 for fp64). Written in place, rows
                that see nothing are left alone; so dk and dv, shaped as k and v.
        """
        ...


def row_delta(dout: Tensor, out: Tensor, dlse: Tensor | None = None) -> Tensor:
    """Return delta = rowsum(dout * out) - dlse, [batch, rows, heads], fp32 (fp64 for fp64).

    Args:
        dout: [batch, rows, heads, head_dim_v].
        out: the merged output, same shape.
        dlse: gradient of lse, [batch, rows, heads], if lse is used for more than out.
    """
    wide = accumulation_dtype(out.dtype)
    delta = (dout.to(wide) * out.to(wide)).sum(dim=-1)
    return delta if dlse is None else delta - dlse.to(wide)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of lse, delta and of sums over blocks."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_block(q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: float | None) -> None:
    """Refuse operands that do not belong together.

    Raises:
        ConfigError: names the tensors and what differs.
    """
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if not q.dim() == k.dim() == v.dim() == 4:
        raise ConfigError(f"q, k, v are [batch, rows, heads, head_dim], got {shapes}")
    if q.shape[0] != k.shape[0] or k.shape[:3] != v.shape[:3] or q.shape[3] != k.shape[3]:
        raise ConfigError(
            f"{shapes}: q and k need one batch and head_dim, k and v one batch, rows and heads"
        )
    if k.shape[2] == 0 or q.shape[2] % k.shape[2]:
        raise ConfigError(f"{shapes}: query heads must be a multiple of KV heads")
    dtypes, devices = {q.dtype, k.dtype, v.dtype}, {q.device, k.device, v.device}
    if len(dtypes) > 1 or len(devices) > 1:
        raise ConfigError(
            f"q, k, v must have one dtype and device, got {q.dtype} {q.device}, "
            f"{k.dtype} {k.device}, {v.dtype} {v.device}"
        )
    check_scores(scale, softcap)


def check_scores(scale: float, softcap: float | None) -> None:
    """Refuse what makes no scores.

    Raises:
        ConfigError: a number is not finite, or softcap not above 0.
    """
    if not math.isfinite(scale):
        raise ConfigError(f"scale is {scale}: pass a finite number")
    if softcap is not None and not (softcap > 0 and math.isfinite(softcap)):
        raise ConfigError(f"softcap is {softcap}: pass a finite number above 0, or None")


def check_gradients(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    statistics: Sequence[Tensor],
    gradients: Sequence[Tensor],
) -> None:
    """Refuse what backward cannot read, or add to.

    Raises:
        ConfigError: names the tensor, what it is and what it must be.
    """
    wide = accumulation_dtype(q.dtype)
    expected: list[tuple[str, Tensor, tuple[int, ...], torch.dtype]] = [
        ("dout", dout, (*q.shape[:3], v.shape[3]), q.dtype),
        *(
            (name, tensor, tuple(q.shape[:3]), wide)
            for name, tensor in zip(("lse", "delta"), statistics, strict=True)
        ),
        *(
            (name, tensor, tuple(like.shape), wide)
            for name, tensor, like in zip(("dq", "dk", "dv"), gradients, (q, k, v), strict=True)
        ),
    ]
    for name, tensor, shape, dtype in expected:
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            raise ConfigError(
                f"{name} has to be {list(shape)} {dtype}; it is {list(tensor.shape)} {tensor.dtype}"
            )
