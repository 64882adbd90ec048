"""When everything of a schedule ran, simulated or measured. Pure."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tokenfabric.schedule import Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelSpan:
    """One kernel of a stage, in seconds from the start of the schedule."""

    name: str
    start_s: float
    end_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSpan:
    """One stage, in seconds from the start of the schedule."""

    stage: Stage
    start_s: float
    end_s: float
    kernels: tuple[KernelSpan, ...] = ()


@dataclass(frozen=True, slots=True)
class Timeline:
    """Spans in the order of the schedule's stages."""

    spans: tuple[StageSpan, ...]

    @property
    def makespan_s(self) -> float:
        """When the last stage ended."""
        return max((span.end_s for span in self.spans), default=0.0)

    def busy_s(self, resource: str) -> float:
        """Return how long a resource was busy."""
        return sum(
            span.end_s - span.start_s for span in self.spans if span.stage.resource == resource
        )

    @property
    def communication_s(self) -> float:
        """How long communication ran, summed over the ranks that send."""
        return sum(_length(_merged(it)) for it in self._by_rank(is_communication=True).values())

    @property
    def exposed_s(self) -> float:
        """How long a rank's communication ran while that rank computed nothing, summed."""
        computing = self._by_rank(is_communication=False)
        return sum(
            _length(merged := _merged(intervals))
            - _overlap(merged, _merged(computing.get(rank, ())))
            for rank, intervals in self._by_rank(is_communication=True).items()
        )

    @property
    def overlap_ratio(self) -> float:
        """The share of the communication beside which something was computed; 1.0 if there is
        none.
        """
        total_s = self.communication_s
        return 1.0 if total_s == 0.0 else 1.0 - self.exposed_s / total_s

    def _by_rank(self, *, is_communication: bool) -> dict[str, list[tuple[float, float]]]:
        """Return the spans of either kind by rank; a link's belong to the rank that sends."""
        found: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for span in self.spans:
            if is_communication_stage(span.stage) == is_communication and span.end_s > span.start_s:
                rank = " ".join(span.stage.resource.split()[:2])
                found[rank].append((span.start_s, span.end_s))
        return found


def is_communication_stage(stage: Stage) -> bool:
    """Return whether a stage moves data between ranks: a link's, or a kernel's that holds SMs."""
    return not stage.resource.endswith(" compute") or any(it.held_sms for it in stage.kernels)


def _merged(intervals: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    result: list[tuple[float, float]] = []
    for start, end in sorted(intervals):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((start, end))
    return result


def _length(intervals: Sequence[tuple[float, float]]) -> float:
    return sum(end - start for start, end in intervals)


def _overlap(first: Sequence[tuple[float, float]], second: Sequence[tuple[float, float]]) -> float:
    """Return the common length of two lists of disjoint intervals, each in order."""
    total, i, j = 0.0, 0, 0
    while i < len(first) and j < len(second):
        total += max(0.0, min(first[i][1], second[j][1]) - max(first[i][0], second[j][0]))
        if first[i][1] <= second[j][1]:
            i += 1
        else:
            j += 1
    return total
