"""Blocks of attention to test with: their tensors, what they should give, and the comparison."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenfabric.testing.tolerance import assert_close
from tokenring.capability import LocalNeeds, band_kind
from tokenring.local import implementations
from tokenring.local_protocol import BandBounds, LocalAttention
from tokenring.merge import merge_partials
from tokenring.partial import Partial
from tokenring.reference import attention, visible

LOCALS = {
    local.capability.name: local for local in implementations() if "cpu" in local.capability.devices
}
SCALE = 0.17
# All shapes of bands between 37 q rows and 53 kv rows.
BANDS: tuple[BandBounds, ...] = (
    (None, None), (None, 0), (None, 5), (None, 16), (None, -4), (None, -37), (None, 60),
    (-3, None), (4, None), (-40, None), (53, None), (-7, 2), (0, 0), (5, 20), (-36, -30), (5, 3),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Case:
    q_rows: int = 37
    kv_rows: int = 53
    batch: int = 2
    heads_q: int = 4
    heads_kv: int = 2
    head_dim: int = 16
    head_dim_v: int = 16
    band: BandBounds = (None, None)
    softcap: float | None = None
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        return (
            f"{self.q_rows}x{self.kv_rows}-{self.heads_q}:{self.heads_kv}-{self.head_dim}"
            f":{self.head_dim_v}-{self.band}-{self.softcap}-{self.dtype}".replace("torch.", "")
        )

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q, k, v, dout."""
        generator = torch.Generator().manual_seed(self.q_rows * 1000 + self.kv_rows)
        shapes = (
            (self.q_rows, self.heads_q, self.head_dim),
            (self.kv_rows, self.heads_kv, self.head_dim),
            (self.kv_rows, self.heads_kv, self.head_dim_v),
            (self.q_rows, self.heads_q, self.head_dim_v),
        )
        q, k, v, dout = (
            torch.randn(self.batch, *shape, generator=generator).to(self.dtype) for shape in shapes
        )
        return q, k, v, dout

    def mask(self) -> Tensor:
        positions = torch.arange(max(self.q_rows, self.kv_rows))
        lower, upper = self.band
        window = (None if lower is None else -lower, upper)
        return visible(positions[: self.q_rows], positions[: self.kv_rows], window=window)

    def needs(self) -> LocalNeeds:
        return LocalNeeds(
            device="cpu",
            dtype=str(self.dtype).removeprefix("torch."),
            head_dim=self.head_dim,
            head_dim_v=self.head_dim_v,
            bands=frozenset({band_kind(*self.band)}),
            has_softcap=self.softcap is not None,
            needs_backward=True,
        )


def cases() -> Iterator[Case]:
    yield from (Case(band=band) for band in BANDS)
    for heads_q, heads_kv in ((3, 3), (4, 1), (1, 1)):
        yield Case(heads_q=heads_q, heads_kv=heads_kv, band=(None, 7))
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        for band in ((None, None), (None, 9), (-20, None), (-9, 2)):
            yield Case(band=band, dtype=dtype, head_dim=64, head_dim_v=64)
    for rows in ((1, 1), (1, 53), (37, 1), (0, 53), (37, 0), (0, 0)):
        for band in ((None, None), (None, 0), (-3, 4)):
            yield Case(q_rows=rows[0], kv_rows=rows[1], band=band)
    yield Case(batch=0)
    yield Case(head_dim=24, head_dim_v=16, band=(None, 3))
    yield Case(head_dim=8, head_dim_v=40, band=(-30, 3))
    yield Case(head_dim=1, head_dim_v=1)
    # More than a tile of either implementation.
    for band in ((None, None), (None, 301), (-300, None), (-100, 0), (-600, 200)):
        yield Case(q_rows=301, kv_rows=707, batch=1, band=band)
    yield Case(softcap=2.0, band=(-7, 2))
    yield Case(softcap=5.0, dtype=torch.bfloat16)


def merged(partials: Sequence[Partial], like: Tensor, head_dim_v: int) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if like.dtype == torch.float64 else torch.float32
    out = like.new_full((*like.shape[:3], head_dim_v), math.nan)
    lse = like.new_full(like.shape[:3], math.nan, dtype=wide)
    merge_partials(partials, out, lse)
    return out, lse


def forward(
    local: LocalAttention, case: Case, q: Tensor, k: Tensor, v: Tensor
) -> tuple[Tensor, Tensor]:
    partials = local.forward(q, k, v, scale=SCALE, band=case.band, softcap=case.softcap)
    return merged(partials, q, case.head_dim_v)


def backward(
    local: LocalAttention,
    case: Case,
    operands: Sequence[Tensor],
    lse: Tensor,
    delta: Tensor,
    num_parts: int,
) -> list[Tensor]:
    """The gradients as a sum over all pairs of q parts with kv parts."""
    q, k, v, dout = operands
    gradients = [torch.zeros(x.shape, dtype=lse.dtype, device=x.device) for x in (q, k, v)]
    lower, upper = case.band
    for rows in torch.arange(case.q_rows).tensor_split(num_parts):
        for columns in torch.arange(case.kv_rows).tensor_split(num_parts):
            if not len(rows) or not len(columns):
                continue
            a, b = (
                slice(int(rows[0]), int(rows[-1]) + 1),
                slice(int(columns[0]), int(columns[-1]) + 1),
            )
            apart = a.start - b.start
            local.backward(
                dout[:, a], q[:, a], k[:, b], v[:, b], lse[:, a], delta[:, a],
                scale=SCALE,
                band=(
                    None if lower is None else lower + apart,
                    None if upper is None else upper + apart,
                ),
                softcap=case.softcap,
                dq=gradients[0][:, a], dk=gradients[1][:, b], dv=gradients[2][:, b],
            )  # fmt: skip
    return gradients


def by_definition(
    case: Case, operands: Sequence[Tensor], dtype: torch.dtype, dlse: Tensor | None = None
) -> list[Tensor]:
    """out, lse, dq, dk, dv by autograd, computed in `dtype`."""
    q, k, v = (x.to(dtype).requires_grad_() for x in operands[:3])
    out, lse = attention(q, k, v, scale=SCALE, mask=case.mask(), softcap=case.softcap)
    loss = (out * operands[3].to(dtype)).sum()
    if dlse is not None:
        loss = loss + (lse.masked_fill(torch.isneginf(lse), 0) * dlse.to(dtype)).sum()
    gradients = torch.autograd.grad(loss, (q, k, v))
    return [x.detach() for x in (out, lse, *gradients)]


def assert_as_good(
    actual: Tensor, expected: Tensor, baseline: Tensor, what: str, ulps: float = 1.0
) -> None:
    """Twice the error of the definition computed in the same dtype; rounding noise for fp64."""
    if actual.dtype == torch.float64:
        torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)
    elif actual.numel():
        # Where rows see one key, dout v and delta cancel, and the baseline happens to be exact:
        # both are sums of 16 to 64 products around 1, known to 2**-22, of up to 74 rows for dk.
        noise = max(float((baseline.double() - expected).abs().nan_to_num(0).max()), 2.0**-19)
        assert_close(actual, expected, expected + noise, ulps=ulps, what=what)
