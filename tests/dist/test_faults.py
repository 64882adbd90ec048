"""Ranks that die, stop or come late: every survivor is told who, in time, and no one gets data."""

import signal
import time
from collections.abc import Callable

import pytest
import torch

import tokenfabric
import tokenweave
from tests.dist.broken import assert_world_is_broken
from tokenfabric.testing.poison import poison
from tokenfabric.testing.spawn import Raised, RankGroup, Returned, spawn_plain
from tokenfabric.world import World

Report = Callable[[str], None]

# A death is seen within a slice of a wait plus the time the survivors need to be scheduled.
DEATH_SEEN_S = 2.0
DEADLINE_S = 1.5
VICTIM = 1


def raised_by(ranks: RankGroup, rank: int) -> Raised:
    outcome = ranks.outcome(rank)
    assert isinstance(outcome, Raised), f"rank {rank}: {outcome}"
    return outcome


def survivors(ranks: RankGroup) -> list[int]:
    return [rank for rank in range(ranks.size) if rank != VICTIM]


def reduce_forever(world: World, report: Report, num_tokens: int) -> None:
    """Reduce until a peer is lost, checking each result."""
    x, weight = torch.ones(num_tokens, 512), torch.ones(512)
    step = 0
    while True:
        _, total = tokenweave.allreduce_rmsnorm(x, None, weight, world=world)
        assert torch.equal(total, torch.full_like(x, float(world.size)))
        step += 1
        if step == 3:
            report("reducing")


def _rank_meets_a_death(world: World, report: Report, where: str) -> None:
    # What one of these dies in must not differ from what the others wait in.
    operations: dict[str, Callable[[], object]] = {
        "barrier": world.barrier,
        "all_reduce": lambda: tokenweave.all_reduce(torch.ones(9, 64), world=world),
        "all_gather": lambda: tokenweave.all_gather(torch.ones(9, 64), world=world),
        "allocate": lambda: tokenfabric.SymmetricBuffer(world, 4096),
        "many small reductions": lambda: reduce_forever(world, report, 3),
        "one large reduction": lambda: reduce_forever(world, report, 20_000),
    }
    world.barrier()
    report("ready")
    if world.rank == VICTIM and "reduction" not in where:
        time.sleep(60)
    try:
        operations[where]()
    except tokenfabric.PeerLostError:
        report("told")
        assert_world_is_broken(world, tokenfabric.PeerLostError)
        raise


@pytest.mark.parametrize(
    ("where", "world_size"),
    [
        ("barrier", 2),
        ("barrier", 4),
        ("all_reduce", 3),
        ("all_gather", 3),
        ("allocate", 3),
        ("many small reductions", 4),
        ("one large reduction", 3),
    ],
)
def test_every_survivor_names_the_dead_rank_in_time(where: str, world_size: int) -> None:
    """SIGKILL while peers wait in a collective, or inside one, is PeerLostError on all of them."""
    with spawn_plain(_rank_meets_a_death, world_size, where, timeout_s=40) as ranks:
        ranks.wait_for("reducing" if "reduction" in where else "ready")
        time.sleep(0.1)
        killed_s = ranks.kill(VICTIM)
        ranks.join()
        assert ranks.exit_code(VICTIM) == -signal.SIGKILL
        for rank in survivors(ranks):
            error = raised_by(ranks, rank)
            assert error.exception_type == "PeerLostError", error.traceback
            assert error.attributes["peer_rank"] == VICTIM
            assert error.attributes["rank"] == rank
            assert f"rank {VICTIM}" in error.message
            assert ranks.marker_time_s(rank, "told") - killed_s < DEATH_SEEN_S


def _rank_waits_for_a_signal(world: World, report: Report, pause_s: float) -> None:
    world.barrier()
    report("ready")
    time.sleep(60 if world.rank == VICTIM else pause_s)
    tokenweave.all_reduce(torch.ones(3, 64), world=world)


def test_a_rank_that_died_at_rest_is_found_by_the_next_call() -> None:
    """Killed between collectives, it is named by the first call after its death."""
    with spawn_plain(_rank_waits_for_a_signal, 3, 1.0, timeout_s=40) as ranks:
        ranks.wait_for("ready")
        ranks.kill(VICTIM)
        ranks.join()
        for rank in survivors(ranks):
            error = raised_by(ranks, rank)
            assert error.exception_type == "PeerLostError", error.traceback
            assert error.attributes["peer_rank"] == VICTIM
            called_s = ranks.marker_time_s(rank, "ready") + 1.0
            assert error.time_s - called_s < DEATH_SEEN_S


def _rank_reduces(world: World, report: Report, late_s: float) -> float:
    """Return an element of the result; a rank that comes late may raise but never return data.

    The victim enters a two-shot reduction at once and the others `late_s` later: it can be stopped
    before it enters, or while it waits for the first of two barriers.
    """
    x = torch.full((64, 512), 1.0 + world.rank)
    out = poison(torch.empty_like(x))
    world.barrier()
    report("ready")
    time.sleep(0.6 if world.rank == VICTIM else 0.6 + late_s)
    try:
        tokenweave.all_reduce(x, world=world, out=out, algorithm="two_shot")
    except tokenfabric.CommTimeoutError:
        report("told")
        assert_world_is_broken(world, tokenfabric.CommTimeoutError)
        raise
    return float(out[-1, -1])


