"""Packed documents over ranks: each by itself, of any length, forward and backward."""

import time
from typing import Any

import pytest
import torch
from torch import Tensor

from tokenfabric.errors import ConfigError, MismatchError
from tokenfabric.testing.spawn import run_ranks
from tokenfabric.testing.tolerance import assert_same_nonfinite
from tokenfabric.world import World
from tokenring import reference
from tokenring.attention import ring_attention
from tokenring.partition import Layout, partition_tokens
from tokenring.sharding import shard, unshard
from tokenring.varlen import packed_layout, ring_attention_varlen

HEADS, KV_HEADS, HEAD_DIM, HEAD_DIM_V = 4, 2, 8, 12
DOCUMENTS: dict[str, list[int]] = {
    "mixed": [5, 1, 0, 17, 2, 30, 1],
    "one": [23],
    "shorter than the ranks": [1, 1],
    "none": [0, 0],
    "many": [1 + (5 * i) % 7 for i in range(25)],
    "one long": [3, 60, 4],
}
NAMES = ("out", "lse", "dq", "dk", "dv")


def starts_of(lengths: list[int]) -> list[int]:
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    return starts


def tensors(num_tokens: int, dtype: torch.dtype) -> list[Tensor]:
    """Return q, k, v and dout of all documents, the same on every rank."""
    generator = torch.Generator().manual_seed(num_tokens)
    sizes = [(HEADS, HEAD_DIM), (KV_HEADS, HEAD_DIM), (KV_HEADS, HEAD_DIM_V), (HEADS, HEAD_DIM_V)]
    return [torch.randn(num_tokens, *size, generator=generator).to(dtype) for size in sizes]


def one_by_one(lengths: list[int], inputs: list[Tensor], window: int | None) -> dict[str, Tensor]:
    """Return what each document gives alone, in the dtype of the inputs, put end to end."""
    parts: dict[str, list[Tensor]] = {name: [] for name in NAMES}
    left = None if window is None else window - 1
    for q, k, v, dout in zip(*(x.split(lengths) for x in inputs), strict=True):
        positions = torch.arange(len(q))
        mask = reference.visible(positions, positions, is_causal=True, window=(left, None))
        leaves = [x[None].detach().requires_grad_() for x in (q, k, v)]
        out, lse = reference.attention(*leaves, mask=mask)
        gradients = torch.autograd.grad(out, leaves, dout[None])
        for name, x in zip(NAMES, (out, lse, *gradients), strict=True):
            parts[name].append(x.detach()[0])
    return {name: torch.cat(found) for name, found in parts.items()}


def on_ranks(
    world: World, lengths: list[int], inputs: list[Tensor], layout: Layout, **how: Any
) -> dict[str, Tensor]:
    q, k, v, dout = (shard(x, 0, world=world, layout=layout) for x in inputs)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out, lse = ring_attention_varlen(
        *leaves, starts_of(lengths), world=world, causal=True, return_lse=True, **how
    )
    gradients = torch.autograd.grad(out, leaves, dout)
    parts = (out.detach(), lse.detach(), *gradients)
    return {
        name: unshard(x, 0, world=world, layout=layout)
        for name, x in zip(NAMES, parts, strict=True)
    }


def assert_within_bar(actual: Tensor, exact: Tensor, usual: Tensor, what: str) -> None:
    """Check that the largest error is at most twice that of plain torch.

    A gradient is a difference of sums of products of numbers about 1, and is 0 itself where a query
    sees one key: hence eight fp32 roundings of the largest element besides.
    """
    assert_same_nonfinite(actual, exact, what=what)
    if not exact.numel():
        return
    rounding = torch.finfo(torch.float32).eps * max(1.0, float(exact.abs().max()))
    error, baseline = (float((x.double() - exact).abs().max()) for x in (actual, usual))
    assert error <= 2 * baseline + 8 * rounding, f"{what} is off by {error:.3g}"


def _rank_documents(world: World) -> None:
    cases = [(name, torch.float32, None) for name in DOCUMENTS]
    cases += [("mixed", torch.bfloat16, None), ("mixed", torch.float32, 4)]
    for number, (name, dtype, window) in enumerate(cases):
        lengths = DOCUMENTS[name]
        inputs = tensors(sum(lengths), dtype)
        exact = one_by_one(lengths, [x.double() for x in inputs], window)
        usual = one_by_one(lengths, inputs, window)
        for partition in ("auto", "zigzag") if name in ("mixed", "many") else ("auto",):
            layout = packed_layout(starts_of(lengths), world.size, partition)  # type: ignore[arg-type]
            if world.rank == number % world.size:
                time.sleep(0.002)  # one rank is late
            how = {"partition": partition, "window": window}
            found = on_ranks(world, lengths, inputs, layout, **how)
            for key in NAMES:
                what = f"{key} of {name}, {partition}, {dtype}, window {window}"
                assert_within_bar(found[key], exact[key], usual[key], what)


