"""How much a matrix product slows down while the fused kernel runs beside it, by SM budget.

    python -m benchmarks.bench_gpu_gemm            # some seconds
    python -m benchmarks.bench_gpu_gemm --quick    # two budgets, nothing written

The kernel runs on a stream of high priority with 2 to 16 blocks, over local memory and unpaced: it
takes its SMs and more of HBM's bandwidth than a rank behind a link could.
"""

import dataclasses
from collections.abc import Callable

import torch
from rich.console import Console

from benchmarks.gpu_options import REPOSITORY, gpu, parse
from benchmarks.gpu_virtual import Problem, Size
from tokenfabric.testing.bench import Budget, Prepared, measure
from tokenfabric.testing.bench_cell import Cell
from tokenfabric.testing.bench_report import markdown_table
from tokenfabric.testing.gpu_report import gpu_facts, write_gpu_results
from tokenweave.cuda.virtual import VirtualRanks

RUNG = "measured on one GPU, one virtual rank beside a product (L3)"
_ALONE = "alone"
_BUDGETS = (2, 4, 8, 16)
_SIDE = 8192
_PRODUCTS = 3
_SIZE = Size(ranks=1, rows=8192, hidden=8192)


def main() -> None:
    """Measure, show the table and write the result files."""
    options = parse((__doc__ or "").splitlines()[0], seconds=3.0)
    console, device = Console(), gpu()
    facts = gpu_facts(REPOSITORY, device, options.commit)
    console.print(facts.describe(RUNG), soft_wrap=True)
    cell = _measure(device, (4, 16) if options.quick else _BUDGETS, options.seconds)
    table = markdown_table([cell], ["product"])
    console.print(table, soft_wrap=True, highlight=False)
    report = [f"# A product beside the fused kernel\n\n{facts.describe(RUNG)}", _LEGEND, table]
    if not options.quick:
        path = write_gpu_results(options.directory, "gpu_gemm", facts, [cell], report, rung=RUNG)
        console.print(f"wrote {path} and .md", soft_wrap=True)


_LEGEND = """\
Time of one bf16 product; columns say how many blocks the kernel beside it had. A ratio below 1 is
the slow-down: time alone / time beside, with its p25-p75."""


def _measure(device: torch.device, budgets: tuple[int, ...], seconds: float) -> Cell:
    a, b = (torch.randn(_SIDE, _SIDE, device=device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)

    def products() -> torch.Tensor:
        for _ in range(_PRODUCTS):
            torch.mm(a, b, out=out)
        torch.cuda.current_stream(device).synchronize()
        return out

    def drain() -> None:
        torch.cuda.synchronize(device)

    wanted = a[:4].double() @ b.double()

    def check(name: str, found: torch.Tensor) -> None:
        error = (found[:4].double() - wanted).abs().max() / wanted.abs().max()
        assert error < 2**-7, f"{name}: relative error {error}"

    providers: dict[str, Callable[[], object] | Prepared] = {_ALONE: Prepared(drain, products)}
    for blocks in budgets:
        providers[f"{blocks} blocks"] = Prepared(_beside(device, blocks, products), products)
    cell = measure(
        providers, baseline=_ALONE, check=check, labels={"product": f"{_SIDE}^3"},
        budget=Budget(seconds=seconds), prime=False,
    )  # fmt: skip
    drain()
    divided = {
        name: dataclasses.replace(
            it, **{key: value / _PRODUCTS for key, value in dataclasses.asdict(it).items()}
        )
        for name, it in cell.seconds.items()
    }
    return dataclasses.replace(cell, seconds=divided)


def _beside(
    device: torch.device, blocks: int, products: Callable[[], object]
) -> Callable[[], None]:
    """Return what starts the kernel on a stream of its own, for longer than the products take."""
    problem, ranks = Problem(_SIZE, device), VirtualRanks(1, device)
    call = problem.fused(ranks, "two_shot", blocks)[0]
    stream = torch.cuda.Stream(device, priority=-1)

    def timed(work: Callable[[], object]) -> float:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        work()
        start.record()
        work()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop)

    count = 2 + int(3 * timed(products) / timed(call))

    def start() -> None:
        torch.cuda.synchronize(device)
        with torch.cuda.stream(stream):
            for _ in range(count):
                call()

    return start


if __name__ == "__main__":
    main()
