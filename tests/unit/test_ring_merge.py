"""The merge of partials: native code and its twin in torch against fp64, and what it refuses."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tokenfabric import native
from tokenfabric.errors import ConfigError
from tokenfabric.testing.tolerance import assert_same_bits, assert_same_nonfinite
from tokenring.merge import merge_partials, merge_with_torch
from tokenring.merge_native import MergeThreads
from tokenring.partial import Partial

BATCH, ROWS, HEADS = 2, 11, 4
INF, NAN = math.inf, math.nan
# (row_start, rows, head_start, heads) of each partial.
WHOLE = (0, ROWS, 0, HEADS)
PLACES = {
    "none": (),
    "one": (WHOLE,),
    "two": (WHOLE, WHOLE),
    "rows": ((0, 4, 0, HEADS), (4, 7, 0, HEADS)),
    "gap": ((1, 3, 0, HEADS), (7, 2, 0, HEADS)),
    "heads": ((0, ROWS, 0, 1), (0, ROWS, 1, 3), (0, ROWS, 0, HEADS)),
    "overlapping": (WHOLE, (3, 5, 1, 2), (0, 1, 0, HEADS), (10, 1, 3, 1), (5, 0, 0, HEADS), WHOLE),
    "many": (WHOLE,) * 17,
}


def make_partial(
    place: tuple[int, int, int, int], head_dim: int, dtype: torch.dtype = torch.float32
) -> Partial:
    """Random, a part of larger tensors whose rest is NaN, with an empty row full of NaN."""
    row_start, rows, head_start, heads = place
    out = torch.full((BATCH, rows + 2, heads + 1, head_dim + 1), NAN, dtype=dtype)[
        :, 1 : rows + 1, :heads, :head_dim
    ]
    out.copy_(torch.randn(out.shape))
    lse = torch.full((BATCH, heads, rows + 1), NAN)[..., :rows].transpose(1, 2)
    lse.copy_(20 * torch.randn(lse.shape))
    if rows > 2:
        out[0, 2], lse[0, 2] = NAN, -INF
    return Partial(out, lse, row_start, head_start)


def empty_result(head_dim: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """NaN everywhere, so that what is not written is seen."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    out = torch.full((BATCH, ROWS, HEADS, head_dim), NAN, dtype=dtype)
    return out, torch.full((BATCH, ROWS, HEADS), NAN, dtype=wide)


def in_fp64(partials: list[Partial], sinks: Tensor | None, head_dim: int) -> tuple[Tensor, Tensor]:
    """As defined: the weights relative to the largest lse, over a dense stack of partials."""
    out = torch.zeros(len(partials), BATCH, ROWS, HEADS, head_dim, dtype=torch.float64)
    lse = torch.full(out.shape[:4], -INF, dtype=torch.float64)
    for index, partial in enumerate(partials):
        rows = slice(partial.row_start, partial.row_start + partial.lse.shape[1])
        heads = slice(partial.head_start, partial.head_start + partial.lse.shape[2])
        lse[index, :, rows, heads] = partial.lse.double()
        is_empty = torch.isneginf(partial.lse)[..., None]
        out[index, :, rows, heads] = partial.out.double().masked_fill(is_empty, 0)
    extra = [] if sinks is None else [sinks.double().expand(1, BATCH, ROWS, HEADS)]
    total = torch.logsumexp(torch.cat([lse, *extra]), dim=0) if len(lse) or extra else lse.sum(0)
    total = total if len(lse) or extra else torch.full_like(total, -INF)
    weights = torch.exp(lse - total).masked_fill(torch.isneginf(lse), 0)
    return (weights[..., None] * out).sum(0), total


def assert_near(actual: Tensor, expected: Tensor) -> None:
    """fp32 sums of at most 18 terms of values up to 5.

    Each is off by (6 + |x|) exp(x) 2**-24 at most, x = lse_i - m being rounded as well.
    """
    assert_same_nonfinite(actual, expected)
    torch.testing.assert_close(
        actual.double(), expected, rtol=2.0**-22, atol=5 * 2.0**-20, equal_nan=True
    )


