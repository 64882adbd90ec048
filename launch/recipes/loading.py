"""What it costs a process to load a model: bytes of the checkpoint, seconds, memory."""

import ctypes
import gc
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import tokenweave
from launch.report import Table
from tokenfabric import World
from tokenweave.integrations.adapter import adapter_for
from tokenweave.integrations.checkpoint import Checkpoint
from tokenweave.integrations.loader import import_model_code
from tokenweave.integrations.unsharded import load_unsharded

_ROLLUP = Path("/proc/self/smaps_rollup")
# Of one tensor: a page that is not touched stays in the file.
_PAGE_BYTES = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadCost:
    """What one process paid for its model, or its share of one."""

    bytes_read: int
    """Bytes of the tensors, or parts of tensors, taken from the checkpoint, as stored there."""
    seconds: float
    """Until every weight was in memory."""
    memory_bytes: int | None
    """By how much the process's proportional set size grew; None where the kernel does not say."""


def load_share(
    directory: Path, world: World, dtype: torch.dtype
) -> tuple[Any, tuple[LoadCost, ...]]:
    """Load a checkpoint over the ranks; return this rank's model and every rank's cost. Collective.

    Raises:
        ConfigError: as `tokenweave.from_pretrained`.
    """
    import_model_code(directory)
    model, seconds, memory_bytes = _measured(
        lambda: tokenweave.from_pretrained(directory, world, dtype=dtype), meet=world.barrier
    )
    bytes_read = model.tokenweave.load_report.bytes_read
    unknown = math.nan if memory_bytes is None else memory_bytes
    # fp64 holds every count of bytes below 2^53.
    own = torch.tensor([[bytes_read, seconds, unknown]], dtype=torch.float64)
    rows = tokenweave.all_gather(own, world=world).tolist()
    return model, tuple(
        LoadCost(
            bytes_read=int(read),
            seconds=took_s,
            memory_bytes=None if math.isnan(kept) else int(kept),
        )
        for read, took_s, kept in rows
    )


def load_whole(directory: Path, dtype: torch.dtype) -> tuple[Any, LoadCost]:
    """Load all of a checkpoint in this process; return the model and its cost.

    Raises:
        ConfigError: as `load_unsharded`.
    """
    model, seconds, memory_bytes = _measured(lambda: load_unsharded(directory, dtype))
    used = model.state_dict().keys()
    with Checkpoint(directory) as checkpoint:
        stored = adapter_for(type(model)).stored(checkpoint)
        bytes_read = sum(stored.num_bytes(name) for name in stored.names if name in used)
    return model, LoadCost(bytes_read=bytes_read, seconds=seconds, memory_bytes=memory_bytes)


def total(costs: tuple[LoadCost, ...]) -> LoadCost:
    """Return what ranks that load at the same time pay together: sums, and the longest time."""
    kept = [cost.memory_bytes for cost in costs if cost.memory_bytes is not None]
    return LoadCost(
        bytes_read=sum(cost.bytes_read for cost in costs),
        seconds=max(cost.seconds for cost in costs),
        memory_bytes=sum(kept) if len(kept) == len(costs) else None,
    )


def loading_rows(dtype: str, ranks: tuple[LoadCost, ...], whole: LoadCost) -> list[tuple[str, ...]]:
    """Return one dtype's rows of `loading_table`."""
    named = [(f"rank {rank}", cost) for rank, cost in enumerate(ranks)]
    if len(ranks) > 1:
        named.append(("all ranks", total(ranks)))
    named.append(("one process, unsharded", whole))
    return [(dtype, name, *_cells(cost, whole.bytes_read)) for name, cost in named]


def loading_table(rows: list[tuple[str, ...]]) -> Table:
    """Return the table of what loading cost."""
    return Table(
        title="Loading",
        num_text_columns=2,
        columns=("dtype", "process", "read", "of the checkpoint", "time", "memory"),
        rows=tuple(rows),
        notes=(
            "Read: bytes of the tensors, or slices of them, taken from the safetensors files as "
            "stored there (for a GGUF file: from its converted copy), whether they came from the "
            "disk or from the page cache. Unsharded, that is the whole model; weights that need no "
            "conversion may stay mapped from the file.",
            "Memory: growth of the process's proportional set size (PSS: pages shared with others "
            "count in part), what was free given back before and after. Time: until every weight "
            "is in memory; the first load of a run may have to wait for the disk.",
        ),
    )


def _measured(
    load: Callable[[], Any], meet: Callable[[], None] | None = None
) -> tuple[Any, float, int | None]:
    """Return a model with the seconds, from when the ranks have met, and the memory it took."""
    before = _settled_bytes()
    if meet is not None:
        meet()
    start_s = time.perf_counter()
    model = load()
    _touch(model)
    seconds = time.perf_counter() - start_s
    after = _settled_bytes()
    return model, seconds, None if before is None or after is None else after - before


def _touch(model: torch.nn.Module) -> None:
    """Read every page of the weights: those that need no conversion may only be mapped so far."""
    for parameter in model.parameters():
        parameter.detach().flatten()[:: _PAGE_BYTES // parameter.element_size()].sum()


def _settled_bytes() -> int | None:
    """Return this process's size without memory that only waits to be used again."""
    gc.collect()
    # glibc's, on which torch is built. Without it a model could hide in what another one left.
    ctypes.CDLL(None).malloc_trim(0)
    return proportional_bytes()


def proportional_bytes(rollup: Path = _ROLLUP) -> int | None:
    """Return this process's proportional set size, None where the kernel does not tell it."""
    try:
        lines = rollup.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:")), None)


def _cells(cost: LoadCost, total_bytes: int) -> tuple[str, ...]:
    return (
        _size(cost.bytes_read),
        f"{cost.bytes_read / total_bytes:.0%}" if total_bytes else "-",
        f"{cost.seconds:.2f} s",
        "not known" if cost.memory_bytes is None else _size(cost.memory_bytes),
    )


def _size(num_bytes: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if abs(num_bytes) >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes / 1000:.1f} kB"
