"""The operations on a world of GPUs, down to the launch: slots, copies, plans, refusals.

The kernels are replaced by torch on the CPU (tests/unit/fake_cuda.py), ranks are threads.
"""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

import tokenweave
from tests.unit.fake_cuda import FakeCuda, run_threads
from tokenfabric import native
from tokenfabric.errors import ConfigError
from tokenfabric.testing.tolerance import assert_close, assert_same_bits
from tokenfabric.world import World
from tokenweave.plan import split_rows
from tokenweave.reference import allreduce_rmsnorm_reference
from tokenweave.shared_output import SharedOutput

HIDDEN = 96
SLOT = 1 << 20


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """Put the fake in the place of the native launches."""
    fake = FakeCuda()
    monkeypatch.setattr(native, "cuda", fake, raising=False)
    return fake


def partials_of(size: int, rows: int) -> list[torch.Tensor]:
    """Return every rank's partial sums, different on each."""
    generator = torch.Generator().manual_seed(rows + size)
    return [
        (torch.randn(rows, HIDDEN, generator=generator) * (rank + 1)).bfloat16()
        for rank in range(size)
    ]


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("layout", ["replicated", "row_sharded"])
@pytest.mark.parametrize("algorithm", ["auto", "two_shot"])
def test_fused_reduction(cuda: FakeCuda, size: int, layout: str, algorithm: str) -> None:
    """Every rank gets all normed rows and its part of the residual, from private tensors."""
    weight = torch.linspace(0.5, 2, HIDDEN).bfloat16()

    def of_rank(world: Any) -> None:
        for rows in (0, 1, size - 1, size + 1, 17):
            partials = partials_of(size, rows)
            x = partials[world.rank].clone()
            residual = torch.ones(rows, HIDDEN).bfloat16()
            own = slice(None)
            if layout == "row_sharded":
                own = slice(*split_rows(rows, size)[world.rank])
            for _ in range(2):
                normed, kept = tokenweave.allreduce_rmsnorm(
                    x, residual[own].contiguous(), weight, world=world, eps=1e-6,
                    residual_layout=layout, algorithm=algorithm,  # type: ignore[arg-type]
                )  # fmt: skip
                exact, total = allreduce_rmsnorm_reference(partials, residual, weight, eps=1e-6)
                summed = sum(it.float() for it in partials).bfloat16() + residual
                baseline = F.rms_norm(summed, (HIDDEN,), weight, 1e-6)
                assert_close(normed, exact, baseline, what=f"normed, {rows} rows")
                assert_close(kept, total[own], summed[own], what=f"residual, {rows} rows")
            assert_same_bits(x, partials[world.rank], what="x_partial")

    run_threads(cuda, size, SLOT, of_rank)


@pytest.mark.parametrize("size", [2, 3])
def test_sums_and_moves(cuda: FakeCuda, size: int) -> None:
    """all_reduce, reduce_scatter, all_gather along both dimensions, broadcast."""

    def of_rank(world: Any) -> None:
        for rows in (0, 1, size + 1, 17):
            partials = partials_of(size, rows)
            x, summed = partials[world.rank], sum(it.float() for it in partials).bfloat16()
            assert torch.equal(tokenweave.all_reduce(x, world=world), summed)
            own = slice(*split_rows(rows, size)[world.rank])
            assert torch.equal(tokenweave.reduce_scatter(x, world=world), summed[own])
            assert torch.equal(tokenweave.all_gather(x, world=world), torch.cat(partials))
            heights = [rows if rank == 1 else 1 for rank in range(size)]
            parts = [torch.full((n, 3), rank) for rank, n in enumerate(heights)]
            found = tokenweave.all_gather(parts[world.rank], world=world, sizes=heights)
            assert torch.equal(found, torch.cat(parts))
            widths = [HIDDEN - 5 * rank for rank in range(size)]
            columns = [it[:, :w].contiguous() for it, w in zip(partials, widths, strict=True)]
            found = tokenweave.all_gather(columns[world.rank], world=world, dim=-1, sizes=widths)
            assert torch.equal(found, torch.cat(columns, dim=-1))
            assert torch.equal(tokenweave.broadcast(x.clone(), world=world, src=1), partials[1])

    run_threads(cuda, size, SLOT, of_rank)


def test_moves_go_in_pieces_through_small_slots(cuda: FakeCuda) -> None:
    """What is larger than the slots takes several launches, and arrives whole."""

    def of_rank(world: Any) -> None:
        parts = [torch.arange(50_000 + rank) * (rank + 1) for rank in range(2)]
        sizes = [len(it) for it in parts]
        found = tokenweave.all_gather(parts[world.rank], world=world, sizes=sizes)
        assert torch.equal(found, torch.cat(parts))
        columns = [torch.arange(500 * width).view(500, width) for width in (40, 41)]
        found = tokenweave.all_gather(columns[world.rank], world=world, dim=-1, sizes=[40, 41])
        assert torch.equal(found, torch.cat(columns, dim=-1))
        assert torch.equal(
            tokenweave.broadcast(parts[world.rank][:50_000].clone(), world=world), parts[0]
        )

    run_threads(cuda, 2, 16 << 10, of_rank)


