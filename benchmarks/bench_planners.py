"""How long the planners think: CPU time of one core from sizes to a plan.

    python -m benchmarks.bench_planners            # everything, about eight minutes
    python -m benchmarks.bench_planners --quick    # 8 ranks, nothing is written

A planner has a function that yields its cases; main() measures them all. The clock is that of the
process, so that other work on the machine shows only in what it does to the caches.
"""

import argparse
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, product
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from tokenfabric.testing.bench_cell import Cell
from tokenfabric.testing.bench_report import describe_environment, environment, write_results
from tokenring.choose import rank_candidates
from tokenring.movement import STRATEGIES
from tokenring.plan import RingPlan, plan_attention
from tokenring.varlen import packed_layout
from tokenweave import block_cost, split, split_cost
from tokenweave.device_tables import load_device, published_models

_REPOSITORY = Path(__file__).resolve().parents[1]
_RUNG = "measured, CPU time of one core"
_TOKENS_PER_RANK, _WINDOW = 1024, 1024
_GRIDS = {8: (1, 2, 4), 64: (1, 8, 8)}
_PARTITIONS = ("contiguous", "zigzag", "striped")
_MASKS = ("full", "causal", "window")
_SPLIT_RANKS, _SPLIT_DEVICE = 8, "h100"
_SPLIT_MODELS = ("Llama-3.3-70B-Instruct", "Qwen3-235B-A22B")
_SPLIT_TOKENS = (1, 512, 2048, 4096, 8192, 16384, 65536)
_LEGEND = f"""\
CPU time of one call in ms: median, and in parentheses how far half of the rounds lie apart, in
percent of it. Nothing is kept between calls.

- ring: from sizes to a plan, its layout included; {_TOKENS_PER_RANK} tokens a rank, 64 query heads,
  8 KV heads, window {_WINDOW}. One rank / all ranks. `auto` is cold: it plans its candidates (their
  number in brackets) for all ranks up to 4, else for 4 of them, and then what it took.
- packed: 200 documents, dealt to ranks (`deal`) and planned for all of them, causal, 8 heads.
- split: `plan_split` for {_SPLIT_RANKS} ranks of {_SPLIT_DEVICE}.json. First: of a model in a
  process. Known model: another batch, when one of 128 tokens more has been planned."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Planning calls that stand in one place of a table."""

    labels: dict[str, Any]
    calls: dict[str, Callable[[], object]]
    """By what they plan. The first is measured twice, and says how many rounds fit."""
    before: dict[str, Callable[[], object]] = field(default_factory=dict)
    """What is done before a call of that name, and not timed."""


def main() -> None:
    """Parse the command line, measure, show the tables and write the result files."""
    options = _parse()
    console = Console()
    facts = environment(_REPOSITORY)
    cells: list[Cell] = []
    report = [f"# Planners\n\n{describe_environment(facts, rung=_RUNG)}\n\n{_LEGEND}"]
    for title, cases, table in _sections(options.ranks):
        new = [measure(case, options.seconds, options.rounds) for case in cases]
        cells += new
        report.append(f"## {title}\n\n{table(new)}")
        console.print(report[-1], soft_wrap=True, highlight=False)
        if options.write:
            write_results(options.directory, "planners", facts, cells, report, rung=_RUNG)


def _sections(
    ranks: Sequence[int],
) -> Iterator[tuple[str, Iterator[Case], Callable[[Sequence[Cell]], str]]]:
    """Yield the tables: title, cases and how their cells are shown."""
    for num_ranks in sorted(ranks, reverse=True):
        yield f"Ring, {num_ranks} ranks", ring_cases(num_ranks), ring_table
    columns = ("ranks", "tokens", "strategy")
    yield "Packed documents", packed_cases(), lambda cells: named_table(cells, columns)
    yield "Split", split_cases(), lambda cells: named_table(cells, ("model", "tokens"))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--ranks", type=int, nargs="+", default=list(_GRIDS), choices=list(_GRIDS))
    parser.add_argument("--seconds", type=float, default=0.1, help="rounds of one case")
    parser.add_argument("--rounds", type=int, default=3, help="at least, whatever they take")
    parser.add_argument("--quick", action="store_true", help="8 ranks, one round")
    parser.add_argument("--directory", type=Path, default=_REPOSITORY / "benchmarks" / "results")
    parser.add_argument("--no-write", dest="write", action="store_false")
    options = parser.parse_args()
    if options.quick:
        options.ranks, options.seconds, options.rounds, options.write = [8], 0.0, 1, False
    return options


def measure(case: Case, seconds: float, min_rounds: int) -> Cell:
    """Time every call of a case once in each round, after an untimed call of the first."""
    names = list(case.calls)
    entries = [(case.before.get(name, lambda: None), case.calls[name]) for name in names]
    entries.append(entries[0])
    round_s = len(entries) * _cpu_s(*entries[0])
    taken_s = np.empty((max(min_rounds, int(seconds / round_s)), len(entries)))
    for this_round in taken_s:
        this_round[:] = [_cpu_s(*entry) for entry in entries]
    columns = {name: index for index, name in enumerate(names)}
    return Cell.of_rounds(taken_s, columns, names[0], case.labels, {})


def _cpu_s(before: Callable[[], object], call: Callable[[], object]) -> float:
    before()
    start_s = time.process_time()
    call()
    return time.process_time() - start_s


