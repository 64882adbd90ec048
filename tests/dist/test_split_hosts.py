"""Split passes of ranks on several hosts: in order, and a stage that fails reaches all of them."""

from typing import Any

import pytest
import torch
from transformers import DynamicCache

import tokenweave
from tests.dist.host_worlds import Hosts
from tests.dist.llama_models import SMOLLM2_LIKE, is_attended
from tests.dist.test_split_ranks import FailsAtCall, StageFailedError
from tokenfabric.errors import ConfigError, PeerLostError
from tokenfabric.testing.spawn import run_ranks
from tokenfabric.world import World
from tokenweave import WeaveConfig

HOSTS = Hosts(2, 2)
VICTIM = 1


def check_split_passes(world: World) -> None:
    """Compare with the whole model; then let a stage of one rank fail."""
    case, inputs = SMOLLM2_LIKE, SMOLLM2_LIKE.inputs()
    is_real = is_attended(inputs)
    expected = case.model()(**inputs).logits[is_real]
    with pytest.raises(ConfigError, match="not for ranks on 2 hosts"):
        tokenweave.parallelize(case.model(), world, WeaveConfig(overlap="on"))
    model: Any = tokenweave.parallelize(case.model(), world, WeaveConfig(split=14))
    # fp32, sums of 101 terms
    torch.testing.assert_close(model(**inputs).logits[is_real], expected, rtol=1e-4, atol=2e-4)
    assert model.tokenweave.communication.last_plan.is_split
    if world.rank == VICTIM:
        layer = model.base_model.layers[1]
        layer.mlp.up_proj = FailsAtCall(layer.mlp.up_proj, 2)
    cache = DynamicCache(config=model.config)
    with pytest.raises(StageFailedError if world.rank == VICTIM else PeerLostError):
        model(**inputs, cache=cache)
    assert isinstance(world.broken, PeerLostError)
    assert world.broken.peer_rank == VICTIM


@torch.no_grad()
def _rank_hosts(rank: int, world_size: int) -> None:
    with HOSTS.world(rank) as world:
        check_split_passes(world)


def test_split_passes_between_hosts() -> None:
    """The rank of the same host, and those of the other one, are told whom they lost."""
    run_ranks(_rank_hosts, HOSTS.size, with_world=False)
