"""spawn.py: ranks start, fail, hang and die as real processes do, and none is ever left behind.

These use the bare gloo group: what a World adds is tested under tests/dist.
"""

import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tokenfabric.testing.spawn import (
    Raised,
    RanksFailedError,
    RanksTimeoutError,
    Returned,
    run_ranks,
    spawn_plain,
)

Report = Callable[[str], None]


@pytest.fixture(autouse=True)
def no_leftovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """After every test the gang's private directory is gone."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield
    # The fork server keeps one directory of its own until this process ends.
    assert list(tmp_path.glob("rank-group-*")) == []


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def _rank_sum(rank: int, world_size: int, offset: int) -> tuple[int, torch.Tensor, str, int]:
    x = torch.full((3,), float(rank + offset), dtype=torch.bfloat16)
    dist.all_reduce(x)
    return rank, x, os.environ.get("TOKENFABRIC_TEST_VALUE", ""), torch.get_num_threads()


def test_every_rank_returns_its_own_result() -> None:
    """Results come in rank order, bf16 tensors too; environment and threads are set."""
    environment = {"TOKENFABRIC_TEST_VALUE": "seen"}
    results = run_ranks(_rank_sum, 3, 10, with_world=False, environment=environment)
    expected = torch.full((3,), 33.0, dtype=torch.bfloat16)
    for rank, (got_rank, x, value, num_threads) in enumerate(results):
        assert (got_rank, value, num_threads) == (rank, "seen", 1)
        assert torch.equal(x, expected)
    assert "TOKENFABRIC_TEST_VALUE" not in os.environ


def _rank_fails_at_one(rank: int, world_size: int, pid_directory: str) -> None:
    (Path(pid_directory) / f"{rank}.pid").write_text(str(os.getpid()))
    dist.barrier()
    if rank == 1:
        raise ValueError("the cause")
    time.sleep(60)


def test_the_first_failure_ends_the_gang_with_its_traceback(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """The failing rank's traceback is raised in the parent, at once, and no process is left."""
    pids = tmp_path_factory.mktemp("pids")
    started_s = time.monotonic()
    with pytest.raises(RanksFailedError, match="rank 1 of 3 failed: ValueError: the cause") as info:
        run_ranks(_rank_fails_at_one, 3, str(pids), with_world=False)
    assert time.monotonic() - started_s < 10
    assert info.value.rank == 1
    assert info.value.raised is not None
    assert "in _rank_fails_at_one" in str(info.value)
    found = [int(path.read_text()) for path in pids.iterdir()]
    assert len(found) == 3
    assert all(is_gone(pid) for pid in found)


def _rank_aborts(rank: int, world_size: int) -> None:
    if rank == 1:
        os.write(2, b"terminate called\n")
        os.abort()
    time.sleep(60)


def test_a_crash_shows_exit_code_stack_and_output() -> None:
    """A rank that dies in native code is reported with what it wrote and where it was."""
    with pytest.raises(RanksFailedError, match=r"rank 1 died with exit code -6") as info:
        run_ranks(_rank_aborts, 2, with_world=False)
    assert "in _rank_aborts" in str(info.value)
    assert "terminate called" in str(info.value)
    assert info.value.raised is None


def _rank_hangs(rank: int, world_size: int) -> None:
    if rank == 0:
        time.sleep(60)


def test_the_deadline_shows_the_stacks_of_the_ranks_that_hang() -> None:
    """A hang ends at the deadline and its message says where each rank was."""
    started_s = time.monotonic()
    with pytest.raises(RanksTimeoutError, match=r"ranks \[0\] of 2 had not finished") as info:
        run_ranks(_rank_hangs, 2, with_world=False, timeout_s=2)
    assert 2 <= time.monotonic() - started_s < 8
    assert "in _rank_hangs" in str(info.value)
    assert "rank 1 returned" in str(info.value)


def test_what_cannot_be_unpickled_in_a_rank_is_its_failure() -> None:
    """A result or function that does not travel is reported, not swallowed."""
    with pytest.raises(RanksFailedError, match=r"failed: .*pickle"):
        run_ranks(_rank_returns_lambda, 1, with_world=False)


def _rank_returns_lambda(rank: int, world_size: int) -> object:
    return lambda: None


class PeerError(RuntimeError):
    def __init__(self, peer_rank: int):
        super().__init__(f"peer {peer_rank}")
        self.peer_rank = peer_rank


def _rank_meets_a_death(rank: int, world_size: int, report: Report) -> str:
    report("ready")
    if rank == 0:
        time.sleep(60)
    try:
        dist.barrier()
    except RuntimeError:
        if rank == 1:
            raise PeerError(0) from None
    return "survived"


def test_survivors_of_a_kill_live_on_and_their_outcomes_are_plain_data() -> None:
    """Killing one rank ends no other; type, attributes and time of what each raised come back."""
    with spawn_plain(_rank_meets_a_death, 3, with_world=False, timeout_s=30) as ranks:
        ranks.wait_for("ready")
        killed_s = ranks.kill(0)
        ranks.join()
        assert ranks.exit_code(0) == -signal.SIGKILL
        assert ranks.outcome(0) is None
        raised, returned = ranks.outcome(1), ranks.outcome(2)
        assert isinstance(raised, Raised)
        assert raised.exception_type == "PeerError"
        assert raised.bases[:2] == ("PeerError", "RuntimeError")
        assert raised.attributes["peer_rank"] == 0
        assert 0 < raised.time_s - killed_s < 5
        assert isinstance(returned, Returned)
        assert returned.value == "survived"
        assert ranks.failed_ranks() == [1, 0]
        with pytest.raises(RanksFailedError, match="PeerError"):
            ranks.check()


def test_a_stopped_rank_resumes() -> None:
    """SIGSTOP halts a rank, SIGCONT lets it finish."""
    with spawn_plain(_rank_barrier_twice, 2, with_world=False, timeout_s=30) as ranks:
        ranks.wait_for("first")
        ranks.stop(1)
        time.sleep(0.3)
        assert ranks.exit_code(0) is None
        resumed_s = ranks.resume(1)
        ranks.join()
        assert ranks.check() == [0, 1]
        assert ranks.marker_time_s(0, "second") > resumed_s


def _rank_barrier_twice(rank: int, world_size: int, report: Report) -> int:
    report("first")
    time.sleep(0.2)
    dist.barrier()
    report("second")
    return rank


def test_waiting_for_a_marker_of_a_rank_that_ended_fails_at_once() -> None:
    """No wait outlives the rank it waits for."""
    with (
        spawn_plain(_rank_ends, 1, with_world=False, timeout_s=30) as ranks,
        pytest.raises(RanksFailedError, match="ended before reporting 'never'"),
    ):
        ranks.wait_for("never")


def _rank_ends(rank: int, world_size: int, report: Report) -> None:
    pass


def test_leaving_the_context_kills_ranks_that_are_stopped_or_running() -> None:
    """Nothing outlives the block, whatever state it is in."""
    with spawn_plain(_rank_sleeps, 2, with_world=False) as ranks:
        ranks.wait_for("ready")
        ranks.stop(0)
        pids = [ranks.pid(rank) for rank in range(2)]
        assert not any(is_gone(pid) for pid in pids)
    assert all(is_gone(pid) for pid in pids)


def _rank_sleeps(rank: int, world_size: int, report: Report) -> None:
    report("ready")
    time.sleep(60)