@pytest.mark.parametrize("world_size", [2, 3])
def test_documents_attend_to_themselves_alone(world_size: int) -> None:
    """Empty and short documents, ranks without rows, windows: the values of each one alone."""
    run_ranks(_rank_documents, world_size, timeout_s=110)


def _rank_mistakes(world: World) -> None:
    lengths = DOCUMENTS["mixed"]
    inputs = tensors(sum(lengths), torch.float32)
    exact = one_by_one(lengths, [x.double() for x in inputs], None)["out"]
    layout = packed_layout(starts_of(lengths), world.size)

    def is_right(actual: Tensor) -> bool:
        return bool((unshard(actual, 0, world=world, layout=layout) - exact).abs().max() < 1e-5)

    q, k, v, _ = (shard(x, 0, world=world, layout=layout) for x in inputs)
    how: dict[str, Any] = {"world": world, "causal": True}
    assert is_right(ring_attention_varlen(q, k, v, starts_of(lengths), **how))
    # Documents that see each other, and a boundary that is off by one.
    whole = partition_tokens(sum(lengths), world.size)
    q, k, v, _ = (shard(x, 0, world=world, layout=whole) for x in inputs)
    joined = ring_attention(q[None], k[None], v[None], layout=whole, **how)[0]
    assert (unshard(joined, 0, world=world, layout=whole) - exact).abs().max() > 1e-2
    off = starts_of(lengths)
    off[1] -= 1
    other = packed_layout(off, world.size)
    q, k, v, _ = (shard(x, 0, world=world, layout=other) for x in inputs)
    wrong = ring_attention_varlen(q, k, v, off, **how)
    assert (unshard(wrong, 0, world=world, layout=other) - exact).abs().max() > 1e-2


def test_a_wrong_boundary_is_seen() -> None:
    """What the comparison above would say of documents that see each other."""
    run_ranks(_rank_mistakes, 2, timeout_s=110)


def _rank_cross(world: World) -> None:
    """Queries and keys of different numbers: nothing is masked within a document."""
    q_lengths, kv_lengths = [3, 0, 6, 2], [7, 4, 1, 0]
    q, _, _, _ = tensors(11, torch.float32)
    _, k, v, _ = tensors(12, torch.float32)
    q_layout = packed_layout(starts_of(q_lengths), world.size)
    kv_layout = packed_layout(starts_of(kv_lengths), world.size)
    out = ring_attention_varlen(
        shard(q, 0, world=world, layout=q_layout),
        shard(k, 0, world=world, layout=kv_layout),
        shard(v, 0, world=world, layout=kv_layout),
        starts_of(q_lengths),
        cu_seqlens_kv=torch.tensor(starts_of(kv_lengths)),
        world=world,
    )
    found = unshard(out, 0, world=world, layout=q_layout)
    start = 0
    for part_q, part_k, part_v in zip(
        q.split(q_lengths), k.split(kv_lengths), v.split(kv_lengths), strict=True
    ):
        expected, _ = reference.attention(part_q[None], part_k[None], part_v[None])
        torch.testing.assert_close(found[start : start + len(part_q)], expected[0])
        start += len(part_q)


def test_queries_and_keys_may_be_differently_many() -> None:
    """Cross-attention within documents; queries without keys give zeros."""
    run_ranks(_rank_cross, 2, timeout_s=110)


def _rank_refusals(world: World) -> None:
    q, k, v, _ = tensors(4, torch.float32)
    how: dict[str, Any] = {"world": world, "causal": True}
    other = packed_layout([0, 3, 8], 2)
    wrong: list[tuple[Any, str]] = [
        (lambda: ring_attention_varlen(q[None], k, v, [0, 8], **how), r"q must be \[rows"),
        (lambda: ring_attention_varlen(q, k, v, [0, 11], **how), "its layout says"),
        (lambda: ring_attention_varlen(q, k, v, [1, 8], **how), "begin with 0"),
        (lambda: ring_attention_varlen(q, k, v, [0, 8], layout=other, **how), "same documents"),
        (
            lambda: ring_attention_varlen(q, k, v, [0, 8], cu_seqlens_kv=[0, 8], **how),
            "is ambiguous",
        ),
    ]
    for call, message in wrong:
        with pytest.raises(ConfigError, match=message):
            call()
    # Other documents on each rank: all notice, nothing moves, and the world still works.
    starts = [0, 8] if world.rank else [0, 4, 8]
    mine = packed_layout(starts, 2, "contiguous")
    with pytest.raises(MismatchError):
        ring_attention_varlen(q, k, v, starts, layout=mine, **how)
    ring_attention_varlen(q, k, v, [0, 8], **how)


def test_what_contradicts_itself_is_refused() -> None:
    """On every rank, before anything moves."""
    run_ranks(_rank_refusals, 2, timeout_s=110)
