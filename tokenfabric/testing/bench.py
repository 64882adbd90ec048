"""The one benchmark harness: providers over the same inputs, interleaved in one run.

The same code drifts by 20-50 % between runs on a shared machine, so nothing is ever compared across
runs: every round times every provider once, in an order that turns and reverses from round to
round, and a ratio is the median of the ratios of single rounds. The baseline is entered twice; how
far its two entries are apart (A/A) is what this machine cannot tell from nothing, and stands beside
every ratio.

A collective takes as long as on its slowest rank: all ranks meet before each timed call and the
time of a round is the maximum over ranks. Tables and files are written by bench_report.py.
"""

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Call = Callable[[], object]
Check = Callable[[str, Any], None]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A provider with an untimed step before each call, such as refilling an input it destroys."""

    prepare: Callable[[], None]
    call: Call

    def __call__(self) -> object:
        self.prepare()
        return self.call()


class Ranks(Protocol):
    """How the ranks of a measurement meet and agree."""

    def barrier(self) -> None:
        """Return when all ranks have called it, on all of them as nearly at once as possible."""

    def maximum(self, values: np.ndarray) -> np.ndarray:
        """Return the elementwise maximum of fp64 `values` over ranks, on every rank."""


class OneRank:
    """A measurement in this process alone."""

    def barrier(self) -> None:
        pass

    def maximum(self, values: np.ndarray) -> np.ndarray:
        return values


class WorldRanks:
    """The ranks of a World: its barrier before each call, its process group for the results."""

    def __init__(self, world: Any):
        self.barrier = world.barrier
        self._group = world.group

    def maximum(self, values: np.ndarray) -> np.ndarray:
        import torch
        import torch.distributed as dist

        if self._group is None:
            return values
        tensor = torch.from_numpy(values.copy())
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._group)
        return tensor.numpy()


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """How long to measure."""

    seconds: float = 2.0
    """Wall-clock time for the timed rounds of one cell; the number of rounds follows from it."""
    min_rounds: int = 9
    """At least so many, whatever they take."""
    max_rounds: int = 400
    warmup_calls: int = 3
    """Untimed calls of every provider after its check (which is the first call of all)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Order statistics of a list of numbers."""

    median: float
    p25: float
    p75: float
    min: float
    max: float

    @classmethod
    def of(cls, values: np.ndarray) -> "Spread":
        p25, median, p75 = (float(v) for v in np.percentile(values, (25, 50, 75)))
        return cls(
            median=median, p25=p25, p75=p75, min=float(values.min()), max=float(values.max())
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """The result of one measurement: one problem, all providers."""

    labels: Mapping[str, Any]
    """What was measured: tokens, hidden, dtype, ranks, ..."""
    baseline: str
    num_rounds: int
    seconds: Mapping[str, Spread]
    """Time of one call, per provider; of a collective, on its slowest rank."""
    speedup: Mapping[str, Spread]
    """Baseline time / provider time of the same round, per provider other than the baseline."""
    baseline_again: Spread
    """The same ratio for the second entry of the baseline: what equal code looks like here."""


def measure(
    providers: Mapping[str, Call | Prepared],
    *,
    baseline: str,
    check: Check,
    labels: Mapping[str, Any],
    ranks: Ranks | None = None,
    budget: Budget | None = None,
    calls_per_sample: int = 1,
    prime: bool = True,
    finish: Callable[[], None] | None = None,
) -> Cell:
    """Time every provider on one problem. Collective when `ranks` has several.

    Args:
        providers: name -> callable without arguments, all bound to the same inputs, in the same
            order on every rank; with an untimed step before each call when it is `Prepared`.
        baseline: the provider that the ratios refer to; it is timed twice per round.
        check: called as `check(name, result)` with the first result of each provider before
            anything is timed; raises when the result is wrong.
        labels: names the problem in tables and files.
        ranks: how ranks meet; default this process alone.
        budget: how long to measure.
        calls_per_sample: calls between two readings of the clock; more than 1 only for calls so
            short that the clock (about 0.05 us) or the meeting of the ranks would show; a
            `Prepared` one then runs its untimed step once for all of them.
        prime: one untimed call before each sample, so that a provider finds its own data in the
            caches and not what the provider before it left there.
        finish: waits for what calls have only enqueued; part of the time that is measured.

    Raises:
        KeyError: `baseline` is not a provider.
        ValueError: `calls_per_sample` is not positive.
    """
    if baseline not in providers:
        raise KeyError(f"baseline {baseline!r} is not among the providers {list(providers)}")
    if calls_per_sample < 1:
        raise ValueError(f"calls_per_sample must be at least 1, got {calls_per_sample}")
    ranks = OneRank() if ranks is None else ranks
    budget = Budget() if budget is None else budget
    for name, call in providers.items():
        ranks.barrier()
        check(name, call())
    names = [*providers, baseline]
    calls = [providers[name] for name in names]

    def sample(call: Call | Prepared) -> float:
        if prime:
            call()
            if finish is not None:
                finish()
        if isinstance(call, Prepared):
            call.prepare()
            call = call.call
        ranks.barrier()
        start_ns = time.perf_counter_ns()
        for _ in range(calls_per_sample):
            call()
        if finish is not None:
            finish()
        return (time.perf_counter_ns() - start_ns) * 1e-9 / calls_per_sample

    with _no_garbage_collection():
        for call in calls:
            for _ in range(budget.warmup_calls):
                ranks.barrier()
                call()
        # One untimed round says how many fit; every rank must come to the same number.
        start_s = time.perf_counter()
        for call in calls:
            sample(call)
        round_s = float(ranks.maximum(np.array([time.perf_counter() - start_s]))[0])
        num_rounds = _clamp(int(budget.seconds / round_s), budget.min_rounds, budget.max_rounds)
        seconds = np.empty((num_rounds, len(calls)))
        for index in range(num_rounds):
            for position in round_order(index, len(calls)):
                seconds[index, position] = sample(calls[position])
    seconds = ranks.maximum(seconds)
    ratios = seconds[:, names.index(baseline), None] / seconds
    return Cell(
        labels=dict(labels),
        baseline=baseline,
        num_rounds=num_rounds,
        seconds={name: Spread.of(seconds[:, i]) for i, name in enumerate(providers)},
        speedup={
            name: Spread.of(ratios[:, i]) for i, name in enumerate(providers) if name != baseline
        },
        baseline_again=Spread.of(ratios[:, -1]),
    )


def round_order(round_index: int, num_providers: int) -> list[int]:
    """Order of the providers in a round: forwards and backwards (ABBA) from a start that moves on.

    Drift within a round then hits every provider from both sides, and none is always first.
    Example, 3 providers: 012, 210, 120, 021, 201, 102.
    """
    start = round_index // 2 % num_providers
    order = [(start + i) % num_providers for i in range(num_providers)]
    return order[::-1] if round_index % 2 else order


def _clamp(value: int, low: int, high: int) -> int:
    return max(low, min(value, high))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
