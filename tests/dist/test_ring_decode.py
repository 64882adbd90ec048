"""Decoding with a cache that is sharded over ranks: exact, the same bits everywhere."""

import time
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from tokenfabric.testing.spawn import run_ranks
from tokenfabric.testing.tolerance import assert_close, assert_same_bits
from tokenfabric.world import World
from tokenring import decode, reference
from tokenring.cache import RingCache
from tokenring.connection import channel_of
from tokenring.decode import ring_decode, ring_prefill
from tokenring.decode_plan import decode_bytes
from tokenring.exchange import gather_rows
from tokenring.partition import Partition, partition_tokens

HEADS, KV_HEADS, HEAD_DIM, HEAD_DIM_V = 6, 2, 8, 12


@dataclass(frozen=True, kw_only=True)
class Case:
    """Sequences that are prefilled in two parts and then decoded."""

    lengths: tuple[int, ...]
    num_new: int = 1
    steps: int = 5
    partition: Partition = "zigzag"
    window: int | None = None
    softcap: float | None = None
    has_sinks: bool = False
    dtype: torch.dtype = torch.float32
    block_tokens: int = 3

    def tensors(self) -> list[list[Tensor]]:
        """Return q, k and v of each sequence, [tokens, heads, ..], the same on every rank."""
        generator = torch.Generator().manual_seed(sum(self.lengths))
        sizes = [(HEADS, HEAD_DIM), (KV_HEADS, HEAD_DIM), (KV_HEADS, HEAD_DIM_V)]
        return [
            [
                torch.randn(length + self.num_new * self.steps, *size, generator=generator).to(
                    self.dtype
                )
                for size in sizes
            ]
            for length in self.lengths
        ]

    def sinks(self) -> Tensor | None:
        return torch.linspace(-1, 1, HEADS) if self.has_sinks else None

    def expected(self, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
        """Return out and lse of every token of each sequence, on one device."""
        results = []
        left = None if self.window is None else self.window - 1
        for sequence in self.tensors():
            q, k, v = (x[None].to(dtype) for x in sequence)
            positions = torch.arange(q.shape[1])
            mask = reference.visible(positions, positions, is_causal=True, window=(left, None))
            sinks = self.sinks()
            out, lse = reference.attention(
                q, k, v, mask=mask, softcap=self.softcap,
                sinks=None if sinks is None else sinks.to(dtype),
            )  # fmt: skip
            results.append((out[0], lse[0]))
        return results


CASES = [
    Case(lengths=(17,)),
    Case(lengths=(5, 9, 0, 23)),
    Case(lengths=(4, 31), num_new=3, partition="contiguous"),
    Case(lengths=(12, 12, 12), num_new=2, window=5),
    Case(lengths=(20,), window=4, partition="striped", has_sinks=True),
    Case(lengths=(9, 14), num_new=2, softcap=5.0, has_sinks=True),
    Case(lengths=(40,), dtype=torch.bfloat16, steps=3),
]


def prefill(world: World, case: Case, cache: RingCache, layer: int = 0) -> list[tuple[int, int]]:
    """Fill a cache with the sequences in two parts; return the rows of the last that are here."""
    sequences, rows, done = case.tensors(), [], [0] * len(case.lengths)
    halves = [length // 2 for length in case.lengths]
    parts = [halves, [a - b for a, b in zip(case.lengths, halves, strict=True)]]
    # Stripes of two parts do not line up, which the planner refuses.
    for counts in [list(case.lengths)] if case.partition == "striped" else parts:
        layout = partition_tokens(counts, world.size, case.partition, starts=done)
        rows = [
            (chunk.sequence, chunk.start + chunk.step * row)
            for chunk in layout.ranks[world.rank]
            for row in range(chunk.count)
        ]
        q, k, v = (
            torch.stack([sequences[s][i][p] for s, p in rows])[None]
            if rows
            else sequences[0][i][None, :0]
            for i in range(3)
        )
        out = ring_prefill(
            q, k, v, cache, world=world, layout=layout, layer=layer,
            window=case.window, softcap=case.softcap, sinks=case.sinks(),
        )  # fmt: skip
        done = [a + b for a, b in zip(done, counts, strict=True)]
        exact, usual = case.expected(torch.float64), case.expected(case.dtype)
        if rows:
            expected, baseline = (
                torch.stack([results[s][0][p] for s, p in rows])[None] for results in (exact, usual)
            )
            assert_close(out, expected, baseline, ulps=4, what=f"prefill of {case}")
    return rows


def check_case(world: World, case: Case) -> None:
    cache = RingCache(
        world,
        num_layers=2,
        num_sequences=len(case.lengths),
        block_tokens=case.block_tokens,
    )
    sequences = case.tensors()
    exact, usual = case.expected(torch.float64), case.expected(case.dtype)
    for layer in range(2):
        prefill(world, case, cache, layer)
        for step in range(case.steps):
            if world.rank == step % world.size:
                time.sleep(0.002)  # one rank is late
            new = step * case.num_new
            spans = [slice(n + new, n + new + case.num_new) for n in case.lengths]
            q, k, v = (
                torch.stack([s[i][span] for s, span in zip(sequences, spans, strict=True)])
                for i in range(3)
            )
            cache.append_replicated(k, v, layer)
            out, lse = ring_decode(
                q, cache, world=world, layer=layer, window=case.window, softcap=case.softcap,
                sinks=case.sinks(), return_lse=True,
            )  # fmt: skip
            for index, (name, actual) in enumerate({"out": out, "lse": lse}.items()):
                expected, baseline = (
                    torch.stack([r[index][span] for r, span in zip(results, spans, strict=True)])
                    for results in (exact, usual)
                )
                what = f"{name} of {case} in step {step}"
                assert_close(actual, expected, baseline.to(actual.dtype), ulps=4, what=what)
            everyone = gather_rows(world, out.reshape(1, -1), (1,) * world.size)
            for rank, other in enumerate(everyone):
                assert_same_bits(other.view(out.shape), out, what=f"rank {rank}'s out")


def _rank_decodes(world: World) -> None:
    for case in CASES:
        check_case(world, case)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_decoding_is_exact_and_the_same_on_all_ranks(world_size: int) -> None:
    """Lengths that differ in a batch, empty caches, ranks that see nothing, windows, sinks."""
    run_ranks(_rank_decodes, world_size, timeout_s=110)


def _rank_bytes(world: World) -> tuple[int, list[int], int]:
    cache = RingCache(world, num_layers=1, capacity_tokens=100)
    layout = partition_tokens(96, world.size)
    k = torch.ones(1, layout.num_rows(world.rank), KV_HEADS, HEAD_DIM)
    cache.append(k, k, layout)
    capacity = cache.num_bytes
    q, new = torch.ones(1, 1, HEADS, HEAD_DIM), torch.ones(1, 1, KV_HEADS, HEAD_DIM)
    before = sum(channel_of(world).bytes_sent.values())
    for _ in range(4):
        cache.append_replicated(new, new)
        ring_decode(q, cache, world=world)
    sent = sum(channel_of(world).bytes_sent.values()) - before
    assert cache.num_bytes == capacity, "what was asked for needs no growth"
    rows = [cache.layout().num_rows(rank) for rank in range(world.size)]
    memory = 2 * 4 * KV_HEADS * HEAD_DIM * (-(-100 // world.size) + 64)
    assert capacity == memory
    return sent, rows, capacity


def test_only_partials_travel() -> None:
    """Bytes are those of the formula; a rank holds its share of the cache."""
    for sent, rows, _ in run_ranks(_rank_bytes, 3, timeout_s=110):
        assert sent == 4 * decode_bytes(1, 1, HEADS, HEAD_DIM, 3)
        assert sum(rows) == 100


def _rank_mistakes(world: World) -> None:
    case = Case(lengths=(30,), steps=1)
    exact = case.expected(torch.float64)[0][0][30:]
    q, k, v = (x[None, 30:] for x in case.tensors()[0])

    def error(plan: Any = decode.plan_decode, merge: Any = decode.merge_partials) -> float:
        cache = RingCache(world, num_layers=1)
        prefill(world, case, cache)
        cache.append_replicated(k, v)
        real = decode.plan_decode, decode.merge_partials
        decode.plan_decode, decode.merge_partials = plan, merge
        world.prepared.pop(decode.STEP_KEY, None)
        try:
            return float((ring_decode(q, cache, world=world)[0] - exact).abs().max())
        finally:
            decode.plan_decode, decode.merge_partials = real
            world.prepared.pop(decode.STEP_KEY, None)

    def short_of_a_row(*args: Any) -> Any:
        groups = real_plan(*args)
        return tuple(
            group._replace(
                attends=tuple(
                    a._replace(kv_rows=a.kv_rows._replace(stop=a.kv_rows.stop - 1))
                    for a in group.attends
                )
            )
            for group in groups
        )

    def without_the_last(partials: Any, *args: Any, **kwargs: Any) -> None:
        real_merge(partials[: max(1, len(partials) - 1)], *args, **kwargs)

    real_plan, real_merge = decode.plan_decode, decode.merge_partials
    assert error() < 1e-5
    assert error(plan=short_of_a_row) > 1e-3
    assert error(merge=without_the_last) > 1e-3


def test_seeded_mistakes_are_seen() -> None:
    """A key less in each rank's part, a rank's partial that is not merged."""
    run_ranks(_rank_mistakes, 2, timeout_s=110)
