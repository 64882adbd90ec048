"""Run a schedule on a model of a machine: when every stage and kernel starts and ends. Pure.

Deterministic discrete events. A stage is its kernels, one after the other; where it has none, its
bytes cross ports (which all transfers at the time share equally) or its operations are computed. On
each rank a kernel that holds SMs takes them from the others, which go on at the speed that what is
left allows:

    SMs      |#### qkv ####|## attention ##|## o ##|      132 - 8 while the reduction runs, then 132
    8 of them|===== reduction =====|

The machine is in machine.py, pictures of the result in trace.py.
"""

from collections import defaultdict
from dataclasses import dataclass, field

from tokenfabric.errors import ConfigError
from tokenfabric.kernel import Kernel
from tokenfabric.machine import Machine, rank_of
from tokenfabric.schedule import Schedule, Stage
from tokenfabric.timeline import KernelSpan, StageSpan, Timeline


def simulate(schedule: Schedule, machine: Machine) -> Timeline:
    """Return when each stage and kernel runs.

    Args:
        schedule: a plan, lowered. Resources are named as machine.py says.
        machine: what it runs on.

    Raises:
        ConfigError: a resource has another name, or a kernel holds all SMs of a rank.
    """
    return _Simulation(schedule, machine).run()


@dataclass(slots=True, eq=False)
class _Running:
    """A stage on its resource."""

    index: int
    rank: int | None
    ports: tuple[str, ...]
    kernels: tuple[Kernel, ...]
    start_s: float
    position: int = 0
    """Of the kernel that runs or waits for its launch."""
    kernel_start_s: float = 0.0
    wakes_s: float = 0.0
    """Until then nothing changes: a launch, a start, a latency."""
    has_begun: bool = False
    """Whether wakes_s was the end of the kernel's start, not of the wait for its launch."""
    is_working: bool = False
    left: float = 1.0
    """Of the kernel's work."""
    rate: float = 0.0
    """Of the work, a second."""
    spans: list[KernelSpan] = field(default_factory=list)


