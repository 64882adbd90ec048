"""Attention over a sequence on several ranks: every strategy against the ring as usually written.

    python -m benchmarks.bench_ring            # 4k and 16k tokens, some hours
    python -m benchmarks.bench_ring --quick    # one small cell of each kind
    python -m benchmarks.bench_ring --long     # 32k and 64k tokens, once, auto and plain ring

Starts its own ranks. Providers are in ring_providers.py, the way of measuring in
tokenfabric/testing/bench.py.
"""

import argparse
import time
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.ring_providers import BLOCKS, PLAIN, RingProblem
from launch.torchrun import environment_of_children, rank_environment
from tokenfabric.testing.bench import Budget, WorldRanks, measure_passes
from tokenfabric.testing.bench_cell import Cell
from tokenfabric.testing.bench_report import (
    describe_environment,
    environment,
    markdown_table,
    read_cells,
    result_path,
    write_results,
)
from tokenfabric.testing.spawn import run_ranks
from tokenfabric.world import World
from tokenring.sharding import unshard

_REPOSITORY = Path(__file__).resolve().parents[1]
_STRATEGIES = (
    "q", "q_push", "kv", "kv_bidirectional", "kv_push", "allgather", "ulysses", "auto",
)  # fmt: skip
_HEAD_DIM, _HEADS = 64, 8
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}

# Rows of the table that one measurement gives.
_ROWS = {"forward": ("forward",), "both": ("forward", "both")}


def main() -> None:
    """Parse the command line, measure, show the tables and write the result files.

    With --resume, what the result file has from the same code is not measured again: an hour of
    cells can be taken in pieces.
    """
    options = _parse()
    console = Console()
    facts = environment(_REPOSITORY)
    console.print(describe_environment(facts), soft_wrap=True)
    path = result_path(options.directory, options.name, facts)
    kept = read_cells(path, facts) if options.write and options.resume else []
    cells = {_place(cell.labels): cell for cell in kept}
    started_s = time.monotonic()
    for point in product(
        options.ranks, options.tokens, options.kv_heads, options.causal, [options.dtype]
    ):
        is_done = all((*point, row) in cells for row in _ROWS[options.passes])
        is_late = (
            options.stop_after is not None and time.monotonic() - started_s > options.stop_after
        )
        if is_done or is_late:
            continue
        with environment_of_children(rank_environment(num_threads=1)):
            new = run_ranks(
                rank_cells, point[0], point[1:], options.passes, options.strategies,
                options.seconds, options.rounds, timeout_s=7200,
            )[0]  # fmt: skip
        console.print(_table(new), soft_wrap=True, highlight=False)
        cells |= {_place(cell.labels): cell for cell in new}
        if options.write:
            done = [cells[place] for place in sorted(cells)]
            report = [
                f"# Attention over several ranks\n\n{describe_environment(facts)}\n\n{_LEGEND}"
            ]
            for num_ranks in sorted({cell.labels["ranks"] for cell in done}):
                same = [cell for cell in done if cell.labels["ranks"] == num_ranks]
                report.append(f"## {num_ranks} ranks\n\n{_table(same)}")
            write_results(options.directory, options.name, facts, done, report)
    if options.write:
        console.print(f"results in {path}", soft_wrap=True)


