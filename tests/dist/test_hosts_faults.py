"""Several hosts when a rank dies, stops, differs or leaves: all ranks of all hosts are told."""

import os
import signal
import threading
import time
from collections.abc import Callable

import pytest
import torch

import tokenfabric
import tokenweave
from tests.dist.broken import AT_ONCE_S, assert_world_is_broken
from tests.dist.host_worlds import Hosts
from tokenfabric.testing.poison import poison
from tokenfabric.testing.spawn import Raised, RankGroup, Returned, run_ranks, spawn_plain

Report = Callable[[str], None]

# The connection of a dead process ends at once; the rest is for a busy machine.
DEATH_SEEN_S = 2.0
DEADLINE_S = 1.5
TWO_BY_TWO = Hosts(2, 2)


def raised_by(ranks: RankGroup, rank: int) -> Raised:
    outcome = ranks.outcome(rank)
    assert isinstance(outcome, Raised), f"rank {rank}: {outcome}"
    return outcome


def _rank_meets_a_death(
    rank: int, world_size: int, report: Report, hosts: Hosts, victim: int, where: str
) -> None:
    with hosts.world(rank) as world:

        def reduce_forever(num_tokens: int, dtype: torch.dtype = torch.float32) -> None:
            x, weight = torch.ones(num_tokens, 512, dtype=dtype), torch.ones(512, dtype=dtype)
            for step in range(100_000):
                _, total = tokenweave.allreduce_rmsnorm(x, None, weight, world=world)
                assert torch.equal(total, torch.full_like(x, float(world.size)))
                if step == 2:
                    report("ready")

        operations: dict[str, Callable[[], object]] = {
            "barrier": world.barrier,
            "all_reduce": lambda: tokenweave.all_reduce(torch.ones(9, 64), world=world),
            "all_gather": lambda: tokenweave.all_gather(torch.ones(9, 64), world=world),
            "many small reductions": lambda: reduce_forever(3),
            "large reductions": lambda: reduce_forever(6_000),
            "large bf16 reductions": lambda: reduce_forever(6_000, torch.bfloat16),
        }
        world.barrier()
        if "reductions" not in where:
            report("ready")
            if rank == victim:
                time.sleep(60)
        try:
            operations[where]()
        except tokenfabric.PeerLostError:
            report("told")
            assert_world_is_broken(world, tokenfabric.PeerLostError, victim)
            raise


@pytest.mark.parametrize(
    ("where", "hosts", "victim"),
    [
        *(("barrier", TWO_BY_TWO, victim) for victim in range(4)),
        ("barrier", Hosts(2, 1), 0),
        ("barrier", Hosts(3, 1), 1),
        ("all_reduce", Hosts(2, 1), 1),
        ("all_gather", TWO_BY_TWO, 3),
        ("many small reductions", TWO_BY_TWO, 0),
        ("many small reductions", TWO_BY_TWO, 3),
        ("large reductions", TWO_BY_TWO, 1),
        ("large reductions", TWO_BY_TWO, 2),
        ("large reductions", Hosts(3, 1), 2),
        ("large bf16 reductions", TWO_BY_TWO, 0),
        ("large bf16 reductions", TWO_BY_TWO, 3),
    ],
)
def test_every_survivor_on_every_host_names_the_dead_rank_in_time(
    where: str, hosts: Hosts, victim: int
) -> None:
    """SIGKILL while peers wait, in shared memory or between hosts: PeerLostError on all of them."""
    arguments = (hosts, victim, where)
    with spawn_plain(
        _rank_meets_a_death, hosts.size, *arguments, timeout_s=60, with_world=False
    ) as ranks:
        ranks.wait_for("ready")
        time.sleep(0.2)
        killed_s = ranks.kill(victim)
        ranks.join()
        assert ranks.exit_code(victim) == -signal.SIGKILL
        for rank in set(range(hosts.size)) - {victim}:
            error = raised_by(ranks, rank)
            assert error.exception_type == "PeerLostError", error.traceback
            assert error.attributes["peer_rank"] == victim, error.traceback
            assert error.attributes["rank"] == rank
            assert f"rank {victim}" in error.message
            assert ranks.marker_time_s(rank, "told") - killed_s < DEATH_SEEN_S


def _rank_is_at_rest(rank: int, world_size: int, report: Report, pause_s: float) -> None:
    with TWO_BY_TWO.world(rank) as world:
        world.barrier()
        report("ready")
        time.sleep(60 if rank == 3 else pause_s)
        started_s = time.monotonic()
        try:
            world.barrier()
        finally:
            assert time.monotonic() - started_s < AT_ONCE_S


def test_a_rank_that_died_at_rest_is_known_before_the_next_call() -> None:
    """Killed between collectives: the next call raises without a wait, on the other host too."""
    with spawn_plain(_rank_is_at_rest, 4, 1.0, timeout_s=40, with_world=False) as ranks:
        ranks.wait_for("ready")
        ranks.kill(3)
        ranks.join()
        for rank in range(3):
            error = raised_by(ranks, rank)
            assert error.exception_type == "PeerLostError", error.traceback
            assert error.attributes["peer_rank"] == 3


def _rank_stops(rank: int, world_size: int, report: Report, victim: int) -> float:
    with TWO_BY_TWO.world(rank, timeout_s=DEADLINE_S) as world:
        out = poison(torch.empty(64, 512))
        world.barrier()
        report("ready")
        time.sleep(0.6)
        try:
            tokenweave.all_reduce(torch.full((64, 512), 1.0 + rank), world=world, out=out)
        except tokenfabric.CommTimeoutError:
            report("told")
            assert_world_is_broken(world, tokenfabric.CommTimeoutError, victim)
            raise
        return float(out[-1, -1])


