"""A training recipe on Ray Train: its workers are the ranks, its restarts the recipe's."""

import sys
from typing import Any

import torch.distributed as dist
from ray import train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import WorkerGroupError

from launch.failure import Failure, FailureKind, JobFailedError, describe, root_cause
from launch.job import JobSpec
from launch.rank import load_recipe
from launch.ray.assignment import check_room
from launch.ray.cluster import connected, node_resources
from launch.ray.fate import end_with_raylet
from launch.report import SilentReporter, Table
from launch.torchrun import rank_environment
from tokenfabric.world import World


def train_on_ray(spec: JobSpec, *, address: str | None, folder: str) -> None:
    """Run a recipe that goes on where it was, restarted by Ray Train when a worker or node dies.

    What rank 0 says appears on this process's stderr, as Ray passes it on.

    Args:
        spec: `max_restarts` of it are Ray Train's max_failures.
        address: of the cluster; None: one on this machine, for this job.
        folder: where Ray Train keeps its own state; on a disk that all nodes see.

    Raises:
        TopologyError: no cluster answers, or it has no room; said before anything is started.
        JobFailedError: with the first failing rank's own error of the last attempt.
    """
    threads = spec.num_threads or 1
    variables = rank_environment(threads)
    # Nobody gives notice that this very machine will be taken away: one process less.
    unwatched = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
    with connected(address, {**variables, **unwatched}) as has_variables:
        own = {**({} if has_variables else variables), **spec.environment}
        check_room({"CPU": float(spec.ranks_per_node * threads)}, spec.nodes, node_resources())
        trainer = TorchTrainer(
            _rank,
            train_loop_config={"spec": spec},
            torch_config=TorchConfig(backend="gloo", timeout_s=int(spec.timeout_s)),
            scaling_config=ScalingConfig(
                num_workers=spec.ranks,
                resources_per_worker={"CPU": threads},
                placement_strategy="PACK" if spec.nodes == 1 else "SPREAD",
            ),
            run_config=RunConfig(
                name="ray",
                storage_path=folder,
                failure_config=FailureConfig(max_failures=spec.max_restarts),
                worker_runtime_env={"env_vars": own} if own else None,
            ),
        )
        try:
            trainer.fit()
        except WorkerGroupError as error:
            raise JobFailedError(
                root_cause(_failure(rank, it) for rank, it in error.worker_failures.items())
            ) from None


def _rank(config: dict[str, Any]) -> None:
    end_with_raylet()
    spec: JobSpec = config["spec"]
    recipe = load_recipe(spec)
    is_first = train.get_context().get_world_rank() == 0
    world = World.from_group(dist.group.WORLD, timeout_s=spec.timeout_s)
    try:
        recipe(world, _LogReporter() if is_first else SilentReporter(), **spec.args)
    finally:
        world.close()


def _failure(rank: int, error: BaseException) -> Failure:
    cause = getattr(error, "cause", None) or error.__cause__ or error
    found = describe(cause, rank)
    if type(cause).__module__.partition(".")[0] == "ray":
        return Failure(
            kind=FailureKind.DEFECT,
            rank=rank,
            error="process ended",
            message="its process was killed, or its node is gone",
            details=found.details,
        )
    return found


class _LogReporter:
    """A Reporter that writes lines, which Ray passes on to the driver."""

    def note(self, text: str) -> None:
        sys.stderr.write(text + "\n")

    def text(self, piece: str) -> None:
        sys.stderr.write(piece)

    def table(self, table: Table) -> None:
        raise AssertionError("a training recipe shows no table")
