"""A checkpoint's index: read for what it is, refused before it runs for what it could be."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import load, save
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata

from launch.training.checkpoint_index import INDEX, IndexedReader, read_index
from tokenfabric.errors import ConfigError


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Torch's own, of a tensor and of what it pickles."""
    state = {"model": {"w": torch.arange(6.0).view(2, 3)}, "rate": 0.5, "betas": (0.9, 0.95)}
    save(state, checkpoint_id=tmp_path, no_dist=True)
    return tmp_path


def test_tensors_are_read_and_pickles_are_not(checkpoint: Path) -> None:
    index = read_index(checkpoint)
    assert list(index.state_dict_metadata) == ["model.w"]
    into = {"model": {"w": torch.zeros(2, 3)}}
    load(into, storage_reader=IndexedReader(checkpoint, index), no_dist=True)
    assert torch.equal(into["model"]["w"], torch.arange(6.0).view(2, 3))
    with pytest.raises(CheckpointException, match="Missing key"):
        load({"rate": 0.0}, storage_reader=IndexedReader(checkpoint, index), no_dist=True)


class _Call:
    """Pickled as a call: whoever loads it makes the call."""

    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self._call = (function, args)

    def __reduce__(self) -> Any:
        return self._call


def _marks(folder: Path) -> object:
    return _Call(Path.touch, folder / "it-ran")


def _evaluates(folder: Path) -> object:
    return _Call(eval, f"open({str(folder / 'it-ran')!r}, 'w')")


def _hides_in_an_index(folder: Path) -> object:
    return Metadata({}, planner_data=_evaluates(folder), storage_data={})


@pytest.mark.parametrize("attack", [_marks, _evaluates, _hides_in_an_index])
def test_a_pickle_that_calls_is_refused_before_it_does(
    tmp_path: Path, attack: Callable[[Path], object]
) -> None:
    """The same pickle does run when loaded freely."""
    pickled = pickle.dumps(attack(tmp_path))
    (tmp_path / INDEX).write_bytes(pickled)
    with pytest.raises(ConfigError, match="which no index needs"):
        read_index(tmp_path)
    assert not (tmp_path / "it-ran").exists()
    pickle.loads(pickled)
    assert (tmp_path / "it-ran").exists()


def test_names_below_an_allowed_one_are_refused(tmp_path: Path) -> None:
    """Protocol 4 reaches attributes by dots."""
    name = b"Metadata.__init__.__globals__"
    module = b"torch.distributed.checkpoint.metadata"
    strings = b"".join(b"\x8c" + bytes([len(text)]) + text for text in (module, name))
    (tmp_path / INDEX).write_bytes(b"\x80\x04" + strings + b"\x93.")
    with pytest.raises(ConfigError, match="which no index needs"):
        read_index(tmp_path)


def test_damage_and_ways_out_of_the_folder_are_refused(checkpoint: Path) -> None:
    whole = (checkpoint / INDEX).read_bytes()
    for damaged in (b"", whole[:-40], b"\x80\x04\x95", pickle.dumps([1, 2])):
        (checkpoint / INDEX).write_bytes(damaged)
        with pytest.raises(ConfigError, match="is no index of a checkpoint's tensors"):
            read_index(checkpoint)
    index = pickle.loads(whole)
    for item in index.storage_data.values():
        item.relative_path = f"../{item.relative_path}"
    (checkpoint / INDEX).write_bytes(pickle.dumps(index))
    with pytest.raises(ConfigError, match="it points to"):
        read_index(checkpoint)
    (checkpoint / INDEX).unlink()
    with pytest.raises(ConfigError, match="is no index"):
        read_index(checkpoint)
