"""`tokenfabric bench`: what GEMMs, attention, copies and the fused reduction take on this machine.

All ranks measure at once, as they compute at once; the slowest counts. From the times follow the
rates of the planner's device table (tokenweave/tuning.py); with a file to write to, they are stored
under the key of this very machine. The same code runs on CPU ranks and on GPUs; on GPUs it has not
been run.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional

import tokenweave
from launch.recipes.machine_key import base_table, machine_key, provenance
from launch.recipes.precision import choose_dtype
from launch.report import Reporter, Table
from launch.stopwatch import Stopwatch
from tokenfabric import World
from tokenweave.config import WeaveConfig
from tokenweave.device import Device
from tokenweave.device_tables import load_device, sources, table_of
from tokenweave.dry_run import DryRun
from tokenweave.passes import Passes, PassShape
from tokenweave.plan import split_rows
from tokenweave.tuned_tables import TunedTable, write_tuned
from tokenweave.tuning import (
    AttentionTime,
    GemmTime,
    Measured,
    ReductionTime,
    gemm_error,
    refined,
)

_LAYERS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """What is measured."""

    gemms: tuple[tuple[int, int], ...]
    """(n, k) of [rows, k] x [k, n]."""
    rows: tuple[int, ...]
    attention: tuple[int, ...]
    """Tokens."""
    heads: int
    head_dim: int
    hidden: int
    reduced: tuple[int, ...]
    """Tokens."""
    copied: int
    """Bytes."""


_ON_CPU = Sizes(
    gemms=((1024, 1024), (1792, 1024), (1024, 1792)),
    rows=(16, 64, 128, 256, 512),
    attention=(256, 1024),
    heads=8,
    head_dim=64,
    hidden=1024,
    reduced=(8, 64, 256, 1024),
    copied=1 << 25,
)
# A GPU needs more of everything to be busy.
_ON_GPU = Sizes(
    gemms=((8192, 8192), (14336, 8192), (8192, 14336)),
    rows=(16, 64, 128, 256, 512, 1024, 2048, 4096),
    attention=(512, 2048, 8192),
    heads=32,
    head_dim=128,
    hidden=8192,
    reduced=(8, 64, 256, 1024, 4096, 16384),
    copied=1 << 30,
)


def run(
    world: World,
    reporter: Reporter,
    *,
    dtype: str = "auto",
    seconds: float = 20.0,
    output: str | None = None,
    sizes: Sizes | None = None,
) -> bool:
    """Measure, show what a device table would say, and store it. Collective.

    Args:
        world: the ranks.
        reporter: gets a table.
        dtype: "auto", "bf16" or "fp32".
        seconds: about how long to measure.
        output: the file of device tables to put the result into; None: it is only shown.
        sizes: what to measure; default: what suits the device.

    Raises:
        ConfigError: no table describes this GPU, the times fit no line, or the file cannot be
            written.
    """
    started_s = time.perf_counter()
    chosen = choose_dtype(dtype)
    base = load_device(base_table(world.device))
    suited = _ON_GPU if world.device.type == "cuda" else _ON_CPU
    measured = _measure(world, chosen, seconds, sizes or suited)
    numbers = refined(base, measured, world.size)
    elapsed_s = time.perf_counter() - started_s
    key = machine_key(world, chosen)
    table = TunedTable(
        key=key,
        base=base.name,
        provenance=provenance(world, elapsed_s),
        numbers=_numbers(base.name, numbers, world),
    )
    reporter.table(_table(str(key), base, table.device(), measured, elapsed_s))
    if output is not None and world.rank == 0:
        write_tuned(Path(output), table)
        reporter.note(f"stored in {output}")
    return True


def _measure(world: World, dtype: torch.dtype, seconds: float, sizes: Sizes) -> Measured:
    count = len(sizes.gemms) * len(sizes.rows) + len(sizes.attention) + 2 * len(sizes.reduced) + 3
    watch = Stopwatch(world, seconds / count)
    with torch.inference_mode():
        gemms = tuple(_gemms(watch, sizes, world.device, dtype))
        attention = tuple(_attention(watch, sizes, world.device, dtype))
        reductions = tuple(_reductions(watch, sizes, world, dtype)) if world.size > 1 else ()
        source = torch.empty(sizes.copied, dtype=torch.uint8, device=world.device).fill_(1)
        target = torch.empty_like(source)
        small = torch.ones(1, sizes.hidden, dtype=dtype, device=world.device)
        copy_s = watch.seconds(lambda: target.copy_(source))
        elementwise_s = watch.seconds(lambda: functional.silu(small))
    return Measured(
        gemms=gemms,
        attention=attention,
        reductions=reductions,
        copied_bytes=2 * sizes.copied,
        copy_s=copy_s,
        elementwise_s=elementwise_s,
        stage_s=_stage_s(world),
    )


def _gemms(
    watch: Stopwatch, sizes: Sizes, device: torch.device, dtype: torch.dtype
) -> Iterator[GemmTime]:
    for n, k in sizes.gemms:
        weight = torch.randn(n, k, device=device, dtype=dtype)
        for rows in sizes.rows:
            x = torch.randn(rows, k, device=device, dtype=dtype)
            yield GemmTime(rows=rows, n=n, k=k, seconds=watch.seconds(_linear(x, weight)))


def _linear(x: torch.Tensor, weight: torch.Tensor) -> Callable[[], object]:
    return lambda: functional.linear(x, weight)


def _attention(
    watch: Stopwatch, sizes: Sizes, device: torch.device, dtype: torch.dtype
) -> Iterator[AttentionTime]:
    for tokens in sizes.attention:
        shape = (1, sizes.heads, tokens, sizes.head_dim)
        q, k, v = (torch.randn(shape, device=device, dtype=dtype) for _ in range(3))
        yield AttentionTime(
            tokens=tokens,
            columns=sizes.heads * sizes.head_dim,
            seconds=watch.seconds(_causal(q, k, v)),
        )


def _causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Callable[[], object]:
    return lambda: functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def _reductions(
    watch: Stopwatch, sizes: Sizes, world: World, dtype: torch.dtype
) -> Iterator[ReductionTime]:
    weight = torch.ones(sizes.hidden, device=world.device, dtype=dtype)
    for tokens in sizes.reduced:
        x = torch.randn(tokens, sizes.hidden, device=world.device, dtype=dtype)
        residual = torch.zeros_like(x)
        for algorithm in ("one_shot", "two_shot"):
            yield ReductionTime(
                algorithm=algorithm,
                tokens=tokens,
                hidden=sizes.hidden,
                seconds=watch.seconds(_fused(world, x, residual, weight, algorithm)),
            )


def _fused(
    world: World, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, algorithm: str
) -> Callable[[], object]:
    rows = x.shape[0]
    out = torch.empty_like(x)
    if algorithm == "one_shot":
        return lambda: tokenweave.allreduce_rmsnorm(
            x, residual, weight, world=world, algorithm="one_shot", out=out, residual_out=residual
        )
    # As passes run it: every rank keeps the residual of the rows that it reduces.
    start, stop = split_rows(rows, world.size)[world.rank]
    own = residual[start:stop].clone()
    return lambda: tokenweave.allreduce_rmsnorm(
        x,
        own,
        weight,
        world=world,
        residual_layout="row_sharded",
        algorithm="two_shot",
        out=out,
        residual_out=own,
    )


def _stage_s(world: World) -> float:
    """Return the executor's own time for a stage of a split plan."""
    passes = Passes(world, WeaveConfig(split=64, overlap="off"))
    shape = PassShape(
        num_sequences=1, num_tokens=128, hidden=64, dtype=torch.float32, num_layers=_LAYERS
    )
    plan = passes.plan(shape)
    run = DryRun(plan.num_blocks, passes)
    walks_s = []
    for _ in range(20):
        start_s = time.perf_counter()
        run.walk(plan)
        walks_s.append(time.perf_counter() - start_s)
    return sorted(walks_s)[len(walks_s) // 2] / len(plan.stages())


def _numbers(base: str, found: Mapping[str, float], world: World) -> dict[str, object]:
    """Return a whole table: what was measured, and the rest as the base has it."""
    where = "GPUs" if world.device.type == "cuda" else "CPU ranks"
    numbers = table_of(base)
    for name, number in numbers.items():
        if name in found:
            numbers[name] = {
                "value": float(f"{found[name]:.4g}"),
                "source": f"measured on {world.size} {where} by tokenfabric bench",
            }
        elif not number["source"].startswith("as "):
            numbers[name] = {**number, "source": f"as {base}.json: {number['source']}"}
    return numbers


def _table(title: str, base: Device, tuned: Device, measured: Measured, elapsed_s: float) -> Table:
    names = [name for name in sources(base.name) if getattr(base, name) != getattr(tuned, name)]
    before, after = (gemm_error(it, measured.gemms) for it in (base, tuned))
    return Table(
        title=title,
        columns=("number", f"table {base.name}", "measured"),
        rows=tuple((name, f"{getattr(base, name):.4g}", f"{getattr(tuned, name):.4g}")
                   for name in names),
        notes=(
            f"{len(measured.gemms)} GEMMs are off by {after:.0%} in the median with the measured "
            f"numbers, by {before:.0%} with the table's.",
            f"Took {elapsed_s:.0f} s.",
        ),
    )  # fmt: skip
