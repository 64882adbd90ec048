"""How long planning takes: CPU time of plan_split, for models that are new and that are known.

    python -m benchmarks.bench_planning            # a minute; one core, little of it

Least of many rounds, spread over time: on a shared machine that is what the code needs, the rest is
what others take. Writes benchmarks/results/planning_<machine>_<month>.{md,json}.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from tokenfabric.testing.bench_report import describe_environment, environment
from tokenweave import block_cost, split, split_cost
from tokenweave.device_tables import load_device, published_models

_REPOSITORY = Path(__file__).resolve().parents[1]
_RANKS = 8
_SIZES = (1, 512, 2048, 4096, 8192, 16384, 65536)
_MODELS = ("Llama-3.3-70B-Instruct", "Qwen3-235B-A22B")
_RUNG = "measured on one CPU core, shared with other work"


def main() -> None:
    """Measure, show the table and write both files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--pause-s", type=float, default=1.0, help="between rounds")
    parser.add_argument("--directory", type=Path, default=_REPOSITORY / "benchmarks" / "results")
    options = parser.parse_args()
    least_s: dict[tuple[str, int], dict[str, float]] = {}
    for _ in range(options.rounds):
        for model in _MODELS:
            for tokens in _SIZES:
                row = least_s.setdefault((model, tokens), {})
                for kind, seconds in _times(model, tokens).items():
                    row[kind] = min(row.get(kind, seconds), seconds)
        time.sleep(options.pause_s)
    facts = environment(_REPOSITORY)
    page = _page(least_s, describe_environment(facts, rung=_RUNG), options.rounds)
    Console().print(page, highlight=False)
    options.directory.mkdir(parents=True, exist_ok=True)
    path = options.directory / f"planning_{facts.machine}_{facts.month}.json"
    rows = [{"model": model, "tokens": tokens, "seconds": row}
            for (model, tokens), row in least_s.items()]  # fmt: skip
    content = {"rung": _RUNG, "environment": asdict(facts), "rounds": options.rounds, "rows": rows}
    path.write_text(json.dumps(content, indent=1) + "\n")
    path.with_suffix(".md").write_text(page)


def _times(model: str, tokens: int) -> dict[str, float]:
    """Return the CPU time of the first plan of a model, and of one when another size was planned
    before.
    """
    shape, device = published_models()[model], load_device("h100")

    def plan(num_tokens: int) -> None:
        split.plan_split(num_tokens, shape=shape, world_size=_RANKS, device=device)

    for remembered in (split._planned, split_cost._row_costs, block_cost.layer_parts):
        remembered.cache_clear()
    first_s = _cpu_s(lambda: plan(tokens))
    for remembered in (split._planned, split_cost._row_costs, block_cost.layer_parts):
        remembered.cache_clear()
    plan(tokens + 128)
    return {"first": first_s, "known model": _cpu_s(lambda: plan(tokens))}


def _cpu_s(call: Callable[[], None]) -> float:
    start_s = time.process_time()
    call()
    return time.process_time() - start_s


def _page(least_s: dict[tuple[str, int], dict[str, float]], facts: str, rounds: int) -> str:
    lines = [
        "# Planning",
        "",
        facts,
        "",
        f"CPU time of `plan_split` in milliseconds for {_RANKS} ranks of h100.json, least of "
        f"{rounds} rounds. First: the first plan of a model in a process. Known model: another "
        "batch, when one of 128 tokens more has been planned.",
        "",
        "| model | tokens | first | known model |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {model} | {tokens} | {row['first'] * 1e3:.2f} | {row['known model'] * 1e3:.2f} |"
        for (model, tokens), row in least_s.items()
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
