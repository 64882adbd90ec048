"""SharedOutput: one physical result that all ranks have mapped, between two blocks of ours."""

import signal
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

import tokenfabric
import tokenweave
from tests.dist import fused_cases
from tests.dist.fused_cases import EPS, Case
from tokenfabric.testing.spawn import run_ranks, spawn_plain
from tokenfabric.testing.tolerance import assert_same_bits
from tokenfabric.world import World
from tokenweave.plan import split_rows
from tokenweave.shared_output import SharedOutput


def reduce(
    world: World, case: Case, seed: int, out: SharedOutput | None
) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = fused_cases.make_inputs(case, world.size, seed)
    own = slice(*split_rows(case.tokens, world.size)[world.rank])
    assert inputs.residual is not None
    return tokenweave.allreduce_rmsnorm(
        inputs.partials[world.rank],
        inputs.residual[own].contiguous(),
        inputs.weight,
        world=world,
        eps=EPS,
        residual_layout="row_sharded",
        out=out,
    )


def _rank_equals_private(world: World) -> None:
    for dtype in ("bf16", "fp32"):
        largest = 130
        shared = SharedOutput(world, largest, 1000, fused_cases.DTYPES[dtype])
        before: tuple[torch.Tensor, torch.Tensor] | None = None
        for step, tokens in enumerate((largest, 1, world.size - 1, 0, world.size + 1, 17) * 3):
            case = Case(tokens=tokens, hidden=1000, dtype=dtype, residual="row_sharded")
            expected, expected_residual = reduce(world, case, step, None)
            if step % world.size == world.rank:
                time.sleep(0.002)
            normed, residual = reduce(world, case, step, shared)
            assert_same_bits(normed, expected, what=f"normed, step {step}")
            assert_same_bits(residual, expected_residual, what=f"residual, step {step}")
            if before is not None:
                assert_same_bits(*before, what=f"the result before step {step}")
            before = normed, expected


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_shared_result_equals_the_private_one_and_outlives_one_call(world_size: int) -> None:
    """Same bits as private outputs; a slow rank may read the result before while others go on."""
    run_ranks(_rank_equals_private, world_size)


def _rank_refusals(world: World) -> None:
    shared = SharedOutput(world, 4, 64, torch.float32)
    x, w = torch.ones(4, 64), torch.ones(64)
    for message, bad in (
        ("5 x 64|\\(5, 64\\)", torch.ones(5, 64)),
        ("bfloat16", x.bfloat16()),
    ):
        rows = slice(*split_rows(bad.shape[0], world.size)[world.rank])
        with pytest.raises(tokenfabric.ConfigError, match=message):
            tokenweave.allreduce_rmsnorm(
                bad,
                bad[rows],
                w.to(bad.dtype),
                world=world,
                residual_layout="row_sharded",
                out=shared,
            )
    with pytest.raises(tokenfabric.ConfigError, match="shared output"):
        tokenweave.allreduce_rmsnorm(x, None, w, world=world, algorithm="one_shot", out=shared)
    with pytest.raises(tokenfabric.MismatchError):
        SharedOutput(world, 4 + world.rank, 64, torch.float32)
    case = Case(tokens=4, hidden=64, dtype="fp32", residual="row_sharded")
    for step in range(3):
        # A call that fails must not leave the ranks on different buffers.
        with pytest.raises(tokenfabric.MismatchError):
            reduce(world, replace(case, tokens=4 - world.rank), step, shared)
        expected, _ = reduce(world, case, step, None)
        assert_same_bits(reduce(world, case, step, shared)[0], expected)


def test_what_does_not_fit_is_refused_and_a_mismatch_costs_no_buffer() -> None:
    """Size, dtype and algorithm are checked; after a mismatch all ranks are on the same buffer."""
    run_ranks(_rank_refusals, 2)


def _rank_writes(world: World, report: Callable[[str], None]) -> None:
    case = Case(tokens=4, hidden=64, dtype="fp32", residual="row_sharded")
    normed, _ = reduce(world, case, 0, SharedOutput(world, 4, 64, torch.float32))
    report("reduced")
    world.barrier()
    if world.rank == 1:
        normed[0, 0] = 1.0
    time.sleep(0.5)


def test_writing_into_a_shared_result_faults_at_once() -> None:
    """Mapped read-only: a block that scribbles on it dies, and corrupts no peer."""
    with spawn_plain(_rank_writes, 2, timeout_s=30) as ranks:
        ranks.wait_for("reduced")
        ranks.join()
        assert ranks.exit_code(1) == -signal.SIGSEGV
        assert ranks.exit_code(0) == 0
