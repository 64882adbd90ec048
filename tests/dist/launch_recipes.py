"""Recipes that the tests of the launcher run on ranks."""

import contextlib
import os
import signal
import time

import torch

from launch.report import Reporter
from tokenfabric import World
from tokenfabric.errors import ConfigError


def place(world: World, reporter: Reporter, text: str) -> list[object]:
    """Return where rank 0 stands, and the text as it arrived."""
    world.barrier()
    return [world.rank, world.size, torch.get_num_threads(), text]


def fail_on_rank_one(world: World, reporter: Reporter, how: str) -> None:
    """Rank 1 fails while rank 0 waits for it."""
    if world.rank == 1:
        if how == "defect":
            raise ValueError("rank 1 cannot count")
        if how == "user":
            raise ConfigError("take fewer ranks")
        if how == "exit":
            raise SystemExit(3)
        os.write(2, b"last words\n")
        os.kill(os.getpid(), signal.SIGKILL)
    world.barrier()


def sleep(world: World, reporter: Reporter, folder: str) -> None:
    """Say that this rank runs, and under which id, then sleep until it is told to stop."""
    with contextlib.suppress(FileExistsError), open(f"{folder}/{world.rank}", "x") as file:
        file.write(str(os.getpid()))
    time.sleep(60)
