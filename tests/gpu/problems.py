"""Problems of the fused reduction for virtual ranks, poisoned results, and the comparison."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenfabric.testing.tolerance import assert_close, assert_same_bits
from tokenweave.cuda.virtual import VirtualCall, VirtualRanks, VirtualResults
from tokenweave.plan import split_rows
from tokenweave.reference import allreduce_rmsnorm_reference

EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Inputs of one call on the CPU; a rank contributes `partials[rank]`."""

    partials: list[Tensor]
    residual: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    norm_bias: Tensor | None
    weight_offset: float = 0.0

    @property
    def rows(self) -> int:
        return self.partials[0].shape[0]


def make_problem(
    call: VirtualCall,
    size: int,
    *,
    seed: int = 0,
    has_residual: bool = True,
    has_weight: bool = True,
    has_bias: bool = False,
    weight_offset: float = 0.0,
) -> Problem:
    """Return inputs that differ between ranks, rows and seeds."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    weight_dtype = call.weight_dtype or call.dtype
    return Problem(
        # Ranks differ in scale too, so that one that is read twice or left out shows.
        partials=[
            random(call.rows, call.hidden, dtype=call.dtype) * (rank + 1) for rank in range(size)
        ],
        residual=random(call.rows, call.hidden, dtype=call.residual_dtype or call.dtype)
        if has_residual
        else None,
        weight=random(call.hidden, dtype=weight_dtype) if has_weight else None,
        bias=random(call.hidden, dtype=call.dtype) if has_bias else None,
        norm_bias=random(call.hidden, dtype=weight_dtype) if call.norm == "layer_norm" else None,
        weight_offset=weight_offset,
    )


def poison(results: VirtualResults) -> None:
    """Fill every result with NaN, codes with 0xff."""
    for tensors in (results.normed, results.residual, results.scales or []):
        for tensor in tensors:
            tensor.fill_(float("nan"))
    for tensor in results.codes or []:
        tensor.view(torch.uint8).fill_(0xFF)


def run_and_check(ranks: VirtualRanks, call: VirtualCall, problem: Problem, times: int = 3) -> None:
    """Run a call several times on one workspace and compare every rank with fp64."""
    reduction = ranks.prepare(call)
    device = ranks.device

    def on_gpu(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(device)

    partials = [it.to(device) for it in problem.partials]
    residuals = None
    owns_rows = call.is_residual_sharded or call.form == "reduce_scatter"
    if problem.residual is not None:
        residuals = [
            problem.residual[_own(problem.rows, ranks.size, rank, owns_rows)].to(device)
            for rank in range(ranks.size)
        ]
    launch = reduction.launcher(
        partials, residuals, on_gpu(problem.weight), on_gpu(problem.bias),
        on_gpu(problem.norm_bias), eps=EPS, weight_offset=problem.weight_offset,
    )  # fmt: skip
    for _ in range(times):
        poison(reduction.results)
        launch()
        torch.cuda.synchronize(device)
        ranks.group.check("test")
        check(ranks.size, call, problem, reduction.results)
    for given, found in zip(problem.partials, partials, strict=True):
        assert_same_bits(found.cpu(), given, what="x_partial")


def _own(rows: int, size: int, rank: int, owns_rows: bool) -> slice:
    return slice(*split_rows(rows, size)[rank]) if owns_rows else slice(None)


def check(size: int, call: VirtualCall, problem: Problem, results: VirtualResults) -> None:
    """Compare all ranks' results with fp64, and with each other bit for bit."""
    (normed, total), (baseline, baseline_total) = reference(call, problem), in_torch(call, problem)
    scattered = call.form == "reduce_scatter"
    for rank in range(size):
        of_result = _own(problem.rows, size, rank, scattered)
        of_residual = _own(problem.rows, size, rank, scattered or call.is_residual_sharded)
        found = results.normed[rank].cpu()
        assert_close(found, normed[of_result], baseline[of_result], what=f"normed, rank {rank}")
        kept = results.residual[rank].cpu()
        assert_close(
            kept, total[of_residual], baseline_total[of_residual], what=f"residual, rank {rank}"
        )
        if not scattered:
            assert_same_bits(found, results.normed[0].cpu(), what=f"normed, rank {rank}")


def reference(call: VirtualCall, problem: Problem) -> tuple[Tensor, Tensor]:
    """Return (normed, residual) in fp64 from the same rounded inputs."""
    weight = problem.weight
    normed, total = allreduce_rmsnorm_reference(
        problem.partials,
        problem.residual,
        torch.ones(call.hidden) if weight is None else weight,
        eps=EPS,
        bias=problem.bias,
        weight_offset=problem.weight_offset,
        norm=call.norm,
        norm_bias=problem.norm_bias,
    )
    return (total if weight is None else normed), total


def in_torch(call: VirtualCall, problem: Problem) -> tuple[Tensor, Tensor]:
    """Return (normed, residual) as unfused torch operations give them in the activation dtype."""
    s = problem.partials[0]
    for term in (*problem.partials[1:], problem.bias):
        s = s if term is None else s + term
    if problem.residual is not None:
        s = (s + problem.residual.to(s.dtype)).to(s.dtype)
    if problem.weight is None:
        return s, s
    weight = problem.weight.to(s.dtype) + problem.weight_offset
    if call.norm == "layer_norm":
        assert problem.norm_bias is not None
        return F.layer_norm(s, (call.hidden,), weight, problem.norm_bias.to(s.dtype), EPS), s
    return F.rms_norm(s, (call.hidden,), weight, EPS), s


def row_counts(size: int) -> list[int]:
    """Return the numbers of rows at which indexing goes wrong first."""
    return sorted({0, 1, max(0, size - 1), size, size + 1, 3 * size + 1, 37})


def changed(call: VirtualCall, **changes: object) -> VirtualCall:
    """Return a call that differs from another."""
    return replace(call, **changes)  # type: ignore[arg-type]
