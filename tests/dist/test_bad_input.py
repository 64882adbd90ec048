"""Arguments nobody would write down: each call works on all ranks, or each rank says why not.

Hypothesis draws the same calls on every rank. Whatever happens, the world is usable after it.
"""

import contextlib
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tokenfabric
import tokenweave
from tokenfabric.testing.spawn import run_ranks
from tokenfabric.world import World

# The same draws on every rank: a rank with a call of its own would be another test.
TOGETHER = settings(
    max_examples=80,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
DTYPES = (
    torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool,
    torch.complex64,
)  # fmt: skip
REFUSALS = (tokenfabric.ConfigError, tokenfabric.TopologyError)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Draw a tensor of any dtype, shape, stride, layout or device."""
    shape = draw(st.lists(st.integers(0, 9), max_size=4))
    x = torch.ones(shape).to(draw(st.sampled_from(DTYPES)))
    how = draw(st.sampled_from(["plain"] * 6 + ["strided", "sparse", "meta", "gradient", "view"]))
    if how == "strided" and x.dim() > 1:
        x = x.transpose(0, -1)
    elif how == "sparse":
        x = x.to_sparse()
    elif how == "meta":
        x = x.to("meta")
    elif how == "gradient" and x.is_floating_point():
        x.requires_grad_()
    elif how == "view" and x.dim():
        x = x.expand(2, *shape)[..., ::2]
    return x


def attempt(world: World, call: Callable[[], object]) -> None:
    """Make a call; it may be refused, by name. The world must work after it."""
    with contextlib.suppress(*REFUSALS):
        call()
    assert world.broken is None
    ones = torch.ones(3)
    assert tokenweave.all_reduce(ones, world=world).tolist() == [float(world.size)] * 3


def _rank_reduces_anything(world: World) -> None:
    plain = st.sampled_from([torch.ones(4, 8), torch.ones(4, 8).bfloat16(), torch.ones(8)])

    @TOGETHER
    @given(
        x=plain | tensors(),
        residual=st.none() | plain | tensors(),
        weight=plain | tensors(),
        bias=st.none() | tensors(),
        out=st.none() | tensors(),
        layout=st.sampled_from(["replicated", "row_sharded", "columns"]),
        algorithm=st.sampled_from(["auto", "one_shot", "two_shot", "three_shot"]),
    )
    def fused(layout: Any, algorithm: Any, **arguments: Any) -> None:
        x, residual, weight = (arguments.pop(name) for name in ("x", "residual", "weight"))
        attempt(
            world,
            lambda: tokenweave.allreduce_rmsnorm(
                x, residual, weight, world=world, residual_layout=layout, algorithm=algorithm,
                **arguments,
            ),
        )  # fmt: skip

    fused()


def _rank_moves_anything(world: World) -> None:
    @TOGETHER
    @given(x=tensors(), out=st.none() | tensors(), dim=st.integers(-3, 3), src=st.integers(-2, 4))
    def move(x: torch.Tensor, out: torch.Tensor | None, dim: int, src: int) -> None:
        attempt(world, lambda: tokenweave.all_reduce(x, world=world, out=out))
        attempt(world, lambda: tokenweave.reduce_scatter(x, world=world, out=out))
        attempt(world, lambda: tokenweave.all_gather(x, world=world, dim=dim, out=out))
        attempt(world, lambda: tokenweave.all_gather(x, world=world, dim=dim, sizes=(src, src)))
        attempt(world, lambda: tokenweave.broadcast(x, world=world, src=src))

    move()


def _rank_allocates_anything(world: World) -> None:
    @TOGETHER
    @given(
        num_bytes=st.integers(-2, 1 << 16) | st.just(1 << 60),
        shape=st.lists(st.integers(0, 40), max_size=3),
        offset=st.integers(-64, 1 << 12),
        peer=st.integers(-2, 3),
    )
    def allocate(num_bytes: int, shape: list[int], offset: int, peer: int) -> None:
        def call() -> None:
            with tokenfabric.SymmetricBuffer(world, num_bytes) as buffer:
                buffer.peer(peer, shape, torch.float32, offset_bytes=offset).fill_(1.0)

        attempt(world, call)

    allocate()


@pytest.mark.parametrize(
    "rank_function", [_rank_reduces_anything, _rank_moves_anything, _rank_allocates_anything]
)
def test_any_call_works_everywhere_or_is_refused_by_name(
    rank_function: Callable[[World], None],
) -> None:
    run_ranks(rank_function, 2, timeout_s=120)


def _rank_is_closed(world: World) -> None:
    world.close()
    for call in (
        world.barrier,
        lambda: world.broken,
        lambda: tokenweave.all_reduce(torch.ones(3), world=world),
        lambda: tokenweave.allreduce_rmsnorm(
            torch.ones(2, 8), None, torch.ones(8), world=world
        ),
        lambda: tokenweave.broadcast(torch.ones(3), world=world),
        lambda: tokenfabric.SymmetricBuffer(world, 64),
    ):  # fmt: skip
        with pytest.raises(tokenfabric.ConfigError, match="closed"):
            call()


def test_a_closed_world_says_so() -> None:
    run_ranks(_rank_is_closed, 2)


def _rank_forks(world: World) -> str:
    """Return what a forked child was told; the parent goes on."""
    x = torch.ones(4, 64)
    tokenweave.all_reduce(x, world=world)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        told = "nothing was raised"
        try:
            tokenweave.all_reduce(x, world=world)
        except tokenfabric.ConfigError as error:
            told = str(error)
        world.close()
        os.write(writer, told.encode())
        os._exit(0)
    os.waitpid(child, 0)
    told = os.read(reader, 4096).decode()
    assert torch.equal(tokenweave.all_reduce(x, world=world), x * world.size)
    return told


@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_forked_child_is_told_that_the_world_is_its_parents(num_threads: int) -> None:
    for rank, told in enumerate(run_ranks(_rank_forks, 2, num_threads=num_threads)):
        assert f"forked from rank {rank} of 2" in told
