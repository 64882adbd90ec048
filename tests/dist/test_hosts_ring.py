"""ring_attention over several hosts: exact, and ended on all ranks by one rank's failure."""

import time
from collections.abc import Callable

import pytest
import torch

import tokenfabric
from tests.dist.host_worlds import Hosts
from tests.dist.test_ring_attention import attend
from tests.unit.ring_virtual import NAMES, Case, by_torch, on_one_device
from tests.unit.test_ring_engine import assert_within_bar
from tokenfabric.channel_clocked import ClockedChannel
from tokenfabric.channel_hosts import HostsChannel
from tokenfabric.testing.spawn import Raised, Returned, run_ranks, spawn_plain
from tokenring.attention import ring_attention
from tokenring.connection import channel_of
from tokenring.sharding import shard

Report = Callable[[str], None]
DEATH_SEEN_S = 2.0
VICTIM = 1


def _rank_is_exact(rank: int, world_size: int, hosts: Hosts) -> None:
    with hosts.world(rank) as world:
        for strategy in ("q", "q_push", "kv", "kv_push", "ulysses", "auto"):
            case = Case(world_size=world_size, tokens=41, strategy=strategy)
            got = attend(world, case)
            exact, usual = on_one_device(case, torch.float64), by_torch(case)
            for name in NAMES:
                assert_within_bar(case, name, got[name], exact[name], usual[name])
        clocked = channel_of(world)
        assert isinstance(clocked, ClockedChannel)
        channel = clocked.inner
        assert isinstance(channel, HostsChannel)
        # Shared memory within the host, torch.distributed for the other ranks alone.
        assert set(channel._far.bytes_sent) == set(range(world_size)) - set(world.layout.host_ranks)
        assert set(channel.bytes_sent) == set(range(world_size)) - {rank}
        world.barrier()


@pytest.mark.parametrize("hosts", [Hosts(2, 1), Hosts(2, 2)], ids=str)
def test_every_strategy_is_exact_between_hosts(hosts: Hosts) -> None:
    run_ranks(_rank_is_exact, hosts.size, hosts, with_world=False)


def _rank_attends_until_a_loss(rank: int, world_size: int, report: Report, hosts: Hosts) -> str:
    with hosts.world(rank) as world:
        q, k, v, _ = Case(world_size=world_size, tokens=600).tensors()
        parts = [shard(x, world=world) for x in (q, k, v)]
        step = 0
        while True:
            try:
                ring_attention(*parts, world=world, causal=True, strategy="kv")
            except tokenfabric.PeerLostError as error:
                report("told")
                assert isinstance(world.broken, tokenfabric.PeerLostError)
                return f"rank {error.peer_rank}"
            step += 1
            if step == 3:
                report("running")


def test_a_death_between_hosts_is_told_to_all() -> None:
    hosts = Hosts(2, 1)
    with spawn_plain(
        _rank_attends_until_a_loss, hosts.size, hosts, timeout_s=60, with_world=False
    ) as ranks:
        ranks.wait_for("running")
        killed_s = ranks.kill(VICTIM)
        ranks.join()
        outcome = ranks.outcome(0)
        assert isinstance(outcome, Returned), outcome
        assert outcome.value == f"rank {VICTIM}"
        assert ranks.marker_time_s(0, "told") - killed_s < DEATH_SEEN_S


def _rank_fails_inside(rank: int, world_size: int, report: Report, hosts: Hosts) -> None:
    """Rank 1 fails in its own computation, when the others already wait for it."""
    with hosts.world(rank) as world:
        parts = [torch.ones(1, 4, 2, 8) for _ in range(3)]
        ring_attention(*parts, world=world, strategy="kv")
        prepared = next(iter(world.prepared.values()))
        if rank == VICTIM:
            prepared.local.forward = None  # cannot be called: a defect of this rank alone
        report("ready")
        started_s = time.monotonic()
        try:
            # A rank that has all it needs returns, and is told by its next call.
            for _ in range(2):
                ring_attention(*parts, world=world, strategy="kv")
        finally:
            report("told")
            assert time.monotonic() - started_s < DEATH_SEEN_S


@pytest.mark.parametrize("hosts", [Hosts(1, 3), Hosts(3, 1)], ids=str)
def test_a_rank_that_fails_in_the_middle_leaves_nobody_waiting(hosts: Hosts) -> None:
    """Not even until the deadline."""
    with spawn_plain(
        _rank_fails_inside, hosts.size, hosts, timeout_s=60, with_world=False
    ) as ranks:
        ranks.join()
        kinds = []
        for rank in range(hosts.size):
            outcome = ranks.outcome(rank)
            assert isinstance(outcome, Raised), outcome
            kinds.append(outcome.exception_type)
    assert kinds == ["PeerLostError", "TypeError", "PeerLostError"]
