"""The collectives over several hosts other than the fused one, lifetimes, and what is refused."""

import gc
import os
import threading

import pytest
import torch
import torch.distributed as dist

import tokenfabric
import tokenweave
from tests.dist.host_worlds import Hosts
from tests.dist.resources import open_descriptors, shared_segments
from tests.dist.test_hosts_reduction import LAYOUTS
from tokenfabric.testing.spawn import RanksFailedError, run_ranks
from tokenfabric.world import World
from tokenweave.plan import split_rows
from tokenweave.shared_output import SharedOutput


def _rank_others(rank: int, world_size: int, hosts: Hosts) -> None:
    ranks = range(world_size)
    with hosts.world(rank) as world:
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            for shape in ((0,), (1,), (5, 3), (700, 129)):
                x = torch.full(shape, 1.0 + rank, dtype=dtype)
                total = torch.full(shape, float(sum(range(1, world_size + 1))), dtype=dtype)
                assert torch.equal(tokenweave.all_reduce(x, world=world), total)
                assert tokenweave.all_reduce(x, world=world, out=x) is x
                assert torch.equal(x, total)
        for tokens in (0, 1, world_size, 33):
            x = torch.arange(tokens * 8.0).view(tokens, 8) * (1 + rank)
            start, stop = split_rows(tokens, world_size)[rank]
            mine = tokenweave.reduce_scatter(x, world=world)
            factor = sum(1 + peer for peer in ranks)
            assert torch.equal(
                mine, torch.arange(tokens * 8.0).view(tokens, 8)[start:stop] * factor
            )
        for sizes in ([3] * world_size, list(ranks), [0] * world_size, [100_003, *ranks[1:]]):
            parts = [torch.full((size, 2), peer) for peer, size in enumerate(sizes)]
            got = tokenweave.all_gather(parts[rank], world=world, sizes=sizes)
            assert torch.equal(got, torch.cat(parts))
            parts = [torch.full((2, 5, size), peer + 0.5) for peer, size in enumerate(sizes)]
            got = tokenweave.all_gather(parts[rank], world=world, sizes=sizes, dim=-1)
            assert torch.equal(got, torch.cat(parts, dim=-1))
        for src in ranks:
            for count in (0, 1, 300_000):
                x = torch.full((count,), rank, dtype=torch.int16)
                assert tokenweave.broadcast(x, world=world, src=src) is x
                assert (x == src).all()
        with pytest.raises(tokenfabric.ConfigError, match="not in a world"):
            tokenweave.broadcast(torch.ones(1), world=world, src=world_size)
        flag = torch.tensor([rank == 0])
        assert tokenweave.all_gather(flag, world=world).tolist() == [peer == 0 for peer in ranks]
        buffer = tokenweave.partial_sum_buffer(world, 9, 64, torch.float32)
        assert (buffer is None) == (hosts.local_size == 1)
        if buffer is not None:
            for _ in range(3):
                buffer = tokenweave.partial_sum_buffer(world, 9, 64, torch.float32)
                assert buffer is not None
                _, total = tokenweave.allreduce_rmsnorm(
                    buffer.fill_(1.0 + rank), None, torch.ones(64), world=world
                )
                assert (total == factor).all()
        world.barrier()


@pytest.mark.parametrize("hosts", LAYOUTS, ids=str)
def test_every_other_collective_is_right(hosts: Hosts) -> None:
    """all_reduce, reduce_scatter, all_gather, broadcast and barrier, empty and uneven too."""
    run_ranks(_rank_others, hosts.size, hosts, with_world=False)


