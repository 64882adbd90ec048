"""Ranks on cores of their own: their threads, their results, and where their memory comes from."""

import os
import re
import resource
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import tokenfabric
import tokenweave
from tests.dist import fused_cases
from tests.dist.fused_cases import Case
from tests.dist.resources import affinity_of_threads
from tests.dist.test_ops_fused import check
from tokenfabric.cores import pin_process, plan_on_this_host, read_cores
from tokenfabric.testing.spawn import run_ranks
from tokenfabric.world import World

MIB = 1 << 20
ALGORITHMS = ("one_shot", "two_shot")
_MAPPING = re.compile(r"^([0-9a-f]+) .*memfd:tokenfabric.*$", re.MULTILINE)
_PAGES = re.compile(r"\bN(\d+)=(\d+)")


def _rank_cores(world: World) -> tuple[tuple[int, ...], ...]:
    assert affinity_of_threads() == {frozenset(world.placement.cores_of_rank[world.rank])}
    return world.placement.cores_of_rank


@pytest.mark.parametrize("world_size", [2, 3])
def test_spawned_ranks_lie_as_planned(world_size: int) -> None:
    """`pin` deals the cores as the launcher does, and nothing where there are too few."""
    expected = plan_on_this_host(world_size).cores_of_rank
    assert run_ranks(_rank_cores, world_size, pin=True) == [expected] * world_size


def _rank_moves(world: World) -> None:
    core = world.placement.cores_of_rank[world.rank][0]
    # The pool of this world exists before the process is pinned, that of the next one does not.
    with World.from_group(world.group, num_threads=2) as early:
        pin_process([core])
        assert affinity_of_threads() == {frozenset([core])}
        with World.from_group(world.group, num_threads=2) as late:
            assert affinity_of_threads() == {frozenset([core])}
            for one in (early, late):
                x = torch.full((64, 4096), 1.0 + world.rank)
                assert torch.equal(tokenweave.all_reduce(x, world=one), torch.full_like(x, 3.0))


def test_threads_of_a_rank_run_on_its_cores() -> None:
    """Those that were started before it was pinned, and those after."""
    run_ranks(_rank_moves, 2)


def _rank_reduces(world: World) -> list[list[str]]:
    few = [0, 1, world.size - 1, world.size + 1]
    cases = [
        # Below some rows a second thread gets none of them.
        *(Case(tokens=tokens, hidden=4096, has_bias=True) for tokens in [*few, 33]),
        *(Case(tokens=131, hidden=4096, algorithm=name) for name in ALGORITHMS),
        Case(tokens=131, hidden=1000, dtype="fp32", residual="row_sharded"),
    ]
    digests = []
    for num_threads in (1, 2):
        with World.from_group(world.group, timeout_s=20, num_threads=num_threads) as threaded:
            digests.append([_reduce(threaded, case, seed) for seed, case in enumerate(cases)])
    return digests


def _reduce(world: World, case: Case, seed: int) -> str:
    """Check both reductions of one case; return a digest of the fused one."""
    inputs = fused_cases.make_inputs(case, world.size, seed)
    expected = inputs.partials[0].float()
    for partial in inputs.partials[1:]:
        expected = expected + partial.float()
    out = torch.full_like(inputs.partials[0], torch.nan)
    tokenweave.all_reduce(inputs.partials[world.rank], world=world, out=out)
    assert torch.equal(out, expected.to(case.torch_dtype)), str(case)
    return check(world, case, inputs, is_judge=world.rank == 0)


def test_one_and_two_threads_a_rank_give_the_same_right_results() -> None:
    """On a core for each rank, where two threads take turns."""
    digests = run_ranks(_rank_reduces, 2, pin=True)
    assert all(found == digests[0][0] for rank in digests for found in rank)


def test_one_rank_with_two_threads_has_all_cores() -> None:
    """A rank that is alone keeps what the process may use."""
    assert run_ranks(_rank_cores, 1, pin=True, num_threads=2) == [
        (tuple(sorted(os.sched_getaffinity(0))),)
    ]


def _pages_at(address: int) -> dict[int, int]:
    """Return node -> pages of the shared mapping that starts at an address."""
    for mapping in _MAPPING.finditer(Path("/proc/self/numa_maps").read_text()):
        if int(mapping[1], 16) == address:
            return {int(node): int(pages) for node, pages in _PAGES.findall(mapping[0])}
    raise AssertionError(f"no shared memory at {address:#x}")


def _rank_touches(world: World) -> None:
    cores = read_cores(indices=set().union(*world.placement.cores_of_rank))
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    with tokenfabric.SymmetricBuffer(world, 4 * MIB) as buffer:
        # Nobody has written yet: the pages are there because their owner allocated them.
        for owner, own_cores in enumerate(world.placement.cores_of_rank):
            pages = _pages_at(buffer.peer(owner, (MIB,), torch.float32).data_ptr())
            nodes = {core.node for core in cores if core.index in own_cores}
            assert pages.keys() <= nodes
            assert sum(pages.values()) * page_bytes == 4 * MIB


@pytest.mark.skipif(
    not Path("/proc/self/numa_maps").exists(), reason="this kernel does not tell nodes of pages"
)
def test_memory_of_a_rank_lies_on_its_node() -> None:
    """Complete from the start, and seen so by the peers, who have mapped it too."""
    run_ranks(_rank_touches, 2, pin=True)


def _rank_may_not_allocate(rank: int, world_size: int, limited: int) -> str:
    assert dist.group.WORLD is not None
    with World.from_group(dist.group.WORLD, timeout_s=10, num_threads=1) as world:
        if rank == limited:
            resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, MIB))
        try:
            tokenfabric.SymmetricBuffer(world, 4 * MIB)
        except Exception as error:
            return str(error)
        return ""


@pytest.mark.parametrize("limited", [0, 1])
def test_every_rank_allocates_its_own_memory(limited: int) -> None:
    """A rank that may not make large files cannot have it made by a peer, on the peer's node."""
    messages = run_ranks(_rank_may_not_allocate, 2, limited, with_world=False)
    assert "fallocate of 4194304 bytes failed" in messages[limited]
    assert f"rank {limited}: " in messages[1 - limited]
