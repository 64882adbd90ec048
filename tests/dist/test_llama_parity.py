"""A sharded model computes what the complete one does: logits, hidden states, greedy tokens."""

import hashlib
import time
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, StaticCache

import tokenweave
from tests.dist.exact_models import in_fp64
from tests.dist.llama_models import (
    ALL_CASES,
    FAMILY_CASES,
    SMOLLM2_LIKE,
    ModelCase,
    is_attended,
)
from tokenfabric.testing.spawn import run_ranks
from tokenfabric.testing.tolerance import assert_close, assert_same_bits
from tokenfabric.world import World
from tokenweave import WeaveConfig, passes, plan_on_world
from tokenweave.split_plan import ReductionChoice

# Of logits and hidden states, which are of order 10 to 100.
_LARGEST_BASELINE_ERROR = {torch.float32: 1e-3, torch.bfloat16: 10.0}


def digest(tensors: list[Tensor]) -> str:
    hashed = hashlib.sha256()
    for x in tensors:
        hashed.update(x.contiguous().flatten().view(torch.uint8).numpy())
    return hashed.hexdigest()[:16]


@torch.no_grad()
def outputs_of(model: PreTrainedModel, case: ModelCase) -> list[Tensor]:
    """Return logits and hidden states at the positions that are no padding."""
    inputs = case.inputs()
    result: Any = model(**inputs, output_hidden_states=True)
    return [x[is_attended(inputs)] for x in (result.logits, *result.hidden_states)]


def check_case(world: World, case: ModelCase, *, is_judge: bool) -> str:
    """Compare one case and return a digest of what this rank computed.

    The judge compares with the complete model; the digests extend its verdict to the other ranks.
    """
    model = case.model()
    greedy = {"max_new_tokens": 6, "do_sample": False}
    if is_judge:
        reference, baseline = outputs_of(in_fp64(model), case), outputs_of(model, case)
        tokens = model.generate(**case.inputs(), **greedy)
    tokenweave.parallelize(model, world)
    actual = outputs_of(model, case)
    # Without hidden states the residual's layout is the plan's choice; the numbers are the same.
    with torch.no_grad():
        plain = model(**case.inputs()).logits[is_attended(case.inputs())]
    assert_same_bits(plain, actual[0], what="logits without hidden states")
    if is_judge:
        names = ["logits", *(f"hidden state {i}" for i in range(len(actual) - 1))]
        for name, x, exact, same_dtype in zip(names, actual, reference, baseline, strict=True):
            # Largest errors of a few hundred logits scatter by a fifth from one order of sums to
            # another, on both sides.
            report = assert_close(x, exact, same_dtype, factor=2.5, what=name)
            # Or the reference would be of another model.
            assert report.max_baseline_error < _LARGEST_BASELINE_ERROR[case.dtype], name
    if case.dtype == torch.float32:
        sharded_tokens = model.generate(**case.inputs(), **greedy)
        actual.append(sharded_tokens)
        assert not is_judge or torch.equal(sharded_tokens, tokens)
    return digest(actual)


def _rank_parity(world: World) -> dict[str, str]:
    digests = {}
    for number, case in enumerate(ALL_CASES):
        if world.size > case.num_query_heads:
            continue
        if world.rank == number % world.size:
            time.sleep(0.002)  # one rank is late
        try:
            digests[str(case)] = check_case(
                world, case, is_judge=world.rank == (number + 1) % world.size
            )
        except AssertionError as error:
            raise AssertionError(f"{case}: {error}") from error
    return digests


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_a_sharded_model_is_the_model(world_size: int) -> None:
    """Every case is within the tolerance policy, and all ranks hold the same bits."""
    digests = run_ranks(_rank_parity, world_size, timeout_s=110)
    assert len(digests[0]) == len(ALL_CASES)
    for rank in range(1, world_size):
        assert digests[rank] == digests[0]


