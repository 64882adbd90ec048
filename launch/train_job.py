"""`launch.train`: a training run as a function; the command `tokenfabric train` calls it."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from launch.console import ConsoleReporter
from launch.dispatch import Launcher, check_launcher, require_ray
from launch.job import JobSpec
from launch.models import prepare_model
from launch.report import Reporter, SilentReporter
from launch.torchrun import is_quiet_rank, run_job
from launch.training.config import TrainConfig
from launch.training.documents import check_files
from tokenfabric.env import rank_info_from_env
from tokenfabric.errors import ConfigError


def train(
    *,
    model: str,
    data: Sequence[str],
    output: str | Path,
    config: TrainConfig,
    eval_data: Sequence[str] = (),
    launcher: str = Launcher.TORCHRUN,
    address: str | None = None,
    nodes: int = 1,
    max_restarts: int = 0,
    num_threads: int | None = None,
    pin: bool | None = None,
    timeout_s: float = 600.0,
) -> Path:
    """Fine-tune a causal language model on text; what the run is, is in `config`.

    A run that `output` holds already goes on from its last checkpoint. Below torchrun, every rank
    calls this.

    Args:
        model: as the command's --model.
        data: text files, .jsonl files, or folders of them.
        output: the run's folder: checkpoints/, metrics.jsonl, and model/ for plain transformers.
            On a disk that all nodes see.
        config: sizes, rates and the mesh.
        eval_data: like data, never learned from.
        launcher: "torchrun" (processes of this host, or torchrun's own below it) or "ray".
        address: of the Ray cluster; None: one on this host, for this run.
        nodes: of the Ray cluster.
        max_restarts: how often all ranks start again after one has died.
        num_threads: of each rank.
        pin: whether each rank runs on cores of its own.
        timeout_s: how long one rank waits for another.

    Returns:
        The folder of the trained model.

    Raises:
        ConfigError, TopologyError: the request cannot be met; said before anything starts where it
            can be known.
        JobFailedError: with the first failing rank's own error; no rank is left running.
    """
    try:
        chosen = Launcher(launcher)
    except ValueError:
        raise ConfigError(
            f"launcher is {launcher!r}: choose one of {', '.join(Launcher)}"
        ) from None
    check_launcher(chosen, address, nodes, pin)
    check_files([*data, *eval_data])
    _check_started_ranks(config)
    reporter: Reporter = SilentReporter() if is_quiet_rank() else ConsoleReporter()
    folder = Path(output).absolute()
    spec = JobSpec(
        recipe="launch.recipes.train:run",
        ranks=config.world_size,
        nodes=nodes,
        args={
            "model": str(prepare_model(model, reporter)),
            # Workers on other nodes start in other folders.
            "data": [str(Path(name).absolute()) for name in data],
            "output": str(folder),
            "eval_data": [str(Path(name).absolute()) for name in eval_data],
            **asdict(config),
        },
        timeout_s=timeout_s,
        num_threads=num_threads,
        pin=pin,
        max_restarts=max_restarts,
    )
    if chosen is Launcher.RAY:
        require_ray()
        from launch.ray.training import train_on_ray

        train_on_ray(spec, address=address, folder=str(folder))
    else:
        run_job(spec)
    reporter.note(f"the model is in {folder / 'model'}")
    return folder / "model"


def _check_started_ranks(config: TrainConfig) -> None:
    """Refuse ranks that torchrun started in another number than the mesh has."""
    info = rank_info_from_env()
    if info is not None and info.world_size != config.world_size:
        raise ConfigError(
            f"dp {config.dp} x ring {config.ring} is {config.world_size} ranks, but torchrun "
            f"started {info.world_size}: pass a mesh of {info.world_size}, or start "
            f"{config.world_size}"
        )
