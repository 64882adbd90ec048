"""Recipes that the tests of the launcher run on ranks."""

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import torch

from launch.recipes.threads import all_cores, host_cores, host_threads
from launch.report import Reporter
from tests.dist.resources import affinity_of_threads
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


def speak_after_loss(world: World, reporter: Reporter, times: int) -> None:
    """Rank 0 has more to say when rank 1 has failed."""
    if world.rank == 1:
        raise ValueError("rank 1 cannot count")
    try:
        world.barrier()
    finally:
        for number in range(times):
            reporter.note(str(number))


def write_variables(world: World, reporter: Reporter, folder: str, names: list[str]) -> None:
    """Each rank writes down the variables of its process."""
    text = json.dumps([os.environ.get(name) for name in names])
    (Path(folder) / f"rank-{world.rank}").write_text(text)


def fail_at_first(world: World, reporter: Reporter, folder: str, how: str, times: int) -> int:
    """Rank 1 fails in the first attempts; return the number of the attempt that succeeds."""
    world.barrier()
    attempt = len(os.listdir(folder))
    world.barrier()
    if world.rank == 1:
        with open(f"{folder}/{attempt}", "x"):
            if attempt < times:
                fail_on_rank_one(world, reporter, how)
    world.barrier()
    return attempt


def meet_for_ever(world: World, reporter: Reporter, folder: str) -> None:
    """Meet again and again; say once that all do."""
    world.barrier()
    reporter.note("all are here")
    while True:
        world.barrier()


def one_dies_while_others_compute(world: World, reporter: Reporter) -> None:
    """The last rank is killed; no other one waits for it."""
    world.barrier()
    if world.rank == world.size - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(120)


def sleep(world: World, reporter: Reporter, folder: str) -> None:
    """Say that this rank runs, and under which id, then sleep until it is told to stop."""
    with contextlib.suppress(FileExistsError), open(f"{folder}/{world.rank}", "x") as file:
        file.write(str(os.getpid()))
    time.sleep(60)


def layout(world: World, reporter: Reporter) -> list[object]:
    """Return the cores of all ranks, and of rank 0 its threads and what the world says."""
    own = set(world.placement.cores_of_rank[world.rank])
    assert affinity_of_threads() == {frozenset(own)}, affinity_of_threads()
    torch.mm(torch.ones(512, 512), torch.ones(512, 512))
    before = torch.get_num_threads()
    # Threads of torch that are started while the rank has more cores go back with it.
    with all_cores(world):
        assert affinity_of_threads() == {frozenset(host_cores(world))}
        assert torch.get_num_threads() == host_threads(world)
        torch.mm(torch.ones(512, 512), torch.ones(512, 512))
    torch.set_num_threads(before + 1)
    torch.mm(torch.ones(512, 512), torch.ones(512, 512))
    assert affinity_of_threads() == {frozenset(own)}, affinity_of_threads()
    cores = [list(cores) for cores in world.placement.cores_of_rank]
    return [cores, before, world.num_threads, world.describe()]
