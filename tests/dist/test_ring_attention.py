"""ring_attention between processes: exact, the same for all strategies, refusing what it cannot."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import tokenfabric
from tests.unit.ring_virtual import NAMES, Case, by_torch, on_one_device
from tests.unit.test_ring_engine import assert_within_bar
from tokenfabric.testing.spawn import Raised, run_ranks, spawn_plain
from tokenfabric.world import World
from tokenring.attention import ring_attention
from tokenring.movement import STRATEGIES
from tokenring.partition import partition_tokens
from tokenring.sharding import shard, unshard

Report = Callable[[str], None]
FIXED = [name for name in STRATEGIES if name != "grid"]
DEATH_SEEN_S = 2.0
VICTIM = 1


def attend(world: World, case: Case) -> dict[str, torch.Tensor]:
    """Return out, lse and gradients of the whole, from this world's ranks, on the CPU."""
    layout = case.layout
    whole = (x.to(world.device) for x in case.tensors())
    *inputs, dout = (shard(x, world=world, layout=layout) for x in whole)
    q, k, v = (x.requires_grad_() for x in inputs)
    out, lse = ring_attention(
        q, k, v, world=world, causal=case.causal, window=case.window, softcap=case.softcap,
        scale=0.25, layout=layout, strategy=case.strategy, return_lse=True,
    )  # fmt: skip
    gradients = torch.autograd.grad(out, (q, k, v), dout)
    parts = (out.detach(), lse.detach(), *gradients)
    return {
        name: unshard(part, world=world, layout=layout).cpu()
        for name, part in zip(NAMES, parts, strict=True)
    }


def _rank_is_exact(world: World, cases: list[Case]) -> None:
    for case in cases:
        if world.rank == case.seed % world.size:
            time.sleep(0.02)  # one rank late, a different one each time
        got = attend(world, case)
        exact, usual = on_one_device(case, torch.float64), by_torch(case)
        for name in NAMES:
            assert_within_bar(case, name, got[name], exact[name], usual[name])


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_all_strategies_are_exact_on_one_world_again_and_again(world_size: int) -> None:
    base = Case(world_size=world_size)
    cases = [
        replace(base, strategy=strategy, partition=partition, causal=causal, seed=seed)
        for seed, (strategy, partition, causal) in enumerate(
            (strategy, partition, causal)
            for strategy in (*FIXED, "auto")
            for partition, causal in (("contiguous", False), ("zigzag", True))
        )
    ]
    cases += [
        replace(base, tokens=tokens, strategy="auto", window=window, dtype=dtype, seed=tokens)
        for tokens, window, dtype in (
            (1, None, torch.float32),
            (world_size, 5, torch.float32),
            (97, 5, torch.float32),
            (97, None, torch.bfloat16),
        )
    ]
    run_ranks(_rank_is_exact, world_size, cases)


def _rank_has_its_own_length(world: World) -> None:
    """Ranks with 0, 5 and 17 tokens; batch and last dimension not contiguous."""
    lengths = [0, 5, 17]
    layout = partition_tokens(22, 3, "contiguous", rank_lengths=lengths)
    case = Case(world_size=3, tokens=22)
    q, k, v, _ = case.tensors()
    whole = by_torch(case)["out"]
    strided = [
        shard(x.transpose(0, 3).contiguous().transpose(0, 3), world=world, layout=layout)
        for x in (q, k, v)
    ]
    got = ring_attention(*strided, world=world, causal=True, scale=0.25, layout=layout)
    assert got.shape[1] == lengths[world.rank]
    torch.testing.assert_close(unshard(got, world=world, layout=layout), whole)


def test_ranks_may_hold_different_lengths_or_nothing() -> None:
    run_ranks(_rank_has_its_own_length, 3)


def _rank_has_nan(world: World) -> None:
    """A NaN in k reaches exactly the rows that see it, in whatever way blocks are merged."""
    case = Case(world_size=2, tokens=16)
    q, k, v, _ = case.tensors()
    k[0, 9] = torch.nan
    for strategy in ("q_push", "kv"):
        parts = (shard(x, world=world) for x in (q, k, v))
        out = ring_attention(*parts, world=world, causal=True, strategy=strategy)
        is_nan = unshard(out, world=world).isnan().any(dim=(2, 3))
        assert is_nan[0].tolist() == [False] * 9 + [True] * 7
        assert not is_nan[1].any()


