"""Training steps of a ring against as many independent processes at once: the same tokens in all.

    python -m benchmarks.bench_training            # 8192 tokens, 2 ranks, about five minutes
    python -m benchmarks.bench_training --quick    # 256 tokens

Starts its own ranks, with one torch thread each. The way of measuring is in
tokenfabric/testing/bench.py.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM

from launch.torchrun import environment_of_children, rank_environment
from launch.training.config import TrainConfig
from launch.training.documents import Place
from launch.training.mesh import training_mesh
from launch.training.objective import decayed_and_not
from launch.training.packing import PackedRow
from launch.training.trainer import Row, StepResult, Trainer
from tokenfabric.testing.bench import Budget, WorldRanks, measure
from tokenfabric.testing.bench_cell import Cell
from tokenfabric.testing.bench_report import (
    describe_environment,
    environment,
    markdown_table,
    write_results,
)
from tokenfabric.testing.spawn import run_ranks
from tokenfabric.world import World

_REPOSITORY = Path(__file__).resolve().parents[1]
ALONE, RING, AGAIN = "independent processes", "ring", "ring, all recomputed"
# Two layers of SmolLM2-135M's proportions at two thirds of its width, and a small vocabulary: with
# few layers a whole one would be most of the work.
_SHAPE: dict[str, int] = {
    "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 2,
    "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 4096,
}  # fmt: skip
_RATE = 1e-5


def main() -> None:
    """Parse the command line, measure, show the table and write the result files."""
    options = _parse()
    console, facts = Console(), environment(_REPOSITORY)
    console.print(describe_environment(facts), soft_wrap=True)
    with environment_of_children(rank_environment(num_threads=1)):
        cells = run_ranks(
            rank_cells, options.ranks, options.tokens, options.rounds, timeout_s=3600
        )[0]  # fmt: skip
    table = markdown_table(cells, ["ranks", "tokens", "communication"])
    console.print(table, soft_wrap=True, highlight=False)
    if options.write:
        head = f"# Training: a ring and independent processes\n\n{describe_environment(facts)}"
        write_results(options.directory, "training", facts, cells, [f"{head}\n\n{_LEGEND}", table])


_LEGEND = f"""\
Every time is the median over rounds of the slowest rank's time for one row of the tokens named per
rank; the ratio is `{ALONE}` / `{RING}`, so that 1.00x means as many tokens per second. A/A is
`{ALONE}` against itself: differences within it mean nothing on this machine. fp32, one torch thread
per rank, the allocator's settings those of launched ranks, {_SHAPE["num_hidden_layers"]} Llama
layers of hidden {_SHAPE["hidden_size"]}, {_SHAPE["num_attention_heads"]} query and
{_SHAPE["num_key_value_heads"]} key heads of {_SHAPE["head_dim"]}, vocabulary
{_SHAPE["vocab_size"]}.

- `{ALONE}`: plain transformers and torch, all ranks at once, nothing exchanged: each learns from a
  whole row of its own, with its own parameters. Layers are computed again in the backward, as
  transformers does it.
- `{RING}`: as `tokenfabric train --ring`: all ranks learn from one row after the other, each row's
  tokens on all of them, parameters dealt over them. Layers are computed again, all but attention.
  `communication` is the share of the last step in which a rank exchanged or waited.
- `{AGAIN}`: attention is computed again too (`--recompute layers`), as by the first provider."""


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=8192, help="of a row")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="256 tokens")
    parser.add_argument("--directory", type=Path, default=_REPOSITORY / "benchmarks" / "results")
    parser.add_argument("--no-write", dest="write", action="store_false")
    options = parser.parse_args()
    if options.quick:
        options.tokens, options.write = 256, False
    return options


def rank_cells(world: World, tokens: int, rounds: int) -> list[Cell]:
    """Measure on the ranks of a world, one row of `tokens` for each. Collective."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(_SHAPE["vocab_size"], (world.size, tokens), generator=generator)
    rows: list[Row] = [PackedRow(tuple(row.tolist()), (tokens,), Place(), 0) for row in ids]
    config = TrainConfig(
        context=tokens, steps=1000, ring=world.size, learning_rate=_RATE, dtype="fp32"
    )
    steps: list[StepResult] = []
    with training_mesh(world, config) as mesh:
        trainer = Trainer(_model(tokens, "eager"), mesh, config)
        other = Trainer(_model(tokens, "eager"), mesh, replace(config, recompute="layers"))

        def ring() -> float:
            steps[:] = [trainer.step(0, [row]) for row in rows]
            return steps[0].loss

        def ring_again() -> float:
            losses = [other.step(0, [row]).loss for row in rows]
            return losses[0]

        cell = measure(
            {
                ALONE: _alone(_model(tokens, "sdpa"), ids[world.rank], config),
                RING: ring,
                AGAIN: ring_again,
            },
            baseline=ALONE,
            check=_make_check(world),
            labels={"operation": "training step", "ranks": world.size, "tokens": tokens, **_SHAPE},
            ranks=WorldRanks(world),
            budget=Budget(seconds=0.0, min_rounds=rounds, warmup_calls=0),
            prime=False,
        )
    shares = {
        "communication": f"{steps[-1].communication_share:.1%}",
        "ring_seconds": steps[-1].ring_seconds,
        "parameters_seconds": steps[-1].parameters_seconds,
    }
    return [replace(cell, labels={**cell.labels, **shares})]


def _model(tokens: int, attention: str) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        **_SHAPE, max_position_embeddings=tokens, tie_word_embeddings=True,
        attn_implementation=attention,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def _alone(model: LlamaForCausalLM, row: torch.Tensor, config: TrainConfig) -> Callable[[], float]:
    model.train().activation_checkpointing_enable()
    optimizer = torch.optim.AdamW(
        decayed_and_not(model, config.weight_decay), lr=config.learning_rate, betas=config.betas
    )

    def step() -> float:
        loss = model(row[None], labels=row[None], use_cache=False).loss
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_gradient_norm)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def _make_check(world: World) -> Callable[[str, Any], None]:
    """Compare the losses of the first row, with the parameters that both begin with."""
    losses: list[float] = []

    def check(name: str, loss: float) -> None:
        losses.append(loss)
        if world.rank == 0 and len(losses) <= 3:
            assert abs(losses[0] - loss) < 1e-4 * losses[0], f"{name}: {losses}"

    return check


if __name__ == "__main__":
    main()
