"""Blocks of attention by each implementation, whole and in parts, against fp64."""

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tests.unit.attention_cases import (
    LOCALS,
    SCALE,
    Case,
    assert_as_good,
    backward,
    by_definition,
    cases,
    forward,
    merged,
)
from tokenfabric.errors import ConfigError
from tokenfabric.testing.tolerance import assert_close, assert_same_bits
from tokenring.local_protocol import row_delta

RUNS = [
    (name, case)
    for case in cases()
    for name, local in LOCALS.items()
    if local.capability.why_not(case.needs()) is None
]


@pytest.mark.parametrize(("name", "case"), RUNS, ids=str)
def test_block_against_fp64(name: str, case: Case) -> None:
    """out, lse and all gradients, of the whole block and of its parts with the global lse."""
    local, operands = LOCALS[name], case.tensors()
    q, k, v, dout = operands
    wide = torch.float64 if case.dtype == torch.float64 else torch.float32
    dlse = torch.randn(q.shape[:3], dtype=wide, generator=torch.Generator().manual_seed(5))
    expected = by_definition(case, operands, torch.float64, dlse)
    baseline = by_definition(case, operands, case.dtype, dlse)
    out, lse = forward(local, case, q, k, v)
    assert_as_good(out, expected[0], baseline[0], "out")
    # exp in the kernels is good to 2**-20 where it is vectorised, whatever the dtype.
    assert_as_good(lse, expected[1], baseline[1], "lse", ulps=8)
    delta = row_delta(dout, out, dlse).masked_fill(torch.isneginf(lse), 0)
    for num_parts in (1, 3):
        gradients = backward(local, case, operands, lse, delta, num_parts)
        for what, actual, reference, same in zip(
            ("dq", "dk", "dv"), gradients, expected[2:], baseline[2:], strict=True
        ):
            assert_as_good(actual.to(case.dtype), reference, same, f"{what} of {num_parts} parts")


