"""bench.py: order, counts, ratios and the per-round maximum, on a clock that the providers move."""

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tokenfabric.testing import bench
from tokenfabric.testing.bench import Budget, SameAs, measure, measure_passes, round_order
from tokenfabric.testing.bench_cell import Cell, Spread
from tokenfabric.testing.bench_report import (
    describe_environment,
    environment,
    format_seconds,
    markdown_table,
    read_cells,
    write_jsonl,
)


class FakeClock:
    """Stands still until a provider moves it."""

    def __init__(self) -> None:
        self.now_ns = 0

    def perf_counter_ns(self) -> int:
        return self.now_ns

    def perf_counter(self) -> float:
        return self.now_ns * 1e-9

    def provider(self, *durations_us: float) -> Callable[[], str]:
        """A provider that takes these times in turn."""
        calls = iter(range(10**9))

        def call() -> str:
            self.now_ns += round(1000 * durations_us[next(calls) % len(durations_us)])
            return "result"

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    clock = FakeClock()
    monkeypatch.setattr(bench, "time", clock)
    return clock


def accept(name: str, result: object) -> None:
    assert result == "result"


def test_round_order_gives_every_provider_every_place() -> None:
    """Each round is a permutation; over a cycle every provider has each place equally often."""
    num_providers = 5
    orders = [round_order(i, num_providers) for i in range(2 * num_providers)]
    assert all(sorted(order) == list(range(num_providers)) for order in orders)
    assert all(orders[i + 1] == orders[i][::-1] for i in range(0, len(orders), 2))
    for place in range(num_providers):
        assert set(Counter(order[place] for order in orders).values()) == {2}
    assert orders[0] == [0, 1, 2, 3, 4]


def test_times_ratios_and_the_second_baseline(clock: FakeClock) -> None:
    """Medians are per call, speedups are baseline over provider, the baseline equals itself."""
    cell = measure(
        {"slow": clock.provider(400.0), "fast": clock.provider(100.0)},
        baseline="slow",
        check=accept,
        labels={"tokens": 4},
        budget=Budget(seconds=0.01, min_rounds=3),
        calls_per_sample=2,
    )
    assert cell.seconds["slow"].median == pytest.approx(400e-6)
    assert cell.seconds["fast"].median == pytest.approx(100e-6)
    assert cell.speedup["fast"].median == pytest.approx(4.0)
    assert cell.baseline_again.median == pytest.approx(1.0)
    assert cell.speedup.keys() == {"fast"}
    # A round is 2 calls of 400 us twice and of 100 us once, each after one priming call.
    assert cell.num_rounds == int(0.01 / (3 * (400 + 400 + 100) * 1e-6))


