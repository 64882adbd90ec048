"""What is around flash kernels for GPUs: windows, padding, GQA, deltas. The kernels here are their
definitions in fp32, with the parameters that the real ones have; torch's own are compared in
tests/gpu."""

import math
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unit.attention_cases import Case, assert_as_good, backward, by_definition, forward
from tokenfabric.errors import ConfigError
from tokenring.local_cudnn import CudnnAttention
from tokenring.local_flash_attn_2 import FlashAttn2
from tokenring.local_flash_attn_3 import FlashAttn3
from tokenring.local_flash_attn_4 import FlashAttn4
from tokenring.local_flash_cuda import FlashCuda
from tokenring.local_protocol import row_delta
from tokenring.local_window import WindowAttention

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
    scores = _scores(q, k, how["scale"], how["window_size_left"], how["window_size_right"])
    return _gradients(dout, q, k, v, out, scores, lse, how["scale"])


def _gradients(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, scores: Tensor, lse: Tensor,
    scale: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    group = q.shape[2] // k.shape[2]
    p = torch.exp(scores - lse[..., None])
    keys, values = (x.float().repeat_interleave(group, dim=2) for x in (k, v))
    delta = (dout.float() * out.float()).sum(dim=-1).transpose(1, 2)
    dp = torch.einsum("bqhd,bkhd->bhqk", dout.float(), values)
    ds = p * (dp - delta[..., None]) * scale
    dq = torch.einsum("bhqk,bkhd->bqhd", ds, keys)
    dk = torch.einsum("bhqk,bqhd->bkhd", ds, q.float())
    dv = torch.einsum("bhqk,bqhd->bkhd", p, dout.float())
    dk, dv = (x.unflatten(2, (-1, group)).sum(dim=3) for x in (dk, dv))
    return dq.to(q.dtype), dk.to(q.dtype), dv.to(q.dtype)


def _bound(bound: int) -> int | None:
    assert bound >= -1
    return None if bound == -1 else bound


class FakeFlashAttn2:
    """flash_attn.flash_attn_interface."""

    @staticmethod
    def _flash_attn_forward(
        q: Tensor, k: Tensor, v: Tensor, dropout_p: float, softmax_scale: float, causal: bool,
        window_size_left: int, window_size_right: int, softcap: float, alibi_slopes: None,
        return_softmax: bool,
    ) -> tuple[Any, ...]:  # fmt: skip
        assert (dropout_p, causal, softcap, return_softmax) == (0.0, False, 0.0, False)
        left, right = _bound(window_size_left), _bound(window_size_right)
        how = {"window_size_left": left, "window_size_right": right}
        return (*_forward(q, k, v, scale=softmax_scale, **how)[:2], None, None)

    @staticmethod
    def _flash_attn_backward(
        dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, softmax_lse: Tensor, dq: Tensor,
        dk: Tensor, dv: Tensor, dropout_p: float, softmax_scale: float, causal: bool,
        window_size_left: int, window_size_right: int, softcap: float, alibi_slopes: None,
        deterministic: bool, rng_state: None = None,
    ) -> None:  # fmt: skip
        left, right = _bound(window_size_left), _bound(window_size_right)
        how = {"window_size_left": left, "window_size_right": right}
        found = _backward(dout, q, k, v, out, softmax_lse, scale=softmax_scale, **how)
        for into, part in zip((dq, dk, dv), found, strict=True):
            into.copy_(part)


class FakeFlashAttn3:
    """flash_attn_interface."""

    @staticmethod
    def _flash_attn_forward(
        q: Tensor, k: Tensor, v: Tensor, k_new: None = None, v_new: None = None, *,
        softmax_scale: float, causal: bool = False, window_size_left: int = -1,
        window_size_right: int = -1, attention_chunk: int = 0, softcap: float = 0.0,
    ) -> tuple[Any, ...]:  # fmt: skip
        left, right = _bound(window_size_left), _bound(window_size_right)
        how = {"window_size_left": left, "window_size_right": right}
        return (*_forward(q, k, v, scale=softmax_scale, **how)[:2], None, None)

    @staticmethod
    def _flash_attn_backward(
        dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, softmax_lse: Tensor,
        cu_seqlens_q: None = None, *, dq: Tensor, dk: Tensor, dv: Tensor, softmax_scale: float,
        is_causal: bool = False, window_size_left: int = -1, window_size_right: int = -1,
        softcap: float = 0.0,
    ) -> None:  # fmt: skip
        FakeFlashAttn2._flash_attn_backward(
            dout, q, k, v, out, softmax_lse, dq, dk, dv, 0.0, softmax_scale, False,
            window_size_left, window_size_right, softcap, None, False,
        )  # fmt: skip


class FakeFlashAttn4:
    """flash_attn.cute.interface."""

    @staticmethod
    def _flash_attn_fwd(
        q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, causal: bool,
        window_size_left: int | None, window_size_right: int | None, return_lse: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        assert return_lse
        assert not (causal and window_size_right is not None)
        right = 0 if causal else window_size_right
        how = {"window_size_left": window_size_left, "window_size_right": right}
        out, lse, *_ = _forward(q, k, v, scale=softmax_scale, **how)
        return out, lse

    @staticmethod
    def _flash_attn_bwd(
        q: Tensor, k: Tensor, v: Tensor, out: Tensor, dout: Tensor, lse: Tensor, *,
        softmax_scale: float, causal: bool, window_size_left: int | None,
        window_size_right: int | None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        right = 0 if causal else window_size_right
        how = {"window_size_left": window_size_left, "window_size_right": right}
        return _backward(dout, q, k, v, out, lse, scale=softmax_scale, **how)


def _cudnn_forward(
    q: Tensor, k: Tensor, v: Tensor, bias: None, starts_q: None, starts_k: None, max_q: int,
    max_k: int, compute_lse: bool, dropout: float, is_causal: bool, debug: bool, *, scale: float,
) -> tuple[Any, ...]:  # fmt: skip
    assert compute_lse
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scores = _from_top_left(q, k, scale, is_causal)
    values = v.float().repeat_interleave(q.shape[2] // k.shape[2], dim=2)
    out = torch.einsum("bhqk,bkhd->bhqd", scores.softmax(dim=-1), values).to(q.dtype)
    return (out, scores.logsumexp(dim=-1, keepdim=True), *(None,) * 7)


def _from_top_left(q: Tensor, k: Tensor, scale: float, is_causal: bool) -> Tensor:
    scores = _scores(q, k, scale, None, None)
    if not is_causal:
        return scores
    apart = torch.arange(k.shape[1]) - torch.arange(q.shape[1])[:, None]
    return scores.masked_fill(apart > 0, -math.inf)


def _cudnn_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, seed: None,
    offset: None, bias: None, starts_q: None, starts_k: None, max_q: int, max_k: int,
    dropout: float, is_causal: bool, *, scale: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    assert lse.shape == (*q.shape[:3], 1)
    dout, q, k, v, out = (x.transpose(1, 2) for x in (dout, q, k, v, out))
    scores = _from_top_left(q, k, scale, is_causal)
    found = _gradients(dout, q, k, v, out, scores, lse[..., 0], scale)
    return tuple(x.transpose(1, 2) for x in found)


KINDS = {
    "flash_cuda": FlashCuda,
    "flash_attn_2": FlashAttn2,
    "flash_attn_3": FlashAttn3,
    "flash_attn_4": FlashAttn4,
}
MODULES = {
    "flash_attn": SimpleNamespace(),
    "flash_attn.flash_attn_interface": FakeFlashAttn2,
    "flash_attn_interface": FakeFlashAttn3,
    "flash_attn.cute": SimpleNamespace(),
    "flash_attn.cute.interface": FakeFlashAttn4,
}


@pytest.fixture(params=KINDS)
def local(request: pytest.FixtureRequest, kernels: None) -> WindowAttention:
    return KINDS[request.param]()


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", _forward)
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_backward", _backward)
    monkeypatch.setattr(torch.ops.aten, "_cudnn_attention_forward", _cudnn_forward)
    monkeypatch.setattr(torch.ops.aten, "_cudnn_attention_backward", _cudnn_backward)
    for name, module in MODULES.items():
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("band", BANDS, ids=str)
@pytest.mark.parametrize(("q_rows", "kv_rows"), [(19, 26), (26, 19)])
def test_block_against_fp64(
    local: WindowAttention, q_rows: int, kv_rows: int, band: Any, dtype: torch.dtype
) -> None:
    """out, lse and all gradients, with the whole rows' lse, head_dim 20 and 12, two heads a KV."""
    _check_block(local, q_rows, kv_rows, band, dtype, (1, 3))


@pytest.mark.parametrize("band", [(None, None), (None, 0)], ids=str)
@pytest.mark.parametrize(("q_rows", "kv_rows"), [(19, 26), (26, 19)])
def test_cudnn_block_against_fp64(kernels: None, q_rows: int, kv_rows: int, band: Any) -> None:
    """The same, of the two masks that it has; parts of a causal block would have others."""
    num_parts = (1, 3) if band == (None, None) else (1,)
    _check_block(CudnnAttention(), q_rows, kv_rows, band, torch.bfloat16, num_parts)
    q = torch.zeros(1, 4, 2, 8, dtype=torch.bfloat16)
    assert CudnnAttention().forward(q[:, :0], q, q, scale=1.0) == []
    with pytest.raises(ConfigError, match="cudnn has no window mask"):
        CudnnAttention().forward(q, q, q, scale=1.0, band=(-1, None))
    with pytest.raises(ConfigError, match="cudnn has no softcap"):
        CudnnAttention().forward(q, q, q, scale=1.0, softcap=1.0)


def _check_block(
    local: Any, q_rows: int, kv_rows: int, band: Any, dtype: torch.dtype, parts: tuple[int, ...]
) -> None:
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
    for num_parts in parts:
        gradients = backward(local, case, operands, lse, delta, num_parts)
        for what, actual, reference, same in zip(
            ("dq", "dk", "dv"), gradients, expected[2:], baseline[2:], strict=True
        ):
            assert_as_good(actual.to(dtype), reference, same, what)


def test_operands_of_a_message_are_aligned(local: WindowAttention) -> None:
    """In a message q may start at any multiple of its size; the kernels read 16 bytes at once."""
    case = Case(q_rows=5, kv_rows=5, head_dim=8, head_dim_v=8, dtype=torch.bfloat16)
    q, k, v, _ = case.tensors()
    shifted = torch.empty(q.numel() + 1, dtype=q.dtype)[1:].view(q.shape).copy_(q)
    assert shifted.data_ptr() % 16
    out, lse = forward(local, case, shifted, k, v)
    expected = forward(local, case, q, k, v)
    assert torch.equal(out, expected[0])
    assert torch.equal(lse, expected[1])


def test_nothing_to_see_and_refusals(local: WindowAttention) -> None:
    case = Case(dtype=torch.bfloat16)
    q, k, v, _ = case.tensors()
    assert local.forward(q, k, v, scale=1.0, band=(None, -case.q_rows)) == []
    assert local.forward(q[:, :0], k, v, scale=1.0) == []
    if not local.capability.has_softcap:
        with pytest.raises(ConfigError, match=f"{local.capability.name} has no softcap"):
            local.forward(q, k, v, scale=1.0, softcap=5.0)