def _place(labels: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(
        labels[name] for name in ("ranks", "tokens", "kv heads", "causal", "dtype", "pass")
    )


def _table(cells: list[Cell]) -> str:
    return markdown_table(cells, ["tokens", "kv heads", "causal", "dtype", "pass", "auto takes"])


_LEGEND = f"""\
Every time is the median over rounds of the slowest rank's time for one call; a ratio is
`{PLAIN}` / provider, the median of per-round ratios with its p25-p75. A/A is the baseline against
itself: differences within it mean nothing on this machine. {_HEADS} query heads of {_HEAD_DIM},
batch 1, one torch thread per rank, the allocator's settings those of launched ranks. Tokens are
those of the whole sequence, dealt zigzag where causal, else contiguous.

- `{PLAIN}`: one-way KV ring by isend and irecv over gloo, contiguous, the same local kernel.
- strategies by name, and `auto`, which takes what the label says (forward, backward).
- `= name`: the plans are the same, step for step, in every direction that is measured; it was not
  run again.
- pass: `both` is forward and backward; `forward` is the first part of the same calls, which keeps
  what the backward needs. `--passes forward` measures it alone, without gradients.
- Where every call takes a second or more, no untimed call comes before a timed one; the first,
  whose result is checked, is never timed.
- `{BLOCKS}`: what auto's plan has each rank compute, on all ranks at once, with transfers and
  merges off. Its time over auto's is the efficiency."""


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 16384])
    parser.add_argument("--kv-heads", type=int, nargs="+", default=[8, 1])
    parser.add_argument(
        "--causal", type=int, choices=[0, 1], nargs="+", default=[0, 1], help="without mask, with"
    )
    parser.add_argument(
        "--dtype", choices=list(_DTYPES), default="bf16", help="fp32 where the CPU lacks bf16"
    )
    parser.add_argument("--passes", choices=list(_ROWS), default="both", help="both gives both")
    parser.add_argument("--strategies", nargs="+", default=list(_STRATEGIES))
    parser.add_argument("--seconds", type=float, default=10.0, help="timed rounds of one cell")
    parser.add_argument("--rounds", type=int, default=3, help="at least, whatever they take")
    parser.add_argument("--quick", action="store_true", help="1024 tokens, 2 ranks")
    parser.add_argument("--long", action="store_true", help="32k and 64k, auto and plain, once")
    parser.add_argument("--name", default="ring", help="of the result files")
    parser.add_argument("--directory", type=Path, default=_REPOSITORY / "benchmarks" / "results")
    parser.add_argument("--resume", action="store_true", help="keep the cells of the result file")
    parser.add_argument("--stop-after", type=float, help="seconds after which no cell is begun")
    parser.add_argument("--no-write", dest="write", action="store_false")
    options = parser.parse_args()
    if options.quick:
        options.ranks, options.tokens, options.seconds, options.write = [2], [1024], 0.5, False
    if options.long:
        options.name, options.tokens, options.strategies = "ring_long", [32768, 65536], ["auto"]
        options.passes, options.rounds, options.seconds = "forward", 1, 0.0
    return options


def rank_cells(
    world: World,
    point: tuple[int, int, bool, str],
    passes: str,
    strategies: list[str],
    seconds: float,
    rounds: int,
) -> list[Cell]:
    """Measure (tokens, kv heads, causal, dtype): one cell for each row of the passes."""
    tokens, kv_heads, causal, dtype = point
    problem = RingProblem(
        world=world,
        tokens=tokens,
        heads_q=_HEADS,
        heads_kv=kv_heads,
        head_dim=_HEAD_DIM,
        causal=bool(causal),
        backward=passes == "both",
        dtype=_DTYPES[dtype],
    )
    chosen = problem.chosen()
    labels = {
        "operation": "ring_attention",
        "ranks": world.size,
        "tokens": tokens,
        "heads": _HEADS,
        "kv heads": kv_heads,
        "head_dim": _HEAD_DIM,
        "dtype": dtype,
        "causal": bool(causal),
    }
    return measure_passes(
        {
            PLAIN: problem.plain(),
            **problem.strategies(strategies),
            BLOCKS: problem.blocks_alone("auto"),
        },
        baseline=PLAIN,
        check=_make_check(problem),
        labels=[
            {**labels, "pass": row, "auto takes": ", ".join(chosen[: index + 1])}
            for index, row in enumerate(_ROWS[passes])
        ],
        ranks=WorldRanks(world),
        budget=Budget(seconds=seconds, min_rounds=rounds, warmup_calls=0),
    )


def _make_check(problem: RingProblem) -> Any:
    """Compare every provider with the plain ring, as whole tensors.

    Both round to bf16, in different places: their difference is at most a few units of it, and the
    bound here only has to catch what is wrong. Exactness is the tests' business.
    """
    expected: list[torch.Tensor] = []

    def check(name: str, result: Any) -> None:
        if name == BLOCKS:
            return
        partition = "contiguous" if name == PLAIN else problem.partition
        whole = [
            unshard(x.float(), world=problem.world, layout=problem.layout(partition))
            for x in result
        ]
        if name == PLAIN and not expected:
            expected.extend(whole)
        for got, wanted in zip(whole, expected, strict=True):
            error = (got - wanted).abs().max() / wanted.abs().max()
            assert error < 0.05, f"{name} differs from the plain ring by {error:.3f} of the largest"

    return check


if __name__ == "__main__":
    main()
