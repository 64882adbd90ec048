"""The shipped kernels with all ranks in one launch on one GPU, against fp64 (rung L3)."""

import pytest
import torch

from tests.gpu.problems import changed, make_problem, row_counts, run_and_check
from tokenweave.cuda.virtual import VirtualCall, VirtualRanks

pytestmark = pytest.mark.gpu
FORMS = ("two_shot", "one_shot", "reduce_scatter")


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("form", FORMS)
def test_any_number_of_rows(device: torch.device, size: int, form: str) -> None:
    """No row is lost or done twice, with fewer rows than ranks or blocks too."""
    ranks = VirtualRanks(size, device)
    for rows in row_counts(size):
        call = VirtualCall(rows=rows, hidden=576, form=form)  # type: ignore[arg-type]
        run_and_check(ranks, call, make_problem(call, size, seed=rows))


@pytest.mark.parametrize("hidden", [8, 128, 1000, 2880, 4096, 5120, 8192, 16384])
@pytest.mark.parametrize("form", FORMS)
def test_any_width(device: torch.device, hidden: int, form: str) -> None:
    """Rows of whole vectors, from one to as many as there are."""
    ranks = VirtualRanks(4, device)
    call = VirtualCall(rows=11, hidden=hidden, form=form)  # type: ignore[arg-type]
    run_and_check(ranks, call, make_problem(call, 4, seed=hidden))


@pytest.mark.parametrize("hidden", [1, 7, 577, 4097])
def test_rows_of_no_whole_vectors(device: torch.device, hidden: int) -> None:
    """The scalar tail; one-shot has none."""
    ranks = VirtualRanks(2, device)
    for form in ("two_shot", "reduce_scatter"):
        call = VirtualCall(rows=5, hidden=hidden, form=form)  # type: ignore[arg-type]
        run_and_check(ranks, call, make_problem(call, 2, seed=hidden))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("form", FORMS)
def test_dtypes_of_weight_and_residual(device: torch.device, dtype: torch.dtype, form: str) -> None:
    """Each dtype with weights and residuals like it and in fp32."""
    ranks = VirtualRanks(2, device)
    first = VirtualCall(rows=9, hidden=1024, form=form, dtype=dtype)  # type: ignore[arg-type]
    for options in ({}, {"weight_dtype": torch.float32}, {"residual_dtype": torch.float32}):
        call = changed(first, **options)
        run_and_check(ranks, call, make_problem(call, 2))


@pytest.mark.parametrize("form", ["two_shot", "one_shot"])
def test_norms_and_terms(device: torch.device, form: str) -> None:
    """LayerNorm, Gemma's offset, a bias, no residual, no norm at all (the plain all-reduce)."""
    ranks = VirtualRanks(3, device)
    call = VirtualCall(rows=10, hidden=768, form=form)  # type: ignore[arg-type]
    layer = changed(call, norm="layer_norm")
    run_and_check(ranks, layer, make_problem(layer, 3))
    run_and_check(ranks, call, make_problem(call, 3, weight_offset=1.0, has_bias=True))
    run_and_check(ranks, call, make_problem(call, 3, has_residual=False, has_bias=True))
    run_and_check(ranks, call, make_problem(call, 3, has_residual=False, has_weight=False))


@pytest.mark.parametrize("size", [2, 8])
def test_sharded_residual(device: torch.device, size: int) -> None:
    """Each rank keeps its own rows of the residual, which never travel."""
    ranks = VirtualRanks(size, device)
    for rows in row_counts(size):
        call = VirtualCall(rows=rows, hidden=1024, is_residual_sharded=True)
        run_and_check(ranks, call, make_problem(call, size, seed=rows))


@pytest.mark.parametrize("num_blocks", [1, 2, 3, 16])
def test_any_grid_gives_the_same_bits(device: torch.device, num_blocks: int) -> None:
    """The SM budget changes who computes a row, not its value; grids may differ from call to call
    on one channel.
    """
    ranks = VirtualRanks(8, device)
    results = []
    for blocks in (4, num_blocks):
        call = VirtualCall(rows=100, hidden=2048, num_blocks=blocks)
        problem = make_problem(call, 8)
        run_and_check(ranks, call, problem, times=1)
        partials = [it.to(device) for it in problem.partials]
        assert problem.weight is not None
        found = ranks.prepare(call).run(partials, None, problem.weight.to(device))
        results.append(found.normed[0].clone())
    assert torch.equal(results[0].view(torch.int16), results[1].view(torch.int16))


def test_one_shot_and_two_shot_give_the_same_bits(device: torch.device) -> None:
    """Every path without the switch adds in rank order and rounds at the same places."""
    ranks = VirtualRanks(4, device)
    found = []
    for form in ("one_shot", "two_shot"):
        call = VirtualCall(rows=33, hidden=4096, form=form)  # type: ignore[arg-type]
        problem = make_problem(call, 4)
        assert problem.residual is not None
        assert problem.weight is not None
        residuals = [problem.residual.to(device) for _ in range(4)]
        partials = [it.to(device) for it in problem.partials]
        out = ranks.prepare(call).run(partials, residuals, problem.weight.to(device))
        found.append((out.normed[3].clone(), out.residual[3].clone()))
    for one, two in zip(*found, strict=True):
        assert torch.equal(one.view(torch.int16), two.view(torch.int16))


@pytest.mark.parametrize("rows", [0, 1, 3, 10])
@pytest.mark.parametrize("width", [16, 24, 13])
def test_gathered_rows_are_moved_bit_for_bit(device: torch.device, rows: int, width: int) -> None:
    """All ranks get all rows, whole vectors or not."""
    size = 4
    ranks = VirtualRanks(size, device)
    sources = [
        torch.randint(0, 256, (ranks.own_rows(rank, rows), width), dtype=torch.uint8, device=device)
        for rank in range(size)
    ]
    for _ in range(3):
        for found in ranks.all_gather(sources, rows, num_blocks=2):
            assert torch.equal(found, torch.cat(sources))


def test_baseline_computes_the_same(device: torch.device) -> None:
    """The row-per-block kernel of the benchmarks is right too, or its time would mean nothing."""
    ranks = VirtualRanks(4, device)
    call = VirtualCall(rows=50, hidden=4096, form="row_per_block", is_residual_sharded=True)
    run_and_check(ranks, call, make_problem(call, 4))


def test_rows_beyond_four_gigabytes(device: torch.device) -> None:
    """Offsets have 64 bits: the last rows of a tensor of more than 2^32 bytes are right."""
    rows, hidden = (1 << 32) // (16384 * 2) + 7, 16384
    need = 4 * rows * hidden * 2
    if torch.cuda.mem_get_info(device)[0] < 1.2 * need:
        pytest.skip(f"needs {need >> 30} GiB of GPU memory")
    ranks = VirtualRanks(1, device)
    call = VirtualCall(rows=rows, hidden=hidden, num_blocks=64)
    x = torch.empty(rows, hidden, dtype=torch.bfloat16, device=device)
    x.copy_((torch.arange(rows, device=device) % 251 + 1)[:, None])
    found = ranks.prepare(call).run([x], None, torch.ones(hidden, device=device).bfloat16())
    assert torch.equal(found.residual[0][-9:], x[-9:])
    assert torch.equal(found.normed[0][-9:], torch.ones_like(x[-9:]))
    assert torch.equal(found.residual[0][:9], x[:9])
