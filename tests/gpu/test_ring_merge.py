"""The merge kernel on the GPU: the bits of the CPU's merge, which others compare with fp64."""

import math

import pytest
import torch

from tokenring.merge import merge_partials
from tokenring.partial import Partial

pytestmark = pytest.mark.gpu
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def partials_of(
    generator: torch.Generator, rows: int, heads: int, head_dim: int, count: int
) -> list[Partial]:
    """Return partials of all dtypes, some of a part of the rows and heads, some of empty rows."""
    made = []
    for index in range(count):
        start = index * 3 % max(rows, 1) if index % 2 else 0
        first = 1 if index % 3 == 2 else 0
        shape = (2, rows - start, heads - first)
        out = torch.randn(*shape, head_dim, generator=generator).to(DTYPES[index % 3])
        lse = 20 * torch.randn(shape, generator=generator)
        lse[:, ::5] = -math.inf
        if index % 4 == 3:
            out = torch.cat((out, out), dim=3)[..., :head_dim]
        made.append(Partial(out, lse, row_start=start, head_start=first))
    return made


def on(device: torch.device, partial: Partial) -> Partial:
    """Return a partial with the same strides on a device, lse as flash kernels write it."""
    out = torch.empty_strided(
        partial.out.shape, partial.out.stride(), dtype=partial.out.dtype, device=device
    ).copy_(partial.out)
    lse = partial.lse.transpose(1, 2).contiguous().to(device).transpose(1, 2)
    return Partial(out, lse, row_start=partial.row_start, head_start=partial.head_start)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [1, 20, 64, 67, 128, 576])
@pytest.mark.parametrize("count", [0, 1, 3, 8, 17, 40])
def test_same_bits_as_the_cpu(
    device: torch.device, head_dim: int, count: int, dtype: torch.dtype
) -> None:
    """Any number of partials, strides and tails; lse up to the device's log; twice."""
    generator = torch.Generator().manual_seed(count)
    for rows in (0, 1, 37, 300):
        partials = partials_of(generator, rows, 5, head_dim, count)
        sinks = torch.randn(5, generator=generator) if count % 2 else None
        expected = torch.empty(2, rows, 5, head_dim, dtype=dtype)
        expected_lse = torch.empty(2, rows, 5)
        merge_partials(partials, expected, expected_lse, sinks=sinks)
        moved = [on(device, partial) for partial in partials]
        for _ in range(2):
            out = torch.full_like(expected, math.nan, device=device)
            lse = torch.full_like(expected_lse, math.nan, device=device)
            merge_partials(moved, out, lse, sinks=None if sinks is None else sinks.to(device))
            assert torch.equal(out.cpu(), expected)
            torch.testing.assert_close(lse.cpu(), expected_lse, rtol=4e-7, atol=4e-7)


def test_merge_in_a_graph(device: torch.device) -> None:
    """A captured merge reads what its partials hold at each replay."""
    generator = torch.Generator().manual_seed(1)
    partials = [on(device, partial) for partial in partials_of(generator, 64, 8, 128, 4)]
    out = torch.empty(2, 64, 8, 128, dtype=torch.bfloat16, device=device)
    lse = torch.empty(2, 64, 8, device=device)
    merge_partials(partials, out, lse)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        merge_partials(partials, out, lse)
    for partial in partials:
        partial.out.mul_(2)
    expected = torch.empty_like(out)
    merge_partials(partials, expected, torch.empty_like(lse))
    out.fill_(math.nan)
    graph.replay()
    assert torch.equal(out, expected)
