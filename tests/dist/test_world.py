"""World: how it is built, what it says of itself, several at once, and how it ends."""

import gc
import os
import socket
import threading
import time

import pytest
import torch
import torch.distributed as dist

import tokenfabric
import tokenweave
from tokenfabric.testing.spawn import RanksFailedError, run_ranks
from tokenfabric.world import World, find_world


def _rank_attributes(world: World) -> tuple[int, int, str]:
    assert world.device == torch.device("cpu")
    assert world.group is dist.group.WORLD
    assert find_world(world.group_name) is world
    assert world.broken is None
    assert not world.is_closed
    assert world.num_threads == 1
    assert repr(world).startswith(f"World(rank={world.rank}, size={world.size}")
    return world.rank, world.size, world.describe()


@pytest.mark.parametrize("world_size", [1, 3])
def test_a_world_knows_its_place_and_says_what_it_chose(world_size: int) -> None:
    """Rank, size, device and name; describe() names transport, kernels, threads and waits."""
    for rank, (got_rank, size, text) in enumerate(run_ranks(_rank_attributes, world_size)):
        assert (got_rank, size) == (rank, world_size)
        for word in ("transport", "kernels", "TOKENFABRIC_ISA", "threads", "futex", "deadline"):
            assert word in text
        assert ("memfd" in text) == (world_size > 1)


def test_without_torchrun_a_process_is_a_world_of_one() -> None:
    """init() needs no launcher; every collective works alone."""
    with tokenfabric.init() as world:
        assert (world.rank, world.size, world.group) == (0, 1, None)
        world.barrier()
        x = torch.arange(6.0).view(2, 3)
        assert torch.equal(tokenweave.all_reduce(x, world=world), x)
        normed, residual = tokenweave.allreduce_rmsnorm(x, x, torch.ones(3), world=world)
        assert torch.equal(residual, 2 * x)
        assert normed.shape == x.shape
        with tokenfabric.init() as second:
            assert second.group_name != world.group_name
    assert world.is_closed
    with pytest.raises(tokenfabric.ConfigError, match="closed"):
        world.barrier()
    with pytest.raises(tokenfabric.ConfigError, match="closed"):
        tokenweave.all_reduce(x, world=world)
    with pytest.raises(tokenfabric.ConfigError, match="no open world"):
        find_world(world.group_name)
    world.close()


def test_bad_arguments_of_init_are_refused() -> None:
    """A deadline of nothing, a device that is not there, threads below one."""
    with pytest.raises(tokenfabric.ConfigError, match="timeout_s must be positive"):
        tokenfabric.init(timeout_s=0)
    with pytest.raises(tokenfabric.TopologyError, match="'cuda' is not available"):
        tokenfabric.init(device="cuda")
    with pytest.raises(tokenfabric.ConfigError, match="None"):
        World.from_group(None)
    for num_threads in (0, -1):
        with pytest.raises(tokenfabric.ConfigError, match="thread"):
            tokenfabric.init(num_threads=num_threads)


def _rank_init(rank: int, world_size: int, port: int) -> None:
    dist.destroy_process_group()
    values = (rank, world_size, rank, world_size, "127.0.0.1", port)
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    os.environ.update({name: str(value) for name, value in zip(names, values, strict=True)})
    with tokenfabric.init(timeout_s=20, num_threads=2) as world:
        assert (world.rank, world.size, world.num_threads) == (rank, world_size, 2)
        assert dist.is_initialized()
        x = torch.full((100, 64), 1.0 + rank)
        total = tokenweave.all_reduce(x, world=world)
        assert torch.equal(total, torch.full_like(x, world_size * (world_size + 1) / 2))
    assert not dist.is_initialized(), "the process group that init made is taken down again"