def test_a_ratio_compares_times_of_the_same_round(clock: FakeClock) -> None:
    """Drift that hits all providers of a round leaves every ratio alone."""
    drift = (1, 1, 1, 9, 9)

    def drifting(duration_us: int, entries: int) -> Callable[[], str]:
        # Called once for the check, then `entries` times in the trial and in each timed round.
        count = itertools.count(-1 - entries)

        def call() -> str:
            factor = drift[next(count) // entries % len(drift)]
            return clock.provider(duration_us * factor)()

        return call

    cell = measure(
        {"a": drifting(100, 2), "b": drifting(50, 1)},
        baseline="a",
        check=accept,
        labels={},
        budget=Budget(seconds=0.0, min_rounds=10, warmup_calls=0),
        prime=False,
    )
    assert cell.num_rounds == 10
    assert cell.seconds["a"].max == pytest.approx(9 * cell.seconds["a"].min)
    assert cell.speedup["b"].min == pytest.approx(2.0)
    assert cell.speedup["b"].max == pytest.approx(2.0)


def test_the_time_of_a_round_is_that_of_the_slowest_rank(clock: FakeClock) -> None:
    """The maximum over ranks is taken per round, before any median; ranks meet each time."""

    class TwoRanks:
        def __init__(self) -> None:
            self.meetings = 0

        def barrier(self) -> None:
            self.meetings += 1

        def maximum(self, values: np.ndarray) -> np.ndarray:
            # The other rank takes 300 us in even rounds and 1 us in odd ones.
            other = np.where(np.arange(len(values)) % 2 == 0, 300e-6, 1e-6)
            return np.maximum(values, other.reshape(-1, *(1,) * (values.ndim - 1)))

    ranks = TwoRanks()
    cell = measure(
        {"x": clock.provider(100.0)},
        baseline="x",
        check=accept,
        labels={},
        ranks=ranks,
        budget=Budget(seconds=0.0, min_rounds=4, warmup_calls=2),
    )
    assert cell.seconds["x"].max == pytest.approx(300e-6)
    assert cell.seconds["x"].min == pytest.approx(100e-6)
    # One meeting for the check, two entries with 2 warm-ups, 1 trial and 4 timed samples each.
    assert ranks.meetings == 1 + 2 * (2 + 1 + 4)


def test_a_wrong_result_is_found_before_anything_is_timed(clock: FakeClock) -> None:
    """The check of every provider comes first and its error is not caught."""

    def check(name: str, result: object) -> None:
        if name == "wrong":
            raise AssertionError("off by one")

    with pytest.raises(AssertionError, match="off by one"):
        measure(
            {"right": clock.provider(1.0), "wrong": clock.provider(1.0)},
            baseline="right",
            check=check,
            labels={},
        )
    assert clock.now_ns == 2000


def test_long_calls_are_not_run_untimed(clock: FakeClock) -> None:
    """Calls of a second run for their check and in timed rounds; others are primed."""
    second_us = 1e6
    for shorter_us, is_long in ((1.0, True), (0.9, False)):
        start_ns = clock.now_ns
        cell = measure(
            {"a": clock.provider(2 * second_us), "b": clock.provider(shorter_us * second_us)},
            baseline="a",
            check=accept,
            labels={},
            budget=Budget(seconds=0.0, min_rounds=3, warmup_calls=1),
        )
        assert cell.num_rounds == 3
        # A round is a, b and a again; the short cell has a warm-up, a trial and each sample twice.
        round_s, first_s = 4.0 + shorter_us, 2.0 + shorter_us
        rounds = 3 if is_long else 1 + 2 * (1 + 3)
        assert (clock.now_ns - start_ns) * 1e-9 == pytest.approx(first_s + rounds * round_s)


def test_long_calls_fill_the_budget_too(clock: FakeClock) -> None:
    """The number of rounds follows from the first calls, of which the baseline's counts twice."""
    cell = measure(
        {"a": clock.provider(2e6), "b": clock.provider(1e6)},
        baseline="a",
        check=accept,
        labels={},
        budget=Budget(seconds=36.0, min_rounds=3),
    )
    assert cell.num_rounds == 36 // (2 + 1 + 2)


def test_passes_of_one_call_are_timed_at_the_end_of_each(clock: FakeClock) -> None:
    """Each pass has a cell with the time from the start of the call; the last result is checked."""

    def passes(*durations_us: float) -> Callable[[], Iterator[str]]:
        calls = [clock.provider(duration_us) for duration_us in durations_us]

        def call() -> Iterator[str]:
            for index, advance in enumerate(calls):
                advance()
                yield f"pass {index}"

        return call

    checked = []
    forward, both = measure_passes(
        {"ring": passes(100.0, 300.0), "ours": passes(50.0, 150.0), "alias": SameAs("ours")},
        baseline="ring",
        check=lambda name, result: checked.append((name, result)),
        labels=[{"pass": "forward"}, {"pass": "both"}],
        budget=Budget(seconds=0.0, min_rounds=3),
    )
    assert checked == [("ring", "pass 1"), ("ours", "pass 1")]
    assert (forward.labels["pass"], both.labels["pass"]) == ("forward", "both")
    assert forward.seconds["ours"].median == pytest.approx(50e-6)
    assert both.seconds["ring"].median == pytest.approx(400e-6)
    assert both.speedup["alias"].median == pytest.approx(2.0)
    with pytest.raises(ValueError, match="2 passes, there are 1 labels"):
        measure_passes({"a": passes(1.0, 1.0)}, baseline="a", check=print, labels=[{}])


def test_what_is_the_same_is_measured_once_and_says_so(clock: FakeClock) -> None:
    """It is never called, has the figures of the other, and the table names that."""
    cell = measure(
        {"a": clock.provider(400.0), "b": clock.provider(100.0), "c": SameAs("b")},
        baseline="a",
        check=accept,
        labels={"tokens": 4},
        budget=Budget(seconds=0.0, min_rounds=2),
    )
    assert cell.same_as == {"c": "b"}
    assert cell.seconds["c"] == cell.seconds["b"]
    assert markdown_table([cell], ["tokens"]).splitlines()[-1] == (
        "| 4 | 400 us | 100 us, 4.00x (4.00-4.00) | = b | 1.00x (1.00-1.00) | 2 |"
    )


def test_mistakes_are_refused() -> None:
    """A baseline that is not measured and an empty sample are errors."""
    with pytest.raises(KeyError, match="gloo"):
        measure({"a": list}, baseline="gloo", check=accept, labels={})
    with pytest.raises(ValueError, match="calls_per_sample"):
        measure({"a": list}, baseline="a", check=accept, labels={}, calls_per_sample=0)
    with pytest.raises(KeyError, match="another"):
        measure({"a": list, "b": SameAs("another")}, baseline="a", check=accept, labels={})


def test_files_and_tables_hold_what_was_measured(tmp_path: Path) -> None:
    """A JSON line carries the machine, the rung and the cell; a table row its labels and ratios."""
    spread = Spread.of(np.array([1.0, 2.0, 4.0]))
    assert (spread.median, spread.p25, spread.min, spread.max) == (2.0, 1.5, 1.0, 4.0)
    us = Spread.of(np.array([38.1e-6]))
    cell = Cell(
        labels={"ranks": 2, "tokens": 16},
        baseline="gloo",
        num_rounds=7,
        seconds={"gloo": Spread.of(np.array([1.24e-3])), "ours": us},
        speedup={"ours": spread},
        baseline_again=Spread.of(np.array([1.01])),
    )
    facts = environment(Path(__file__).parent)
    path = tmp_path / "new" / "x.jsonl"
    write_jsonl(path, facts, [cell, cell])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 2
    assert lines[0]["rung"] == "measured on CPU ranks"
    assert lines[0]["environment"]["num_cores"] >= 1
    assert lines[0]["labels"] == {"ranks": 2, "tokens": 16}
    assert lines[0]["speedup"]["ours"]["p75"] == 3.0
    assert markdown_table([cell], ["ranks", "tokens"]).splitlines() == [
        "| ranks | tokens | gloo | ours | A/A | rounds |",
        "| --- | --- | --- | --- | --- | --- |",
        "| 2 | 16 | 1.24 ms | 38.1 us, 2.00x (1.50-3.00) | 1.01x (1.01-1.01) | 7 |",
    ]
    assert read_cells(path, facts) == [cell, cell]
    assert read_cells(path, dataclasses.replace(facts, commit="another")) == []
    assert read_cells(tmp_path / "none.jsonl", facts) == []
    assert facts.date in describe_environment(facts)
    assert facts.month == facts.date[:4] + facts.date[5:7]
    assert set(facts.machine) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.12e-7, "0.412 us"), (3.81e-5, "38.1 us"), (1.24e-3, "1.24 ms"), (0.131, "131 ms")],
)
def test_seconds_have_three_digits_and_a_unit(seconds: float, text: str) -> None:
    """Times are readable over six orders of magnitude."""
    assert format_seconds(seconds) == text
