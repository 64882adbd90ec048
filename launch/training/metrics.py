"""The curve of a run: one JSON line a step, in the run's folder."""

import json
from pathlib import Path

from launch.training.trainer import StepResult

METRICS = "metrics.jsonl"


class MetricsFile:
    """metrics.jsonl, written by one rank."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """Keep what an earlier part of the run wrote of the steps before `first_step`."""
        self._path = path = folder / METRICS
        kept = path.read_text().splitlines() if path.exists() else []
        # The last line may have been cut off with its writer.
        before = [line for line in kept if line.endswith("}") and _step(line) < first_step]
        rewritten = path.with_name(path.name + ".unfinished")
        rewritten.write_text("".join(f"{line}\n" for line in before))
        rewritten.replace(path)

    def write(self, result: StepResult, eval_loss: float | None) -> None:
        """Append a step."""
        line = {
            "step": result.step,
            "loss": result.loss,
            "gradient_norm": result.gradient_norm,
            "learning_rate": result.learning_rate,
            "tokens": result.tokens,
            "seconds": result.seconds,
            "ring_seconds": result.ring_seconds,
            "parameters_seconds": result.parameters_seconds,
            "communication_share": result.communication_share,
        }
        if eval_loss is not None:
            line["eval_loss"] = eval_loss
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _step(line: str) -> int:
    return int(json.loads(line)["step"])
