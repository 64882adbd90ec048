"""Inputs of the fused reduction for virtual ranks, and the same work in separate torch kernels."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from tokenfabric.testing.tolerance import assert_close
from tokenweave.cuda.virtual import Form, Pace, VirtualCall, VirtualRanks
from tokenweave.reference import allreduce_rmsnorm_reference

EPS = 1e-6
# Inputs that are used in turn, so that none is found in L2 (60 MB) unless it is small.
_ROTATED_BYTES = 256 << 20
_MOST_SETS = 4


@dataclass(frozen=True)
class Size:
    """One problem."""

    ranks: int
    rows: int
    hidden: int

    @property
    def message_bytes(self) -> int:
        """Of one rank's partial sums, bf16."""
        return self.rows * self.hidden * 2

    @property
    def fused_bytes(self) -> int:
        """Read and written by all ranks: partial sums, sharded residual, results everywhere."""
        return self.message_bytes * (2 * self.ranks + 2)

    @property
    def unfused_bytes(self) -> int:
        """The same with a kernel each for sum, addition, norm and copies."""
        return self.message_bytes * (2 * self.ranks + 7)

    @property
    def num_sets(self) -> int:
        """Return how many sets of inputs are used in turn."""
        return max(1, min(_MOST_SETS, _ROTATED_BYTES // (self.ranks * self.message_bytes)))

    def labels(self) -> dict[str, object]:
        """Return what names this problem in tables."""
        return {"ranks": self.ranks, "tokens": self.rows, "hidden": self.hidden}


class Problem:
    """Tensors of one size: `sets` of inputs, one set of results."""

    def __init__(self, size: Size, device: torch.device) -> None:
        self.size, self.device = size, device
        shape = (size.num_sets, size.ranks, size.rows, size.hidden)
        self.partials = torch.randn(shape, device=device, dtype=torch.bfloat16)
        self.residual = torch.randn(shape[2:], device=device, dtype=torch.bfloat16)
        self.weight = torch.randn(size.hidden, device=device, dtype=torch.bfloat16)
        self.sum = torch.empty_like(self.residual)
        self.copies = torch.empty(shape[1:], device=device, dtype=torch.bfloat16)

    def unfused(self, index: int) -> Callable[[], torch.Tensor]:
        """Return the work on one set as torch kernels: sum, add, norm, one kernel of N copies."""
        partials = self.partials[index]

        def call() -> torch.Tensor:
            torch.sum(partials, 0, out=self.sum)
            kept = self.sum.add_(self.residual)
            normed = F.rms_norm(kept, (self.size.hidden,), self.weight, EPS)
            return self.copies.copy_(normed.expand_as(self.copies))

        return call

    def fused(
        self, ranks: VirtualRanks, form: Form, num_blocks: int, pace: Pace | None = None
    ) -> list[Callable[[], torch.Tensor]]:
        """Return the work of all ranks in one launch, for each set of inputs."""
        size = self.size
        call = VirtualCall(
            rows=size.rows, hidden=size.hidden, form=form, num_blocks=num_blocks,
            is_residual_sharded=form != "one_shot", pace=pace,
        )  # fmt: skip
        reduction = ranks.prepare(call)
        residuals = [self.residual] * size.ranks
        if form != "one_shot":
            counts = [ranks.own_rows(rank, size.rows) for rank in range(size.ranks)]
            residuals = [it.contiguous() for it in self.residual.split(counts)]

        def of(index: int) -> Callable[[], torch.Tensor]:
            launch = reduction.launcher(
                list(self.partials[index].unbind()), residuals, self.weight, eps=EPS
            )

            def run() -> torch.Tensor:
                launch()
                return reduction.results.normed[-1]

            return run

        return [of(index) for index in range(size.num_sets)]

    def check(self, what: str, found: torch.Tensor, index: int) -> None:
        """Compare the normed rows of one rank with fp64; a sample of the rows is enough."""
        rows = torch.linspace(0, self.size.rows - 1, min(self.size.rows, 64)).long().unique()
        partials = [it[rows.to(self.device)].cpu() for it in self.partials[index]]
        residual = self.residual[rows.to(self.device)].cpu()
        exact, _ = allreduce_rmsnorm_reference(partials, residual, self.weight.cpu(), eps=EPS)
        total = sum(it.float() for it in partials).bfloat16() + residual
        baseline = F.rms_norm(total, (self.size.hidden,), self.weight.cpu(), EPS)
        assert_close(found[rows.to(self.device)].cpu(), exact, baseline, what=what)


def copy_bandwidth(device: torch.device) -> float:
    """Return bytes a second, read and written, of a large copy on the GPU."""
    source = torch.randn(1 << 28, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(20):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        target.copy_(source)
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) * 1e-3)
    return 2 * source.nbytes / sorted(times)[len(times) // 2]
