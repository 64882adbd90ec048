"""Training on Ray Train: the curve of torchrun's ranks, and one that goes on after a kill."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launch.failure import JobFailedError
from launch.job import JobSpec
from launch.recipes import train
from launch.report import SilentReporter
from launch.training.checkpoints import find_checkpoints
from tests.dist.tiny_checkpoint import write_trainable
from tokenfabric.testing.spawn import run_ranks
from tokenfabric.world import World

ray = pytest.importorskip("ray")

from launch.ray.cluster import connected  # noqa: E402  # needs ray
from launch.ray.training import train_on_ray  # noqa: E402

STEPS = 12
WORKER = b"ray::RayTrainWorker"


@pytest.fixture(scope="module")
def here() -> Iterator[None]:
    """A cluster of this machine."""
    with connected(None):
        yield


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("train")
    (folder / "text.txt").write_text("the ring goes round and round. " * 60)
    model = write_trainable(folder / "tiny")
    return {
        "model": str(model), "data": [str(folder / "text.txt")], "context": 64, "steps": STEPS,
        "ring": 2, "learning_rate": 1e-3, "checkpoint_every": 2, "dtype": "fp32",
    }  # fmt: skip


def _rank_trains(world: World, arguments: dict[str, Any]) -> None:
    train.run(world, SilentReporter(), **arguments)


@pytest.fixture(scope="module")
def losses(arguments: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Of the undisturbed run on ranks of this host."""
    output = tmp_path_factory.mktemp("undisturbed")
    run_ranks(_rank_trains, 2, {**arguments, "output": str(output)})
    return read_losses(output)


def read_losses(output: Path) -> list[float]:
    path = output / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["loss"] for line in lines if line.endswith("}")]


def job(arguments: dict[str, Any], output: Path, max_restarts: int) -> JobSpec:
    return JobSpec(
        recipe="launch.recipes.train:run", ranks=2, max_restarts=max_restarts, timeout_s=30.0,
        args={**arguments, "output": str(output)},
    )  # fmt: skip


def kill_a_worker_after(steps: int, output: Path, killed: list[int]) -> None:
    """SIGKILL the worker process with the highest id once so many steps are done."""
    while len(read_losses(output)) < steps:
        time.sleep(0.02)
    workers = [
        int(folder.name)
        for folder in Path("/proc").iterdir()
        if folder.name.isdecimal() and is_worker(folder) and is_below_me(int(folder.name))
    ]
    killed.append(max(workers))
    os.kill(max(workers), signal.SIGKILL)


def is_worker(folder: Path) -> bool:
    try:
        return (folder / "cmdline").read_bytes().startswith(WORKER)
    except OSError:
        return False  # it has just ended


def is_below_me(pid: int) -> bool:
    """Return whether this process started it, or what started it: not another test's worker."""
    while pid > 1:
        if pid == os.getpid():
            return True
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return False
        pid = int(stat.rpartition(")")[2].split()[1])  # the parent
    return False


@pytest.mark.timeout(180)
def test_a_killed_worker_costs_the_steps_since_the_checkpoint(
    here: None, arguments: dict[str, Any], losses: list[float], tmp_path: Path
) -> None:
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker_after, args=(5, tmp_path, killed), daemon=True)
    killer.start()
    train_on_ray(job(arguments, tmp_path, 1), address=None, folder=str(tmp_path))
    assert len(killed) == 1
    assert read_losses(tmp_path) == pytest.approx(losses, rel=1e-5)
    names = [path.name for path in find_checkpoints(tmp_path / "checkpoints")]
    assert names[-1] == f"step-{STEPS}"
    assert (tmp_path / "model" / "model.safetensors").exists()


@pytest.mark.timeout(180)
def test_without_restarts_the_first_error_is_told(
    here: None, arguments: dict[str, Any], tmp_path: Path
) -> None:
    wrong = {**arguments, "data": [str(tmp_path / "nothing")]}
    with pytest.raises(JobFailedError, match="there is no such file or folder") as raised:
        train_on_ray(job(wrong, tmp_path, 0), address=None, folder=str(tmp_path))
    assert raised.value.failure.exit_code == 2
