"""Measured times of the GPU reductions, as the planner reads them. Pure; files: table_file.py."""

from bisect import bisect_left
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredTime:
    """The time of one reduction on its slowest rank."""

    algorithm: str
    reach: str
    world_size: int
    num_blocks: int
    num_bytes: int
    """Of the partial sum on one rank."""
    microseconds: float


@dataclass(frozen=True, slots=True)
class MeasuredTable:
    """Measured times of one kind of machine."""

    times: tuple[MeasuredTime, ...]

    def best(
        self, algorithm: str, reach: str, world_size: int, num_bytes: int, sm_budget: int
    ) -> tuple[int, float] | None:
        """Return (blocks, microseconds) of the fastest launch within the budget, None if the table
        has none. Of equally fast ones, that with the fewest blocks.
        """
        path = (algorithm, reach, world_size)
        times = sorted(
            (
                it
                for it in self.times
                if (it.algorithm, it.reach, it.world_size) == path and it.num_blocks <= sm_budget
            ),
            key=attrgetter("num_blocks", "num_bytes"),
        )
        found = [
            (_interpolate(list(series), num_bytes), num_blocks)
            for num_blocks, series in groupby(times, key=attrgetter("num_blocks"))
        ]
        if not found:
            return None
        microseconds, num_blocks = min(found)
        return num_blocks, microseconds


def _interpolate(series: list[MeasuredTime], num_bytes: int) -> float:
    """Return the time between two measured sizes on a line; beyond the largest, in proportion."""
    index = bisect_left(series, num_bytes, key=attrgetter("num_bytes"))
    if index == 0:
        return series[0].microseconds
    if index == len(series):
        return series[-1].microseconds * num_bytes / series[-1].num_bytes
    low, high = series[index - 1], series[index]
    share = (num_bytes - low.num_bytes) / (high.num_bytes - low.num_bytes)
    return low.microseconds + share * (high.microseconds - low.microseconds)