def _rank_more_ranks_than_kv_heads(world: World) -> tuple[int, int, bool]:
    case = SMOLLM2_LIKE
    model = case.model()
    with torch.no_grad():
        expected = model(**case.inputs()).logits
    tokenweave.parallelize(model, world)
    actual = model(**case.inputs()).logits
    attention: Any = model.base_model.layers[0].self_attn
    heads = attention.q_proj.out_features // 8, attention.k_proj.out_features // 8
    return *heads, torch.allclose(actual, expected, atol=1e-4, rtol=1e-4)


def test_ranks_beyond_the_kv_heads_share_them() -> None:
    """Five ranks on 9 query and 3 KV heads: 2 1 2 1 3 query heads, one KV head each."""
    results = run_ranks(_rank_more_ranks_than_kv_heads, 5, timeout_s=110)
    assert [result[0] for result in results] == [2, 1, 2, 1, 3]
    assert [result[1] for result in results] == [1] * 5
    assert all(is_close for _, _, is_close in results)


def call_forms(model: Any, case: ModelCase) -> dict[str, Tensor]:
    """Call a model in every way; its caches hold all KV heads, or a rank's."""
    inputs = case.inputs()
    ids = inputs["input_ids"]
    num_tokens = ids.shape[1]
    embeds = torch.randn(2, 5, 72, generator=torch.Generator().manual_seed(2))
    position_ids = torch.arange(num_tokens).unsqueeze(0) + 5
    selected = model(**inputs, output_hidden_states=[0, -1]).hidden_states
    assert selected[1] is None
    long = model(ids, use_cache=True)
    cached = {
        f"cached {name} of layer {i}": getattr(layer, name).clone()
        for i, layer in enumerate(long.cache.layers)
        for name in ("keys", "values")
    }
    step = model(ids[:, :1], cache=long.cache)
    static = StaticCache(config=model.config, max_cache_len=32)
    model(ids, cache=static)
    given = DynamicCache(config=model.config)
    model(ids[:, :6], cache=given)
    chunk = model(ids[:, 6:], cache=given)
    block_mask = torch.zeros(1, 1, num_tokens, num_tokens)
    return {
        **cached,
        "embeds": model(inputs_embeds=embeds).logits,
        "positions": model(ids, position_ids=position_ids).logits,
        "last logits": model(ids, logits_to_keep=1).logits,
        "tuple": model(ids, return_dict=False)[0],
        "no cache": model(ids, use_cache=False).logits,
        "backbone": model.base_model(ids).last_hidden_state,
        "one token": model(ids[:, :1]).logits,
        "4-d mask": model(ids, attention_mask=block_mask).logits,
        "not causal": model(ids, is_causal=False).logits,
        "loss": model(ids, labels=ids).loss,
        "first state": selected[0],
        "last state": selected[-1],
        "step with cache": step.logits,
        "static step": model(ids[:, :1], cache=static).logits,
        "second chunk": chunk.logits,
        "given cache step": model(ids[:, :1], cache=given).logits,
        "embedding": model.get_input_embeddings()(ids),
    }


@torch.no_grad()
def _rank_call_forms(world: World) -> None:
    for case in FAMILY_CASES:
        model: Any = case.model()
        ids = case.inputs()["input_ids"]
        expected = call_forms(model, case)
        assert model(ids, use_cache=False).cache is None
        tokenweave.parallelize(model, world)
        heads = model.tokenweave.plan.kv_heads[world.rank]
        for name, actual in call_forms(model, case).items():
            whole = expected[name]
            is_cached = name.startswith("cached ")
            wanted = whole[:, heads.start : heads.stop] if is_cached else whole
            # Logits are about 10 and errors about 1e-5; a wrong mask or position changes them by 1.
            assert torch.allclose(actual, wanted, atol=2e-4, rtol=1e-4), f"{case}: {name}"
        assert model(ids, use_cache=False).cache is None, str(case)


def test_every_way_to_call_the_model_gives_its_result() -> None:
    """Embeddings, positions, masks, caches, selected outputs: the forward signature stays."""
    run_ranks(_rank_call_forms, 2, timeout_s=110)


