"""The fused reduction of N virtual ranks on one GPU against the same work in separate kernels.

    python -m benchmarks.bench_gpu_allreduce_rmsnorm            # about a minute
    python -m benchmarks.bench_gpu_allreduce_rmsnorm --quick    # three cells, nothing written

All ranks run in one launch on one GPU; both sides write N copies of the result. Times are per call
in a CUDA graph. This measures the kernel's traffic and latency in HBM: no link is involved, and it
is no time of an all-reduce between GPUs.
"""

from collections.abc import Iterator

import torch
from rich.console import Console

from benchmarks.gpu_options import REPOSITORY, gpu, parse
from benchmarks.gpu_virtual import Problem, Size, copy_bandwidth
from tokenfabric.testing.bench import Budget
from tokenfabric.testing.bench_cell import Cell
from tokenfabric.testing.bench_report import markdown_table
from tokenfabric.testing.gpu_report import (
    Captured,
    gpu_facts,
    measure_captured,
    write_gpu_results,
)
from tokenweave.cuda.virtual import Form, VirtualRanks

RUNG = "measured on one GPU, virtual ranks (L3)"
_UNFUSED = "separate kernels"
_ROWS, _HIDDEN, _RANKS = (1, 16, 256, 1024, 4096, 16384), (4096, 8192), (2, 4, 8)
# Above it one-shot is not what a planner would take.
_ONE_SHOT_BYTES = 1 << 20
_CALLS_PER_GRAPH = 16


def main() -> None:
    """Measure, show the table and write the result files."""
    options = parse((__doc__ or "").splitlines()[0], seconds=0.4)
    console, device = Console(), gpu()
    facts = gpu_facts(REPOSITORY, device, options.commit)
    console.print(facts.describe(RUNG), soft_wrap=True)
    copy_rate = copy_bandwidth(device)
    sizes = [Size(n, rows, hidden) for n in _RANKS for hidden in _HIDDEN for rows in _ROWS]
    if options.quick:
        sizes = [Size(8, rows, 8192) for rows in (16, 1024, 4096)]
    cells = []
    for size in sizes:
        cells.append(_measure(size, device, facts.num_sms, options.seconds, copy_rate))
        console.print(_line(cells[-1]), soft_wrap=True, highlight=False)
    report = [f"# Fused all-reduce + residual + RMSNorm on one GPU\n\n{facts.describe(RUNG)}"]
    report.append(_LEGEND.format(rate=copy_rate / 1e9))
    report += list(_tables(cells))
    if not options.quick:
        path = write_gpu_results(
            options.directory, "gpu_allreduce_rmsnorm", facts, cells, report, rung=RUNG,
            notes={"copy_bytes_per_s": copy_rate},
        )  # fmt: skip
        console.print(f"wrote {path} and .md", soft_wrap=True)


_LEGEND = """\
Time of one call in a CUDA graph, bf16, residual row_sharded (one_shot: replicated); a ratio is
separate kernels / this one with its p25-p75, A/A the first against itself. Separate kernels: one
sum over N buffers, one addition, one norm (torch's fused one), one kernel of N copies. `traffic` is
what counting bytes gives for that ratio, `of copy` the fused kernel's bytes a second over those of
a large copy here ({rate:.0f} GB/s read and written). Inputs below 256 MiB are in L2 in part."""


def _measure(
    size: Size, device: torch.device, num_sms: int, seconds: float, copy_rate: float
) -> Cell:
    ranks = VirtualRanks(size.ranks, device)
    problem = Problem(size, device)
    num_blocks = min(64, num_sms // size.ranks)
    forms: list[Form] = ["two_shot"]
    if size.message_bytes <= _ONE_SHOT_BYTES:
        forms.append("one_shot")
    repeats = max(1, _CALLS_PER_GRAPH // size.num_sets)
    unfused = [problem.unfused(index) for index in range(size.num_sets)]
    providers = {_UNFUSED: Captured(unfused * repeats, device)}
    for index, call in enumerate(unfused):
        problem.check(_UNFUSED, call()[-1], index)
    for form in forms:
        calls = problem.fused(ranks, form, num_blocks)
        for index, call in enumerate(calls):
            problem.check(form, call(), index)
        providers[form] = Captured(calls * repeats, device)
    cell = measure_captured(
        providers,
        baseline=_UNFUSED,
        labels=size.labels(),
        device=device,
        budget=Budget(seconds=seconds),
    )
    ranks.group.check("benchmark")
    rate = size.fused_bytes / cell.seconds["two_shot"].median
    labels = {
        **cell.labels,
        "blocks": num_blocks,
        "traffic": f"{size.unfused_bytes / size.fused_bytes:.2f}x",
        "of copy": f"{100 * rate / copy_rate:.0f} %",
    }
    return Cell(
        labels=labels,
        baseline=cell.baseline,
        num_rounds=cell.num_rounds,
        seconds=cell.seconds,
        speedup=cell.speedup,
        baseline_again=cell.baseline_again,
    )


def _tables(cells: list[Cell]) -> Iterator[str]:
    names = ["ranks", "tokens", "hidden", "blocks", "traffic", "of copy"]
    for title, wants_one_shot in (("Small messages", True), ("Larger messages", False)):
        found = [cell for cell in cells if ("one_shot" in cell.seconds) == wants_one_shot]
        if found:
            yield f"## {title}\n\n{markdown_table(found, names)}"


def _line(cell: Cell) -> str:
    times = ", ".join(f"{name} {it.median * 1e6:.1f} us" for name, it in cell.seconds.items())
    return f"{dict(cell.labels)}: {times}"


if __name__ == "__main__":
    main()