@pytest.mark.parametrize("head_dim", [1, 64, 80])
@pytest.mark.parametrize("name", PLACES)
def test_merge_against_fp64(name: str, head_dim: int) -> None:
    """Any cover of rows and heads, by the torch twin and on every instruction set alike."""
    torch.manual_seed(0)
    partials = [make_partial(place, head_dim) for place in PLACES[name]]
    for sinks in (None, torch.tensor([0.0, -INF, 30.0, -30.0])):
        expected_out, expected_lse = in_fp64(partials, sinks, head_dim)
        baseline_out, baseline_lse = empty_result(head_dim)
        merge_with_torch(partials, baseline_out, baseline_lse, sinks=sinks)
        assert_near(baseline_lse, expected_lse)
        assert_near(baseline_out, expected_out)
        results = []
        for instruction_set in native.ring.usable_merge_kernels():
            for num_threads in (1, 2):
                threads = MergeThreads(num_threads=num_threads, instruction_set=instruction_set)
                out, lse = empty_result(head_dim)
                merge_partials(partials, out, lse, sinks=sinks, threads=threads)
                results.append((out, lse))
        out, lse = results[0]
        assert_near(lse, expected_lse)
        assert_near(out, expected_out)
        for other_out, other_lse in results[1:]:
            assert_same_bits(other_out, out)
            assert_same_bits(other_lse, lse)


@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype, out_dtype: torch.dtype) -> None:
    """The sum is rounded once, to whatever is asked for; fp64 stays fp64."""
    torch.manual_seed(1)
    partials = [make_partial(WHOLE, 64, dtype) for _ in range(3)]
    if out_dtype == torch.float64:
        partials = [Partial(p.out.double(), p.lse.double()) for p in partials]
    out, lse = empty_result(64, out_dtype)
    merge_partials(partials, out, lse)
    expected_out, expected_lse = in_fp64(partials, None, 64)
    if out_dtype == torch.float64:
        torch.testing.assert_close(out, expected_out, rtol=1e-14, atol=1e-15)
        torch.testing.assert_close(lse, expected_lse, rtol=1e-14, atol=1e-15)
        return
    fp32, _ = empty_result(64)
    merge_partials(partials, fp32, lse)
    assert_near(fp32, expected_out)
    assert_same_bits(out, fp32.to(out_dtype))
    assert_near(lse, expected_lse)


@pytest.mark.parametrize("has_sink", [False, True])
def test_special_values_mean_the_same_in_both(has_sink: bool) -> None:
    """Every pair of -inf, +inf, NaN, large and small lse; NaN, inf and zero outs."""
    values = torch.tensor([-INF, INF, NAN, 0.0, 3e38, -3e38, -200.0])
    outs = torch.tensor([1.0, NAN, INF, -INF, 0.0, -2.0])
    first, second = (
        grid.flatten()[None, :, None] for grid in torch.meshgrid(values, values, indexing="ij")
    )
    partials = [
        Partial(outs.expand(1, 49, 1, 6).clone(), first),
        Partial(outs.flip(0).expand(1, 49, 1, 6).clone(), second),
    ]
    sinks = torch.tensor([-1.0]) if has_sink else None
    results = []
    for merge in (merge_with_torch, merge_partials):
        out, lse = torch.full((1, 49, 1, 6), 7.0), torch.full((1, 49, 1), 7.0)
        merge(partials, out, lse, sinks=sinks)
        results.append((out, lse))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6, equal_nan=True)
    out, lse = results[1]
    is_bad = (first == INF) | first.isnan() | (second == INF) | second.isnan()
    assert torch.equal(lse.isnan(), is_bad)
    assert out[is_bad].isnan().all()
    both_empty = torch.isneginf(first) & torch.isneginf(second)
    assert torch.equal(out[both_empty], torch.zeros(1, 6))
    assert lse[both_empty].item() == (-1.0 if has_sink else -INF)


def test_large_lse_does_not_overflow() -> None:
    """A merge without the maximum subtracted would give inf / inf here."""
    partials = [make_partial(WHOLE, 8) for _ in range(2)]
    for shift in (300.0, -300.0):
        shifted = [Partial(p.out, p.lse + shift) for p in partials]
        out, lse = empty_result(8)
        merge_partials(shifted, out, lse)
        expected_out, expected_lse = in_fp64(shifted, None, 8)
        # lse near 300 is known to 2**-15, and so are the weights.
        torch.testing.assert_close(out.double(), expected_out, rtol=0, atol=1e-3)
        torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-6, atol=0)


