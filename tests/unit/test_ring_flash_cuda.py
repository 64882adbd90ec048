"""What is around torch's flash kernels for GPUs: windows, padding, GQA, deltas. The kernels here
are their definitions in fp32; the real ones are compared in tests/gpu."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unit.attention_cases import Case, assert_as_good, backward, by_definition, forward
from tokenfabric.errors import ConfigError
from tokenring.local_flash_cuda import FlashCuda
from tokenring.local_protocol import row_delta

BANDS = [(None, None), (None, 0), (None, 5), (None, -6), (-7, None), (3, None), (-9, 2), (2, 11)]


def _scores(q: Tensor, k: Tensor, scale: float, left: int | None, right: int | None) -> Tensor:
    """Return [batch, heads, q rows, kv rows]; the window counts from the bottom right."""
    for tensor in (q, k):
        assert tensor.shape[3] % 8 == 0
        assert tensor.stride(3) == 1
        assert tensor.data_ptr() % 16 == 0
    group = q.shape[2] // k.shape[2]
    keys = k.float().repeat_interleave(group, dim=2)
    scores = torch.einsum("bqhd,bkhd->bhqk", q.float(), keys) * scale
    rows, columns = torch.arange(q.shape[1])[:, None], torch.arange(k.shape[1])
    apart = columns - rows - (k.shape[1] - q.shape[1])
    for bound in (left, right):
        assert bound is None or bound >= 0
    if right is not None:
        scores = scores.masked_fill(apart > right, -math.inf)
    return scores if left is None else scores.masked_fill(apart < -left, -math.inf)


def _forward(q: Tensor, k: Tensor, v: Tensor, *_: Any, **how: Any) -> tuple[Any, ...]:
    scores = _scores(q, k, how["scale"], how["window_size_left"], how["window_size_right"])
    lse = scores.logsumexp(dim=-1)
    assert lse.isfinite().all()
    values = v.float().repeat_interleave(q.shape[2] // k.shape[2], dim=2)
    out = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(dim=-1), values)
    return out.to(q.dtype), lse, None, None, None


def _backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *_: Any, **how: Any
) -> tuple[Tensor, ...]:
    assert lse.is_contiguous()
    group = q.shape[2] // k.shape[2]
    scores = _scores(q, k, how["scale"], how["window_size_left"], how["window_size_right"])
    p = torch.exp(scores - lse[..., None])
    keys, values = (x.float().repeat_interleave(group, dim=2) for x in (k, v))
    delta = (dout.float() * out.float()).sum(dim=-1).transpose(1, 2)
    dp = torch.einsum("bqhd,bkhd->bhqk", dout.float(), values)
    ds = p * (dp - delta[..., None]) * how["scale"]
    dq = torch.einsum("bhqk,bkhd->bqhd", ds, keys)
    dk = torch.einsum("bhqk,bqhd->bkhd", ds, q.float())
    dv = torch.einsum("bhqk,bqhd->bkhd", p, dout.float())
    dk, dv = (x.unflatten(2, (-1, group)).sum(dim=3) for x in (dk, dv))
    return dq.to(q.dtype), dk.to(q.dtype), dv.to(q.dtype)


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> FlashCuda:
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", _forward)
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_backward", _backward)
    return FlashCuda()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("band", BANDS, ids=str)
@pytest.mark.parametrize(("q_rows", "kv_rows"), [(19, 26), (26, 19)])
def test_block_against_fp64(
    local: FlashCuda, q_rows: int, kv_rows: int, band: Any, dtype: torch.dtype
) -> None:
    """out, lse and all gradients, with the whole rows' lse, head_dim 20 and 12, two heads a KV."""
    case = Case(
        q_rows=q_rows, kv_rows=kv_rows, batch=2, heads_q=4, heads_kv=2, head_dim=20, head_dim_v=12,
        band=band, dtype=dtype,
    )  # fmt: skip
    operands = case.tensors()
    expected = by_definition(case, operands, torch.float64)
    baseline = by_definition(case, operands, dtype)
    out, lse = forward(local, case, *operands[:3])
    assert_as_good(out, expected[0], baseline[0], "out")
    assert_as_good(lse, expected[1], baseline[1], "lse", ulps=8)
    delta = row_delta(operands[3], out).masked_fill(torch.isneginf(lse), 0)
    for num_parts in (1, 3):
        gradients = backward(local, case, operands, lse, delta, num_parts)
        for what, actual, reference, same in zip(
            ("dq", "dk", "dv"), gradients, expected[2:], baseline[2:], strict=True
        ):
            assert_as_good(actual.to(dtype), reference, same, what)


def test_operands_of_a_message_are_aligned(local: FlashCuda) -> None:
    """In a message q may start at any multiple of its size; the kernels read 16 bytes at once."""
    case = Case(q_rows=5, kv_rows=5, head_dim=8, head_dim_v=8, dtype=torch.bfloat16)
    q, k, v, _ = case.tensors()
    shifted = torch.empty(q.numel() + 1, dtype=q.dtype)[1:].view(q.shape).copy_(q)
    assert shifted.data_ptr() % 16
    out, lse = forward(local, case, shifted, k, v)
    expected = forward(local, case, q, k, v)
    assert torch.equal(out, expected[0])
    assert torch.equal(lse, expected[1])


def test_nothing_to_see_and_refusals(local: FlashCuda) -> None:
    case = Case(dtype=torch.bfloat16)
    q, k, v, _ = case.tensors()
    assert local.forward(q, k, v, scale=1.0, band=(None, -case.q_rows)) == []
    assert local.forward(q[:, :0], k, v, scale=1.0) == []
    with pytest.raises(ConfigError, match="flash_cuda has no softcap"):
        local.forward(q, k, v, scale=1.0, softcap=5.0)
