"""All-reduce + residual add + RMSNorm on CPU ranks: ours against gloo and against unfused kernels.

    python -m benchmarks.bench_allreduce_rmsnorm            # everything, about ten minutes
    python -m benchmarks.bench_allreduce_rmsnorm --quick    # a few cells, under a minute

Starts its own ranks. Providers and their check are in allreduce_rmsnorm_providers.py, the way of
measuring in tokenfabric/testing/bench.py.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from rich.console import Console

from benchmarks.allreduce_rmsnorm_providers import (
    BASELINE,
    Problem,
    add_norm,
    make_check,
    make_providers,
)
from tokenfabric.testing.bench import Budget, WorldRanks, measure
from tokenfabric.testing.bench_cell import Cell, Spread
from tokenfabric.testing.bench_report import (
    describe_environment,
    environment,
    format_ratio,
    format_seconds,
    markdown_table,
    write_results,
)
from tokenfabric.testing.spawn import run_ranks
from tokenfabric.world import World

_REPOSITORY = Path(__file__).resolve().parents[1]
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_BARRIERS_PER_BATCH = 200


def main() -> None:
    """Parse the command line, measure, show the tables and write the result files."""
    options = _parse()
    console = Console()
    facts = environment(_REPOSITORY)
    console.print(describe_environment(facts), soft_wrap=True)
    cells: list[Cell] = []
    report = [f"# All-reduce + residual + RMSNorm\n\n{describe_environment(facts)}\n\n{_LEGEND}"]
    for num_ranks in options.ranks:
        barriers = run_ranks(
            _rank_barrier, num_ranks, options.barrier_batches, timeout_s=300, pin=options.pin
        )[0]
        cells += barriers
        report.append(f"## Barrier, {num_ranks} ranks\n\n{barrier_table(barriers)}")
        console.print(report[-1], soft_wrap=True, highlight=False)
        for dtype in options.dtype:
            for hidden in options.hidden:
                found = run_ranks(
                    _rank_reductions, num_ranks, dtype, hidden, options.tokens, options.seconds,
                    timeout_s=1800, pin=options.pin,
                )[0]  # fmt: skip
                cells += found
                title = f"## {num_ranks} ranks, {dtype}, hidden {hidden}"
                report.append(f"{title}\n\n{markdown_table(found, ['tokens', 'bound'])}")
                console.print(report[-1], soft_wrap=True, highlight=False)
    if options.write:
        written = write_results(options.directory, "allreduce_rmsnorm", facts, cells, report)
        console.print(written, soft_wrap=True)


_LEGEND = f"""\
Every time is the median over rounds of the slowest rank's time for one call; a ratio is
`{BASELINE}` / provider, the median of per-round ratios with its p25-p75. A/A is the baseline
against itself: differences within it mean nothing on this machine. One torch thread per rank.

- `{BASELINE}`: torch.distributed all_reduce in place, then add + norm under torch.compile.
- `gloo + eager`: the same with torch's own add and rms_norm.
- `shared memory + compiled`: tokenweave.all_reduce, then the compiled add + norm. The transport is
  ours: what ours gains over it is what fusing alone gives.
- `one-shot`, `two-shot`, `auto`: tokenweave.allreduce_rmsnorm, private input and outputs and a
  replicated residual. `in place`: the partial sum was written to tokenweave.partial_sum_buffer
  (where it fits). `rows`: two-shot with a row-sharded residual. `shared out`: one physical output
  that all ranks have mapped.
