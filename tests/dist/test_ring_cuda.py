"""ring_attention over copy engines between processes, over a driver in software (rung L2)."""

import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

import tokenfabric
from tests.dist.software_gpus import SoftwareChannel
from tests.dist.test_ring_attention import FIXED, attend
from tests.gpu import test_ring_world
from tests.unit.ring_virtual import NAMES, Case, by_torch, on_one_device
from tests.unit.test_ring_engine import assert_within_bar
from tokenfabric.testing.spawn import Returned, run_ranks, spawn_plain
from tokenfabric.world import World
from tokenring.attention import ring_attention

Report = Callable[[str], None]


def _rank_is_exact(world: World, driver: str, cases: list[Case]) -> None:
    world.channel = SoftwareChannel(world, driver)
    for case in cases:
        got = attend(world, case)
        exact, usual = on_one_device(case, torch.float64), by_torch(case)
        for name in NAMES:
            assert_within_bar(case, name, got[name], exact[name], usual[name])
    assert sum(world.channel.bytes_sent.values()) > 0


@pytest.mark.parametrize("world_size", [2, 3])
def test_every_strategy_is_exact_forward_and_backward(driver: str, world_size: int) -> None:
    base = Case(world_size=world_size)
    cases = [
        replace(base, strategy=strategy, partition="zigzag", causal=True, seed=seed)
        for seed, strategy in enumerate(FIXED)
    ]
    cases += [
        replace(base, tokens=1, strategy="auto"),
        replace(base, tokens=97, strategy="auto", window=5, dtype=torch.bfloat16),
    ]
    run_ranks(_rank_is_exact, world_size, driver, cases)


def _rank_packs_and_decodes(world: World, driver: str) -> None:
    world.channel = SoftwareChannel(world, driver)
    test_ring_world.rank_varlen_and_decode(world)


def test_packed_documents_and_a_cache(driver: str) -> None:
    """What tests/gpu runs on GPUs; it is right."""
    run_ranks(_rank_packs_and_decodes, 2, driver)


class _Losing(SoftwareChannel):
    """Rank 1 sends nothing; rank 0 ends its call as if the GPU were not that far yet."""

    def send(self, peer: int, parts: object, what: str) -> None:
        if self.rank == 0:
            super().send(peer, parts, what)  # type: ignore[arg-type]

    def flush(self) -> None:
        if self.rank == 1:
            super().flush()


def _rank_loses_keys(world: World, report: Report, driver: str) -> None:
    world.channel = _Losing(world, driver)
    ones = torch.ones(1, 4, 2, 8)
    out = ring_attention(ones, ones, ones, world=world, strategy="kv_push")
    if world.rank == 1:
        assert torch.equal(out, ones)  # it got the keys of rank 0
        time.sleep(60)
    assert out.isnan().all()
    with pytest.raises(tokenfabric.CommTimeoutError, match=r"kv of rank 1 in step \d") as raised:
        world.channel.check()
    assert raised.value.peer_rank == 1
    with pytest.raises(tokenfabric.CommTimeoutError, match="rank 1"):
        ring_attention(ones, ones, ones, world=world)


def test_a_message_that_does_not_come_leaves_nan_and_an_error(driver: str) -> None:
    with spawn_plain(_rank_loses_keys, 2, driver, timeout_s=60, comm_timeout_s=1.5) as ranks:
        ranks.join([0])
        outcome = ranks.outcome(0)
    assert isinstance(outcome, Returned), outcome
