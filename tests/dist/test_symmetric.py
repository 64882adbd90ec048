"""SymmetricBuffer: every rank sees every rank's memory; errors reach all ranks; nothing is left."""

import gc
import os
import time
from collections.abc import Callable

import pytest
import torch

import tokenfabric
import tokenweave
from tests.dist import resources
from tokenfabric.testing.spawn import Raised, run_ranks, spawn_plain
from tokenfabric.world import World

MIB = 1 << 20


def _rank_views(world: World) -> None:
    with tokenfabric.SymmetricBuffer(world, 4096 * 3) as buffer:
        assert buffer.num_bytes == 4096 * 3
        for dtype, offset in ((torch.float32, 0), (torch.bfloat16, 4096), (torch.int64, 8192)):
            mine = buffer.tensor((3, 5), dtype, offset_bytes=offset)
            assert not mine.any(), "new memory is zero"
            mine.copy_(torch.arange(15).view(3, 5) + 100 * world.rank)
        world.barrier()
        for dtype, offset in ((torch.float32, 0), (torch.bfloat16, 4096), (torch.int64, 8192)):
            for peer in range(world.size):
                theirs = buffer.peer(peer, (15,), dtype, offset_bytes=offset)
                expected = (torch.arange(15) + 100 * peer).to(dtype)
                assert torch.equal(theirs, expected)
        world.barrier()
        # The very same bytes: a store into a peer's part is what the peer reads.
        right = (world.rank + 1) % world.size
        buffer.peer(right, (1,), torch.int64, offset_bytes=64)[0] = 1000 + world.rank
        world.barrier()
        left = (world.rank - 1) % world.size
        assert buffer.tensor((1,), torch.int64, offset_bytes=64).item() == 1000 + left
        assert buffer.tensor((0, 3), torch.float32).shape == (0, 3)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_rank_sees_every_part_at_the_same_offset(world_size: int) -> None:
    """What a rank stores in its part, or in a peer's, is read there after a barrier."""
    run_ranks(_rank_views, world_size)


def _rank_bounds(world: World) -> None:
    buffer = tokenfabric.SymmetricBuffer(world, 4096)
    bad: dict[str, Callable[[], object]] = {
        "4096 bytes": lambda: buffer.tensor((1025,), torch.float32),
        "ends at 4160": lambda: buffer.tensor((1024,), torch.float32, offset_bytes=64),
        "multiple of 64": lambda: buffer.tensor((1,), torch.float32, offset_bytes=4),
        "byte -64": lambda: buffer.tensor((1,), torch.float32, offset_bytes=-64),
        "rank 2": lambda: buffer.peer(2, (1,), torch.float32),
        "rank -1": lambda: buffer.peer(-1, (1,), torch.float32),
        "positive size": lambda: tokenfabric.SymmetricBuffer(world, 0),
    }
    for message, call in bad.items():
        with pytest.raises(tokenfabric.ConfigError, match=message):
            call()
    buffer.tensor((1024,), torch.float32)
    buffer.close()
    buffer.close()
    with pytest.raises(tokenfabric.ConfigError, match="closed"):
        buffer.tensor((1,), torch.float32)


def test_views_stay_inside_the_buffer() -> None:
    """Size, alignment, rank and state are checked, with the figures in the message."""
    run_ranks(_rank_bounds, 2)


def _rank_mismatched_size(world: World) -> None:
    with pytest.raises(tokenfabric.MismatchError, match="4096 bytes") as info:
        tokenfabric.SymmetricBuffer(world, 4096 if world.rank else 8192)
    assert info.value.operation == "allocate"
    with tokenfabric.SymmetricBuffer(world, 4096) as buffer:
        assert buffer.tensor((1024,), torch.float32).shape == (1024,)
    world.barrier()


def test_sizes_that_differ_raise_on_every_rank() -> None:
    """MismatchError everywhere; the next allocation works."""
    run_ranks(_rank_mismatched_size, 3)


def _rank_shortage(world: World) -> str:
    before = len(resources.open_descriptors())
    with pytest.raises(tokenfabric.ConfigError, match="not enough memory") as info:
        tokenfabric.SymmetricBuffer(world, 1 << 50)
    assert len(resources.open_descriptors()) == before
    with tokenfabric.SymmetricBuffer(world, 4096):
        world.barrier()
    return str(info.value)


def test_a_lack_of_memory_is_an_error_on_every_rank_at_creation() -> None:
    """The message holds what was asked for and what there is; nothing is killed later."""
    for message in run_ranks(_rank_shortage, 2):
        assert "1.04858e+06 GiB" in message or "1048576" in message
        assert "available" in message


def _rank_leaks(world: World) -> None:
    weight = torch.ones(64)
    for step in range(6):
        group_world = World.from_group(world.group, timeout_s=10, num_threads=2)
        buffer = tokenfabric.SymmetricBuffer(group_world, MIB)
        view = buffer.tensor((8,), torch.float32)
        tokenweave.allreduce_rmsnorm(torch.ones(3, 64), None, weight, world=group_world)
        with pytest.raises(tokenfabric.MismatchError):
            tokenfabric.SymmetricBuffer(group_world, 4096 * (1 + group_world.rank))
        group_world.barrier()
        view[0] = 1.0
        group_world.close()
        assert view[0] == 1.0, "a tensor made from a buffer outlives it"
        del buffer, view, group_world
        gc.collect()
        found = len(resources.open_descriptors()), len(resources.shared_segments([os.getpid()]))
        if step == 0:
            first = found
        # Fewer is no leak: gloo still closes what it needed to connect.
        assert found <= first, f"{first} -> {found}: {resources.open_descriptors()}"
        assert found[1] == first[1]


def test_worlds_and_buffers_leave_no_descriptor_and_no_mapping() -> None:
    """Building and closing worlds, with errors in between, holds on to nothing."""
    run_ranks(_rank_leaks, 2)


def _rank_ends_badly(world: World, report: Callable[[str], None]) -> None:
    buffer = tokenfabric.SymmetricBuffer(world, MIB)
    buffer.tensor((4,), torch.float32).fill_(1.0)
    world.barrier()
    report("allocated")
    time.sleep(0.5)
    if world.rank == 0:
        raise ValueError("on purpose")
    time.sleep(60)


def test_ranks_that_raise_or_are_killed_leave_nothing_on_the_machine(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """After an exception and a SIGKILL, no process has the memory mapped and no file is left."""
    # Short: the path of a Unix socket has at most 108 bytes.
    folder = tmp_path_factory.mktemp("t")
    environment = {"TMPDIR": str(folder)}
    with spawn_plain(_rank_ends_badly, 2, timeout_s=40, environment=environment) as ranks:
        ranks.wait_for("allocated")
        segments = resources.shared_segments([ranks.pid(0), ranks.pid(1)])
        # A workspace and a buffer of each rank, mapped by both.
        assert len(segments) == 4
        ranks.join([0])
        outcome = ranks.outcome(0)
        assert isinstance(outcome, Raised)
        assert outcome.message == "on purpose"
        ranks.kill(1)
        ranks.join()
    assert not segments & resources.shared_segments()
    assert resources.files_left(folder) == []