def test_a_rank_stopped_for_less_than_the_deadline_costs_only_time() -> None:
    """SIGSTOP for half the deadline: all ranks return the right sum."""
    with spawn_plain(_rank_reduces, 3, 0.0, comm_timeout_s=2 * DEADLINE_S) as ranks:
        ranks.wait_for("ready")
        ranks.stop(VICTIM)
        time.sleep(0.6 + DEADLINE_S)
        ranks.resume(VICTIM)
        ranks.join()
        assert ranks.check() == [6.0] * 3


@pytest.mark.parametrize(
    ("stop_after_s", "late_s"), [(0.0, 0.0), (1.0, 1.0)], ids=["before", "inside"]
)
def test_a_rank_stopped_for_longer_fails_everywhere_and_itself_too(
    stop_after_s: float, late_s: float
) -> None:
    """SIGSTOP past the deadline: CommTimeoutError on all, then on itself; data for none."""
    with spawn_plain(_rank_reduces, 3, late_s, comm_timeout_s=DEADLINE_S) as ranks:
        ranks.wait_for("ready")
        time.sleep(stop_after_s)
        ranks.stop(VICTIM)
        ranks.join(survivors(ranks))
        for rank in survivors(ranks):
            error = raised_by(ranks, rank)
            assert error.exception_type == "CommTimeoutError", error.traceback
            assert error.attributes["rank"] == rank
            assert error.attributes["peer_rank"] == VICTIM
            assert error.attributes["operation"] == "all_reduce"
            assert error.attributes["epoch"] > 0
            called_s = ranks.marker_time_s(rank, "ready") + 0.6 + late_s
            waited_s = ranks.marker_time_s(rank, "told") - called_s
            assert DEADLINE_S - 0.1 < waited_s < DEADLINE_S + 2.0
        resumed_s = ranks.resume(VICTIM)
        ranks.join()
        late = raised_by(ranks, VICTIM)
        # The others have left by now: that they gave up and that they are gone are both true.
        assert late.exception_type in ("CommTimeoutError", "PeerLostError"), late.traceback
        assert late.time_s - resumed_s < DEATH_SEEN_S


def _rank_holds_the_gil(world: World, report: Report) -> None:
    import ctypes

    report("ready")
    if world.rank == VICTIM:
        # Unlike CDLL, PyDLL keeps the interpreter locked during the call.
        ctypes.PyDLL(None).usleep(int(1e6 * 2 * DEADLINE_S))
    world.barrier()


def test_a_rank_whose_interpreter_hangs_is_named() -> None:
    """A GIL held past the deadline is a timeout of that rank on the others, then of itself."""
    with spawn_plain(_rank_holds_the_gil, 2, comm_timeout_s=DEADLINE_S) as ranks:
        ranks.join()
        error = raised_by(ranks, 0)
        assert error.exception_type == "CommTimeoutError"
        assert error.attributes["peer_rank"] == VICTIM
        assert raised_by(ranks, VICTIM).exception_type in ("CommTimeoutError", "PeerLostError")


def _rank_raises_instead(world: World, report: Report) -> None:
    world.barrier()
    if world.rank == VICTIM:
        raise ValueError("the cause")
    tokenweave.all_reduce(torch.ones(3, 64), world=world)


def test_a_rank_that_leaves_by_an_exception_ends_its_peers_waits() -> None:
    """Leaving the world is seen like a death: no peer waits for the deadline."""
    with spawn_plain(_rank_raises_instead, 3, timeout_s=40) as ranks:
        ranks.join()
        cause = raised_by(ranks, VICTIM)
        assert cause.exception_type == "ValueError"
        for rank in survivors(ranks):
            error = raised_by(ranks, rank)
            assert error.exception_type == "PeerLostError"
            assert error.attributes["peer_rank"] == VICTIM
            assert error.time_s - cause.time_s < DEATH_SEEN_S


def test_ctrl_c_leaves_a_wait() -> None:
    """KeyboardInterrupt comes out of a barrier that would wait on, and the peers learn it."""
    with spawn_plain(_rank_waits_alone, 2, timeout_s=40) as ranks:
        ranks.wait_for("ready")
        time.sleep(0.2)
        sent_s = ranks.signal(VICTIM, signal.SIGINT)
        ranks.join([VICTIM])
        error = raised_by(ranks, VICTIM)
        assert error.exception_type == "KeyboardInterrupt"
        assert error.time_s - sent_s < 1.0
        ranks.join()
        peer = ranks.outcome(0)
        assert isinstance(peer, Returned), peer
        assert peer.value == "PeerLostError"


def _rank_waits_alone(world: World, report: Report) -> str:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    report("ready")
    if world.rank == VICTIM:
        world.barrier()
    time.sleep(1.0)
    with pytest.raises(tokenfabric.PeerLostError) as info:
        world.barrier()
    return type(info.value).__name__
