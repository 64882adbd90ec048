"""What a measurement is kept as: medians and spreads of its rounds. bench.py measures."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


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
    same_as: Mapping[str, str] = field(default_factory=dict)
    """Providers that were not measured under their own name, and whose figures stand there."""

    @classmethod
    def of_rounds(
        cls,
        seconds: np.ndarray,
        columns: Mapping[str, int],
        baseline: str,
        labels: Mapping[str, Any],
        same_as: Mapping[str, str],
    ) -> "Cell":
        """Return the cell of times [round, entry], the last of which is the baseline again.

        Args:
            seconds: of one call.
            columns: which entry each provider's times are.
            baseline, labels, same_as: see the fields.
        """
        ratios = seconds[:, columns[baseline], None] / seconds
        return cls(
            labels=dict(labels),
            baseline=baseline,
            num_rounds=len(seconds),
            seconds={name: Spread.of(seconds[:, i]) for name, i in columns.items()},
            speedup={
                name: Spread.of(ratios[:, i]) for name, i in columns.items() if name != baseline
            },
            baseline_again=Spread.of(ratios[:, -1]),
            same_as=dict(same_as),
        )
