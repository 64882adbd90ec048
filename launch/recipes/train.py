"""`tokenfabric train`: fine-tune a causal language model at long context, over any ranks.

A run lives in one folder: checkpoints/step-<n>, metrics.jsonl and, at the end, model/ for plain
transformers. A run that was ended goes on from its last checkpoint when it is started again, on as
many ranks or others.
"""

import json
import time
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from launch.memory import require_memory
from launch.progress import Progress, progress_of
from launch.report import Reporter
from launch.training.checkpoints import Checkpoints, RunState, find_checkpoints, read_progress
from launch.training.config import TrainConfig
from launch.training.documents import check_files
from launch.training.export import export_model
from launch.training.mesh import TrainingMesh, training_mesh
from launch.training.metrics import MetricsFile
from launch.training.rows import RowStream
from launch.training.trainer import StepResult, Trainer
from tokenfabric import World
from tokenfabric.errors import ConfigError
from tokenring.exchange import sum_over_ranks
from tokenweave.integrations.unsharded import load_tokenizer, load_unsharded

# Parameters, gradients and two moments in fp32, dealt over ranks; each loads a whole model first.
_BYTES_DEALT, _BYTES_LOADED = 16, 4


def run(
    world: World,
    reporter: Reporter,
    *,
    model: str,
    data: list[str],
    output: str,
    eval_data: list[str] | None = None,
    **settings: Any,
) -> dict[str, float]:
    """Train, and write the result. Collective; all ranks pass the same.

    Args:
        world: the ranks, dp x ring of them.
        reporter: hears of every step.
        model: a checkpoint's directory.
        data: text or .jsonl files, or folders of them; see `launch.training.documents`.
        output: the run's folder, on a disk that all ranks see; made if it is not there.
        eval_data: like data, never learned from.
        settings: of `TrainConfig`.

    Returns:
        The last step's loss, and the tokens per second since this start.

    Raises:
        ConfigError: something is missing or does not fit, or the folder holds a run of other data.
        TrainingDivergedError: the loss is no longer a number.
    """
    config = TrainConfig(**settings)
    files = check_files(data)
    eval_files = check_files(eval_data) if eval_data else ()
    if config.eval_every and not eval_files:
        raise ConfigError("eval_every needs eval_data: pass files that are not learned from")
    directory, folder = Path(model), Path(output)
    _check_context(directory, config.context)
    tokenizer: Any = load_tokenizer(directory)
    fingerprint = _fingerprint(files, config, len(tokenizer))
    newest = _newest_checkpoint(world, folder / "checkpoints")
    state = None if newest is None else read_progress(newest)
    if state is not None and state.fingerprint != fingerprint:
        raise ConfigError(
            f"{output} holds a run of other data, context, rows_per_step, seed or tokenizer: "
            "pass those, or another output"
        )
    if world.rank == 0:
        here = _BYTES_DEALT + _BYTES_LOADED * world.local_size
        require_memory(directory, here, "a model in training")
        folder.mkdir(parents=True, exist_ok=True)
    with training_mesh(world, config) as mesh:
        trainer = Trainer(load_unsharded(directory, torch.float32), mesh, config)
        checkpoints = Checkpoints(folder / "checkpoints", config.keep_checkpoints)
        if newest is not None:
            checkpoints.load(newest, trainer.loss, trainer.optimizer)
            reporter.note(f"going on from {newest.name} of {config.steps} steps")
        stream = RowStream(
            files, tokenizer, context=config.context, seed=config.seed,
            progress=None if state is None else state.progress,
        )  # fmt: skip
        run_ = _Run(config, mesh, trainer, checkpoints, stream, reporter, fingerprint)
        if eval_files:
            # The same rows every time.
            eval_stream = RowStream(eval_files, tokenizer, context=config.context, seed=0)
            run_.eval_rows = eval_stream.take(config.eval_rows)
        result = run_.steps(state, folder)
        export_model(trainer, tokenizer, folder / "model", torch.float32)
        reporter.note(f"wrote {folder / 'model'}")
    return result