def test_nan_goes_where_it_is_seen_and_nowhere_else() -> None:
    run_ranks(_rank_has_nan, 2)


def refused(world: World, message: str, **changes: Any) -> None:
    """Check that every rank refuses a call, and that the world works after it."""
    x = {"q": torch.zeros(1, 4, 2, 8), "k": torch.zeros(1, 4, 2, 8), "v": torch.zeros(1, 4, 2, 8)}
    arguments = x | {"world": world, "causal": True} | changes
    with pytest.raises(tokenfabric.ConfigError, match=message):
        ring_attention(**arguments)
    world.barrier()


def _rank_refuses(world: World) -> None:
    small = torch.zeros(1, 4, 3, 8)
    refused(world, "multiple of heads_kv", q=torch.zeros(1, 4, 3, 8))
    refused(world, "one batch", k=torch.zeros(2, 4, 2, 8))
    refused(world, "floating dtype", k=torch.zeros(1, 4, 2, 8, dtype=torch.bfloat16))
    refused(world, "floating dtype", **dict.fromkeys("qkv", small.long()))
    refused(world, "rows, heads, head_dim", q=torch.zeros(4, 2, 8))
    refused(world, "unknown strategy", strategy="ring")
    refused(world, "window is 0", window=0)
    refused(world, "ambiguous", window=4, causal=False)
    refused(world, "softcap", softcap=-1.0)
    refused(world, "scale", scale=float("nan"))
    refused(world, "num_tokens", num_tokens=11)
    refused(world, "for 3 ranks", layout=partition_tokens(8, 3))
    refused(world, "sinks", sinks=torch.zeros(3))
    refused(world, "on meta", q=torch.zeros(1, 4, 2, 8, device="meta"))


def test_bad_arguments_are_refused_by_name_before_anything_moves() -> None:
    run_ranks(_rank_refuses, 2)


def _rank_differs(world: World, what: str) -> None:
    is_odd = world.rank == 1
    heads = 4 if what == "heads" and is_odd else 2
    dtype = torch.bfloat16 if what == "dtype" and is_odd else torch.float32
    q, k, v = (torch.ones(1, 4, heads, 8, dtype=dtype) for _ in range(3))
    how: dict[str, Any] = {"world": world, "causal": what == "causal" and is_odd}
    if what == "gradient" and is_odd:
        q.requires_grad_()
    with pytest.raises(tokenfabric.MismatchError):
        ring_attention(q, k, v, **how)
    ones = torch.ones(1, 4, 2, 8)
    assert torch.equal(ring_attention(ones, ones, ones, world=world), ones)


@pytest.mark.parametrize("what", ["heads", "dtype", "causal", "gradient"])
def test_ranks_that_differ_are_told_and_can_go_on(what: str) -> None:
    run_ranks(_rank_differs, 3, what)


def _rank_meets_a_death(world: World, report: Report, strategy: str) -> None:
    q, k, v, _ = Case(world_size=world.size, tokens=600).tensors()
    parts = [shard(x, world=world) for x in (q, k, v)]
    step = 0
    while True:
        try:
            ring_attention(*parts, world=world, causal=True, strategy=strategy)
        except tokenfabric.PeerLostError:
            report("told")
            raise
        step += 1
        if step == 3:
            report("running")


@pytest.mark.parametrize("strategy", ["q", "kv_push"])
def test_a_rank_that_dies_in_a_ring_is_named_by_all(strategy: str) -> None:
    with spawn_plain(_rank_meets_a_death, 3, strategy, timeout_s=60) as ranks:
        ranks.wait_for("running")
        killed_s = ranks.kill(VICTIM)
        ranks.join()
        for rank in (0, 2):
            outcome = ranks.outcome(rank)
            assert isinstance(outcome, Raised)
            assert outcome.exception_type == "PeerLostError", outcome.traceback
            assert outcome.attributes["peer_rank"] == VICTIM
            assert ranks.marker_time_s(rank, "told") - killed_s < DEATH_SEEN_S
