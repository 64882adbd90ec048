"""Reads and writes tables of measured GPU reductions: JSON with provenance, checked by pydantic."""

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tokenfabric.errors import ConfigError
from tokenweave.cuda.table import MeasuredTable, MeasuredTime

_STRICT = ConfigDict(extra="forbid", frozen=True)
_Text = Annotated[str, Field(min_length=1)]


class Provenance(BaseModel):
    """Where and how the times were measured."""

    model_config = _STRICT

    gpu: _Text
    driver: _Text
    torch: _Text
    commit: _Text
    date: _Text
    rung: _Text
    """The kind of evidence, such as "several GPUs, CUDA graphs, median of the slowest rank"."""


class TimeEntry(BaseModel):
    """One measured time, see `MeasuredTime`."""

    model_config = _STRICT

    algorithm: Literal["one_shot", "two_shot"]
    reach: Literal["multicast", "peer"]
    world_size: Annotated[int, Field(ge=1)]
    num_blocks: Annotated[int, Field(ge=1)]
    num_bytes: Annotated[int, Field(ge=1)]
    microseconds: Annotated[float, Field(gt=0, allow_inf_nan=False)]


class TableFile(BaseModel):
    """A whole file."""

    model_config = _STRICT

    schema_version: Literal[1] = 1
    provenance: Provenance
    times: tuple[TimeEntry, ...]

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        keys = [
            (it.algorithm, it.reach, it.world_size, it.num_blocks, it.num_bytes)
            for it in self.times
        ]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise ValueError(f"there are two times for {twice}")
        return self

    def table(self) -> MeasuredTable:
        """Return the times as the planner reads them."""
        return MeasuredTable(tuple(MeasuredTime(**it.model_dump()) for it in self.times))


def read_table(path: Path) -> TableFile:
    """Return the table in a file.

    Raises:
        ConfigError: it cannot be read, or is not such a table; says where.
    """
    try:
        return parse_table(path.read_bytes(), str(path))
    except OSError as error:
        raise ConfigError(f"the table of measured times {path} cannot be read: {error}") from None


@lru_cache(maxsize=8)
def parse_table(data: bytes, name: str) -> TableFile:
    """Return the table that a file called `name` holds; ConfigError as for `read_table`."""
    try:
        return TableFile.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ConfigError(
            f"{name} is no table of measured times: {where}: {first['msg']}"
        ) from None


def write_table(path: Path, table: TableFile) -> None:
    """Write a table, its folder included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(table.model_dump_json(indent=1) + "\n")