class _Run:
    """The loop over steps."""

    def __init__(
        self,
        config: TrainConfig,
        mesh: TrainingMesh,
        trainer: Trainer,
        checkpoints: Checkpoints,
        stream: RowStream,
        reporter: Reporter,
        fingerprint: str,
    ) -> None:
        self._config, self._mesh, self._trainer = config, mesh, trainer
        self._checkpoints, self._stream, self._reporter = checkpoints, stream, reporter
        self._fingerprint = fingerprint
        self.eval_rows: list[Any] = []

    def steps(self, state: RunState | None, folder: Path) -> dict[str, float]:
        """Take the steps that are left; return what `run` returns."""
        config = self._config
        first = 0 if state is None else state.step
        metrics = MetricsFile(folder, first) if self._mesh.world.rank == 0 else None
        last_loss, tokens, seconds, start_s = float("nan"), 0, 0.0, time.monotonic()
        with progress_of(self._reporter) as tell:
            for step in range(first, config.steps):
                result = self._trainer.step(step, self._stream.take(config.rows_per_step))
                last_loss = result.loss
                tokens, seconds = tokens + result.tokens, seconds + result.seconds
                eval_loss = None
                if config.is_due(config.eval_every, step):
                    eval_loss = self._trainer.evaluate(self.eval_rows)
                if metrics is not None:
                    metrics.write(result, eval_loss)
                self._checkpoints.check()
                if config.is_due(config.checkpoint_every, step) or step + 1 == config.steps:
                    self._save(step + 1)
                done = step + 1
                mean_s = (time.monotonic() - start_s) / (done - first)
                tell(
                    Progress(
                        done=done,
                        total=config.steps,
                        facts=facts_of(result, eval_loss),
                        remaining_s=mean_s * (config.steps - done),
                    )
                )
        self._checkpoints.finish()
        return {"loss": last_loss, "tokens_per_second": tokens / seconds if seconds else 0.0}

    def _save(self, step: int) -> None:
        self._checkpoints.save(
            self._trainer.loss,
            self._trainer.optimizer,
            RunState(step=step, progress=self._stream.progress, fingerprint=self._fingerprint),
        )


def facts_of(result: StepResult, eval_loss: float | None) -> tuple[str, ...]:
    """Return what a user is told of a step."""
    evaluated = () if eval_loss is None else (f"eval loss {eval_loss:.4f}",)
    return (
        f"loss {result.loss:.4f}",
        *evaluated,
        f"gradient norm {result.gradient_norm:.3f}",
        f"rate {result.learning_rate:.2e}",
        f"{result.tokens / result.seconds:.0f} tokens/s",
        f"{result.communication_share:.0%} communication",
    )


def _check_context(model: Path, context: int) -> None:
    """Refuse rows that are longer than the model's positions, before it is loaded."""
    longest = json.loads((model / "config.json").read_text()).get("max_position_embeddings")
    if longest is not None and context > longest:
        raise ConfigError(
            f"context {context} is longer than the {longest} positions the model knows: pass a "
            "shorter context"
        )


def _newest_checkpoint(world: World, folder: Path) -> Path | None:
    """Return the checkpoint to go on from, the same on all ranks: rank 0's newest. Collective.

    Raises:
        ConfigError: another rank does not see it: the folder is not one that all ranks share.
    """
    found = find_checkpoints(folder) if world.rank == 0 else []
    steps = [int(path.name.removeprefix("step-")) for path in found]
    step = int(sum_over_ranks(world, torch.tensor([max(steps, default=-1) + 1])).item()) - 1
    if step < 0:
        return None
    newest = folder / f"step-{step}"
    if not newest.is_dir():
        raise ConfigError(
            f"rank 0 would go on from {newest}, which rank {world.rank} does not see: pass an "
            "output on a disk that all ranks see"
        )
    return newest


def _fingerprint(files: tuple[Path, ...], config: TrainConfig, vocabulary: int) -> str:
    """Return a hash of what decides which rows come in which order."""
    kept = {key: asdict(config)[key] for key in ("context", "rows_per_step", "seed")}
    text = repr(([(path.name, path.stat().st_size) for path in files], kept, vocabulary))
    return f"{zlib.crc32(text.encode()):08x}"
