"""A job's ranks as Ray actors: started together, ended together by the first failure."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from launch.failure import Failure, FailureKind, JobFailedError, root_cause
from launch.job import JobSpec
from launch.ray.assignment import assign_ranks, first_bundle
from launch.ray.cluster import bundles, connected
from launch.ray.rank_actor import RankActor
from launch.report import Reporter, Table
from launch.torchrun import rank_environment

# After the first failure, how long the other ranks may take to tell a better one: the rank that
# died says nothing itself, and who lost it may be heard first.
_CAUSE_SEEN_S = 3.0
_STARTED_WITHIN_S = 120.0


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
    with connected(address), _actors(spec) as gang:
        return _follow(gang, reporter)


@dataclass(frozen=True, slots=True)
class _Gang:
    """Actors that run already: what each of them says, by rank."""

    streams: dict[int, Any]
    nodes: dict[int, str]


@contextmanager
def _actors(spec: JobSpec) -> Iterator[_Gang]:
    """Start the ranks; kill those that are left in the end."""
    threads = spec.num_threads or 1
    bundle = {"CPU": float(spec.ranks_per_node * threads)}
    with bundles(bundle, spec.nodes) as (group, node_names):
        actor_class = ray.remote(RankActor)
        environment = {**rank_environment(threads), **spec.environment}
        actors: dict[tuple[int, int], Any] = {}
        try:
            for index in range(spec.nodes):
                for local in range(spec.ranks_per_node):
                    actors[index, local] = actor_class.options(
                        num_cpus=threads,
                        max_concurrency=1,
                        scheduling_strategy=PlacementGroupSchedulingStrategy(
                            placement_group=group, placement_group_bundle_index=index
                        ),
                    ).remote(environment)
            first = first_bundle(node_names)
            host = node_names[first].partition("/")[0]
            port = _started(actors[first, 0].listen.remote(host, spec.ranks), host)
            infos = assign_ranks(
                node_names, spec.ranks_per_node, master_addr=host, master_port=port
            )
            streams = {
                infos[index][local].rank: actor.run.options(num_returns="streaming").remote(
                    spec, infos[index][local]
                )
                for (index, local), actor in actors.items()
            }
            nodes = {infos[index][local].rank: node_names[index] for index, local in actors}
            yield _Gang(dict(sorted(streams.items())), nodes)
        finally:
            for actor in actors.values():
                ray.kill(actor)


def _started(reference: Any, host: str) -> int:
    try:
        return int(ray.get(reference, timeout=_STARTED_WITHIN_S))
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
        raise JobFailedError(
            Failure(
                kind=FailureKind.DEFECT,
                rank=0,
                error=type(error).__name__,
                message=f"the process on {host} did not start",
                details=str(error),
            )
        ) from None


def _follow(gang: _Gang, reporter: Reporter) -> object:
    """Pass on what rank 0 says until all are done; raise the cause of the first failure."""
    running = dict(gang.streams)
    failures: list[Failure] = []
    deadline_s: float | None = None
    result: object = None
    while running:
        timeout_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
        ready, _ = ray.wait(list(running.values()), num_returns=1, timeout=timeout_s)
        if not ready:
            break
        rank = next(rank for rank, stream in running.items() if stream == ready[0])
        kind, value = _next_event(running[rank], rank, gang.nodes[rank])
        if kind == "note":
            reporter.note(value)
        elif kind == "text":
            reporter.text(value)
        elif kind == "table":
            reporter.table(_table(value))
        else:
            del running[rank]
            if kind == "failure":
                failures.append(_failure(value))
                if deadline_s is None:
                    deadline_s = time.monotonic() + _CAUSE_SEEN_S
            elif rank == 0:
                result = value
        if failures and any(it.kind is not FailureKind.CONSEQUENCE for it in failures):
            break
    if failures:
        raise JobFailedError(root_cause(failures))
    return result


def _next_event(stream: Any, rank: int, node: str) -> tuple[str, Any]:
    try:
        kind, value = ray.get(next(stream))
    except ray.exceptions.RayActorError as error:
        return "failure", {
            "kind": FailureKind.DEFECT.value,
            "rank": rank,
            "error": "process ended",
            "message": f"the process on node {node} was killed, or its node is gone",
            "details": str(error),
        }
    return kind, value


def _failure(fields: Mapping[str, Any]) -> Failure:
    return Failure(**{**fields, "kind": FailureKind(fields["kind"])})


def _table(fields: Mapping[str, Any]) -> Table:
    return Table(**fields)
