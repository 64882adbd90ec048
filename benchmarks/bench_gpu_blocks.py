"""What one thread block is worth: finished rows a second by SM budget, against a plain kernel.

    python -m benchmarks.bench_gpu_blocks            # some seconds
    python -m benchmarks.bench_gpu_blocks --quick    # fewer budgets, nothing written

Eight virtual ranks on one GPU, 1 to 16 blocks each. The baseline takes one row per block, loads
nothing ahead and reads the residual again. Between GPUs a rank needs 35 GB/s of finished rows to
keep an NVLink of eight ranks busy; here every load comes from HBM, which is faster than the link.
"""

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
from tokenweave.cuda.virtual import VirtualRanks

RUNG = "measured on one GPU, virtual ranks (L3)"
_BASELINE = "row per block"
_SIZE = Size(ranks=8, rows=4096, hidden=8192)
_BUDGETS = (1, 2, 4, 8, 16)


def main() -> None:
    """Measure, show the table and write the result files."""
    options = parse((__doc__ or "").splitlines()[0], seconds=1.0)
    console, device = Console(), gpu()
    facts = gpu_facts(REPOSITORY, device, options.commit)
    console.print(facts.describe(RUNG), soft_wrap=True)
    problem = Problem(_SIZE, device)
    budgets = (4, 16) if options.quick else _BUDGETS
    cells = [_measure(problem, device, blocks, options.seconds) for blocks in budgets]
    names = ["blocks", "GB/s of finished rows a rank", "baseline's"]
    table = markdown_table(cells, names)
    console.print(table, soft_wrap=True, highlight=False)
    report = [f"# Finished rows by SM budget\n\n{facts.describe(RUNG)}", _LEGEND, table]
    if not options.quick:
        path = write_gpu_results(options.directory, "gpu_blocks", facts, cells, report, rung=RUNG)
        console.print(f"wrote {path} and .md", soft_wrap=True)


_LEGEND = f"""\
Two-shot fused reduction of {_SIZE.rows} x {_SIZE.hidden} bf16 over {_SIZE.ranks} virtual ranks, all
of them with so many blocks at once. A rank finishes 1/{_SIZE.ranks} of the rows; the rate is of
those bytes, on every rank at the same time. Loads are not paced to a link's rate."""


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
    finished = _SIZE.message_bytes / _SIZE.ranks
    rates = {name: f"{finished / it.median / 1e9:.1f}" for name, it in cell.seconds.items()}
    labels = {
        "blocks": blocks,
        "GB/s of finished rows a rank": rates["two_shot"],
        "baseline's": rates[_BASELINE],
    }
    return Cell(
        labels=labels,
        baseline=cell.baseline,
        num_rounds=cell.num_rounds,
        seconds=cell.seconds,
        speedup=cell.speedup,
        baseline_again=cell.baseline_again,
    )


if __name__ == "__main__":
    main()
