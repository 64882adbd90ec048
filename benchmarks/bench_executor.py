"""What the executor costs: its own time for a stage, and split passes against unsplit ones.

    python -m benchmarks.bench_executor                # everything, about ten minutes
    python -m benchmarks.bench_executor --dtype fp32   # for CPUs without bf16 instructions
    python -m benchmarks.bench_executor --quick        # a few seconds, nothing is written

Dry run: the plan of an 80-layer model walked on one core with blocks and reductions that do
nothing. Prefill: a random Llama over two ranks, one torch thread each, with the allocator's
settings of launched ranks.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import tokenweave
from launch.torchrun import environment_of_children, rank_environment
from tokenfabric.testing.bench import Budget, WorldRanks, measure
from tokenfabric.testing.bench_cell import Cell
from tokenfabric.testing.bench_report import (
    describe_environment,
    environment,
    format_seconds,
    markdown_table,
    write_results,
)
from tokenfabric.testing.spawn import run_ranks
from tokenfabric.world import World
from tokenweave.config import WeaveConfig
from tokenweave.dry_run import DryRun
from tokenweave.passes import Passes, PassShape

_REPOSITORY = Path(__file__).resolve().parents[1]
_NUM_LAYERS = 80
_NEVER = "split=never"
_SIZES = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "vocab_size": 512,
}
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_BATCHES = ((1, 1), (1, 64), (1, 512), (1, 2048), (4, 256))
_LEGEND = f"""\
A ratio is first provider / this one, the median of per-round ratios with its p25-p75; a time is the
median of the slower rank's. A/A is the first provider against itself: differences within it mean
nothing on this machine.

- Dry run: {_NUM_LAYERS} layers; what a walk takes, and the same for one of its stages.
- Prefill: the whole forward pass of a Llama of 4 layers, hidden 1024, over two ranks.
  `split=auto`: what a plan for CPU ranks says. `in order`, `thread`: split in the middle all the
  same, with all stages one after the other or the reductions on a thread of their own. On ranks
  that have one core each nothing is gained by it; this is what it costs."""


def main() -> None:
    """Parse the command line, measure, show the tables and write the result files."""
    options = _parse()
    console = Console()
    facts = environment(_REPOSITORY)
    with environment_of_children(rank_environment(num_threads=1)):
        dry = run_ranks(rank_dry_run, 1, options.seconds, timeout_s=600)[0]
        prefill = run_ranks(
            rank_prefill, 2, options.batches, options.seconds, options.dtype, timeout_s=1200
        )[0]
    report = [
        f"# Executor\n\n{describe_environment(facts)}\n\n{_LEGEND}",
        f"## Dry run\n\n{dry_run_table(dry)}",
        f"## Prefill, two ranks, {options.dtype}\n\n{markdown_table(prefill, ['batch', 'tokens'])}",
    ]
    console.print("\n\n".join(report), soft_wrap=True, highlight=False)
    if options.write:
        written = write_results(options.directory, "executor", facts, [*dry, *prefill], report)
        console.print(written, soft_wrap=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=12.0, help="timed rounds of one cell")
    parser.add_argument("--dtype", choices=list(_DTYPES), default="bf16", help="of the prefill")
    parser.add_argument("--quick", action="store_true", help="a second a cell, two batches")
    parser.add_argument("--directory", type=Path, default=_REPOSITORY / "benchmarks" / "results")
    parser.add_argument("--no-write", dest="write", action="store_false")
    options = parser.parse_args()
    options.batches = _BATCHES
    if options.quick:
        options.seconds, options.write, options.batches = 1.0, False, _BATCHES[1:3]
    return options


def rank_dry_run(world: World, seconds: float, num_layers: int = _NUM_LAYERS) -> list[Cell]:
    """Measure walks of an unsplit and of a split plan, one cell each."""
    cells = []
    for kind, split in (("not split", "never"), ("split", 4096)):
        passes = Passes(world, WeaveConfig(split=split))
        plan = passes.plan(
            PassShape(
                num_sequences=1,
                num_tokens=8192,
                hidden=8192,
                dtype=torch.bfloat16,
                num_layers=num_layers,
            )
        )
        run = DryRun(plan.num_blocks, passes)
        num_stages = len(plan.stages())
        cells.append(
            measure(
                {"walk": lambda run=run, plan=plan: run.walk(plan)},
                baseline="walk",
                check=lambda name, result: None,
                labels={"operation": "dry run", "plan": kind, "stages": num_stages},
                budget=Budget(seconds=seconds),
            )
        )
    return cells


def dry_run_table(cells: list[Cell]) -> str:
    """Return a Markdown table of walks: whole, and by stage."""
    lines = ["| plan | stages | walk | one stage |", "| --- | --- | --- | --- |"]
    for cell in cells:
        walk_s, num_stages = cell.seconds["walk"].median, cell.labels["stages"]
        row = (cell.labels["plan"], num_stages, format_seconds(walk_s))
        lines.append(f"| {row[0]} | {row[1]} | {row[2]} | {format_seconds(walk_s / num_stages)} |")
    return "\n".join(lines)


def rank_prefill(
    world: World,
    batches: tuple[tuple[int, int], ...],
    seconds: float,
    dtype: str = "bf16",
    sizes: dict[str, int] | None = None,
) -> list[Cell]:
    """Measure forward passes of [batch, tokens], one cell each."""
    cells = []
    for batch, tokens in batches:
        ids = torch.randint(0, 512, (batch, tokens), generator=torch.Generator().manual_seed(0))
        providers = dict(_providers(world, ids, _DTYPES[dtype], {**_SIZES, **(sizes or {})}))
        cells.append(
            measure(
                providers,
                baseline=_NEVER,
                check=_close_to(providers[_NEVER]()),
                labels={"operation": "prefill", "dtype": dtype, "batch": batch, "tokens": tokens},
                ranks=WorldRanks(world),
                budget=Budget(seconds=seconds),
            )
        )
    return cells


def _providers(
    world: World, ids: Tensor, dtype: torch.dtype, sizes: dict[str, int]
) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    middle = ids.numel() // 2
    configs = {_NEVER: WeaveConfig(split="never"), "split=auto": WeaveConfig()}
    if middle:
        configs["in order"] = WeaveConfig(split=middle, overlap="off")
        configs["thread"] = WeaveConfig(split=middle, overlap="on")
    for name, config in configs.items():
        torch.manual_seed(0)
        model: Any = LlamaForCausalLM(LlamaConfig(**sizes)).to(dtype).eval()
        model = tokenweave.parallelize(model, world, config)

        @torch.inference_mode()
        def run(model: Any = model) -> Tensor:
            logits: Tensor = model(ids, use_cache=False, logits_to_keep=1).logits
            return logits

        yield name, run


def _close_to(expected: Tensor) -> Callable[[str, Tensor], None]:
    """Accept logits whose GEMMs had other numbers of rows: a few roundings of bf16 apart."""

    def check(name: str, logits: Tensor) -> None:
        error = (logits - expected).abs().max() / expected.abs().max()
        if not error < 0.05:
            raise AssertionError(f"{name} is off by {error:.2g} of the largest logit")

    return check


if __name__ == "__main__":
    main()
