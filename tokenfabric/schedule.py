"""The one format every plan is lowered to: what executors walk, simulators time and traces draw.

Pure: standard library only. A schedule is a list of stages. A resource (a rank's compute stream, a
link in one direction) runs its stages one at a time in list order; across resources only `waits`
orders them.

Example: two halves whose communication hides under the other half's computation:

    Schedule((
        Stage(resource="compute", op="attention head", flops=10),
        Stage(resource="comm", op="reduce head", num_bytes=4, waits=(0,)),
        Stage(resource="compute", op="attention tail", flops=10),   # runs beside stage 1
        Stage(resource="comm", op="reduce tail", num_bytes=4, waits=(2,)),
    ))
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from tokenfabric.kernel import Kernel


class ScheduleError(ValueError):
    """A schedule that no executor could run: the planner that made it has a bug."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One step on one resource."""

    resource: str
    """What it occupies: "rank 0 compute", "rank 0 communication", "rank 0 to 1 clockwise"."""
    op: str
    """What is done, for people and traces."""
    num_bytes: int = 0
    """Bytes moved over the resource."""
    flops: int = 0
    """Floating-point operations done on the resource."""
    waits: tuple[int, ...] = ()
    """Indices of the stages that must have finished before this one starts."""
    kernels: tuple[Kernel, ...] = ()
    """What it launches, in order; where there are none, bytes and operations say how long it is."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Stages in issue order, checked when made: any executor that honours order and waits ends."""

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        for index, stage in enumerate(self.stages):
            _check_stage(index, stage, len(self.stages))
        self.issue_order()

    def predecessors(self) -> tuple[tuple[int, ...], ...]:
        """Return, for each stage, all it starts after: its waits and the stage before it on its
        resource.
        """
        last_on: dict[str, int] = {}
        result: list[tuple[int, ...]] = []
        for index, stage in enumerate(self.stages):
            before = (last_on[stage.resource],) if stage.resource in last_on else ()
            result.append(tuple(dict.fromkeys((*stage.waits, *before))))
            last_on[stage.resource] = index
        return tuple(result)

    def issue_order(self) -> tuple[int, ...]:
        """Return stage indices so that each comes after all it waits for; the list order if it is
        one.

        Raises:
            ScheduleError: there is none: some stages wait for each other in a circle.
        """
        predecessors = self.predecessors()
        successors: dict[int, list[int]] = defaultdict(list)
        for index, before in enumerate(predecessors):
            for earlier in before:
                successors[earlier].append(index)
        missing = [len(before) for before in predecessors]
        ready = [index for index, count in enumerate(missing) if count == 0]
        order: list[int] = []
        while ready:
            index = ready.pop(0)
            order.append(index)
            for later in successors[index]:
                missing[later] -= 1
                if missing[later] == 0:
                    ready.append(later)
        if len(order) < len(self.stages):
            stuck = sorted(set(range(len(self.stages))) - set(order))
            names = ", ".join(f"{index} ({self.stages[index].op})" for index in stuck[:6])
            raise ScheduleError(
                f"{len(stuck)} stage(s) wait in a circle, or for one that does: {names}"
            )
        return tuple(order)

    def num_bytes(self, resource: str) -> int:
        """Return the bytes that pass over a resource."""
        return sum(stage.num_bytes for stage in self.stages if stage.resource == resource)

    def resources(self) -> tuple[str, ...]:
        """Return the resources in order of first use."""
        return tuple(dict.fromkeys(stage.resource for stage in self.stages))

    def finish_times(self, duration_s: Callable[[Stage], float]) -> tuple[float, ...]:
        """Return when each stage ends, in seconds from the start, if each takes duration_s(stage).

        The last of them is the makespan: the longest path through waits and resource order.
        """
        ends = [0.0] * len(self.stages)
        predecessors = self.predecessors()
        for index in self.issue_order():
            start = max((ends[before] for before in predecessors[index]), default=0.0)
            ends[index] = start + duration_s(self.stages[index])
        return tuple(ends)

    def explain(self) -> str:
        """Return one line a stage: index, resource, op, bytes, flops, waits."""
        rows = [
            (str(index), stage.resource, stage.op, f"{stage.num_bytes} B", f"{stage.flops} FLOP",
             "after " + ", ".join(map(str, stage.waits)) if stage.waits else "")
            for index, stage in enumerate(self.stages)
        ]  # fmt: skip
        widths = [max((len(row[column]) for row in rows), default=0) for column in range(6)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )


def _check_stage(index: int, stage: Stage, num_stages: int) -> None:
    where = f"stage {index} ({stage.op!r} on {stage.resource!r})"
    if not stage.resource or not stage.op:
        raise ScheduleError(f"{where} needs a resource and an op")
    if stage.num_bytes < 0 or stage.flops < 0:
        raise ScheduleError(
            f"{where} has {stage.num_bytes} bytes and {stage.flops} FLOP: neither can be negative"
        )
    if len(set(stage.waits)) != len(stage.waits):
        raise ScheduleError(f"{where} waits for a stage twice: {stage.waits}")
    for awaited in stage.waits:
        if not 0 <= awaited < num_stages:
            raise ScheduleError(f"{where} waits for stage {awaited}, but there are {num_stages}")
        if awaited == index:
            raise ScheduleError(f"{where} waits for itself")
