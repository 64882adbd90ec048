"""The recipes of the cases: real ones, whose ranks note what happens to them, or end themselves.

In the case's folder a rank leaves started-<rank>-<process id>, and, when it is told of a failure,
told-<process id> with the time. Who is killed from within leaves killed.json just before.
"""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from launch.recipes import generate as one_group
from launch.recipes import generate_ring, train
from launch.report import Reporter, SilentReporter
from launch.training import checkpoints, objective
from tokenfabric import World

KILLED = "killed.json"
# Owner and name of a function, and at which of its calls a rank ends: before it, but for a write,
# which goes on in a thread when the call is over.
PLACES: dict[str, tuple[Any, str, int]] = {
    "forward": (objective.LanguageModelLoss, "forward", 7),
    "backward": (torch.autograd, "backward", 7),
    "checkpoint write": (checkpoints, "async_save", 2),
    "naming": (checkpoints, "_sync", 2),
    # Called for each checkpoint's own folder, and for the one around it when it has its name.
    "renamed": (checkpoints, "_sync_folder", 4),
}


def train_disturbed(
    world: World,
    reporter: Reporter,
    *,
    folder: str,
    where: str,
    victim: int,
    output: str,
    **arguments: Any,
) -> dict[str, float]:
    """`tokenfabric train`, in which a rank is killed at a place, once in all attempts."""
    if where in PLACES and world.rank == victim and not (Path(folder) / KILLED).exists():
        _end_at(*PLACES[where], folder=Path(folder), output=Path(output))
    with _noting(world, Path(folder)):
        return train.run(world, reporter, output=output, **arguments)


def decode_for_ever(
    world: World, reporter: Reporter, *, folder: str, tp: int, **arguments: Any
) -> None:
    """`tokenfabric generate`, again and again; said once that it works."""
    with _noting(world, Path(folder)):
        while True:
            if tp == world.size:
                one_group.run(world, SilentReporter(), **arguments)
            else:
                generate_ring.run(world, SilentReporter(), tp=tp, **arguments)
            (Path(folder) / f"decoding-{world.rank}").touch()


def note_kill(folder: Path, output: Path) -> None:
    """Note when somebody is killed, and how many steps the run had done then."""
    metrics = output / "metrics.jsonl"
    steps = len(metrics.read_text().splitlines()) if metrics.exists() else 0
    partial = folder / f"{KILLED}.partial"
    partial.write_text(json.dumps({"time_s": time.monotonic(), "steps": steps}))
    partial.rename(folder / KILLED)


@contextmanager
def _noting(world: World, folder: Path) -> Iterator[None]:
    (folder / f"started-{world.rank}-{os.getpid()}").touch()
    try:
        yield
    except BaseException:
        (folder / f"told-{os.getpid()}").write_text(str(time.monotonic()))
        raise


def _end_at(owner: Any, name: str, at_call: int, *, folder: Path, output: Path) -> None:
    original, calls = getattr(owner, name), 0

    def ends(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != at_call:
            return original(*args, **kwargs)
        if owner is checkpoints and name == "async_save":
            original(*args, **kwargs)
        note_kill(folder, output)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("killed")

    setattr(owner, name, ends)