- `bound`: barriers and bytes that nobody can avoid (one barrier and N + 3 tensors read or written
  per rank, or two barriers and 3 + 1/N, whichever is less) at the measured barrier time and copy
  bandwidth."""


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--hidden", type=int, nargs="+", default=[4096, 8192])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 16, 64, 256, 1024, 4096])
    parser.add_argument("--dtype", choices=_DTYPES, nargs="+", default=["bf16"])
    parser.add_argument("--seconds", type=float, default=4.0, help="timed rounds of one cell")
    parser.add_argument(
        "--pin", action="store_true", help="deal the cores to the ranks, where there are enough"
    )
    parser.add_argument("--quick", action="store_true", help="2 ranks, hidden 4096, short")
    parser.add_argument("--directory", type=Path, default=_REPOSITORY / "benchmarks" / "results")
    parser.add_argument("--no-write", dest="write", action="store_false")
    options = parser.parse_args()
    options.barrier_batches = 50
    if options.quick:
        options.ranks, options.hidden, options.tokens = [2], [4096], [1, 16, 256, 1024]
        options.seconds, options.barrier_batches, options.write = 1.0, 10, False
    return options


def _rank_reductions(
    world: World, dtype_name: str, hidden: int, token_counts: list[int], seconds: float
) -> list[Cell]:
    """Measure one cell per token count."""
    return list(_reduction_cells(world, dtype_name, hidden, token_counts, seconds))


def _reduction_cells(
    world: World, dtype_name: str, hidden: int, token_counts: list[int], seconds: float
) -> Iterator[Cell]:
    ranks = WorldRanks(world)
    compiled = torch.compile(add_norm, fullgraph=True)
    barrier_s = np.median(_barrier_seconds(world, 5))
    for tokens in token_counts:
        problem = Problem.make(world, tokens, hidden, _DTYPES[dtype_name])
        # One rank compiles, the others then find the kernels in the cache on disk.
        for turn in (True, False):
            if turn == (world.rank == 0):
                compiled(*_arguments(problem))
            dist.barrier(group=world.group)
        bound_s = _bound_seconds(problem, ranks, float(barrier_s))
        yield measure(
            make_providers(problem, compiled),
            baseline=BASELINE,
            check=make_check(problem),
            labels={
                "operation": "allreduce_rmsnorm",
                "ranks": world.size,
                "dtype": dtype_name,
                "hidden": hidden,
                "tokens": tokens,
                "threads_per_rank": world.num_threads,
                "pinned": world.placement.is_pinned,
                "bound": format_seconds(bound_s),
                "bound_s": bound_s,
            },
            ranks=ranks,
            budget=Budget(seconds=seconds),
        )


def _arguments(p: Problem) -> tuple[torch.Tensor, ...]:
    return p.x, p.residual, p.weight, p.out, p.residual_out


def _bound_seconds(p: Problem, ranks: WorldRanks, barrier_s: float) -> float:
    """Return the least time of this problem: barriers and bytes, see _LEGEND."""
    n, num_bytes = p.world.size, p.x.nbytes
    one_shot, two_shot = n + 3, 3 + 1 / n

    def copy() -> None:
        p.out.copy_(p.x)

    cell = measure(
        {"copy": copy},
        baseline="copy",
        check=lambda name, result: None,
        labels={},
        ranks=ranks,
        budget=Budget(seconds=0.2),
        calls_per_sample=max(1, int(1e-4 / (1e-7 + num_bytes / 5e9))),
    )
    tensor_s = cell.seconds["copy"].median / 2  # a copy reads one tensor and writes one
    return min(barrier_s + one_shot * tensor_s, 2 * barrier_s + two_shot * tensor_s)


def _rank_barrier(world: World, num_batches: int) -> list[Cell]:
    """Measure the barrier beside gloo's idle threads, between gloo's calls, and without gloo."""
    x = torch.zeros(1024)

    def exchange() -> None:
        dist.all_reduce(x, group=world.group)

    idle = _barrier_seconds(world, num_batches)
    busy = _barrier_seconds(world, num_batches, before_batch=exchange)
    ranks = WorldRanks(world)
    merged = [ranks.maximum(idle), ranks.maximum(busy)]
    # The results of the last condition cannot be exchanged by the group they are measured without.
    dist.destroy_process_group()
    merged.append(_barrier_seconds(world, num_batches))
    return [
        Cell(
            labels={"operation": "barrier", "ranks": world.size, "gloo": gloo},
            baseline="barrier",
            num_rounds=seconds.size,
            seconds={"barrier": Spread.of(seconds), "p99": Spread.of(np.percentile(seconds, [99]))},
            speedup={},
            baseline_again=_even_over_odd_batches(seconds),
        )
        for gloo, seconds in zip(("idle", "between its calls", "gone"), merged, strict=True)
    ]


def _even_over_odd_batches(seconds: np.ndarray) -> Spread:
    medians = np.median(seconds.reshape(-1, _BARRIERS_PER_BATCH), axis=1)
    pairs = len(medians) // 2
    return Spread.of(medians[0 : 2 * pairs : 2] / medians[1 : 2 * pairs : 2])


def _barrier_seconds(world: World, num_batches: int, before_batch: Any = None) -> np.ndarray:
    """Seconds of each barrier on this rank, timed in native code, in batches back to back."""
    batches = []
    for _ in range(num_batches):
        if before_batch is not None:
            before_batch()
        batches.append(world.comm.barrier_loop(_BARRIERS_PER_BATCH))
    return np.array(batches).ravel()


def barrier_table(cells: list[Cell]) -> str:
    """Markdown table of the barrier cells."""
    lines = [
        "| gloo | median | p25-p75 | p99 | A/A | barriers |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for cell in cells:
        spread, p99 = cell.seconds["barrier"], cell.seconds["p99"]
        lines.append(
            f"| {cell.labels['gloo']} | {format_seconds(spread.median)} "
            f"| {format_seconds(spread.p25)} - {format_seconds(spread.p75)} "
            f"| {format_seconds(p99.median)} | {format_ratio(cell.baseline_again)} "
            f"| {cell.num_rounds} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
