"""Several hosts when a rank dies between the messages of one reduction."""

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

import tokenfabric
import tokenweave
from tests.dist.broken import assert_world_is_broken
from tests.dist.test_hosts_faults import DEATH_SEEN_S, TWO_BY_TWO, raised_by
from tokenfabric.rail import Rail
from tokenfabric.testing.spawn import spawn_plain

Report = Callable[[str], None]


def _rank_dies_between_messages(
    rank: int, world_size: int, report: Report, dtype: torch.dtype, victim: int, at: int
) -> None:
    exchange, count = Rail.exchange, 0

    def counting(self: Rail, *arguments: Any) -> dist.Work:
        nonlocal count
        count += 1
        if rank == victim and count == at:
            report("dies")
            os.kill(os.getpid(), signal.SIGKILL)
        return exchange(self, *arguments)

    Rail.exchange = counting  # type: ignore[method-assign]
    x, weight = torch.ones(1_200, 512, dtype=dtype), torch.ones(512, dtype=dtype)
    with TWO_BY_TWO.world(rank) as world:
        try:
            tokenweave.allreduce_rmsnorm(
                x, None, weight, world=world, residual_layout="row_sharded"
            )
        except tokenfabric.PeerLostError:
            report("told")
            assert_world_is_broken(world, tokenfabric.PeerLostError, victim)
            raise


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_death_before_either_message_of_a_reduction_is_told_to_all(
    dtype: torch.dtype, at: int
) -> None:
    """Partial sums or sums have left or not, results not: nobody waits for the deadline."""
    victim = 2
    with spawn_plain(
        _rank_dies_between_messages, 4, dtype, victim, at, timeout_s=40, with_world=False
    ) as ranks:
        ranks.join()
        assert ranks.exit_code(victim) == -signal.SIGKILL
        for rank in {0, 1, 3}:
            error = raised_by(ranks, rank)
            assert error.exception_type == "PeerLostError", error.traceback
            assert error.attributes["peer_rank"] == victim, error.traceback
            told_s = ranks.marker_time_s(rank, "told") - ranks.marker_time_s(victim, "dies")
            assert told_s < DEATH_SEEN_S