class _Simulation:
    def __init__(self, schedule: Schedule, machine: Machine) -> None:
        self._machine = machine
        self._stages = schedule.stages
        self._queues: dict[str, list[int]] = defaultdict(list)
        for index, stage in enumerate(self._stages):
            self._queues[stage.resource].append(index)
        self._rank = {name: rank_of(name) for name in self._queues}
        self._ports = {name: machine.ports_of(name) for name in self._queues}
        self._next = dict.fromkeys(self._queues, 0)
        self._waiters: dict[int, list[str]] = defaultdict(list)
        for index, stage in enumerate(self._stages):
            for awaited in stage.waits:
                self._waiters[awaited].append(stage.resource)
            self._check(index, stage)
        self._ends: list[float | None] = [None] * len(self._stages)
        self._spans: list[StageSpan | None] = [None] * len(self._stages)
        self._running: list[_Running] = []
        self._now_s = 0.0
        self._launched_s = self._launches()

    def run(self) -> Timeline:
        for resource in self._queues:
            self._try_start(resource)
        while self._running:
            self._set_rates()
            # What ends now is decided by when, not by what is left: that is rounded.
            times_s = [
                self._now_s + it.left / it.rate if it.is_working else it.wakes_s
                for it in self._running
            ]
            moment_s = min(times_s)
            elapsed_s, self._now_s = moment_s - self._now_s, moment_s
            for it, time_s in zip(list(self._running), times_s, strict=True):
                if it.is_working:
                    it.left -= elapsed_s * it.rate
                if time_s <= moment_s:
                    if it.is_working:
                        self._end_kernel(it)
                    else:
                        self._wake(it)
        assert all(span is not None for span in self._spans)
        return Timeline(tuple(span for span in self._spans if span is not None))

    def _check(self, index: int, stage: Stage) -> None:
        for kernel in stage.kernels:
            if kernel.held_sms >= self._machine.num_sms > 1:
                raise _too_many(index, stage, kernel, self._machine)

    def _launches(self) -> list[tuple[float, ...]]:
        """Return when the host has launched each kernel, if nothing holds the host up."""
        special = dict(self._machine.slow_launches)
        if not self._machine.launch_s and not special:
            return []
        launched, clocks = [], defaultdict[int | None, float](float)
        for stage in self._stages:
            rank, times = self._rank[stage.resource], []
            for kernel in stage.kernels:
                clocks[rank] += special.get(kernel.name, self._machine.launch_s)
                times.append(clocks[rank])
            launched.append(tuple(times))
        return launched

    def _try_start(self, resource: str) -> None:
        queue, position = self._queues[resource], self._next[resource]
        if position >= len(queue):
            return
        index = queue[position]
        if position and self._ends[queue[position - 1]] is None:
            return
        stage, rank = self._stages[index], self._rank[resource]
        start_s = self._now_s
        for awaited in stage.waits:
            end_s = self._ends[awaited]
            if end_s is None:
                return
            other = self._stages[awaited].resource
            if other != resource and rank is not None and self._rank[other] == rank:
                start_s = max(start_s, end_s + self._machine.join_s)
        self._next[resource] = position + 1
        it = _Running(
            index=index,
            rank=rank,
            ports=self._ports[resource],
            kernels=stage.kernels,
            start_s=start_s,
        )
        self._running.append(it)
        self._begin_kernel(it, start_s)

    def _begin_kernel(self, it: _Running, ready_s: float) -> None:
        it.is_working, it.has_begun = False, False
        it.wakes_s = ready_s
        if self._launched_s and it.kernels:
            it.wakes_s = max(ready_s, self._launched_s[it.index][it.position])
        if it.wakes_s <= self._now_s:
            self._wake(it)

    def _wake(self, it: _Running) -> None:
        if not it.has_begun:
            it.has_begun, it.kernel_start_s = True, it.wakes_s
            it.wakes_s += self._fixed_s(it)
            if it.wakes_s > self._now_s:
                return
        it.is_working, it.left = True, 1.0
        if self._work_s(it, 1.0) <= 0.0:
            self._end_kernel(it)

    def _fixed_s(self, it: _Running) -> float:
        if it.kernels:
            return it.kernels[it.position].start_s
        return self._machine.latency_s if it.ports else self._machine.stage_s

    def _work_s(self, it: _Running, num_users: float) -> float:
        """Return how long the work would take at the present speed, from none to all of it."""
        stage, machine = self._stages[it.index], self._machine
        if it.kernels:
            return it.kernels[it.position].work_s(machine.num_sms)
        if it.ports:
            return stage.num_bytes * num_users / machine.bandwidth
        return stage.flops / machine.flops_per_s

    def _end_kernel(self, it: _Running) -> None:
        if it.kernels:
            name = it.kernels[it.position].name
            it.spans.append(KernelSpan(name=name, start_s=it.kernel_start_s, end_s=self._now_s))
        it.position += 1
        if it.position < len(it.kernels):
            self._begin_kernel(it, self._now_s)
            return
        self._running.remove(it)
        self._ends[it.index] = self._now_s
        self._spans[it.index] = StageSpan(
            stage=self._stages[it.index],
            start_s=it.start_s,
            end_s=self._now_s,
            kernels=tuple(it.spans),
        )
        resource = self._stages[it.index].resource
        for name in dict.fromkeys((resource, *self._waiters[it.index])):
            self._try_start(name)

    def _set_rates(self) -> None:
        held: dict[int | None, int] = defaultdict(int)
        computing: set[int | None] = set()
        users: dict[str, int] = defaultdict(int)
        for it in self._running:
            if it.has_begun and it.kernels:
                sms = it.kernels[it.position].held_sms
                held[it.rank] += sms
                if not sms:
                    computing.add(it.rank)
            elif it.is_working:
                for port in it.ports:
                    users[port] += 1
        for it in self._running:
            if it.is_working:
                it.rate = self._rate(it, held[it.rank], it.rank in computing, users)

    def _rate(
        self, it: _Running, held_sms: int, is_computing: bool, users: dict[str, int]
    ) -> float:
        if not it.kernels:
            return 1.0 / self._work_s(it, max((users[port] for port in it.ports), default=1))
        kernel, machine = it.kernels[it.position], self._machine
        if kernel.held_sms:
            slowdown = machine.communication_slowdown if is_computing else 1.0
            return 1.0 / (kernel.work_s(machine.num_sms) * slowdown)
        slowdown = machine.computation_slowdown if held_sms else 1.0
        return 1.0 / (kernel.work_s(max(1, machine.num_sms - held_sms)) * slowdown)


def _too_many(index: int, stage: Stage, kernel: Kernel, machine: Machine) -> ConfigError:
    return ConfigError(
        f"stage {index} ({stage.op}): kernel {kernel.name} holds {kernel.held_sms} of "
        f"{machine.num_sms} SMs; leave at least one"
    )