@torch.no_grad()
def _rank_cast(world: World) -> None:
    inputs = SMOLLM2_LIKE.inputs()
    before = tokenweave.parallelize(SMOLLM2_LIKE.model().bfloat16(), world)(**inputs).logits
    after = tokenweave.parallelize(SMOLLM2_LIKE.model(), world)
    after(**inputs)
    after.bfloat16()
    assert_same_bits(after(**inputs).logits, before, what="logits")
    tokenweave.restore(after)
    complete = SMOLLM2_LIKE.model().bfloat16().state_dict()
    for name, value in after.state_dict().items():
        assert_same_bits(value, complete[name], what=name)


def test_a_sharded_model_can_be_cast() -> None:
    """Shards rounded later are the rounded model's shards."""
    run_ranks(_rank_cast, 2)


def _rank_baselines(world: World) -> None:
    for case in (SMOLLM2_LIKE, *(case for case in FAMILY_CASES if case.family == "gemma3")):
        inputs = case.inputs()
        attended = is_attended(inputs)
        with torch.no_grad():
            expected = case.model()(**inputs).logits
        gloo = tokenweave.parallelize(case.model(), world, WeaveConfig(reduction="gloo"))
        right = gloo(**inputs).logits
        assert torch.allclose(right[attended], expected[attended], atol=2e-4, rtol=1e-4), str(case)
        none = tokenweave.parallelize(case.model(), world, WeaveConfig(reduction="none"))
        wrong = none(**inputs).logits
        assert wrong.shape == expected.shape
        assert not torch.allclose(wrong, expected, atol=1.0), str(case)
    # The ranks compute different numbers then, but still generate in step.
    tokens = none.generate(**inputs, max_new_tokens=4, do_sample=True)
    other = tokenweave.broadcast(tokens.clone(), world=world)
    assert torch.equal(tokens, other)


def test_the_measured_baselines_are_what_they_say() -> None:
    """gloo gives the right numbers, "none" wrong ones of the right shape."""
    run_ranks(_rank_baselines, 3)


@torch.no_grad()
def _rank_layouts(world: World) -> None:
    case = ModelCase(name="layouts", tokens=5, batch=2, config={"attention_bias": True})
    model = tokenweave.parallelize(case.model(), world)
    real_plan, layouts = plan_on_world.plan_reduction, []

    def plan_and_note(**sizes: Any) -> Any:
        plan = real_plan(**sizes)
        layouts.append((plan.algorithm, plan.residual_layout))
        return plan

    real_choice = passes.choice_on_world
    results = []
    for algorithm in ("one_shot", "two_shot"):
        choice = ReductionChoice(algorithm=algorithm, num_sms=0)
        passes.choice_on_world = lambda world, chosen=choice, **sizes: chosen
        world.prepared.clear()
        plan_on_world.plan_reduction = plan_and_note  # type: ignore[assignment]
        results.append(model(**case.inputs()).logits)
        results.append(model(**case.inputs(), output_hidden_states=True).logits)
        plan_on_world.plan_reduction = real_plan
    passes.choice_on_world = real_choice
    for logits in results[1:]:
        assert_same_bits(logits, results[0], what="logits")
    assert layouts == [
        ("one_shot", "replicated"),
        ("one_shot", "replicated"),
        ("two_shot", "row_sharded"),
        ("two_shot", "replicated"),
    ]


def test_the_residual_layout_does_not_change_the_numbers() -> None:
    """Row-sharded with two-shot, replicated with one-shot or for hidden states: the same bits."""
    run_ranks(_rank_layouts, 3)


def _rank_stats(world: World) -> dict[str, int | float]:
    model = tokenweave.parallelize(SMOLLM2_LIKE.model(), world)
    model(**SMOLLM2_LIKE.inputs())
    model.tokenweave.reset_stats()
    model(**SMOLLM2_LIKE.inputs())
    stats: dict[str, int | float] = model.tokenweave.stats()
    return stats


def test_reductions_are_counted() -> None:
    """Two a layer, one for the embedding, one gather for the logits."""
    for stats in run_ranks(_rank_stats, 2):
        assert stats["num_reductions"] == 2 * 3 + 1
        assert stats["num_gathers"] == 1
        assert stats["reduction_s"] > 0
        assert stats["gather_s"] > 0
