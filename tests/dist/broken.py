"""What a broken world says: looked at by rank functions of the tests that break one."""

import time
from collections.abc import Callable

import pytest
import torch

import tokenfabric
import tokenweave
from tokenfabric.testing.poison import assert_overwritten, poison
from tokenfabric.world import World

# Generous for busy cores: it tells an answer at once from a wait for the deadline.
AT_ONCE_S = 1.0


def assert_world_is_broken(
    world: World, kind: type[tokenfabric.CommError], blamed: int | None = None
) -> None:
    """Check that every later call says at once what broke the world, and whom it blames."""
    assert isinstance(world.broken, kind)
    assert blamed is None or world.broken.peer_rank == blamed
    x = poison(torch.empty(4, 64))
    calls: list[Callable[[], object]] = [
        world.barrier,
        lambda: tokenweave.all_reduce(torch.ones(4, 64), world=world, out=x),
        lambda: tokenweave.broadcast(torch.ones(3), world=world),
        lambda: tokenfabric.SymmetricBuffer(world, 4096),
    ]
    for call in calls:
        started_s = time.monotonic()
        with pytest.raises(kind, match="broken"):
            call()
        assert time.monotonic() - started_s < AT_ONCE_S
    with pytest.raises(AssertionError, match="never written"):
        assert_overwritten(x)
    assert "broken" in world.describe()
