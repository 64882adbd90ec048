"""Decoding with a sharded cache: what is refused, and what a lost rank does."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenfabric
from tokenfabric.errors import ConfigError, MismatchError
from tokenfabric.testing.spawn import Returned, run_ranks, spawn_plain
from tokenfabric.world import World
from tokenring.cache import RingCache
from tokenring.decode import ring_decode, ring_prefill
from tokenring.partition import partition_tokens

Report = Callable[[str], None]
HEADS, KV_HEADS = 6, 2
DEATH_SEEN_S = 2.0


def _rank_refusals(world: World) -> None:
    def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(*shape, dtype=dtype)

    cache = RingCache(world, num_layers=2, num_sequences=2)
    q, k = zeros(2, 1, HEADS, 8), zeros(2, 1, KV_HEADS, 8)
    layout = partition_tokens([4, 4], world.size, starts=[0, 0])
    rows = layout.num_rows(world.rank)
    packed = zeros(1, rows, KV_HEADS, 8)
    grown = zeros(1, rows, HEADS, 8).requires_grad_()
    with pytest.raises(ConfigError, match="layer 0 of the cache is empty"):
        ring_decode(q, cache, world=world)
    cache.append_replicated(k, k)
    before = cache.layout()
    wrong: list[tuple[Any, str]] = [
        (lambda: ring_decode(zeros(2, 2, HEADS, 8), cache, world=world), "2 new queries"),
        (lambda: ring_decode(zeros(3, 1, HEADS, 8), cache, world=world), "must be"),
        (lambda: ring_decode(zeros(2, 1, 5, 8), cache, world=world), "a multiple of 2"),
        (lambda: ring_decode(q.bfloat16(), cache, world=world), "torch.bfloat16 must be"),
        (lambda: ring_decode(q, cache, world=world, layer=2), "not in 0..1"),
        (lambda: ring_decode(q, cache, world=world, window=0), "window is 0"),
        (lambda: ring_decode(q, cache, world=world, softcap=0.0), "softcap"),
        (lambda: ring_decode(q, cache, world=world, sinks=zeros(2)), "sinks must be"),
        (lambda: cache.append_replicated(zeros(1, 1, 2, 8), zeros(1, 1, 2, 8)), "must be"),
        (lambda: cache.append_replicated(zeros(2, 1, 2, 9), k), "holds torch.float32"),
        (lambda: cache.append(packed, packed, layout), "cannot be followed"),
        (lambda: cache.append(k, k, layout), "must append"),
        (lambda: RingCache(world, num_layers=0), "num_layers is 0"),
        (
            lambda: ring_prefill(grown, packed, packed, cache, world=world, layout=layout),
            "no gradients",
        ),
        (
            lambda: ring_prefill(
                zeros(1, rows, 5, 8), packed, packed, cache, world=world,
                layout=partition_tokens([4, 4], world.size, starts=[1, 1]),
            ),
            "multiple of heads_kv",
        ),
    ]  # fmt: skip
    for call, message in wrong:
        with pytest.raises(ConfigError, match=message):
            call()
        world.barrier()
    assert cache.layout() == before, "a refused call leaves the cache as it was"
    # Ranks whose caches differ: everyone is told, nothing moves.
    other = RingCache(world, num_layers=1, num_sequences=2)
    for _ in range(1 + world.rank):
        other.append_replicated(k, k)
    with pytest.raises(MismatchError):
        ring_decode(q, other, world=world)
    ring_decode(q, cache, world=world)


def test_what_does_not_fit_is_refused_by_name() -> None:
    """Each refusal leaves cache and world usable."""
    run_ranks(_rank_refusals, 2, timeout_s=110)


def _rank_loses_a_peer(world: World, report: Report) -> None:
    cache = RingCache(world, num_layers=1)
    q, k = torch.ones(1, 1, HEADS, 8), torch.ones(1, 1, KV_HEADS, 8)
    cache.append_replicated(k, k)
    ring_decode(q, cache, world=world)
    report("decoding")
    if world.rank == 1:
        threading.Event().wait()  # until it is killed
    cache.append_replicated(k, k)
    with pytest.raises(tokenfabric.PeerLostError) as caught:
        ring_decode(q, cache, world=world)
    report("told")
    assert caught.value.peer_rank == 1


def test_a_lost_rank_is_named() -> None:
    """Long before the deadline."""
    with spawn_plain(_rank_loses_a_peer, 3, timeout_s=60) as ranks:
        ranks.wait_for("decoding")
        killed_s = ranks.kill(1)
        ranks.join([0, 2])
        for rank in (0, 2):
            assert ranks.marker_time_s(rank, "told") - killed_s < DEATH_SEEN_S
            assert isinstance(ranks.outcome(rank), Returned)
