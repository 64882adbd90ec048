"""Some heads and some tokens on each rank: what one rank computes, prefilled and decoded."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import tokenring
import tokenweave
from launch.recipes.mesh import RingOfGroups, ring_of_groups
from tests.dist.exact_models import in_fp64
from tests.dist.llama_models import ModelCase
from tests.dist.ring_models import CASES, tokens_of
from tests.dist.test_ring_hf import check
from tokenfabric.errors import ConfigError
from tokenfabric.testing.spawn import run_ranks
from tokenfabric.testing.tolerance import assert_same_bits
from tokenfabric.world import World
from tokenring.cache import RingCache
from tokenring.exchange import gather_rows
from tokenring.integrations.generation import generate
from tokenring.partition import partition_tokens
from tokenring.sharding import shard
from tokenweave.config import WeaveConfig

GEMMA = ModelCase(
    name="gemma2",
    family="gemma2",
    config={"sliding_window": 4, "num_hidden_layers": 2, "attn_implementation": "eager"},
)
PROMPT, NEW = 19, 3


def one_rank(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Return the logits of all tokens, [tokens, vocabulary]."""
    with torch.no_grad():
        logits: Any = model(ids, use_cache=False).logits
    return logits[0]


def on_mesh(model: Any, ring: World, ids: Tensor) -> Tensor:
    """Return the same of an enabled model: a sharded prompt, then token by token with its cache."""
    prompt, new = ids[:, :PROMPT], ids[:, PROMPT:]
    cache = RingCache(ring, num_layers=model.config.num_hidden_layers)
    layout = partition_tokens(PROMPT, ring.size)
    mine = shard(prompt, world=ring, layout=layout)
    with torch.no_grad():
        own = model(input_ids=mine, ring_layout=layout, ring_cache=cache).logits[0]
        rows = [layout.num_rows(rank) for rank in range(ring.size)]
        parts = gather_rows(ring, own.contiguous(), rows, terms="logits")
        logits = own.new_empty(ids.shape[1], own.shape[1])
        for rank, part in enumerate(parts):
            logits[torch.tensor(layout.positions(rank))] = part
        for index in range(NEW):
            step = model(input_ids=new[:, index : index + 1], ring_cache=cache).logits
            logits[PROMPT + index] = step[0, 0]
    return logits


def _rank_parity(world: World, tp: int) -> None:
    with ring_of_groups(world, tp) as mesh:
        assert (mesh.tp.size, mesh.ring.size) == (tp, world.size // tp)
        assert mesh.tp.rank + tp * mesh.ring.rank == world.rank
        for number, case in enumerate([*CASES, GEMMA]):
            ids = tokens_of(PROMPT + NEW)
            # Tokens are never cut a second time, whatever the splitting of passes was asked for.
            config = WeaveConfig(split=3) if number == 0 else None
            model = tokenweave.parallelize(case.model(), mesh.tp, config=config)
            tokenring.enable(model, mesh.ring)
            logits = on_mesh(model, mesh.ring, ids)
            same = one_rank(case.model(), ids)
            check([logits], [one_rank(in_fp64(case.model()), ids)], [same], str(case))
            rows = gather_rows(world, logits, (len(logits),) * world.size, terms="all logits")
            for other in rows:
                assert_same_bits(other, logits, what=f"{case} on another rank")
        # Undone in either order, it is the model that it was.
        tokenweave.restore(model)
        tokenring.disable(model)
        assert_same_bits(one_rank(model, ids), same, what="restored")
        assert_rank_zeros_tokens(mesh)
    assert_refused(world)


def assert_rank_zeros_tokens(mesh: RingOfGroups) -> None:
    """Sampled tokens are rank 0's on all rings, though each rank's random state is another."""
    model = tokenring.enable(tokenweave.parallelize(CASES[0].model(), mesh.tp), mesh.ring)
    torch.manual_seed(mesh.world.rank)
    tokens, _ = generate(
        model, tokens_of(5), max_new_tokens=12, temperature=1.5, everyone=mesh.world
    )
    for other in gather_rows(mesh.world, tokens, (1,) * mesh.world.size, terms="answers"):
        assert torch.equal(other, tokens)


def assert_refused(world: World) -> None:
    """Ranks that share heads cannot share tokens: said before anything is changed."""
    with pytest.raises(ConfigError, match=f"tp is 3, but .* divide the {world.size} ranks"):
        ring_of_groups(world, 3).__enter__()
    model = tokenweave.parallelize(CASES[0].model(), world)
    with pytest.raises(ConfigError, match=r"ranks 0, 1.* share the model's heads"):
        tokenring.enable(model, world)
    assert not hasattr(model, "tokenring")


@pytest.mark.parametrize(("tp", "ring"), [(2, 2), (2, 1)])
def test_logits_are_those_of_one_rank(tp: int, ring: int) -> None:
    """Grouped queries, windows, softcap; heads that the groups do not divide."""
    run_ranks(_rank_parity, tp * ring, tp, timeout_s=110)
