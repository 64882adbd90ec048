"""All-reduce + residual add + RMSNorm over two hosts: hierarchical and fused against flat gloo.

    python -m benchmarks.bench_hosts            # all cells, about a minute
    python -m benchmarks.bench_hosts --quick    # a short look, nothing is written

Starts its own ranks: two hosts on this machine, which only a veth pair connects (network
namespaces: root and iproute2), or else two host ids over the loopback device. Each host has its
share of the cores. The way of measuring is in tokenfabric/testing/bench.py.
"""

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor

import tokenfabric
import tokenweave
from benchmarks.allreduce_rmsnorm_providers import BASELINE, EPS, Problem, add_norm, make_check
from tokenfabric.testing.bench import Budget, Call, Prepared, WorldRanks, measure
from tokenfabric.testing.bench_cell import Cell
from tokenfabric.testing.bench_report import (
    describe_environment,
    environment,
    markdown_table,
    write_results,
)
from tokenfabric.testing.namespaces import (
    Namespace,
    NamespacesUnavailableError,
    two_namespaces,
)
from tokenfabric.testing.spawn import run_ranks
from tokenfabric.world import World
from tokenweave.plan import ResidualLayout

_REPOSITORY = Path(__file__).resolve().parents[1]
LOOPBACK = (
    Namespace("host-a", "lo", "127.0.0.1"),
    Namespace("host-b", "lo", "127.0.0.1"),
)
_LEGEND = f"""\
Every time is the median over rounds of the slowest rank's time for one call; a ratio is
`{BASELINE}` / provider, the median of per-round ratios with its p25-p75. A/A is the baseline
against itself: differences within it mean nothing on this machine. One torch thread per rank; each
host has its share of this machine's cores, which also do the copies of the network between them.

- `{BASELINE}`: torch.distributed all_reduce over all ranks, then add + norm under torch.compile.
- `hierarchical + compiled`: tokenweave.all_reduce, then the compiled add + norm.
- `fused`: tokenweave.allreduce_rmsnorm with a replicated residual. `fused rows`: row-sharded, which
  a model takes where two messages between hosts are worth it."""


def main() -> None:
    """Parse the command line, measure, show the table and write the result files."""
    options = _parse()
    console = Console()
    facts = environment(_REPOSITORY)
    with contextlib.ExitStack() as stack:
        try:
            places, network = stack.enter_context(two_namespaces()), "a veth pair"
        except NamespacesUnavailableError as error:
            console.print(f"{error}: two host ids over loopback instead", soft_wrap=True)
            places, network = LOOPBACK, "loopback"
        cells = run_ranks(
            rank_cells, 2 * options.local_size, places, options.tokens, options.hidden,
            options.seconds, timeout_s=900, with_world=False,
        )[0]  # fmt: skip
    title = f"## 2 hosts x {options.local_size} ranks over {network}, bf16, hidden {options.hidden}"
    report = [
        f"# Several hosts\n\n{describe_environment(facts)}\n\n{_LEGEND}",
        f"{title}\n\n{markdown_table(cells, ['tokens'])}",
    ]
    console.print("\n\n".join(report), soft_wrap=True, highlight=False)
    if options.write:
        written = write_results(options.directory, "hosts", facts, cells, report)
        console.print(written, soft_wrap=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--local-size", type=int, default=2, help="ranks of a host")
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 16, 256, 1024, 4096])
    parser.add_argument("--seconds", type=float, default=8.0, help="timed rounds of one cell")
    parser.add_argument("--quick", action="store_true", help="a second a cell")
    parser.add_argument("--directory", type=Path, default=_REPOSITORY / "benchmarks" / "results")
    parser.add_argument("--no-write", dest="write", action="store_false")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.write = 1.0, False
    return options


def rank_cells(
    rank: int,
    world_size: int,
    places: tuple[Namespace, Namespace],
    token_counts: list[int],
    hidden: int,
    seconds: float,
) -> list[Cell]:
    """Measure one cell per token count, on one of the ranks of two hosts."""
    with _world(rank, world_size, places) as world:
        ranks = WorldRanks(world)
        compiled = torch.compile(add_norm, fullgraph=True)
        cells = []
        for tokens in token_counts:
            problem = Problem.make(world, tokens, hidden, torch.bfloat16)
            # One rank compiles, the others then find the kernels in the cache on disk.
            for turn in (True, False):
                if turn == (rank == 0):
                    compiled(problem.x, problem.residual, problem.weight, problem.out,
                             problem.residual_out)  # fmt: skip
                dist.barrier(group=world.group)
            cells.append(
                measure(
                    dict(_providers(problem, compiled)),
                    baseline=BASELINE,
                    check=make_check(problem),
                    labels={
                        "operation": "allreduce_rmsnorm",
                        "hosts": world.layout.num_hosts,
                        "local_size": world.layout.local_size,
                        "dtype": "bf16",
                        "hidden": hidden,
                        "tokens": tokens,
                        "network": places[0].interface,
                    },
                    ranks=ranks,
                    budget=Budget(seconds=seconds),
                )
            )
        return cells


@contextlib.contextmanager
def _world(rank: int, world_size: int, places: tuple[Namespace, Namespace]) -> Iterator[World]:
    """Join a world of two hosts, on a network of their own where there is one."""
    local_size = world_size // 2
    place = places[rank // local_size]
    os.environ["TOKENFABRIC_HOST_ID"] = place.name
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) >= len(places):
        os.sched_setaffinity(0, cores[places.index(place) :: len(places)])
    if place.interface == "lo":
        assert dist.group.WORLD is not None
        with World.from_group(dist.group.WORLD, num_threads=1) as world:
            yield world
        return
    dist.barrier()  # nobody leaves while another still connects
    dist.destroy_process_group()
    place.enter()
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank % local_size),
        "LOCAL_WORLD_SIZE": str(local_size),
        "MASTER_ADDR": places[0].address,
        "MASTER_PORT": "29500",
        "GLOO_SOCKET_IFNAME": place.interface,
    }
    with tokenfabric.init(num_threads=1) as world:
        yield world


def _providers(
    p: Problem, compiled: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]
) -> Iterator[tuple[str, Call | Prepared]]:
    def refill() -> None:
        p.x_work.copy_(p.x)

    def flat() -> Tensor:
        dist.all_reduce(p.x_work, group=p.world.group)
        compiled(p.x_work, p.residual, p.weight, p.out, p.residual_out)
        return p.out

    def unfused() -> Tensor:
        tokenweave.all_reduce(p.x, world=p.world, out=p.x_work)
        compiled(p.x_work, p.residual, p.weight, p.out, p.residual_out)
        return p.out

    def fused(layout: ResidualLayout) -> Call:
        residual, residual_out = p.residual, p.residual_out
        if layout == "row_sharded":
            residual, residual_out = residual[p.own_rows], residual_out[p.own_rows]

        def call() -> Tensor:
            tokenweave.allreduce_rmsnorm(
                p.x,
                residual,
                p.weight,
                world=p.world,
                eps=EPS,
                residual_layout=layout,
                out=p.out,
                residual_out=residual_out,
            )
            return p.out

        return call

    # gloo reduces in place, so its input is refilled outside the timed region.
    yield BASELINE, Prepared(refill, flat)
    yield "hierarchical + compiled", unfused
    yield "fused", fused("replicated")
    yield "fused rows", fused("row_sharded")


if __name__ == "__main__":
    main()