@pytest.mark.parametrize("num_parts", [1, 2, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LOCALS)
def test_parts_are_as_good_as_one_kernel(name: str, dtype: torch.dtype, num_parts: int) -> None:
    """However many parts: twice the error of torch's own attention in one call."""
    case = Case(
        q_rows=200, kv_rows=200, batch=1, heads_kv=4, head_dim=64, head_dim_v=64, band=(None, 0),
        dtype=dtype,
    )  # fmt: skip
    operands = case.tensors()
    q, k, v, dout = operands
    expected = by_definition(case, operands, torch.float64)
    one = [x.transpose(1, 2).requires_grad_() for x in (q, k, v)]
    out = scaled_dot_product_attention(one[0], one[1], one[2], is_causal=True, scale=SCALE)
    baseline = [out.detach(), *torch.autograd.grad(out, one, dout.transpose(1, 2))]
    partials = []
    for columns in torch.arange(case.kv_rows).tensor_split(num_parts):
        first, stop = int(columns[0]), int(columns[-1]) + 1
        partials += LOCALS[name].forward(
            q, k[:, first:stop], v[:, first:stop], scale=SCALE, band=(None, -first)
        )
    out, lse = merged(partials, q, case.head_dim_v)
    delta = row_delta(dout, out)
    gradients = backward(LOCALS[name], case, operands, lse, delta, num_parts)
    actuals = [out, *(gradient.to(dtype) for gradient in gradients)]
    references = [expected[0], *expected[2:]]
    for what, actual, reference, same in zip(
        ("out", "dq", "dk", "dv"), actuals, references, baseline, strict=True
    ):
        assert_close(actual, reference, same.transpose(1, 2), what=what)


@pytest.mark.parametrize("name", LOCALS)
def test_mask_off_by_one_is_found(name: str) -> None:
    """What is compared above tells a band that is one row too wide or too narrow."""
    case = Case(band=(-7, 2), dtype=torch.bfloat16)
    operands = case.tensors()
    expected = by_definition(case, operands, torch.float64)
    baseline = by_definition(case, operands, case.dtype)
    for band in ((-8, 2), (-6, 2), (-7, 3), (-7, 1)):
        partials = LOCALS[name].forward(*operands[:3], scale=SCALE, band=band)
        out, lse = merged(partials, operands[0], case.head_dim_v)
        for actual, reference, same in (
            (out, expected[0], baseline[0]),
            (lse, *expected[1:2], baseline[1]),
        ):
            with pytest.raises(AssertionError):
                assert_as_good(actual, reference, same, "result", ulps=8)
        delta = row_delta(operands[3], out)
        wrong = Case(band=band, dtype=torch.bfloat16)
        gradients = backward(LOCALS[name], wrong, operands, lse, delta, 1)
        with pytest.raises(AssertionError):
            assert_as_good(gradients[0].bfloat16(), expected[2], baseline[2], "dq")


@pytest.mark.parametrize("name", LOCALS)
def test_strides_do_not_matter(name: str) -> None:
    """Views of larger tensors and transposed ones, the last dimension included."""
    case = Case(band=(None, 4), head_dim=16)
    operands = case.tensors()
    local = LOCALS[name]
    expected = forward(local, case, *operands[:3])
    delta = row_delta(operands[3], expected[0])
    gradients = backward(local, case, operands, expected[1], delta, 1)
    for arrange in (
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        lambda x: x.mT.contiguous().mT,
        lambda x: torch.cat((x, torch.full_like(x, math.nan)), dim=3)[..., : x.shape[3]],
    ):
        strided = [arrange(x) for x in operands]
        assert_same_bits(forward(local, case, *strided[:3])[0], expected[0])
        for actual, same in zip(
            backward(local, case, strided, expected[1], delta, 1), gradients, strict=True
        ):
            assert_same_bits(actual, same)


@pytest.mark.parametrize("name", LOCALS)
def test_nan_stays_nan(name: str) -> None:
    """A NaN reaches every row that sees it; in q or k, no other row."""
    case = Case(band=(None, 0), heads_q=2, heads_kv=2)
    for index, row in ((0, 9), (1, 20), (2, 20)):
        operands = [x.clone() for x in case.tensors()]
        operands[index][0, row, 1, 3] = math.nan
        out, lse = forward(LOCALS[name], case, *operands[:3])
        rows = torch.arange(case.q_rows)
        sees_it = rows == row if index == 0 else rows >= row
        assert out[0, sees_it, 1].isnan().any(dim=-1).all()
        assert not out[1].isnan().any()
        assert not out[0, :, 0].isnan().any()
        if index < 2:
            assert torch.equal(out[0, :, 1].isnan().any(dim=-1), sees_it)
            assert torch.equal(lse[0, :, 1].isnan(), sees_it)


@pytest.mark.parametrize("name", LOCALS)
def test_row_with_lse_minus_infinity_has_no_gradient(name: str) -> None:
    """What the caller calls empty adds nothing to any gradient, and leaves its own as it was."""
    case = Case()
    q, k, v, dout = case.tensors()
    out, lse = forward(LOCALS[name], case, q, k, v)
    delta = row_delta(dout, out)
    lse[:, 5], delta[:, 5] = -math.inf, 0
    gradients = backward(LOCALS[name], case, (q, k, v, dout), lse, delta, 1)
    keep = [row for row in range(case.q_rows) if row != 5]
    less = Case(q_rows=case.q_rows - 1)
    without = backward(
        LOCALS[name], less, (q[:, keep], k, v, dout[:, keep]), lse[:, keep], delta[:, keep], 1
    )
    assert torch.equal(gradients[0][:, 5], torch.zeros_like(gradients[0][:, 5]))
    for actual, expected in zip((gradients[0][:, keep], *gradients[1:]), without, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LOCALS)
def test_gradient_of_lse_with_little_or_no_dout(name: str, dtype: torch.dtype) -> None:
    """delta stands for dlse also where dout is 0, or nothing beside it."""
    case = Case(dtype=dtype, band=(None, 10))
    q, k, v, dout = case.tensors()
    sizes = torch.tensor([0.0, 1.0, 1e-4, 1e-7])
    if dtype != torch.float16:
        sizes = torch.cat((sizes, torch.tensor([1e-30, 1e-38])))
    dout = (dout * sizes[torch.arange(case.q_rows) % len(sizes)][:, None, None]).to(dtype)
    dlse = torch.randn(q.shape[:3], generator=torch.Generator().manual_seed(5))
    dlse[0, ::5] = 0
    operands = (q, k, v, dout)
    expected = by_definition(case, operands, torch.float64, dlse)
    baseline = by_definition(case, operands, dtype, dlse)
    out, lse = forward(LOCALS[name], case, q, k, v)
    gradients = backward(LOCALS[name], case, operands, lse, row_delta(dout, out, dlse), 2)
    for what, actual, reference, same in zip(
        ("dq", "dk", "dv"), gradients, expected[2:], baseline[2:], strict=True
    ):
        assert_as_good(actual.to(dtype), reference, same, what)


@pytest.mark.parametrize("name", LOCALS)
def test_same_bits_every_time_and_added(name: str) -> None:
    """Forward and backward are deterministic, and gradients are added to what is there."""
    case = Case(band=(None, 3), dtype=torch.bfloat16, q_rows=130, kv_rows=130)
    operands = case.tensors()
    out, lse = forward(LOCALS[name], case, *operands[:3])
    delta = row_delta(operands[3], out)
    first = backward(LOCALS[name], case, operands, lse, delta, 2)
    for _ in range(2):
        for actual, same in zip(
            forward(LOCALS[name], case, *operands[:3]), (out, lse), strict=True
        ):
            assert_same_bits(actual, same)
        again = backward(LOCALS[name], case, operands, lse, delta, 2)
        for actual, same in zip(again, first, strict=True):
            assert_same_bits(actual, same)
    q, k, v, dout = operands
    ones = [torch.ones(x.shape) for x in (q, k, v)]
    LOCALS[name].backward(
        dout, q, k, v, lse, delta, scale=SCALE, band=case.band, dq=ones[0], dk=ones[1], dv=ones[2]
    )
    whole = backward(LOCALS[name], case, operands, lse, delta, 1)
    for actual, added in zip(ones, whole, strict=True):
        torch.testing.assert_close(actual - 1, added, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", LOCALS)
def test_refusals_of_a_block(name: str) -> None:
    """Operands that do not belong together are refused before a kernel sees them."""
    q, k, v, dout = Case().tensors()
    local = LOCALS[name]
    bad = (
        (q[0], k, v), (q, k[:1], v), (q, k[:, :5], v), (q[..., :3], k, v), (q[:, :, :3], k, v),
        (q, k.double(), v), (q, k[:, :, :0], v[:, :, :0]),
    )  # fmt: skip
    for operands in bad:
        with pytest.raises(ConfigError):
            local.forward(*operands, scale=SCALE)
    for changes in ({"scale": math.nan}, {"softcap": 0.0}, {"softcap": math.inf}):
        with pytest.raises(ConfigError):
            local.forward(q, k, v, **{"scale": SCALE, **changes})
    lse = torch.zeros(q.shape[:3])
    sums = [torch.zeros_like(x) for x in (q, k, v)]
    with pytest.raises(ConfigError, match="dq has to be"):
        local.backward(
            dout, q, k, v, lse, lse, scale=SCALE, dq=sums[0].half(), dk=sums[1], dv=sums[2]
        )
    with pytest.raises(ConfigError, match="lse has to be"):
        local.backward(dout, q, k, v, lse.mT, lse, scale=SCALE, dq=sums[0], dk=sums[1], dv=sums[2])
    if not local.capability.has_softcap:
        with pytest.raises(ConfigError, match="softcap"):
            local.forward(q, k, v, scale=SCALE, softcap=3.0)


@pytest.mark.parametrize("rows", [1, 3, 8, 40])
@pytest.mark.parametrize("name", list(LOCALS))
def test_a_row_that_sees_nothing_but_nan_is_nan(name: str, rows: int) -> None:
    """torch's kernel gives such a row 0 where there are few rows."""
    q, k, v = (torch.ones(1, rows, 1, 8) for _ in range(3))
    k[:, 0] = torch.nan
    partials = LOCALS[name].forward(q, k, v, scale=SCALE, band=(None, 0))
    assert all(partial.lse.isnan().all() for partial in partials)
