"""What the collectives refuse: calls that differ between ranks, on all ranks; bad arguments."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

import tokenfabric
import tokenweave
from tokenfabric.testing.poison import poison, unchanged
from tokenfabric.testing.spawn import run_ranks
from tokenfabric.testing.tolerance import assert_same_bits
from tokenfabric.world import World
from tokenweave.plan import split_rows


@dataclass(frozen=True, kw_only=True)
class Call:
    """Arguments of one allreduce_rmsnorm."""

    tokens: int = 6
    hidden: int = 72
    dtype: torch.dtype = torch.bfloat16
    weight_dtype: torch.dtype = torch.bfloat16
    eps: float = 1e-6
    weight_offset: float = 0.0
    algorithm: str = "two_shot"
    residual_layout: str = "replicated"
    has_residual: bool = True
    has_bias: bool = False
    in_partial_buffer: bool = False

    def run(self, world: World) -> tuple[torch.Tensor, ...]:
        """Make the call; return its poisoned outputs, and its residual which they may not touch."""
        shape = (self.tokens, self.hidden)
        x = torch.ones(shape, dtype=self.dtype)
        if self.in_partial_buffer:
            buffer = tokenweave.partial_sum_buffer(world, *shape, self.dtype)
            assert buffer is not None
            x = buffer.copy_(x)
        rows = slice(0, self.tokens)
        if self.residual_layout == "row_sharded":
            rows = slice(*split_rows(self.tokens, world.size)[world.rank])
        residual = torch.ones(shape, dtype=self.dtype)[rows].contiguous()
        out, residual_out = poison(torch.empty_like(x)), poison(torch.empty_like(residual))
        outputs = (out, residual_out)
        before = [output.clone() for output in outputs]
        try:
            tokenweave.allreduce_rmsnorm(
                x,
                residual if self.has_residual else None,
                torch.ones(self.hidden, dtype=self.weight_dtype),
                world=world,
                eps=self.eps,
                bias=torch.ones(self.hidden, dtype=self.dtype) if self.has_bias else None,
                weight_offset=self.weight_offset,
                algorithm=self.algorithm,
                residual_layout=self.residual_layout,
                out=out,
                residual_out=residual_out,
            )
        except tokenfabric.MismatchError:
            for output, copy in zip(outputs, before, strict=True):
                assert_same_bits(output, copy, what="output after a mismatch")
            raise
        return outputs


USUAL = Call()
MISMATCHES: dict[str, Call] = {
    "tokens": replace(USUAL, tokens=7),
    "no tokens": replace(USUAL, tokens=0),
    "hidden": replace(USUAL, hidden=36, tokens=12),
    "dtype": replace(USUAL, dtype=torch.float32, weight_dtype=torch.float32),
    "weight dtype": replace(USUAL, weight_dtype=torch.float32),
    "eps": replace(USUAL, eps=1e-5),
    "weight offset": replace(USUAL, weight_offset=1.0),
    "algorithm": replace(USUAL, algorithm="one_shot"),
    "residual layout": replace(USUAL, residual_layout="row_sharded"),
    "residual": replace(USUAL, has_residual=False),
    "bias": replace(USUAL, has_bias=True),
    "place of the partial sum": replace(USUAL, in_partial_buffer=True),
}


def assert_usable(world: World, value: float) -> None:
    """Check that the next collectives of the world are right, with data of their own."""
    for factor, algorithm in ((1, "one_shot"), (100, "two_shot")):
        x = torch.full((5, 64), float(factor * value + world.rank))
        total = tokenweave.all_reduce(x, world=world, algorithm=algorithm)
        expected = sum(factor * value + rank for rank in range(world.size))
        assert torch.equal(total, torch.full_like(x, expected))


def _rank_mismatches(world: World) -> dict[str, list[Any]]:
    raised = {}
    for step, (name, other) in enumerate(MISMATCHES.items()):
        odd_rank = step % world.size
        call = other if world.rank == odd_rank else USUAL
        with pytest.raises(tokenfabric.MismatchError) as info:
            call.run(world)
        error = info.value
        assert error.rank == world.rank
        assert (error.peer_rank == odd_rank) or world.rank == odd_rank
        assert error.operation == "allreduce_rmsnorm"
        assert "rank" in str(error)
        assert world.broken is None
        raised[name] = [error.epoch]
        assert_usable(world, step)
        assert torch.isfinite(USUAL.run(world)[0].float()).all()
    return raised


@pytest.mark.parametrize("world_size", [2, 3])
def test_calls_that_differ_raise_on_every_rank_and_change_nothing(world_size: int) -> None:
    """MismatchError everywhere, outputs untouched, the world goes on with right results."""
    raised = run_ranks(_rank_mismatches, world_size)
    assert raised[0].keys() == MISMATCHES.keys()
    assert all(other == raised[0] for other in raised), "the epochs of the ranks differ"


OPERATIONS: dict[str, Callable[[World, torch.Tensor], object]] = {
    "barrier": lambda world, x: world.barrier(),
    "all_reduce": lambda world, x: tokenweave.all_reduce(x, world=world),
    "other all_reduce": lambda world, x: tokenweave.all_reduce(x[:3], world=world),
    "reduce_scatter": lambda world, x: tokenweave.reduce_scatter(x, world=world),
    "all_gather": lambda world, x: tokenweave.all_gather(x, world=world),
    "all_gather of columns": lambda world, x: tokenweave.all_gather(x, world=world, dim=-1),
    "all_gather of bytes": lambda world, x: tokenweave.all_gather(x.view(torch.uint8), world=world),
    "broadcast": lambda world, x: tokenweave.broadcast(x, world=world),
    "broadcast from another": lambda world, x: tokenweave.broadcast(x, world=world, src=1),
    "allreduce_rmsnorm": lambda world, x: tokenweave.allreduce_rmsnorm(x, None, x[0], world=world),
}


def _rank_operations(world: World) -> None:
    x = torch.ones(6, 64)
    names = list(OPERATIONS)
    for step, first in enumerate(names):
        for second in names[:step]:
            if {first, second} == {"all_gather", "all_gather of bytes"}:
                continue  # the same bytes go to the same places
            name = first if world.rank == step % world.size else second
            with (
                pytest.raises(tokenfabric.MismatchError, match="world stays usable"),
                unchanged(x=x),
            ):
                OPERATIONS[name](world, x)
            # Ranks that took different numbers of staging slots must be in step again.
            assert_usable(world, step + names.index(second) / 16)
        OPERATIONS[first](world, x.clone())


def test_operations_in_another_order_raise_on_every_rank() -> None:
    """Any two different operations are told apart."""
    run_ranks(_rank_operations, 3)


def _rank_bad_arguments(world: World) -> None:
    x, w = torch.ones(4, 64), torch.ones(64)
    fused, reduce = tokenweave.allreduce_rmsnorm, tokenweave.all_reduce
    gather = tokenweave.all_gather
    bad: dict[str, Callable[[], object]] = {
        "contiguous": lambda: fused(torch.ones(64, 4).t(), None, w, world=world),
        "float64": lambda: fused(x.double(), None, w.double(), world=world),
        "int64": lambda: reduce(torch.ones(4, dtype=torch.int64), world=world),
        "residual": lambda: fused(x, torch.ones(3, 64), w, world=world),
        "weight": lambda: fused(x, None, torch.ones(63), world=world),
        "weight.*contiguous": lambda: fused(x, None, torch.ones(128)[::2], world=world),
        "bias": lambda: fused(x, None, w, bias=torch.ones(64, 1), world=world),
        "out": lambda: fused(x, None, w, world=world, out=torch.ones(4, 65)),
        "residual_out": lambda: fused(x, None, w, world=world, residual_out=x.bfloat16()),
        "algorithm|three_shot": lambda: fused(x, None, w, world=world, algorithm="three_shot"),
        "row_sharded|diagonal": lambda: fused(x, None, w, world=world, residual_layout="diagonal"),
        "one_shot": lambda: fused(
            x, x[:2], w, world=world, algorithm="one_shot", residual_layout="row_sharded"
        ),
        "cpu": lambda: reduce(torch.ones(4, device="meta"), world=world),
        "sizes": lambda: gather(x, world=world, sizes=(4,)),
        "dim": lambda: gather(torch.ones(2, 2, 2), world=world, dim=1),
        "source|src": lambda: tokenweave.broadcast(x, world=world, src=2),
        "staging": lambda: fused(torch.ones(1, 1 << 23), None, torch.ones(1 << 23), world=world),
        "gradient": lambda: fused(x.clone().requires_grad_(), None, w, world=world),
        "weight.*gradient|gradient.*weight": lambda: fused(
            x, None, torch.nn.Parameter(w), world=world
        ),
    }
    for message, call in bad.items():
        said = "nothing"
        try:
            call()
        except tokenfabric.ConfigError as error:
            said = str(error)
        assert re.search(message, said), f"{message!r} is not in: {said}"
    with torch.no_grad():  # inference: nobody asks for a gradient
        fused(x, None, torch.nn.Parameter(w), world=world)
    assert_usable(world, 2)


def test_bad_arguments_are_refused_before_the_rank_takes_part() -> None:
    """ConfigError names what is wrong, and the world is as it was."""
    run_ranks(_rank_bad_arguments, 2)