def ring_cases(num_ranks: int) -> Iterator[Case]:
    """Yield every strategy in both directions for every partition and mask, and auto for zigzag."""
    for strategy, direction in product((*STRATEGIES, "auto"), ("forward", "backward")):
        partitions = ("zigzag",) if strategy == "auto" else _PARTITIONS
        for partition, mask in product(partitions, _MASKS):
            asked: dict[str, Any] = {
                "world_size": num_ranks,
                "tokens": num_ranks * _TOKENS_PER_RANK,
                "partition": partition,
                "causal": mask != "full",
                "window": _WINDOW if mask == "window" else None,
                "heads_q": 64,
                "heads_kv": 8,
                "head_dim": 128,
                "direction": direction,
                "strategy": strategy,
                "grid": _GRIDS[num_ranks] if strategy == "grid" else None,
            }
            labels: dict[str, Any] = {
                "planner": "ring",
                "ranks": num_ranks,
                "strategy": strategy,
                "direction": direction,
                "partition": partition,
                "mask": mask,
            }
            if strategy == "auto":
                labels["candidates"] = len(_cold(asked, 0).candidates)
            yield Case(
                labels=labels,
                calls={
                    "one rank": lambda asked=asked: _cold(asked, num_ranks // 2),
                    "all ranks": lambda asked=asked: _cold(asked, None),
                },
            )


def packed_cases() -> Iterator[Case]:
    """Yield short and long documents on 4 and 8 ranks, with one strategy and with auto."""
    for num_ranks, longest, strategy in product((4, 8), (60, 6000), ("kv_push", "auto")):
        lengths = random.Random(0).choices(range(longest // 3, longest + 1), k=200)
        starts = [0, *accumulate(lengths)]
        layout = packed_layout(starts, num_ranks)
        asked = {
            "q_layout": layout,
            "causal": True,
            "heads_q": 8,
            "heads_kv": 8,
            "head_dim": 64,
            "strategy": strategy,
            "topology": "shared_memory",
        }
        yield Case(
            labels={
                "planner": "packed",
                "ranks": num_ranks,
                "tokens": f"{longest // 3}-{longest}",
                "strategy": strategy,
            },
            calls={
                "deal": lambda starts=starts, n=num_ranks: packed_layout(starts, n),
                "forward": lambda asked=asked: _cold({**asked, "direction": "forward"}, None),
                "backward": lambda asked=asked: _cold({**asked, "direction": "backward"}, None),
            },
        )


def split_cases() -> Iterator[Case]:
    """Yield small and large batches of a dense model and of one with experts."""
    device, shapes = load_device(_SPLIT_DEVICE), published_models()
    for model, tokens in product(_SPLIT_MODELS, _SPLIT_TOKENS):

        def plan(num_tokens: int, model: str = model) -> object:
            return split.plan_split(
                num_tokens, shape=shapes[model], world_size=_SPLIT_RANKS, device=device
            )

        def know_the_model(plan: Callable[[int], object] = plan, tokens: int = tokens) -> None:
            _forget_splits()
            plan(tokens + 128)

        def plan_it(plan: Callable[[int], object] = plan, tokens: int = tokens) -> object:
            return plan(tokens)

        yield Case(
            labels={"planner": "split", "model": model, "tokens": tokens},
            calls={"first": plan_it, "known model": plan_it},
            before={"first": _forget_splits, "known model": know_the_model},
        )


def _forget_splits() -> None:
    for remembered in (split._planned, split_cost._row_costs, block_cost.layer_parts):
        remembered.cache_clear()


def _cold(asked: dict[str, Any], rank: int | None) -> RingPlan:
    """Return a plan made without what was kept of earlier ones."""
    rank_candidates.cache_clear()
    return plan_attention(rank=rank, **asked)


def ring_table(cells: Sequence[Cell]) -> str:
    """Return a Markdown table: strategies and directions down, partitions and masks across."""
    places = list(product(_PARTITIONS, _MASKS))
    lines = [["strategy", "direction", *(f"{p}, {m}" for p, m in places)]]
    lines.append(["---"] * len(lines[0]))
    found: dict[tuple[str, str], dict[tuple[str, str], str]] = {}
    for cell in cells:
        labels = cell.labels
        key = (labels["strategy"], labels["direction"])
        count = f" [{labels['candidates']}]" if "candidates" in labels else ""
        texts = [_text(cell, name) for name in ("one rank", "all ranks")]
        place = (labels["partition"], labels["mask"])
        found.setdefault(key, {})[place] = " / ".join(texts) + count
    lines += [[*key, *(row.get(place, "") for place in places)] for key, row in found.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def named_table(cells: Sequence[Cell], columns: Sequence[str]) -> str:
    """Return a Markdown table: a line for each cell, its labels first."""
    names = list(cells[0].seconds)
    lines = [[*columns, *names], ["---"] * (len(columns) + len(names))]
    for cell in cells:
        labels = [str(cell.labels[name]) for name in columns]
        lines.append([*labels, *(_text(cell, name) for name in names)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _text(cell: Cell, name: str) -> str:
    spread = cell.seconds[name]
    apart = (spread.p75 - spread.p25) / spread.median
    return f"{spread.median * 1e3:.3g} ({apart:.0%})"


if __name__ == "__main__":
    main()
