"""all_reduce, reduce_scatter, all_gather, broadcast and the places a partial sum can lie in."""

import time

import pytest
import torch

import tokenfabric
import tokenweave
from tests.dist.fused_cases import DTYPES
from tokenfabric.testing.poison import Guarded, assert_overwritten, poison, unchanged
from tokenfabric.testing.spawn import run_ranks
from tokenfabric.testing.tolerance import assert_same_bits
from tokenfabric.world import World
from tokenweave.plan import split_rows

SHAPES = ((), (0,), (1,), (5,), (3, 0, 2), (7, 3), (2, 3, 64), (1023,), (33, 4096), (300, 8192))
REPEATS = 3


def partials_of(world: World, shape: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    """Return every rank's partial sum; a rank contributes its own."""
    generator = torch.Generator().manual_seed(len(shape))
    return [
        (torch.randn(shape, generator=generator) * (rank + 1)).to(dtype)
        for rank in range(world.size)
    ]


def sum_of(partials: list[torch.Tensor]) -> torch.Tensor:
    """Return the contract's sum: fp32, rank order, rounded once."""
    total = partials[0].float()
    for partial in partials[1:]:
        total = total + partial.float()
    return total.to(partials[0].dtype)


def _rank_all_reduce(world: World) -> None:
    for dtype in DTYPES.values():
        for shape in SHAPES:
            partials = partials_of(world, shape, dtype)
            expected = sum_of(partials)
            for algorithm in ("auto", "one_shot", "two_shot"):
                x = partials[world.rank].clone()
                out = Guarded(*shape, dtype=dtype)
                what = f"{shape} {dtype} {algorithm}"
                with unchanged(x=x):
                    total = tokenweave.all_reduce(
                        x, world=world, out=out.tensor, algorithm=algorithm
                    )
                assert total is out.tensor
                out.check(what=what)
                assert_same_bits(total, expected, what=what)
                tokenweave.all_reduce(x, world=world, out=x, algorithm=algorithm)
                assert_same_bits(x, expected, what=f"{what} in place")
                total = tokenweave.all_reduce(partials[world.rank], world=world)
                assert_same_bits(total, expected, what=f"{what} functional")


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_all_reduce_of_any_shape(world_size: int) -> None:
    """Functional, in place and with out=, scalars and empty tensors included."""
    run_ranks(_rank_all_reduce, world_size)


def _rank_reduce_scatter(world: World) -> None:
    for dtype in DTYPES.values():
        for tokens in (0, 1, world.size - 1, world.size + 1, 17, 300):
            partials = partials_of(world, (tokens, 1000), dtype)
            own = slice(*split_rows(tokens, world.size)[world.rank])
            expected = sum_of(partials)[own]
            for _ in range(REPEATS):
                out = Guarded(own.stop - own.start, 1000, dtype=dtype)
                tokenweave.reduce_scatter(partials[world.rank], world=world, out=out.tensor)
                out.check()
                assert_same_bits(out.tensor, expected, what=f"{tokens} rows {dtype}")
            rows = tokenweave.reduce_scatter(partials[world.rank], world=world)
            assert_same_bits(rows, expected)


@pytest.mark.parametrize("world_size", [1, 3])
def test_reduce_scatter_gives_each_rank_its_rows(world_size: int) -> None:
    """A rank gets the rows that split_rows deals it, none when there are too few."""
    run_ranks(_rank_reduce_scatter, world_size)


def part_of_rank(rank: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return values that name rank and position, as far as the dtype can tell them apart."""
    count = torch.tensor(shape).prod().item()
    return (torch.arange(count).view(shape) * 7 + 31 * rank + 1).to(dtype)


def _rank_all_gather(world: World) -> None:
    dtypes = (torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool)
    even, uneven = (3,) * world.size, tuple(range(world.size))  # rank 0 brings nothing
    tall = (700_000 // world.size + 1,) * world.size  # int64: larger than a staging slot
    for dtype in dtypes:
        for sizes in (even, uneven, tall):
            for dim, rest in ((0, ()), (0, (4, 5)), (-1, (5,)), (-1, (2, 3)), (1, (5,))):
                if sizes is tall and (rest or dtype != torch.int64):
                    continue
                shapes = [(n, *rest) if dim == 0 else (*rest, n) for n in sizes]
                parts = [part_of_rank(rank, s, dtype) for rank, s in enumerate(shapes)]
                expected = torch.cat(parts, dim=dim)
                given = None if sizes is even else sizes
                for _ in range(REPEATS):
                    out = Guarded(*expected.shape, dtype=dtype)
                    tokenweave.all_gather(
                        parts[world.rank], world=world, dim=dim, sizes=given, out=out.tensor
                    )
                    out.check()
                    assert torch.equal(out.tensor, expected), (dtype, sizes, dim, rest)
                found = tokenweave.all_gather(parts[world.rank], world=world, dim=dim, sizes=given)
                assert torch.equal(found, expected)
    long_rows = [part_of_rank(rank, (3, 900_000), torch.int64) for rank in range(world.size)]
    found = tokenweave.all_gather(long_rows[world.rank], world=world, dim=-1)
    assert torch.equal(found, torch.cat(long_rows, dim=-1))


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_all_gather_of_equal_and_unequal_parts(world_size: int) -> None:
    """Any dtype, first or last dimension, empty parts, rows and columns longer than the staging."""
    run_ranks(_rank_all_gather, world_size)


def _rank_broadcast(world: World) -> None:
    for source in range(world.size):
        for dtype in (torch.bfloat16, torch.int64, torch.bool, torch.complex64):
            for shape in ((), (0,), (3,), (5, 7)):
                expected = part_of_rank(source, shape, dtype)
                mine = Guarded(*shape, dtype=dtype)
                if world.rank == source:
                    mine.tensor.copy_(expected)
                result = tokenweave.broadcast(mine.tensor, world=world, src=source)
                assert result is mine.tensor
                mine.check()
                assert torch.equal(result, expected), (source, dtype, shape)
    big = part_of_rank(world.size - 1, (1_300_001,), torch.int64)
    mine = big.clone() if world.rank == world.size - 1 else poison(torch.empty_like(big))
    assert torch.equal(tokenweave.broadcast(mine, world=world, src=world.size - 1), big)


@pytest.mark.parametrize("world_size", [1, 3])
def test_broadcast_from_every_rank(world_size: int) -> None:
    """Any dtype and shape, larger than the staging included."""
    run_ranks(_rank_broadcast, world_size)


def _rank_partial_sum_buffer(world: World) -> None:
    shape, dtype = (9, 4096), torch.bfloat16
    weight = torch.ones(shape[1], dtype=dtype)
    for step in range(12):
        # A slow peer still reads the buffer of the last step when this rank fills the next one.
        if step % world.size == world.rank:
            time.sleep(0.003)
        partials = [p * (step + 1) for p in partials_of(world, shape, dtype)]
        expected = sum_of(partials)
        buffer = tokenweave.partial_sum_buffer(world, *shape, dtype)
        assert buffer is not None
        buffer.copy_(partials[world.rank])
        algorithm = ("one_shot", "two_shot")[step // 2 % 2]
        if step % 3:
            _, total = tokenweave.allreduce_rmsnorm(
                buffer, None, weight, world=world, algorithm=algorithm
            )
        else:
            total = tokenweave.all_reduce(buffer, world=world, algorithm=algorithm)
        assert_same_bits(total, expected, what=f"step {step}")
        if step % 4 == 3:  # other collectives in between
            world.barrier()
            tokenweave.broadcast(total, world=world)


@pytest.mark.parametrize("world_size", [2, 4])
def test_partial_sums_in_shared_memory_are_double_buffered(world_size: int) -> None:
    """A buffer asked for again while a peer still reads the last one overwrites nothing."""
    run_ranks(_rank_partial_sum_buffer, world_size)


def _rank_partial_sum_buffer_limits(world: World) -> None:
    assert tokenweave.partial_sum_buffer(world, 1 << 20, 4096, torch.float32) is None
    assert tokenweave.partial_sum_buffer(world, 0, 4096, torch.float32) is None
    first = tokenweave.partial_sum_buffer(world, 4, 8, torch.float32)
    again = tokenweave.partial_sum_buffer(world, 4, 8, torch.float32)
    assert first is not None
    assert again is not None
    assert first.data_ptr() == again.data_ptr(), "asking twice must not use up both buffers"


def test_partial_sum_buffer_says_no_when_it_does_not_fit() -> None:
    """None for what is too large or empty; asking is free."""
    run_ranks(_rank_partial_sum_buffer_limits, 2)


def _rank_symmetric_input(world: World) -> None:
    shape, dtype = (130, 1000), torch.float32
    partials = partials_of(world, shape, dtype)
    with tokenfabric.SymmetricBuffer(world, 1 << 20) as buffer:
        for step, algorithm in enumerate(("one_shot", "two_shot") * REPEATS):
            x = buffer.tensor(shape, dtype, offset_bytes=64 * step)
            x.copy_(partials[world.rank])
            out = poison(torch.empty(shape))
            tokenweave.all_reduce(x, world=world, algorithm=algorithm, out=out)
            # The op may not return while a peer still reads this rank's input.
            x.fill_(float("nan"))
            assert_overwritten(out)
            assert_same_bits(out, sum_of(partials), what=f"{algorithm} out of place")
            x.copy_(partials[world.rank])
            tokenweave.all_reduce(x, world=world, algorithm=algorithm, out=x)
            assert_same_bits(x, sum_of(partials), what=f"{algorithm} in place")


@pytest.mark.parametrize("world_size", [2, 3])
def test_an_input_in_symmetric_memory_may_be_reused_at_once(world_size: int) -> None:
    """Reducing from a SymmetricBuffer, in place too, gives what a private input gives."""
    run_ranks(_rank_symmetric_input, world_size)