def test_forgotten_maximum_is_found() -> None:
    """What is compared above tells a merge that takes exp(lse) as it is."""
    torch.manual_seed(2)
    partials = [make_partial(WHOLE, 8) for _ in range(2)]
    partials = [Partial(p.out, p.lse + 90) for p in partials]
    weights = [torch.exp(p.lse) for p in partials]
    total = weights[0] + weights[1]
    out = sum(
        (w / total)[..., None] * p.out.masked_fill(torch.isneginf(p.lse)[..., None], 0)
        for w, p in zip(weights, partials, strict=True)
    )
    expected_out, expected_lse = in_fp64(partials, None, 8)
    with pytest.raises(AssertionError):
        assert_near(torch.as_tensor(out), expected_out)
    with pytest.raises(AssertionError):
        assert_near(torch.log(total), expected_lse)


def test_merging_in_groups_is_merging_at_once() -> None:
    """A merged pair is a partial itself."""
    torch.manual_seed(3)
    partials = [make_partial(WHOLE, 64) for _ in range(4)]
    pairs = []
    for pair in (partials[:2], partials[2:]):
        pairs.append(Partial(*empty_result(64)))
        merge_partials(pair, pairs[-1].out, pairs[-1].lse)
    out, lse = empty_result(64)
    merge_partials(pairs, out, lse)
    expected_out, expected_lse = in_fp64(partials, None, 64)
    assert_near(out, expected_out)
    assert_near(lse, expected_lse)


def test_threads_of_a_communicator() -> None:
    """A world's own threads merge to the same bits, and outlive nobody's reference to it."""
    communicator = native.fabric.Communicator(
        mesh=None, num_threads=2, spin_count=0, timeout_s=5.0, partial_bytes=4096,
        staging_bytes=4096, base_epoch=0,
    )  # fmt: skip
    threads = MergeThreads.of_communicator(communicator)
    del communicator
    assert threads.pool.num_threads == 2
    out, lse = torch.empty(1, 4096, 4, 64), torch.empty(1, 4096, 4)
    partials = [Partial(torch.randn_like(out), torch.randn_like(lse)) for _ in range(2)]
    merge_partials(partials, out, lse, threads=threads)
    alone = torch.empty_like(out), torch.empty_like(lse)
    merge_partials(partials, *alone)
    assert_same_bits(out, alone[0])
    assert_same_bits(lse, alone[1])


@pytest.mark.parametrize("shape", [(0, 3, 2, 8), (2, 0, 2, 8), (2, 3, 0, 8)])
def test_empty_results(shape: tuple[int, ...]) -> None:
    """Nothing to merge into is no error."""
    out, lse = torch.empty(shape), torch.empty(shape[:3])
    merge_partials([Partial(torch.empty(shape), torch.empty(shape[:3]))], out, lse)


def test_refusals() -> None:
    """What does not belong together is refused by name before anything is read."""
    good = make_partial(WHOLE, 8)
    out, lse = empty_result(8)
    narrow_lse = torch.zeros(BATCH, ROWS, 1)
    bad: list[tuple[str, Partial]] = [
        ("covers rows 1 to 12", replace(good, row_start=1)),
        ("covers heads 2 to 6", replace(good, head_start=2)),
        ("covers rows -1", replace(good, row_start=-1)),
        ("has out", replace(good, out=good.out[..., :4])),
        ("but lse", replace(good, lse=narrow_lse)),
        ("the last must be 1", replace(good, out=good.out.mT.contiguous().mT)),
        ("float32", replace(good, lse=good.lse.double())),
    ]
    for message, partial in bad:
        with pytest.raises(ConfigError, match=message):
            merge_partials([good, partial], out, lse)
    with pytest.raises(ConfigError, match="sinks are"):
        merge_partials([good], out, lse, sinks=torch.zeros(HEADS + 1))
    with pytest.raises(ConfigError, match="lse"):
        merge_partials([good], out, lse[:, :1])
    with pytest.raises(ConfigError, match="at least one thread"):
        MergeThreads(num_threads=0)
    with pytest.raises(ConfigError, match="instruction set 'mmx'"):
        MergeThreads(instruction_set="mmx")
    assert out.isnan().all()
    assert lse.isnan().all()