def test_tensors_in_shared_memory_are_not_copied(cuda: FakeCuda) -> None:
    """Neither the partial sum nor the result; private ones are, once each."""
    rows = 2000  # beyond what one-shot takes
    num_bytes = rows * HIDDEN * 2
    weight = torch.ones(HIDDEN).bfloat16()

    def of_rank(world: Any) -> None:
        x = world.shared.tensor(world.rank, (rows, HIDDEN), torch.bfloat16, 0)
        out = world.shared.tensor(world.rank, (rows, HIDDEN), torch.bfloat16, num_bytes)
        x.copy_(partials_of(2, rows)[world.rank])
        world.cuda.group.meeting.wait(10)
        cuda.copies.clear()
        world.cuda.group.meeting.wait(10)
        tokenweave.allreduce_rmsnorm(
            x, None, weight, world=world, out=out, residual_layout="row_sharded",
            algorithm="two_shot",
        )  # fmt: skip
        world.cuda.group.meeting.wait(10)
        assert cuda.copies == []
        world.cuda.group.meeting.wait(10)
        normed, _ = tokenweave.allreduce_rmsnorm(
            x.clone(), None, weight, world=world, residual_layout="row_sharded",
            algorithm="two_shot",
        )  # fmt: skip
        world.cuda.group.meeting.wait(10)
        assert cuda.copies == [num_bytes] * 4
        assert torch.equal(normed, out)

    run_threads(cuda, 2, SLOT, of_rank, shared_bytes=2 * num_bytes)


def test_partial_sum_buffer_is_the_slot(cuda: FakeCuda) -> None:
    """A GEMM may write where the reduction reads; what does not fit gets none."""

    def of_rank(world: Any) -> None:
        slot = tokenweave.partial_sum_buffer(world, 8, HIDDEN, torch.bfloat16)
        assert slot is not None
        partials = partials_of(2, 8)
        slot.copy_(partials[world.rank])
        found = tokenweave.all_reduce(slot, world=world, algorithm="two_shot")
        assert torch.equal(found, sum(it.float() for it in partials).bfloat16())
        assert tokenweave.partial_sum_buffer(world, SLOT, HIDDEN, torch.bfloat16) is None
        assert tokenweave.partial_sum_buffer(world, 0, HIDDEN, torch.bfloat16) is None

    run_threads(cuda, 2, SLOT, of_rank)


def test_what_does_not_fit_is_refused_by_name(cuda: FakeCuda) -> None:
    """Before anything is launched."""

    def of_rank(world: Any) -> None:
        weight = torch.ones(HIDDEN).bfloat16()
        big = torch.zeros(SLOT, HIDDEN).bfloat16()
        with pytest.raises(ConfigError, match="TOKENFABRIC_CUDA_SLOT_MIB"):
            tokenweave.allreduce_rmsnorm(big, None, weight, world=world)
        with pytest.raises(ConfigError, match="one_shot is not possible"):
            tokenweave.all_reduce(big, world=world, algorithm="one_shot")
        with pytest.raises(ConfigError, match="drop_in"):
            tokenweave.allreduce_rmsnorm(big, None, weight, world=world, numerics="drop_in")
        with pytest.raises(ConfigError, match="SharedOutput is for ranks on CPUs"):
            SharedOutput(world, 1, HIDDEN, torch.bfloat16)
        with pytest.raises(ConfigError, match="src must be a rank"):
            tokenweave.broadcast(big[:1], world=world, src=2)

    run_threads(cuda, 2, SLOT, of_rank)
    assert cuda.launches == []


def test_small_messages_take_one_shot_and_large_ones_two_shot(cuda: FakeCuda) -> None:
    """The plan reaches the launch; one-shot reads private memory."""

    def of_rank(world: Any) -> None:
        for rows in (1, 5000):
            x = torch.ones(rows, HIDDEN).bfloat16()
            tokenweave.all_reduce(x, world=world)

    run_threads(cuda, 4, SLOT, of_rank)
    forms = [(form, is_shared) for rank, form, is_shared in cuda.launches if rank == 0]
    assert forms == [(cuda.ONE_SHOT, False), (cuda.TWO_SHOT, True)]


def test_arrays_are_taken_through_dlpack(cuda: FakeCuda) -> None:
    """NumPy here, CuPy on a GPU: no copy on the way in; what cannot be shared is named."""

    def of_rank(world: Any) -> None:
        x = np.full((3, HIDDEN), world.rank + 1, dtype=np.float32)
        assert torch.equal(tokenweave.all_reduce(x, world=world), torch.full((3, HIDDEN), 3.0))
        out = np.zeros_like(x)
        tokenweave.allreduce_rmsnorm(
            x, None, np.ones(HIDDEN, dtype=np.float32), world=world, out=out
        )
        assert np.allclose(out, 1)
        with pytest.raises(ConfigError, match="list cannot be taken through DLPack"):
            tokenweave.all_reduce([1.0], world=world)  # type: ignore[arg-type]

    run_threads(cuda, 2, SLOT, of_rank)


OPERATORS = (
    "allreduce_rmsnorm", "allreduce_rmsnorm_", "allreduce_rmsnorm_quantized", "all_reduce",
    "reduce_scatter", "all_gather", "broadcast_",
)  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_take_tensors_of_both_devices(name: str) -> None:
    """torch.ops.tokenweave.* is dispatched for CPU and CUDA; which runs is the world's choice."""
    tokenweave.allreduce_rmsnorm_quantized  # noqa: B018 - defines the operators
    for key in ("CPU", "CUDA"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"tokenweave::{name}", key)


def test_fakes_of_gpu_tensors_are_on_that_gpu() -> None:
    """Tracing needs no GPU, and results are where the inputs are."""
    with World(None) as world, FakeTensorMode():
        x, residual = (torch.empty(3, 8, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        weight = torch.empty(8, device="cuda", dtype=torch.bfloat16)
        normed, kept = torch.ops.tokenweave.allreduce_rmsnorm(
            x, residual, weight, None, 1e-6, 0.0, "row_sharded", "auto", world.group_name
        )
        assert (normed.device.type, normed.shape) == ("cuda", (3, 8))
        assert (kept.device.type, kept.shape) == ("cuda", (3, 8))
        summed = torch.ops.tokenweave.all_reduce(x, "auto", world.group_name)
        assert summed.device == x.device
