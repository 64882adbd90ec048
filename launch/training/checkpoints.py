"""Checkpoints of a run: written beside the training, whole or not there, read on any ranks.

A checkpoint is a folder step-<n>: torch.distributed.checkpoint's files and progress.json. It is
written under another name, which it loses when every rank has written its part: a folder with the
right name is complete, whenever the run was ended. It is read as checkpoint_index.py says.
"""

import datetime
import os
import re
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.optim import Optimizer

from launch.training.checkpoint_index import IndexedReader, read_index
from launch.training.rows import Progress
from tokenfabric.errors import ConfigError, TokenFabricError

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
        """Collective: makes the process group that writing uses beside the training's.

        What a run that was ended has left half-written is removed.
        """
        self._folder = folder
        self._keep = keep
        self._group = dist.new_group(backend="gloo", timeout=_WRITTEN_WITHIN)
        if dist.get_rank() == 0:
            for unfinished in folder.glob(f"step-*{_UNFINISHED}"):
                shutil.rmtree(unfinished)
        self._writing: _Writing | None = None

    def save(self, module: nn.Module, optimizer: Optimizer, state: RunState) -> None:
        """Write a checkpoint while training goes on; waits for the one before.

        The tensors are copied before this returns.

        Raises:
            TokenFabricError: the one before could not be written.
        """
        self.finish()
        target = self._folder / f"step-{state.step}"
        unfinished = _unfinished(target)
        if dist.get_rank() == 0:
            unfinished.mkdir(parents=True)
            (unfinished / _PROGRESS).write_bytes(_RUN_STATE.dump_json(state))
        dist.barrier(self._group)
        weights, moments = get_state_dict(module, optimizer)
        tensors, _ = _tensors_of(weights, moments["state"])
        future = async_save(tensors, checkpoint_id=unfinished, process_group=self._group)
        assert isinstance(future, Future), "staged before it is written"
        self._writing = _Writing(future, partial(self._name, target))

    def check(self) -> None:
        """Raise what has ended the writing of a checkpoint on this rank, if anything has.

        Not collective, and waits for nobody.
        """
        if self._writing is not None and not self._writing.is_alive():
            writing, self._writing = self._writing, None
            writing.finish()

    def finish(self) -> None:
        """Wait until the checkpoint in writing is complete and has its name."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.finish()

    def load(self, path: Path, module: nn.Module, optimizer: Optimizer) -> RunState:
        """Read a checkpoint into this run's ranks, however many wrote it.

        Rates and decay are this run's own: `optimizer` has them.

        Raises:
            ConfigError: it has no progress.json of this version or no index of tensors, a file of
                it cannot be read, or the tensors are another model's.
        """
        state, index = read_progress(path), read_index(path)
        weights, moments = get_state_dict(module, optimizer)
        of_parameters: Any = moments["state"]
        tensors, flat = _tensors_of(weights, of_parameters)
        for name, tensor in flat.items():
            entry: Any = index.state_dict_metadata.get(name)
            if entry is None or entry.size != tensor.size():
                has = "is not in it" if entry is None else f"is {tuple(entry.size)} in it"
                raise ConfigError(
                    f"{path} is of another model: {name} is {tuple(tensor.size())} here and {has}"
                )
        try:
            # Reads into these tensors.
            load(tensors, storage_reader=IndexedReader(path, index), process_group=self._group)
        except CheckpointException as error:
            raise ConfigError(f"{path} cannot be read: {_cause_of(error)}") from error
        for of_parameter in of_parameters.values():
            of_parameter["step"].fill_(state.step)
        set_state_dict(module, optimizer, model_state_dict=weights, optim_state_dict=moments)
        return state

    def _name(self, target: Path) -> None:
        """Give a checkpoint its name when all ranks have written it. Collective."""
        dist.barrier(self._group)
        if dist.get_rank() == 0:
            unfinished = _unfinished(target)
            _sync(unfinished)
            shutil.rmtree(target, ignore_errors=True)
            unfinished.rename(target)
            _sync_folder(self._folder)
            for old in find_checkpoints(self._folder)[: -self._keep]:
                shutil.rmtree(old)
        dist.barrier(self._group)


class _Writing(threading.Thread):
    """Waits beside the training until a checkpoint is written, and names it.

    A name that waited for the training's next step would be lost with all its work when a step
    takes minutes and the run is ended in it.
    """

    def __init__(self, written: "Future[Any]", name: Callable[[], None]) -> None:
        # A rank that ends by another error must not wait here for peers that are gone.
        super().__init__(name="checkpoint", daemon=True)
        self._written, self._name_it = written, name
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """Wait, then name."""
        try:
            self._written.result()
            self._name_it()
        except CheckpointException as error:
            self._error = TokenFabricError(f"no checkpoint was written: {_cause_of(error)}")
        except BaseException as error:
            self._error = error

    def finish(self) -> None:
        """Wait for the end; raise what went wrong."""
        self.join()
        if self._error is not None:
            raise self._error


def _tensors_of(weights: dict[str, Any], moments: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what a checkpoint keeps, as it is given to torch, and by the names that this makes.

    Tensors alone: anything else torch would pickle. AdamW's count of steps is the run's.
    """
    state = {
        parameter: {name: x for name, x in of_parameter.items() if name != "step"}
        for parameter, of_parameter in moments.items()
    }
    flat = {f"model.{name}": x for name, x in weights.items()}
    for parameter, of_parameter in state.items():
        flat |= {f"optimizer.state.{parameter}.{name}": x for name, x in of_parameter.items()}
    return {"model": weights, "optimizer": {"state": state}}, flat


def _cause_of(error: CheckpointException) -> str:
    """Return what torch says of the first rank that failed. Its error is no Exception itself."""
    rank, (cause, _) = min(error.failures.items(), key=lambda item: item[0])
    return f"rank {rank}: {type(cause).__name__}: {cause}"


def _unfinished(target: Path) -> Path:
    return target.with_name(target.name + _UNFINISHED)


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