def test_a_rank_stopped_for_less_than_the_deadline_costs_only_time() -> None:
    """SIGSTOP for half the deadline: all ranks of all hosts return the right sum."""
    with spawn_plain(_rank_stops, 4, 2, timeout_s=40, with_world=False) as ranks:
        ranks.wait_for("ready")
        ranks.stop(2)
        time.sleep(0.6 + DEADLINE_S / 2)
        ranks.resume(2)
        ranks.join()
        assert ranks.check() == [10.0] * 4


@pytest.mark.parametrize("victim", [0, 3])
def test_a_silent_rank_is_named_at_the_deadline(victim: int) -> None:
    """SIGSTOP past the deadline: CommTimeoutError names it on both hosts, then it fails itself."""
    with spawn_plain(_rank_stops, 4, victim, timeout_s=40, with_world=False) as ranks:
        ranks.wait_for("ready")
        ranks.stop(victim)
        survivors = sorted(set(range(4)) - {victim})
        ranks.join(survivors)
        for rank in survivors:
            error = raised_by(ranks, rank)
            assert error.exception_type == "CommTimeoutError", error.traceback
            assert error.attributes["rank"] == rank
            assert error.attributes["peer_rank"] == victim, error.traceback
            assert error.attributes["operation"] == "all_reduce"
            assert error.attributes["epoch"] > 0
            waited_s = ranks.marker_time_s(rank, "told") - ranks.marker_time_s(rank, "ready") - 0.6
            assert DEADLINE_S - 0.1 < waited_s < DEADLINE_S + 2.0
        resumed_s = ranks.resume(victim)
        ranks.join()
        late = raised_by(ranks, victim)
        assert late.exception_type in ("CommTimeoutError", "PeerLostError"), late.traceback
        assert late.time_s - resumed_s < DEATH_SEEN_S


def _rank_raises_instead(rank: int, world_size: int, report: Report) -> None:
    with TWO_BY_TWO.world(rank) as world:
        world.barrier()
        if rank == 1:
            raise ValueError("the cause")
        tokenweave.all_reduce(torch.ones(3, 64), world=world)


def test_a_rank_that_leaves_by_an_exception_ends_all_waits() -> None:
    """Closing the world is seen on the other host too, without a wait for the deadline."""
    with spawn_plain(_rank_raises_instead, 4, timeout_s=40, with_world=False) as ranks:
        ranks.join()
        cause = raised_by(ranks, 1)
        assert cause.exception_type == "ValueError"
        for rank in (0, 2, 3):
            error = raised_by(ranks, rank)
            assert error.exception_type == "PeerLostError", error.traceback
            assert error.attributes["peer_rank"] == 1, error.traceback
            assert error.time_s - cause.time_s < DEATH_SEEN_S


def _rank_is_interrupted(rank: int, world_size: int, report: Report) -> str:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with Hosts(2, 1).world(rank) as world:
        report("ready")
        if rank == 1:
            world.barrier()
        time.sleep(1.0)
        with pytest.raises(tokenfabric.PeerLostError) as info:
            world.barrier()
        return type(info.value).__name__


def test_ctrl_c_leaves_a_wait_for_another_host() -> None:
    """KeyboardInterrupt comes out of the wait, and the other host learns of it."""
    with spawn_plain(_rank_is_interrupted, 2, timeout_s=40, with_world=False) as ranks:
        ranks.wait_for("ready")
        time.sleep(0.2)
        sent_s = ranks.signal(1, signal.SIGINT)
        ranks.join()
        error = raised_by(ranks, 1)
        assert error.exception_type == "KeyboardInterrupt", error.traceback
        assert error.time_s - sent_s < 1.0
        peer = ranks.outcome(0)
        assert isinstance(peer, Returned), peer
        assert peer.value == "PeerLostError"


def _rank_forks(rank: int, world_size: int, report: Report) -> None:
    with Hosts(2, 1).world(rank) as world:
        world.barrier()
        child = os.fork()
        if child == 0:
            try:
                world.barrier()
            except tokenfabric.ConfigError as error:
                world.close()
                os._exit(7 if "forked" in str(error) else 1)
            os._exit(2)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 7
        world.barrier()
        if os.fork() == 0:
            time.sleep(8)
            os._exit(0)
        report("ready")
        if rank == 0:
            time.sleep(60)
        world.barrier()


def test_a_forked_child_has_no_part_in_the_world_and_does_not_keep_it_alive() -> None:
    """It is refused by name; closing it there harms nobody; it does not hide its parent's death."""
    with spawn_plain(_rank_forks, 2, timeout_s=40, with_world=False) as ranks:
        ranks.wait_for("ready")
        killed_s = ranks.kill(0)
        ranks.join([1])
        error = raised_by(ranks, 1)
        assert error.exception_type == "PeerLostError", error.traceback
        assert error.attributes["peer_rank"] == 0
        assert error.time_s - killed_s < DEATH_SEEN_S


def _rank_breaks_and_reopens(rank: int, world_size: int, hosts: Hosts) -> None:
    threads = threading.active_count()
    for _ in range(2):
        with hosts.world(rank, timeout_s=DEADLINE_S) as world:
            if rank > 0:
                with pytest.raises(tokenfabric.CommTimeoutError) as info:
                    world.barrier()
                assert info.value.peer_rank == 0
            else:
                time.sleep(DEADLINE_S + 1.0)
                assert isinstance(world.broken, tokenfabric.CommTimeoutError)
        assert threading.active_count() == threads
    with hosts.world(rank) as world:
        assert (tokenweave.all_reduce(torch.ones(5), world=world) == world_size).all()


def test_after_a_failure_a_new_world_works() -> None:
    """A broken world closes without a wait, and its process group makes another."""
    run_ranks(_rank_breaks_and_reopens, 4, TWO_BY_TWO, with_world=False)
