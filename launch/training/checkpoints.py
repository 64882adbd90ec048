"""Checkpoints of a run: written beside the training, whole or not there, read on any ranks.

A checkpoint is a folder step-<n>: torch.distributed.checkpoint's files and progress.json. It is
written under another name, which it loses when every rank has written its part: a folder with the
right name is complete, whenever the run was ended.
"""

import datetime
import os
import re
import shutil
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pydantic import TypeAdapter, ValidationError
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.optim import Optimizer

from launch.training.rows import Progress
from tokenfabric.errors import ConfigError

_NAME = re.compile(r"step-(\d+)")
_UNFINISHED = ".unfinished"
_PROGRESS = "progress.json"
# Ranks wait for each other's files: a wait for disks, longer than one for a rank's computation.
_WRITTEN_WITHIN = datetime.timedelta(minutes=10)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunState:
    """Where a run is, apart from the tensors; the same on all ranks."""

    step: int
    """Steps done."""
    progress: Progress
    """Where the next row begins."""
    fingerprint: str
    """Of what must not change when a run goes on: data, context, rows of a step, seed."""


_RUN_STATE = TypeAdapter(RunState)


class Checkpoints:
    """The checkpoints of one run, in one folder that all ranks see. Methods are collective."""

    def __init__(self, folder: Path, keep: int) -> None:
        """Collective: makes the process group that writing uses beside the training's."""
        self._folder = folder
        self._keep = keep
        self._group = dist.new_group(backend="gloo", timeout=_WRITTEN_WITHIN)
        self._writing: tuple[Future[Any], Path] | None = None

    def save(self, module: nn.Module, optimizer: Optimizer, state: RunState) -> None:
        """Write a checkpoint while training goes on; waits for the one before.

        The tensors are copied before this returns.
        """
        self.finish()
        target = self._folder / f"step-{state.step}"
        unfinished = target.with_name(target.name + _UNFINISHED)
        if dist.get_rank() == 0:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            (unfinished / _PROGRESS).write_bytes(_RUN_STATE.dump_json(state))
        dist.barrier(self._group)
        weights, moments = get_state_dict(module, optimizer)
        future = async_save(
            {"model": weights, "optimizer": moments},
            checkpoint_id=unfinished,
            process_group=self._group,
        )
        assert isinstance(future, Future), "staged before it is written"
        self._writing = (future, target)

    def advance(self) -> None:
        """Finish the checkpoint in writing if every rank has written its part; waits for none."""
        if self._writing is None:
            return
        # Not over the group that the writers are using.
        is_done = torch.tensor(int(self._writing[0].done()))
        dist.all_reduce(is_done, dist.ReduceOp.MIN)
        if is_done:
            self.finish()

    def finish(self) -> None:
        """Wait until the checkpoint in writing is complete, and give it its name."""
        if self._writing is None:
            return
        (future, target), self._writing = self._writing, None
        future.result()
        dist.barrier(self._group)  # every rank's files are there
        if dist.get_rank() == 0:
            unfinished = target.with_name(target.name + _UNFINISHED)
            _sync(unfinished)
            shutil.rmtree(target, ignore_errors=True)
            unfinished.rename(target)
            _sync_folder(self._folder)
            for old in find_checkpoints(self._folder)[: -self._keep]:
                shutil.rmtree(old)
        dist.barrier(self._group)

    def load(self, path: Path, module: nn.Module, optimizer: Optimizer) -> RunState:
        """Read a checkpoint into this run's ranks, however many wrote it.

        Raises:
            ConfigError: it has no progress.json of this version.
        """
        weights, moments = get_state_dict(module, optimizer)
        # Reads into these tensors.
        load(
            {"model": weights, "optimizer": moments},
            checkpoint_id=path,
            process_group=self._group,
        )
        set_state_dict(module, optimizer, model_state_dict=weights, optim_state_dict=moments)
        return read_progress(path)


def find_checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints of a folder, the oldest first."""
    found = [
        (int(match[1]), path)
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (match := _NAME.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found)]


def read_progress(path: Path) -> RunState:
    """Return what a checkpoint says of the run.

    Raises:
        ConfigError: the file is missing or not of this version.
    """
    try:
        return _RUN_STATE.validate_json((path / _PROGRESS).read_bytes(), strict=True)
    except (OSError, ValidationError) as error:
        raise ConfigError(
            f"{path} is no checkpoint of a training run of this version: {error}"
        ) from None


def _sync(folder: Path) -> None:
    """Bring files to the disk: the right name must not outlive a power cut that data did not."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
