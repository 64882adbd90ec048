"""What one thread block is worth: finished rows a second by SM budget, against a plain kernel.

    python -m benchmarks.bench_gpu_blocks            # some seconds
    python -m benchmarks.bench_gpu_blocks --quick    # fewer budgets, nothing written

Eight virtual ranks on one GPU, 1 to 16 blocks each. The baseline takes one row per block, loads
nothing ahead and reads the residual again. Between GPUs a rank needs 35 GB/s of finished rows to
keep an NVLink of eight ranks busy; here every load comes from HBM, which is faster than the link.
So the same again over four ranks whose loads come at the pace and with the latency of the link.
"""

from dataclasses import dataclass, replace

import torch
from rich.console import Console

from benchmarks.gpu_options import REPOSITORY, gpu, parse
from benchmarks.gpu_virtual import Problem, Size
from tokenfabric.testing.bench import Budget
from tokenfabric.testing.bench_cell import Cell
from tokenfabric.testing.bench_report import markdown_table
from tokenfabric.testing.gpu_report import (
    Captured,
    gpu_facts,
    measure_captured,
    write_gpu_results,
)
from tokenweave.cuda.virtual import Pace, VirtualRanks

RUNG = "measured on one GPU, virtual ranks (L3)"
_BASELINE = "row per block"
_SIZE = Size(ranks=8, rows=4096, hidden=8192)
_BUDGETS = (1, 2, 4, 8, 16)
# What NVLink 4 carries in one direction, and how long a load through the switch takes; published
# (NCCL's model of it, and sweeps of others), not measured here. To finish one of its rows a rank
# makes every link carry one row for each rank: so many bytes are paced.
_LINK = Pace(bytes_per_s=360e9, latency_s=1.5e-6)
# Of eight ranks the memory of one GPU would be slower than the links that it plays.
_PACED_SIZE = Size(ranks=4, rows=4096, hidden=8192)


@dataclass(frozen=True)
class Rates:
    """Bytes of finished rows a second and rank, by number of blocks."""

    num_ranks: int
    of_blocks: dict[int, float]

    def share(self, blocks: int) -> float:
        """Return the rate as a share of that of the most blocks."""
        return self.of_blocks[blocks] / self.of_blocks[max(self.of_blocks)]

    @property
    def paced_limit(self) -> float:
        """Return what the pace allows."""
        return _LINK.bytes_per_s / self.num_ranks


def main() -> None:
    """Measure, show the tables and write the result files."""
    options = parse((__doc__ or "").splitlines()[0], seconds=1.0)
    console, device = Console(), gpu()
    facts = gpu_facts(REPOSITORY, device, options.commit)
    console.print(facts.describe(RUNG), soft_wrap=True)
    budgets = (4, 16) if options.quick else _BUDGETS
    problem = Problem(_SIZE, device)
    cells = [_measure(problem, device, blocks, options.seconds) for blocks in budgets]
    table = markdown_table(cells, ["blocks", "GB/s of finished rows a rank", "baseline's"])
    del problem
    paced = Problem(_PACED_SIZE, device)
    paced_cells = _with_shares(
        [_measure_paced(paced, device, blocks, options.seconds) for blocks in budgets], budgets
    )
    paced_table = markdown_table(
        paced_cells,
        ["blocks", "GB/s of finished rows a rank", "of the most blocks", "of the pace"],
    )
    for text in (table, paced_table):
        console.print(text, soft_wrap=True, highlight=False)
    report = [
        f"# Finished rows by SM budget\n\n{facts.describe(RUNG)}",
        _LEGEND, table, _PACED_LEGEND, paced_table,
    ]  # fmt: skip
    if not options.quick:
        path = write_gpu_results(
            options.directory, "gpu_blocks", facts, cells + paced_cells, report, rung=RUNG
        )
        console.print(f"wrote {path} and .md", soft_wrap=True)


_LEGEND = f"""\
Two-shot fused reduction of {_SIZE.rows} x {_SIZE.hidden} bf16 over {_SIZE.ranks} virtual ranks, all
of them with so many blocks at once. A rank finishes 1/{_SIZE.ranks} of the rows; the rate is of
those bytes, on every rank at the same time. Loads are not paced to a link's rate."""
_PACED_LEGEND = f"""\
The same over {_PACED_SIZE.ranks} ranks, each of which loads partial sums at
{_LINK.bytes_per_s / 1e9:.0f} GB/s at most and adds a row {_LINK.latency_s * 1e6:g} us after asking
for it at the earliest: a plain token bucket for each row group (csrc/weave/cuda/paced.cuh). Stores
are not paced, and neither a link's requests and acknowledgements nor its congestion are played: a
stand-in for how many blocks a link needs, not for its speed."""


def _measure(problem: Problem, device: torch.device, blocks: int, seconds: float) -> Cell:
    ranks = VirtualRanks(_SIZE.ranks, device)
    providers = {}
    for name, form in ((_BASELINE, "row_per_block"), ("two_shot", "two_shot")):
        calls = problem.fused(ranks, form, blocks)  # type: ignore[arg-type]
        for index, call in enumerate(calls):
            problem.check(name, call(), index)
        providers[name] = Captured(calls, device)
    cell = measure_captured(
        providers, baseline=_BASELINE, labels={"blocks": blocks}, device=device,
        budget=Budget(seconds=seconds),
    )  # fmt: skip
    ranks.group.check("benchmark")
    labels = {
        "blocks": blocks,
        "GB/s of finished rows a rank": f"{_rate(_SIZE, cell, 'two_shot') / 1e9:.1f}",
        "baseline's": f"{_rate(_SIZE, cell, _BASELINE) / 1e9:.1f}",
    }
    return replace(cell, labels=labels)


def _measure_paced(problem: Problem, device: torch.device, blocks: int, seconds: float) -> Cell:
    ranks = VirtualRanks(_PACED_SIZE.ranks, device)
    calls = problem.fused(ranks, "two_shot", blocks, pace=_LINK)
    for index, call in enumerate(calls):
        problem.check("paced", call(), index)
    cell = measure_captured(
        {"paced": Captured(calls, device)}, baseline="paced", labels={"blocks": blocks},
        device=device, budget=Budget(seconds=seconds),
    )  # fmt: skip
    ranks.group.check("benchmark")
    return cell


def _with_shares(cells: list[Cell], budgets: tuple[int, ...]) -> list[Cell]:
    """Return the paced cells with rates and shares among their labels."""
    rates = Rates(
        _PACED_SIZE.ranks,
        {
            blocks: _rate(_PACED_SIZE, cell, "paced")
            for blocks, cell in zip(budgets, cells, strict=True)
        },
    )
    return [
        replace(
            cell,
            labels={
                "blocks": blocks,
                "GB/s of finished rows a rank": f"{rates.of_blocks[blocks] / 1e9:.1f}",
                "of the most blocks": f"{rates.share(blocks):.0%}",
                "of the pace": f"{rates.of_blocks[blocks] / rates.paced_limit:.0%}",
            },
        )
        for blocks, cell in zip(budgets, cells, strict=True)
    ]


def _rate(size: Size, cell: Cell, name: str) -> float:
    """Return bytes of finished rows a second on each rank."""
    return size.message_bytes / size.ranks / cell.seconds[name].median


if __name__ == "__main__":
    main()
