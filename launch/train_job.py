"""`launch.train`: a training run as a function; the command `tokenfabric train` calls it."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from launch.console import ConsoleReporter
from launch.dispatch import Launcher, choose_launcher, require_ray
from launch.job import JobSpec
from launch.models import prepare_model
from launch.report import Reporter, SilentReporter
from launch.torchrun import choose_ranks, is_quiet_rank, run_job
from launch.training.config import TrainConfig
from launch.training.documents import check_files
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
    node_rank: int | None = None,
    rendezvous: str | None = None,
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
        nodes: of the Ray cluster, or hosts that call this each.
        node_rank: which of them this host is, without Ray.
        rendezvous: "host:port" of node 0, where they meet, without Ray.
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
        known = Launcher(launcher)
    except ValueError:
        raise ConfigError(
            f"launcher is {launcher!r}: choose one of {', '.join(Launcher)}"
        ) from None
    chosen = choose_launcher(known, address, nodes, node_rank, rendezvous, pin)
    check_files([*data, *eval_data])
    is_quiet = is_quiet_rank() or not chosen.is_first
    reporter: Reporter = SilentReporter() if is_quiet else ConsoleReporter()
    folder = Path(output).absolute()
    mesh = {"dp": config.dp, "ring": config.ring}
    spec = JobSpec(
        recipe="launch.recipes.train:run",
        ranks=choose_ranks(None, mesh=mesh),
        nodes=nodes,
        mesh=mesh,
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
    if known is Launcher.RAY:
        require_ray()
        from launch.ray.training import train_on_ray

        train_on_ray(spec, address=address, folder=str(folder))
    else:
        run_job(spec, chosen.place)
    reporter.note(f"the model is in {folder / 'model'}")
    return folder / "model"
