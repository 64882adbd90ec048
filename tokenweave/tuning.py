"""From measured times to the rates of a device: what `tokenfabric bench --tune` refines. Pure.

Every constant is one of a straight line, start + work / rate, fitted to relative errors; which work
a measurement is, the same formulas say that the planner uses (waves.py, reduction_cost.py). What is
not measured stays as the device's own table has it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from tokenfabric.errors import ConfigError
from tokenfabric.kernel import num_waves
from tokenweave.device import Device
from tokenweave.reduction_cost import one_shot_s, two_shot_bytes
from tokenweave.waves import Gemm, TiledGemm

_BYTES = 2
"""Of an element, as the planner counts: where fp32 was measured, its rates are halved so."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GemmTime:
    """A GEMM [rows, k] x [k, n], on the slowest rank, all of them at once."""

    rows: int
    n: int
    k: int
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionTime:
    """Causal attention of one sequence over itself."""

    tokens: int
    columns: int
    """Of the queries: heads times head_dim."""
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ReductionTime:
    """A fused reduction of [tokens, hidden], on the slowest rank."""

    algorithm: str
    tokens: int
    hidden: int
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What was measured on a machine, in seconds."""

    gemms: tuple[GemmTime, ...]
    attention: tuple[AttentionTime, ...]
    reductions: tuple[ReductionTime, ...]
    """None for one rank."""
    copied_bytes: int
    """Read and written, by one rank beside the others' copies."""
    copy_s: float
    elementwise_s: float
    """Of a kernel that has next to nothing to do."""
    stage_s: float
    """The executor's own time for a stage of a plan, by dry run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """time = start_s + work / rate."""

    start_s: float
    rate: float
    worst: float
    """The largest relative error over the points."""


def fit_line(points: Sequence[tuple[float, float]]) -> Line:
    """Return the line through (work, seconds) with the least squares of relative errors.

    The start is no less than 0.

    Raises:
        ConfigError: fewer than two different works, or more of it takes no more time.
    """
    if len({work for work, _ in points}) < 2:
        raise ConfigError(f"{len(points)} measurement(s) of one size give no rate: measure several")
    weights = [seconds**-2 for _, seconds in points]
    total = sum(weights)
    mean_x = sum(w * work for w, (work, _) in zip(weights, points, strict=True)) / total
    mean_y = sum(w * seconds for w, (_, seconds) in zip(weights, points, strict=True)) / total
    pairs = list(zip(weights, points, strict=True))
    slope = sum(w * (work - mean_x) * (seconds - mean_y) for w, (work, seconds) in pairs)
    slope /= sum(w * (work - mean_x) ** 2 for w, (work, _) in pairs)
    start_s = mean_y - slope * mean_x
    if start_s < 0.0:
        # Through the origin: the least squares of work * slope / seconds - 1.
        shares = [work / seconds for work, seconds in points]
        start_s, slope = 0.0, sum(shares) / sum(it * it for it in shares)
    if not slope > 0.0:
        raise ConfigError(
            "larger measurements took no more time than small ones: measure again on a machine "
            "that does nothing else"
        )
    worst = max(abs((start_s + work * slope) / seconds - 1.0) for work, seconds in points)
    return Line(start_s=start_s, rate=1.0 / slope, worst=worst)


def refined(base: Device, measured: Measured, world_size: int) -> Mapping[str, float]:
    """Return the numbers of a device that the measurements give, by their names in its table.

    Args:
        base: the device's own table: tile shapes, numbers of SMs, what is not measured.
        measured: the times.
        world_size: ranks that reduced.

    Raises:
        ConfigError: the times fit no line.
    """
    bandwidth = measured.copied_bytes / measured.copy_s
    gemm = fit_line(_gemm_work(replace(base, memory_bandwidth=bandwidth), measured.gemms))
    pairs = [
        (4.0 * it.tokens * (it.tokens + 1) / 2 * it.columns / base.num_sms, it.seconds)
        for it in measured.attention
    ]
    attention = fit_line(pairs)
    found = {
        "memory_bandwidth": bandwidth,
        "gemm_flops_per_sm": gemm.rate,
        "gemm_start_s": gemm.start_s,
        "attention_flops_per_sm": attention.rate,
        "attention_start_s": attention.start_s,
        "elementwise_start_s": measured.elementwise_s,
        # A block and a reduction: what the executor does between a kernel and the next.
        "join_s": 2 * measured.stage_s + base.join_s,
    }
    if world_size > 1:
        found |= _link(replace(base, memory_bandwidth=bandwidth), measured.reductions, world_size)
    return found


def gemm_error(device: Device, gemms: Sequence[GemmTime]) -> float:
    """Return the median relative error of a device's GEMM times against measured ones."""
    errors = []
    for it in gemms:
        kernel = TiledGemm(Gemm(name="g", n=it.n, k=it.k), device).kernel(it.rows)
        errors.append(abs(kernel.duration_s(device.num_sms) / it.seconds - 1.0))
    return median(errors)


def _gemm_work(device: Device, gemms: Sequence[GemmTime]) -> list[tuple[float, float]]:
    """Return (operations of one SM, seconds) of the GEMMs that memory does not bound."""
    points = []
    for it in gemms:
        kernel = TiledGemm(Gemm(name="g", n=it.n, k=it.k), device).kernel(it.rows)
        work_s = num_waves(kernel.tiles, device.num_sms) * (kernel.tile_s - device.tile_start_s)
        if it.seconds > 2 * kernel.memory_s:
            points.append((work_s * device.gemm_flops_per_sm, it.seconds))
    return points


def _link(
    device: Device, reductions: Sequence[ReductionTime], world_size: int
) -> Mapping[str, float]:
    two_shot = fit_line(
        [
            (
                float(two_shot_bytes(_BYTES * it.tokens * it.hidden, world_size, device)),
                it.seconds,
            )
            for it in reductions
            if it.algorithm == "two_shot"
        ]
    )
    alone = replace(device, link_bandwidth=two_shot.rate, one_shot_start_s=0.0)
    least = min((it for it in reductions if it.algorithm == "one_shot"), key=lambda it: it.tokens)
    moved_s = one_shot_s("fused", least.tokens, least.hidden, world_size, alone)
    return {
        "link_bandwidth": two_shot.rate,
        "two_shot_start_s": two_shot.start_s,
        "one_shot_start_s": max(0.0, least.seconds - moved_s),
        # The rate is that of reductions alone.
        "isolated_link_slowdown": 1.0,
    }
