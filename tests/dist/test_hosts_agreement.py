"""Calls that differ between hosts, or inside one of them: refused on all, before anything moves."""

from collections.abc import Callable

import pytest
import torch

import tokenfabric
import tokenweave
from tests.dist.host_worlds import Hosts
from tokenfabric.testing.poison import poison
from tokenfabric.testing.spawn import run_ranks


def _rank_differs(rank: int, world_size: int, hosts: Hosts, different: tuple[int, ...]) -> None:
    with hosts.world(rank) as world:
        is_different = rank in different

        def fused(tokens: int = 6, dtype: torch.dtype = torch.float32, **options: object) -> None:
            out = poison(torch.empty(tokens, 64, dtype=dtype))
            before = out.clone()
            try:
                tokenweave.allreduce_rmsnorm(
                    torch.ones(tokens, 64, dtype=dtype),
                    None,
                    torch.ones(64, dtype=dtype),
                    world=world,
                    out=out,
                    **options,  # type: ignore[arg-type]
                )
            except tokenfabric.MismatchError:
                assert torch.equal(out.view(torch.uint8), before.view(torch.uint8))
                raise

        x = torch.ones(6, 64)
        others: dict[str, Callable[[], object]] = {
            "size": lambda: fused(7),
            "dtype": lambda: fused(dtype=torch.bfloat16),
            "eps": lambda: fused(eps=1e-5),
            "weight_offset": lambda: fused(weight_offset=1.0),
            "layout": lambda: fused(residual_layout="row_sharded"),
            "all_reduce": lambda: tokenweave.all_reduce(x, world=world),
            "reduce_scatter": lambda: tokenweave.reduce_scatter(x, world=world),
            "all_gather": lambda: tokenweave.all_gather(x, world=world),
            "broadcast": lambda: tokenweave.broadcast(x, world=world),
            "barrier": world.barrier,
        }
        for name, other in others.items():
            with pytest.raises(tokenfabric.MismatchError, match="the world stays usable") as info:
                other() if is_different else fused()
            assert info.value.rank == rank, name
            assert world.broken is None
            total = tokenweave.all_reduce(torch.full((300, 70), 1.0 + rank), world=world)
            assert (total == sum(range(1, world_size + 1))).all(), name


@pytest.mark.parametrize(
    ("hosts", "different"),
    [
        (Hosts(2, 1), (1,)),
        (Hosts(2, 2), (2, 3)),
        (Hosts(2, 2), (0,)),
        (Hosts(2, 2), (1, 2)),
        (Hosts(3, 1), (1,)),
    ],
    ids=str,
)
def test_a_different_call_is_refused_on_all_hosts(hosts: Hosts, different: tuple[int, ...]) -> None:
    """On a whole host or on one rank of it: MismatchError everywhere, no data moved, no harm."""
    run_ranks(_rank_differs, hosts.size, hosts, different, with_world=False)
