"""Device tables that were measured on the machine itself: JSON with provenance, found by key.

A file holds one entry for each machine, number of ranks, threads and dtype. Only an entry with the
very key that is asked for is taken: a table of other ranks or of another CPU would be wrong without
saying so. What is missing is said once on the log.
"""

import json
import logging
import os
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tokenfabric.env import cache_dir
from tokenfabric.errors import ConfigError
from tokenfabric.log import LOGGER_NAME
from tokenweave.device import Device
from tokenweave.device_tables import parse_device

_STRICT = ConfigDict(extra="forbid", frozen=True)
_Text = Annotated[str, Field(min_length=1)]


class MachineKey(BaseModel):
    """What a table holds for, and nothing else."""

    model_config = _STRICT

    processor: _Text
    """A GPU's name as the driver gives it, or a CPU's with its instruction set."""
    world_size: Annotated[int, Field(ge=1)]
    threads: Annotated[int, Field(ge=1)]
    """Compute threads of each rank."""
    dtype: Literal["bf16", "fp32"]

    def __str__(self) -> str:
        return f"{self.processor}, {self.world_size} ranks of {self.threads} threads, {self.dtype}"


def gpu_key(gpu: str, world_size: int) -> MachineKey:
    """Return the key of a world of GPUs: a rank each, computing in bf16."""
    return MachineKey(processor=gpu, world_size=world_size, threads=1, dtype="bf16")


class Provenance(BaseModel):
    """Where and how the numbers were measured."""

    model_config = _STRICT

    driver: _Text
    """Of the GPU; for CPUs the kernel of the system."""
    torch: _Text
    commit: _Text
    date: _Text
    rung: _Text
    """The kind of evidence, such as "measured on CPU ranks"."""
    seconds: Annotated[float, Field(gt=0)]
    """That measuring took."""


class TunedTable(BaseModel):
    """One entry."""

    model_config = _STRICT

    key: MachineKey
    base: _Text
    """The table that it refines, such as "h100"."""
    provenance: Provenance
    numbers: dict[str, Any]
    """As in tables/*.json: each {"value", "source"}."""

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        self.device()
        return self

    def device(self) -> Device:
        """Return the device that it describes."""
        return parse_device(json.dumps({"name": f"{self.base} (tuned)", "numbers": self.numbers}))


class TunedFile(BaseModel):
    """A whole file."""

    model_config = _STRICT

    schema_version: Literal[1] = 1
    tables: tuple[TunedTable, ...] = ()

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        keys = [it.key for it in self.tables]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise ValueError(f"there are two tables for {twice}")
        return self

    def find(self, key: MachineKey) -> TunedTable | None:
        """Return the entry with this key."""
        return next((it for it in self.tables if it.key == key), None)


def default_path() -> Path:
    """Return the file that `tokenfabric bench --tune` writes and models look into."""
    return cache_dir() / "device_tables.json"


def read_tuned(path: Path) -> TunedFile:
    """Return what a file holds.

    Raises:
        ConfigError: it cannot be read, or is no such file; says where.
    """
    try:
        return TunedFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"the device tables {path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{path} holds no device tables: {place}: {first['msg']}") from None


def write_tuned(path: Path, table: TunedTable) -> None:
    """Put an entry into a file, in place of the one with its key; the others stay.

    Raises:
        ConfigError: the file is there but holds something else, or it cannot be written.
    """
    known = read_tuned(path).tables if path.exists() else ()
    others = tuple(it for it in known if it.key != table.key)
    text = TunedFile(tables=(*others, table)).model_dump_json(indent=1) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A reader finds the old file or the new one, never a part.
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(text)
        os.replace(file.name, path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None


def tuned_device(path: Path, key: MachineKey) -> Device | None:
    """Return the device that was measured for exactly this key, None if there is none.

    None of a file that is not there or of a key that is not in it is said on the log, once for
    each.

    Raises:
        ConfigError: the file is there, but holds something else.
    """
    if not path.exists():
        _say_missing(f"{path} is not there", key)
        return None
    table = read_tuned(path).find(key)
    if table is None:
        _say_missing(f"{path} has no such entry", key)
        return None
    return table.device()


@lru_cache(maxsize=256)
def _say_missing(why: str, key: MachineKey) -> None:
    logging.getLogger(LOGGER_NAME).info(
        "no measured device table for %s: %s; `tokenfabric bench --tune` makes one", key, why
    )
