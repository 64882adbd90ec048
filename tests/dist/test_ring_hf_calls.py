"""Models on sharded tokens: what is refused, how it is undone, and answers to prompts."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface

import tokenring
from tests.dist.ring_models import CASES, tokens_of
from tokenfabric.errors import ConfigError
from tokenfabric.testing.spawn import run_ranks
from tokenfabric.testing.tolerance import assert_same_bits
from tokenfabric.world import World
from tokenring.cache import RingCache
from tokenring.integrations.generation import generate
from tokenring.partition import partition_tokens
from tokenring.sharding import position_ids, shard


def _rank_disable(world: World) -> None:
    model = CASES[1].model()
    ids = tokens_of(11)
    with torch.no_grad():
        before = model(ids).logits
    keys = set(vars(model)), dict(vars(model.config)), sorted(AttentionInterface._global_mapping)
    masks = sorted(AttentionMaskInterface._global_mapping)
    tokenring.enable(model, world)
    with pytest.raises(ConfigError, match="already enabled"):
        tokenring.enable(model, world)
    assert keys[2] != sorted(AttentionInterface._global_mapping)
    tokenring.disable(model)
    assert set(vars(model)) == keys[0]
    assert dict(vars(model.config)) == keys[1]
    assert sorted(AttentionInterface._global_mapping) == keys[2]
    assert sorted(AttentionMaskInterface._global_mapping) == masks
    with torch.no_grad():
        assert_same_bits(model(ids).logits, before, what="logits")
    with pytest.raises(ConfigError, match="not enabled"):
        tokenring.disable(model)


def test_disable_undoes_everything() -> None:
    """Registered functions, hooks, the config; the same bits as before."""
    run_ranks(_rank_disable, 2, timeout_s=110)


def _refusals(model: Any, world: World) -> dict[str, tuple[Any, str]]:
    ids = tokens_of(4)
    layout = partition_tokens(8, world.size)
    own = position_ids(layout, world.rank)
    mask = torch.ones_like(ids)
    mask[0, 0] = 0
    return {
        "padding": (lambda: model(ids, attention_mask=mask, position_ids=own), "has zeros"),
        "block mask": (
            lambda: model(ids, attention_mask=torch.zeros(1, 1, 4, 4), position_ids=own),
            "no mask of tokens",
        ),
        "positions": (lambda: model(ids), "which tokens"),
        "documents": (lambda: model(ids, position_ids=torch.arange(4)[None] % 2), "packed"),
        "same tokens": (lambda: model(ids, position_ids=torch.arange(4)[None]), "again on rank"),
        "gap": (lambda: model(ids, position_ids=own * 2), "is missing"),
        "labels": (lambda: model(ids, position_ids=own, labels=ids), "shard_labels"),
        "cache": (lambda: model(ids, position_ids=own, use_cache=True), "ring_cache"),
        "scores": (lambda: model(ids, position_ids=own, output_attentions=True), "output_att"),
        "contradiction": (
            lambda: model(ids, position_ids=own + 1, ring_layout=layout),
            "not those of the layout",
        ),
        "rows": (lambda: model(ids, ring_layout=partition_tokens(10, world.size)), "5 tokens"),
        "no tokens": (
            lambda: model(
                ids[:, : 4 * (world.rank == 0)],
                ring_layout=partition_tokens(4, 2, "contiguous", rank_lengths=(4, 0)),
            ),
            "rank 1 has no tokens",
        ),
        "layer": (
            lambda: model.model.layers[0].self_attn(
                torch.zeros(1, 4, 72), (torch.zeros(1, 4, 8), torch.zeros(1, 4, 8)), None
            ),
            "without its model's forward",
        ),
        "sequences": (
            lambda: model(
                tokens_of(4, batch=2), ring_cache=RingCache(world, num_layers=2, num_sequences=3)
            ),
            "3 sequences",
        ),
    }


@torch.no_grad()
def _rank_forms(world: World) -> None:
    model: Any = tokenring.enable(CASES[0].model(), world)
    ids = tokens_of(9)
    layout = partition_tokens(9, world.size)
    mine, own = shard(ids, world=world, layout=layout), position_ids(layout, world.rank)
    expected = model(mine, position_ids=own).logits
    forms = {
        "layout": model(mine, ring_layout=layout),
        "mask of ones": model(mine, torch.ones_like(mine), own),
        "embeddings": model(
            inputs_embeds=model.get_input_embeddings()(mine), position_ids=own, use_cache=False
        ),
        "cache": model(mine, ring_layout=layout, ring_cache=RingCache(world, num_layers=2)),
        "positions anywhere": model(mine, position_ids=own + 100),
    }
    for name, output in forms.items():
        # Rotary embeddings make scores of distances: 100 further on they round differently.
        assert torch.allclose(output.logits, expected, atol=1e-3), name
        assert output.cache is None
    backbone = model.model(mine, None, own).last_hidden_state
    assert torch.equal(model.lm_head(backbone), expected)


def test_every_way_to_call_the_model_gives_its_result() -> None:
    """Positional arguments, embeddings, a cache, masks that hide nothing."""
    run_ranks(_rank_forms, 2, timeout_s=110)


def _rank_refusals(world: World) -> None:
    model = tokenring.enable(CASES[0].model(), world)
    for name, (call, message) in _refusals(model, world).items():
        with pytest.raises(ConfigError, match=message):
            call()
        world.barrier()
        assert name
    dropping = replace(CASES[0], config={**CASES[0].config, "attention_dropout": 0.1}).model()
    tokenring.enable(dropping, world).train()
    layout = partition_tokens(8, world.size)
    with pytest.raises(ConfigError, match="dropout"):
        dropping(tokens_of(4), ring_layout=layout)
    dropping.eval()
    with torch.no_grad():
        dropping(tokens_of(4), ring_layout=layout)


def test_what_would_go_wrong_is_refused_by_name() -> None:
    """Each refusal leaves the model usable."""
    run_ranks(_rank_refusals, 2, timeout_s=110)


def _rank_families(world: World) -> None:
    model = copy.deepcopy(CASES[0].model())
    model.config.model_type = "gpt_neox"
    with pytest.raises(ConfigError, match="'gpt_neox' are not supported"):
        tokenring.enable(model, world)
    assert not model._forward_pre_hooks
    assert not model.base_model._forward_pre_hooks


def test_other_families_are_refused_untouched() -> None:
    """Named, and nothing registered."""
    run_ranks(_rank_families, 1, timeout_s=110)


def _rank_generates(world: World, case_index: int, num_prompt: int) -> list[int]:
    case = CASES[case_index]
    ids = tokens_of(num_prompt)
    expected = case.model().generate(ids, max_new_tokens=9, do_sample=False)
    model = tokenring.enable(case.model(), world)
    tokens, cache = generate(model, ids, max_new_tokens=9)
    assert tokens.tolist() == expected.tolist()
    assert cache.lengths == (num_prompt + 8,)
    rows = [cache.layout().num_rows(rank) for rank in range(world.size)]
    alone = case.model()
    torch.manual_seed(5)
    sampled = alone.generate(
        ids, max_new_tokens=9, do_sample=True, temperature=1.5, top_p=0.9, top_k=0
    )
    torch.manual_seed(5 + world.rank)  # the other ranks follow rank 0
    tokens, _ = generate(model, ids, max_new_tokens=9, temperature=1.5, top_p=0.9)
    assert tokens.tolist() == sampled.tolist()
    return rows


@pytest.mark.parametrize(("case_index", "num_prompt"), [(0, 2), (0, 37), (1, 19)])
def test_generation_gives_the_tokens_of_one_process(case_index: int, num_prompt: int) -> None:
    """Greedy and sampled; a prompt shorter than the ranks, a sliding window."""
    rows = run_ranks(_rank_generates, 3, case_index, num_prompt, timeout_s=110)
    assert sum(rows[0]) == num_prompt + 8
    assert rows[0] == rows[1] == rows[2]
