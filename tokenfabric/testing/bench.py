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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tokenfabric.testing.bench_cell import Cell

Call = Callable[[], object]
Check = Callable[[str, Any], None]
Passes = Callable[[], Iterator[object]]
"""A call of several passes, one after the other: yields what it has made at the end of each."""

# Caches are filled in milliseconds: before a call this long, an untimed one changes nothing.
_LONG_CALL_S = 1.0


@dataclass(frozen=True, slots=True)
class Prepared:
    """A provider with an untimed step before each call, such as refilling an input it destroys."""

    prepare: Callable[[], None]
    call: Call


@dataclass(frozen=True, slots=True)
class SameAs:
    """A provider that does, step for step, what another does: measured once, under that name."""

    name: str


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
    """Untimed calls of every provider after its check; none where all take a second or more."""


def measure(
    providers: Mapping[str, Call | Prepared | SameAs],
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
            caches and not what the provider before it left there; not where all calls take a second
            or more.
        finish: waits for what calls have only enqueued; part of the time that is measured.

    Raises:
        KeyError: `baseline`, or what a provider is the same as, is not measured.
        ValueError: `calls_per_sample` is not positive.
    """
    if calls_per_sample < 1:
        raise ValueError(f"calls_per_sample must be at least 1, got {calls_per_sample}")
    ours = {
        name: it if isinstance(it, SameAs) else _one_pass(it, calls_per_sample)
        for name, it in providers.items()
    }
    return _measure(ours, baseline, check, [labels], ranks, budget, prime, finish)[0]


def measure_passes(
    providers: Mapping[str, Passes | SameAs],
    *,
    baseline: str,
    check: Check,
    labels: Sequence[Mapping[str, Any]],
    ranks: Ranks | None = None,
    budget: Budget | None = None,
) -> list[Cell]:
    """Time calls of several passes at the end of each. Collective when `ranks` has several.

    Args:
        providers: name -> callable that yields once for each of the labels.
        labels: of the cells: the first is for the first pass, the next for the first two, ...
        baseline, check, ranks, budget: as for `measure`; checked is what the last pass yields.

    Returns:
        A cell for each of the labels, all of the same calls.

    Raises:
        KeyError: `baseline`, or what a provider is the same as, is not measured.
        ValueError: a provider has not as many passes as there are labels.
    """
    ours = {
        name: it if isinstance(it, SameAs) else _all_passes(it) for name, it in providers.items()
    }
    return _measure(ours, baseline, check, labels, ranks, budget, True, None)


@dataclass(frozen=True, slots=True)
class _Timed:
    """A provider as it is run."""

    prepare: Callable[[], None]
    passes: Callable[[int], Iterator[object]]
    """Its passes, of so many calls one after the other."""
    calls_per_sample: int

    def once(self) -> object:
        """Run it untimed and return its last result."""
        self.prepare()
        return [*self.passes(1)][-1]


def _all_passes(provider: Passes) -> _Timed:
    return _Timed(lambda: None, lambda _: provider(), 1)


def _one_pass(provider: Call | Prepared, calls_per_sample: int) -> _Timed:
    if not isinstance(provider, Prepared):
        provider = Prepared(lambda: None, provider)
    call = provider.call

    def passes(count: int) -> Iterator[object]:
        for _ in range(count - 1):
            call()
        yield call()

    return _Timed(provider.prepare, passes, calls_per_sample)


def _measure(
    providers: Mapping[str, _Timed | SameAs],
    baseline: str,
    check: Check,
    labels: Sequence[Mapping[str, Any]],
    ranks: Ranks | None,
    budget: Budget | None,
    prime: bool,
    finish: Callable[[], None] | None,
) -> list[Cell]:
    timed = {name: it for name, it in providers.items() if not isinstance(it, SameAs)}
    same_as = {name: it.name for name, it in providers.items() if isinstance(it, SameAs)}
    for name in (baseline, *same_as.values()):
        if name not in timed:
            raise KeyError(f"{name!r} is not among the measured providers {list(timed)}")
    ranks = OneRank() if ranks is None else ranks
    budget = Budget() if budget is None else budget
    finish = (lambda: None) if finish is None else finish
    names, entries = list(timed), [*timed.values(), timed[baseline]]

    def sample(provider: _Timed) -> list[float]:
        provider.prepare()
        passes, ends_ns = provider.passes(provider.calls_per_sample), []
        ranks.barrier()
        start_ns = time.perf_counter_ns()
        for _ in passes:
            finish()
            ends_ns.append(time.perf_counter_ns())
        if len(ends_ns) != len(labels):
            raise ValueError(f"a call has {len(ends_ns)} passes, there are {len(labels)} labels")
        return [(end_ns - start_ns) * 1e-9 / provider.calls_per_sample for end_ns in ends_ns]

    def primed_sample(provider: _Timed) -> list[float]:
        provider.once()
        finish()
        return sample(provider)

    first_s = []
    for name, provider in timed.items():
        ranks.barrier()
        start_s = time.perf_counter()
        result = provider.once()
        finish()
        first_s.append(time.perf_counter() - start_s)
        check(name, result)
        del result
    # Every rank must come to the same decision and the same number of rounds.
    slowest_s = ranks.maximum(np.array(first_s))
    is_long = bool(slowest_s.min() >= _LONG_CALL_S)
    take = primed_sample if prime and not is_long else sample
    with _no_garbage_collection():
        if is_long:
            round_s = float(slowest_s.sum() + slowest_s[names.index(baseline)])
        else:
            for provider in entries:
                for _ in range(budget.warmup_calls):
                    ranks.barrier()
                    provider.once()
            # One untimed round says how many fit.
            start_s = time.perf_counter()
            for provider in entries:
                take(provider)
            round_s = float(ranks.maximum(np.array([time.perf_counter() - start_s]))[0])
        num_rounds = max(budget.min_rounds, min(int(budget.seconds / round_s), budget.max_rounds))
        seconds = np.empty((num_rounds, len(entries), len(labels)))
        for index in range(num_rounds):
            for position in round_order(index, len(entries)):
                seconds[index, position] = take(entries[position])
    seconds = ranks.maximum(seconds)
    columns = {name: names.index(same_as.get(name, name)) for name in providers}
    return [
        Cell.of_rounds(seconds[:, :, index], columns, baseline, of_pass, same_as)
        for index, of_pass in enumerate(labels)
    ]


def round_order(round_index: int, num_providers: int) -> list[int]:
    """Order of the providers in a round: forwards and backwards (ABBA) from a start that moves on.

    Drift within a round then hits every provider from both sides, and none is always first.
    Example, 3 providers: 012, 210, 120, 021, 201, 102.
    """
    start = round_index // 2 % num_providers
    order = [(start + i) % num_providers for i in range(num_providers)]
    return order[::-1] if round_index % 2 else order


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