def test_init_reads_the_variables_of_torchrun() -> None:
    """The six variables make a world, whose process group ends with it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run_ranks(_rank_init, 2, port, with_world=False)


def _rank_barrier_orders(world: World) -> None:
    with tokenfabric.SymmetricBuffer(world, 4096) as buffer:
        mine = buffer.tensor((1,), torch.int64)
        peers = [buffer.peer(peer, (1,), torch.int64) for peer in range(world.size)]
        for step in range(300):
            if step % 50 == world.rank:
                time.sleep(0.001)
            mine[0] = step
            world.barrier()
            assert [peer.item() for peer in peers] == [step] * world.size
            world.barrier()


@pytest.mark.parametrize("world_size", [2, 4])
def test_what_is_written_before_a_barrier_is_read_after_it(world_size: int) -> None:
    """No rank passes a barrier early or late, with more ranks than cores too."""
    run_ranks(_rank_barrier_orders, world_size)


def _rank_two_worlds(world: World) -> None:
    x = torch.full((3, 64), 1.0 + world.rank)
    total = world.size * (world.size + 1) / 2
    with World.from_group(world.group, timeout_s=10, num_threads=2) as second:
        assert second.group_name != world.group_name
        assert find_world(second.group_name) is second
        for _ in range(20):
            for one in (world, second, second, world):
                assert torch.equal(tokenweave.all_reduce(x, world=one), torch.full_like(x, total))
    with pytest.raises(tokenfabric.ConfigError, match="closed"):
        second.barrier()
    world.barrier()


def test_two_worlds_on_one_group_do_not_meet() -> None:
    """Signals and memory of one never reach the other; one may close, the other goes on."""
    run_ranks(_rank_two_worlds, 3)


def _rank_sub_groups(world: World) -> None:
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    with pytest.raises(tokenfabric.ConfigError, match="2 dimensions"):
        World.from_group(mesh)
    with World.from_group(mesh["tensor"]) as tensor, World.from_group(mesh["data"]) as data:
        assert (tensor.size, tensor.rank) == (2, world.rank % 2)
        assert (data.size, data.rank) == (2, world.rank // 2)
        x = torch.full((2, 64), 10.0**world.rank)
        in_tensor = 11.0 if world.rank < 2 else 1100.0
        in_data = 101.0 if world.rank % 2 == 0 else 1010.0
        for _ in range(10):
            assert tokenweave.all_reduce(x, world=tensor)[0, 0] == in_tensor
            assert tokenweave.all_reduce(x, world=data)[0, 0] == in_data
            assert tokenweave.all_reduce(x, world=world)[0, 0] == 1111.0


def test_mesh_axes_make_worlds_of_their_own() -> None:
    """A 2 x 2 mesh: rows, columns and the whole, interleaved."""
    run_ranks(_rank_sub_groups, 4)


def _rank_threads(world: World) -> None:
    x = torch.randn(513, 4096, generator=torch.Generator().manual_seed(world.rank))
    weight = torch.ones(4096)
    expected = tokenweave.allreduce_rmsnorm(x, None, weight, world=world)
    with World.from_group(world.group, num_threads=3) as threaded:
        assert threaded.num_threads == 3
        for algorithm in ("one_shot", "two_shot"):
            found = tokenweave.allreduce_rmsnorm(
                x, None, weight, world=threaded, algorithm=algorithm
            )
            for mine, theirs in zip(found, expected, strict=True):
                assert torch.equal(mine, theirs)


def test_the_number_of_threads_changes_no_bit() -> None:
    """A rank with three kernel threads gives what one thread gives."""
    run_ranks(_rank_threads, 2)


def _rank_leaves_early(world: World) -> str:
    x = torch.full((3, 64), 1.0)
    total = tokenweave.all_reduce(x, world=world)
    if world.rank:
        # The others are gone for long: what was finished with them stays right.
        time.sleep(0.5)
        assert torch.equal(total, torch.full_like(x, float(world.size)))
    return "done"


def test_ranks_may_leave_at_different_times() -> None:
    """A rank that is done closes its world and goes; nobody who is done too minds."""
    assert run_ranks(_rank_leaves_early, 3) == ["done"] * 3


def _rank_python_threads(world: World) -> None:
    """Call from two Python threads of every rank at once."""
    x, errors = torch.ones(3, 64), []

    def reduce() -> None:
        try:
            for _ in range(50):
                assert torch.equal(tokenweave.all_reduce(x, world=world), x * world.size)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=reduce) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_threads_of_a_rank_take_turns() -> None:
    """Equal collectives from two threads of each rank stay right."""
    run_ranks(_rank_python_threads, 2)


def _rank_dropped_world(world: World) -> None:
    second = World.from_group(world.group)
    name = second.group_name
    second.close()
    del second
    gc.collect()
    with pytest.raises(tokenfabric.ConfigError, match=f"named '{name}'"):
        find_world(name)
    # The name is free again.
    with World.from_group(world.group) as third:
        assert third.group_name == name


def test_a_closed_world_gives_its_name_back() -> None:
    """The registry keeps no world alive and knows no closed one."""
    run_ranks(_rank_dropped_world, 2)


def _rank_wrong_isa(rank: int, world_size: int) -> None:
    World.from_group(dist.group.WORLD)


def test_an_unknown_instruction_set_is_refused() -> None:
    """TOKENFABRIC_ISA names what this CPU can run."""
    with pytest.raises(RanksFailedError, match=r"'avx1024' cannot run .* usable: .*scalar"):
        run_ranks(_rank_wrong_isa, 1, with_world=False, environment={"TOKENFABRIC_ISA": "avx1024"})