def _rank_lifetime(rank: int, world_size: int, hosts: Hosts) -> None:
    def open_and_use() -> None:
        with hosts.world(rank) as world:
            layout = world.layout
            assert (layout.num_hosts, layout.local_size) == (hosts.num_hosts, hosts.local_size)
            assert layout.host_idx == rank // hosts.local_size
            assert layout.local_rank == rank % hosts.local_size
            text = world.describe()
            for word in (f"{hosts.num_hosts} of {hosts.local_size}", "gloo", "watch", "open"):
                assert word in text
            with World.from_group(world.group, timeout_s=20, num_threads=1) as second:
                for one in (world, second, world):
                    x = torch.full((4, 8), 1.0)
                    assert (tokenweave.all_reduce(x, world=one) == world_size).all()
        assert world.is_closed
        assert "closed" in world.describe()
        assert shared_segments([os.getpid()]) == set(), "a closed world keeps no memory"
        with pytest.raises(tokenfabric.ConfigError, match="closed"):
            world.barrier()
        with pytest.raises(tokenfabric.ConfigError, match="closed"):
            tokenweave.all_reduce(torch.ones(3), world=world)
        world.close()

    open_and_use()
    gc.collect()
    before, threads = open_descriptors(), threading.active_count()
    for _ in range(3):
        open_and_use()
    os.environ["TOKENFABRIC_HOST_ID"] = f"host {rank // hosts.local_size}"
    dropped = World.from_group(dist.group.WORLD, timeout_s=20, num_threads=1)
    dropped.barrier()
    del dropped
    gc.collect()
    assert threading.active_count() == threads
    assert len(open_descriptors()) <= len(before)


@pytest.mark.parametrize("hosts", [Hosts(2, 2), Hosts(3, 1)], ids=str)
def test_worlds_are_opened_and_closed_again_and_leave_nothing(hosts: Hosts) -> None:
    """Twice at once, four times over, closed or dropped: no thread, no descriptor is left."""
    run_ranks(_rank_lifetime, hosts.size, hosts, with_world=False)


def _rank_refusals(rank: int, world_size: int, hosts: Hosts) -> None:
    with hosts.world(rank) as world:
        x, weight = torch.ones(6, 64), torch.ones(64)
        with pytest.raises(tokenfabric.TopologyError, match="2 hosts"):
            SharedOutput(world, 8, 64, torch.float32)
        with pytest.raises(tokenfabric.ConfigError, match="'two_shot' is for ranks on one host"):
            tokenweave.allreduce_rmsnorm(x, None, weight, world=world, algorithm="two_shot")
        for form in ({"norm": "layer_norm"}, {"numerics": "drop_in"}):
            with pytest.raises(tokenfabric.ConfigError, match="need ranks on one host"):
                tokenweave.allreduce_rmsnorm(x, None, weight, world=world, **form)
        with pytest.raises(tokenfabric.ConfigError, match="need ranks on one host"):
            tokenweave.allreduce_rmsnorm_quantized(
                x, None, weight, output=tokenweave.QuantizedOutput(), world=world
            )
        with tokenfabric.SymmetricBuffer(world, 4096) as buffer:
            own = buffer.tensor((4,), torch.float32).fill_(float(rank))
            world.barrier()
            for peer in range(world_size):
                if peer // hosts.local_size == rank // hosts.local_size:
                    assert (buffer.peer(peer, (4,), torch.float32) == peer).all()
                else:
                    with pytest.raises(tokenfabric.TopologyError, match="another host"):
                        buffer.peer(peer, (4,), torch.float32)
            world.barrier()
            assert (tokenweave.all_reduce(own, world=world) == sum(range(world_size))).all()


def test_what_needs_one_host_is_refused_by_name() -> None:
    """An output mapped by all, an algorithm of one host, memory of a rank elsewhere."""
    run_ranks(_rank_refusals, 4, Hosts(2, 2), with_world=False)


def _rank_places(rank: int, world_size: int, places: str) -> None:
    os.environ["TOKENFABRIC_HOST_ID"] = places[rank]
    World.from_group(dist.group.WORLD, timeout_s=20, num_threads=1)


@pytest.mark.parametrize(
    ("places", "text"),
    [("aab", r"different numbers of ranks .*\[2, 1\]"), ("aba", "not consecutive")],
)
def test_uneven_hosts_are_refused(places: str, text: str) -> None:
    """Every rank says how many ranks it found where, and what to do."""
    with pytest.raises(RanksFailedError, match=text) as info:
        run_ranks(_rank_places, 3, places, with_world=False)
    assert info.value.raised is not None
    assert info.value.raised.exception_type == "TopologyError"
