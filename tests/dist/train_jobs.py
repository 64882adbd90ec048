"""Small training jobs: a model, text, settings, and runs of them on ranks of this host."""

import json
from pathlib import Path
from typing import Any

from launch.recipes import train
from launch.report import SilentReporter
from tests.dist.tiny_checkpoint import write_trainable
from tokenfabric.testing.spawn import run_ranks
from tokenfabric.world import World

STEPS = 6
SETTINGS: dict[str, Any] = {
    "context": 48, "rows_per_step": 2, "steps": STEPS, "learning_rate": 1e-3, "warmup_steps": 1,
    "checkpoint_every": 2, "dtype": "fp32",
}  # fmt: skip


def write_job(folder: Path) -> dict[str, Any]:
    """Make a tiny model and text whose documents are shorter and longer than a row."""
    data = folder / "data"
    data.mkdir()
    (data / "long.txt").write_text("the ring goes round and round. " * 40)
    lines = [json.dumps({"text": word * 4}) for word in ("red ", "a", "green and blue ", "x y ")]
    (data / "short.jsonl").write_text("\n".join(lines * 8))
    model = write_trainable(folder / "tiny")
    return {
        "model": str(model),
        "data": [str(data)],
        "eval_data": [str(data / "long.txt")],
    }


def rank_trains(world: World, arguments: dict[str, Any]) -> dict[str, float]:
    """Run the recipe on a rank, in silence."""
    return train.run(world, SilentReporter(), **arguments)


def train_on(
    dp: int, ring: int, arguments: dict[str, Any], timeout_s: float = 60.0
) -> list[dict[str, float]]:
    """Return the lines of metrics.jsonl of a run on dp x ring ranks."""
    run_ranks(rank_trains, dp * ring, {**arguments, "dp": dp, "ring": ring}, timeout_s=timeout_s)
    return metrics(arguments["output"])


def metrics(output: str) -> list[dict[str, float]]:
    """Return the lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (Path(output) / "metrics.jsonl").read_text().splitlines()]


def options(arguments: dict[str, Any]) -> list[str]:
    """Return the same job as the command's options."""
    return [
        "train", "--model", arguments["model"], "--data", arguments["data"][0],
        "--output", arguments["output"], "--context", "48", "--rows-per-step", "2",
        "--steps", str(STEPS), "--learning-rate", "1e-3", "--warmup-steps", "1",
        "--checkpoint-every", "2", "--dtype", "fp32",
    ]  # fmt: skip
