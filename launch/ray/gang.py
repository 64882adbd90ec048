"""Ranks as Ray actors: started together, ended together by the first failure."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from launch.failure import Failure, FailureKind, JobFailedError, root_cause
from launch.job import JobSpec
from launch.ray.assignment import assign_ranks, first_bundle
from launch.ray.cluster import bundles, connected
from launch.ray.rank_actor import Event, RankActor
from launch.report import Reporter, Table
from launch.torchrun import rank_environment
from tokenfabric.env import RankInfo

# After the first failure, how long the other ranks may take to tell a better one: the rank that
# died says nothing itself, and who lost it may be heard first.
_CAUSE_SEEN_S = 3.0
# And, once the cause is known, how long rank 0 may take to say what it had done before. The ranks
# that go on because nobody has told them yet are ended then, in all within two seconds.
_LAST_WORDS_S = 1.5
_STARTED_WITHIN_S = 120.0


@dataclass(frozen=True, slots=True)
class Rank:
    """One actor and its place."""

    actor: Any
    info: RankInfo
    node: str


def run_on_ray(spec: JobSpec, reporter: Reporter, *, address: str | None = None) -> object:
    """Run a job on a Ray cluster and return what its recipe returned on rank 0.

    Args:
        spec: `ranks` of it on `nodes` nodes, equally many on each.
        reporter: hears rank 0, while it runs.
        address: of the cluster, as `ray.init` takes it; None: one on this machine, for this job.

    Raises:
        TopologyError: no cluster answers, or it has no room; said before anything is started.
        JobFailedError: with the first failing rank's own error; no actor is left.
    """
    with connected(address), started_ranks(spec) as ranks:
        events = follow(ranks, lambda rank: rank.actor.run, spec, with_info=True)
        return report_all(events, reporter)


@contextmanager
def started_ranks(spec: JobSpec) -> Iterator[list[Rank]]:
    """Start a job's actors, in order of rank; kill those that are left in the end.

    Raises:
        TopologyError: the cluster has no room; said before anything is started.
        JobFailedError: the first of them did not start.
    """
    threads = spec.num_threads or 1
    bundle = {"CPU": float(spec.ranks_per_node * threads)}
    environment = {**rank_environment(threads), **spec.environment}
    with bundles(bundle, spec.nodes) as (group, node_names):
        actor_class = ray.remote(RankActor)
        actors: dict[tuple[int, int], Any] = {}
        try:
            for index in range(spec.nodes):
                placed = PlacementGroupSchedulingStrategy(
                    placement_group=group, placement_group_bundle_index=index
                )
                for local in range(spec.ranks_per_node):
                    actors[index, local] = actor_class.options(
                        num_cpus=threads, scheduling_strategy=placed
                    ).remote(environment)
            first = first_bundle(node_names)
            host = node_names[first].partition("/")[0]
            port = _started(actors[first, 0].listen.remote(host), host)
            infos = assign_ranks(
                node_names, spec.ranks_per_node, master_addr=host, master_port=port
            )
            ranks = [
                Rank(actor, infos[index][local], node_names[index])
                for (index, local), actor in actors.items()
            ]
            yield sorted(ranks, key=lambda rank: rank.info.rank)
        finally:
            for actor in actors.values():
                ray.kill(actor)


def follow(
    ranks: list[Rank],
    method: Callable[[Rank], Any],
    argument: object,
    *,
    with_info: bool = False,
) -> Iterator[Event]:
    """Call a streaming method of all ranks; yield what rank 0 says until all are done.

    What rank 0 had finished when another rank failed is yielded too: streams of different ranks
    arrive in any order, so that a failure may be heard before an answer that is older.

    Raises:
        JobFailedError: the cause of the first failure.
    """
    running = {
        rank.info.rank: method(rank)
        .options(num_returns="streaming")
        .remote(argument, *((rank.info,) if with_info else ()))
        for rank in ranks
    }
    failures: list[Failure] = []
    deadline_s: float | None = None
    while running:
        is_cause_known = any(it.kind is not FailureKind.CONSEQUENCE for it in failures)
        if is_cause_known and 0 not in running:
            break
        awaited = [running[0]] if is_cause_known else list(running.values())
        timeout_s = None if deadline_s is None else deadline_s - time.monotonic()
        if timeout_s is not None and timeout_s <= 0:
            break
        ready, _ = ray.wait(awaited, num_returns=1, timeout=timeout_s)
        if not ready:
            break
        number = next(number for number, stream in running.items() if stream == ready[0])
        kind, value = _next_event(running[number], ranks[number])
        if kind in ("result", "failure"):
            del running[number]
        if kind == "failure":
            failure = Failure(**{**value, "kind": FailureKind(value["kind"])})
            failures.append(failure)
            is_cause = failure.kind is not FailureKind.CONSEQUENCE
            ends_s = time.monotonic() + (_LAST_WORDS_S if is_cause else _CAUSE_SEEN_S)
            deadline_s = ends_s if deadline_s is None else min(deadline_s, ends_s)
        elif number == 0:
            heard_s = time.monotonic()
            yield kind, value
            if deadline_s is not None:
                deadline_s += time.monotonic() - heard_s  # what the caller took is not waited for
    if failures:
        raise JobFailedError(root_cause(failures))


def report_all(events: Iterator[Event], reporter: Reporter) -> object:
    """Pass on what a recipe says; return its result."""
    result: object = None
    for kind, value in events:
        if kind == "result":
            result = value
        else:
            report_event(kind, value, reporter)
    return result


def report_event(kind: str, value: Any, reporter: Reporter) -> None:
    """Pass on one thing that a recipe says."""
    if kind == "note":
        reporter.note(value)
    elif kind == "text":
        reporter.text(value)
    else:
        assert kind == "table", kind
        reporter.table(Table(**value))


def _started(reference: Any, host: str) -> int:
    try:
        return int(ray.get(reference, timeout=_STARTED_WITHIN_S))
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
        message = f"the process on {host} did not start"
        raise JobFailedError(_died(0, type(error).__name__, message, error)) from None


def _next_event(stream: Any, rank: Rank) -> Event:
    try:
        kind, value = ray.get(next(stream))
    except ray.exceptions.RayActorError as error:
        message = f"the process on node {rank.node} was killed, or its node is gone"
        failure = _died(rank.info.rank, "process ended", message, error)
        return "failure", asdict(failure)
    return kind, value


def _died(rank: int, error: str, message: str, cause: Exception) -> Failure:
    return Failure(
        kind=FailureKind.DEFECT, rank=rank, error=error, message=message, details=str(cause)
    )
