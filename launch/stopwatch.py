"""How long a call takes on the slowest of the ranks: by the clock on CPUs, by events on GPUs."""

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from tokenfabric.testing.bench import WorldRanks

if TYPE_CHECKING:
    from tokenfabric import World

_MIN_CALLS, _MAX_CALLS = 3, 200
_WARM_UP = 2


class Stopwatch:
    """Times calls that all ranks make together."""

    def __init__(self, world: "World", budget_s: float) -> None:
        """Take the ranks, and about how long each measurement may take."""
        self._ranks, self._device, self._budget_s = WorldRanks(world), world.device, budget_s

    def seconds(self, call: Callable[[], object]) -> float:
        """Return the median over calls of the slowest rank's time. Collective."""
        for _ in range(_WARM_UP):
            self._ranks.barrier()
            call()
        trial_s = self._largest([self._timed(call)])[0]
        count = max(_MIN_CALLS, min(int(self._budget_s / max(trial_s, 1e-9)), _MAX_CALLS))
        times_s = []
        for _ in range(count):
            self._ranks.barrier()
            times_s.append(self._timed(call))
        return statistics.median(self._largest(times_s))

    def _largest(self, times_s: list[float]) -> list[float]:
        return [float(it) for it in self._ranks.maximum(np.array(times_s))]

    def _timed(self, call: Callable[[], object]) -> float:
        if self._device.type != "cuda":
            start_s = time.perf_counter()
            call()
            return time.perf_counter() - start_s
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        stop = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        torch.cuda.synchronize(self._device)
        start.record()
        call()
        stop.record()
        stop.synchronize()
        return float(start.elapsed_time(stop)) * 1e-3
