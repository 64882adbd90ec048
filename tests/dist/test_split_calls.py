"""A split forward pass in every way a model is called: caches, masks, positions, packed sequences.

On one rank: how keys, masks and positions are cut is not a matter of how many ranks there are.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache
from transformers.cache_utils import DynamicLayer

import tokenweave
from tests.dist.llama_models import CASES, FAMILY_CASES, SMOLLM2_LIKE, ModelCase, is_attended
from tokenfabric.errors import ConfigError
from tokenfabric.testing.tolerance import assert_same_bits
from tokenfabric.world import World
from tokenweave import WeaveConfig

BY_NAME = {str(case): case for case in CASES}
SLIDING = BY_NAME["mistral-sliding"]
EAGER = BY_NAME["multi-query-eager"]
FAMILIES = [EAGER, *FAMILY_CASES]


@contextmanager
def split_model(case: ModelCase, split: int) -> Iterator[Any]:
    """Yield the model in a world of one rank, its passes split after `split` tokens."""
    with World(None, num_threads=1) as world:
        model = tokenweave.parallelize(case.model(), world, WeaveConfig(split=split, overlap="off"))
        model.tokenweave.communication.records = []
        yield model


def was_split(model: Any) -> list[bool]:
    """Return of each pass since the last question whether it was split."""
    records = model.tokenweave.communication.records
    answers = [record.plan.is_split for record in records]
    records.clear()
    return answers


def assert_equal(actual: Tensor, expected: Tensor, what: str) -> None:
    # Logits are about 10 and errors about 1e-5; a wrong mask or position changes them by 1.
    torch.testing.assert_close(actual, expected, atol=2e-4, rtol=1e-4, msg=lambda m: f"{what}: {m}")


def assert_same_cache(
    actual: Cache, expected: Cache, what: str, attention_mask: Tensor | None = None
) -> None:
    """Compare keys and values of all layers, and how many tokens the caches have seen.

    Those of padding mean nothing: its queries attend to whatever is there.
    """
    assert int(actual.get_seq_length()) == int(expected.get_seq_length())
    assert len(actual.layers) == len(expected.layers)
    for index, (a, b) in enumerate(zip(actual.layers, expected.layers, strict=True)):
        assert type(a) is type(b)
        assert a.keys.shape == b.keys.shape
        is_real = torch.ones(a.keys.shape[0], a.keys.shape[2], dtype=torch.bool)
        if attention_mask is not None:
            is_real = attention_mask.bool()[:, -a.keys.shape[2] :]
        for name in ("keys", "values"):
            found, wanted = (getattr(x, name).transpose(1, 2)[is_real] for x in (a, b))
            assert_equal(found, wanted, f"{what}, {name} of layer {index}")


def boundaries(batch: int, tokens: int) -> list[int]:
    """Return 1, N - 1, the middle, and what lies on, before and after the ends of sequences."""
    near = {i * tokens + d for i in range(1, batch) for d in (-1, 0, 1)}
    found = {1, batch * tokens // 2, batch * tokens - 1, *near}
    return sorted(b for b in found if 0 < b < batch * tokens)


@torch.no_grad()
@pytest.mark.parametrize("case", FAMILIES, ids=str)
def test_every_boundary_gives_the_models_logits_and_cache(case: ModelCase) -> None:
    """Padding, windows, eager masks; then a second chunk and a token on the same cache."""
    reference, inputs = case.model(), case.inputs()
    is_real = is_attended(inputs)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    longer = torch.cat([mask, torch.ones(case.batch, 5, dtype=mask.dtype)], dim=1)

    def chunks(model: PreTrainedModel) -> tuple[list[Tensor], list[Any], Any]:
        first: Any = model(ids, attention_mask=mask, use_cache=True, output_hidden_states=True)
        cache = first.cache
        found = [first.logits[is_real], *(h[is_real] for h in first.hidden_states)]
        second: Any = model(ids[:, 3:7], attention_mask=longer[:, :-1], cache=cache)
        third: Any = model(ids[:, :1], attention_mask=longer, cache=cache)
        return [*found, second.logits, third.logits], cache

    expected, expected_cache = chunks(reference)
    for boundary in boundaries(case.batch, case.tokens):
        with split_model(case, boundary) as model:
            actual, cache = chunks(model)
            second_has_more = case.batch * 4 > boundary
            assert was_split(model) == [True, second_has_more, False]
        for number, (a, b) in enumerate(zip(actual, expected, strict=True)):
            assert_equal(a, b, f"boundary {boundary}, output {number}")
        assert_same_cache(cache, expected_cache, f"boundary {boundary}", longer)


@torch.no_grad()
@pytest.mark.parametrize("case", [SMOLLM2_LIKE, SLIDING], ids=str)
@pytest.mark.parametrize("boundary", [4, 13])
def test_without_a_cache_the_tail_still_sees_the_head(case: ModelCase, boundary: int) -> None:
    """The keys and values of the head live for the pass alone."""
    inputs = case.inputs()
    expected = case.model()(**inputs).logits[is_attended(inputs)]
    with split_model(case, boundary) as model:
        result = model(**inputs, use_cache=False)
        assert result.cache is None
        assert was_split(model) == [True]
        assert_equal(result.logits[is_attended(inputs)], expected, f"boundary {boundary}")


@torch.no_grad()
def test_a_static_cache_is_filled_as_in_one_piece() -> None:
    """Two chunks and a token; the columns that nobody wrote stay zero."""
    ids = SMOLLM2_LIKE.inputs()["input_ids"]

    def run(model: PreTrainedModel) -> tuple[Tensor, Cache]:
        cache = StaticCache(config=model.config, max_cache_len=40)
        parts = [ids, ids[:, 2:9], ids[:, :1]]
        logits = [model(part, cache=cache).logits for part in parts]
        return torch.cat(logits, dim=1), cache

    expected, expected_cache = run(SMOLLM2_LIKE.model())
    for boundary in (1, 5, 11, 20):
        with split_model(SMOLLM2_LIKE, boundary) as model:
            actual, cache = run(model)
            assert was_split(model) == [True, True, False]
        assert_equal(actual, expected, f"boundary {boundary}")
        assert_same_cache(cache, expected_cache, f"boundary {boundary}")


@torch.no_grad()
def test_a_window_that_records_its_past_attends_to_the_end_of_it() -> None:
    """Assisted decoding keeps more keys than the mask has columns."""
    ids = SLIDING.inputs()["input_ids"]

    def run(model: PreTrainedModel) -> tuple[Tensor, Cache]:
        cache = DynamicCache(config=model.config)
        for layer in cache.layers:
            layer.activate_past_recording()
        logits = [model(part, cache=cache).logits for part in (ids, ids[:, 2:9])]
        return torch.cat(logits, dim=1), cache

    expected, expected_cache = run(SLIDING.model())
    for boundary in (3, 9):
        with split_model(SLIDING, boundary) as model:
            actual, cache = run(model)
            assert was_split(model) == [True, True]
        assert_equal(actual, expected, f"boundary {boundary}")
        assert_same_cache(cache, expected_cache, f"boundary {boundary}")


@torch.no_grad()
def test_packed_sequences_stay_apart() -> None:
    """Positions that start again: no token sees another document, wherever the boundary lies."""
    ids = torch.randint(3, 131, (1, 12), generator=torch.Generator().manual_seed(2))
    positions = torch.cat([torch.arange(5), torch.arange(7)]).unsqueeze(0)
    call = {"position_ids": positions, "use_cache": False}
    expected = SMOLLM2_LIKE.model()(ids, **call).logits
    alone = SMOLLM2_LIKE.model()(ids[:, 5:], use_cache=False).logits
    assert_equal(expected[:, 5:], alone, "the second document")
    for boundary in (2, 5, 8):
        with split_model(SMOLLM2_LIKE, boundary) as model:
            assert_equal(model(ids, **call).logits, expected, f"boundary {boundary}")
            assert was_split(model) == [True]


@torch.no_grad()
def test_what_may_look_ahead_is_split_between_sequences_only() -> None:
    """A mask of the caller's, and attention that is not causal: heads of sequences see no tails."""
    ids = SMOLLM2_LIKE.inputs()["input_ids"]
    num_tokens = ids.shape[1]
    everything = torch.zeros(1, 1, num_tokens, num_tokens)
    given = {"attention_mask": everything}
    calls: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (given, given),
        # By layer type, as models with several of them take it: transformers' Llama does not.
        ({"attention_mask": {"full_attention": everything}}, given),
        ({"is_causal": False}, {"is_causal": False}),
    ]
    for call, reference_call in calls:
        expected = SMOLLM2_LIKE.model()(ids, **reference_call).logits
        for boundary, is_split in ((3, False), (num_tokens, True), (num_tokens + 4, True)):
            with split_model(SMOLLM2_LIKE, boundary) as model:
                actual = model(ids, **call).logits
                assert was_split(model) == [is_split]
                assert_equal(actual, expected, f"{list(call)}, boundary {boundary}")
                plan = model.tokenweave.communication.last_plan
                assert "causal" in plan.explain() or "given attention mask" in plan.explain()
                assert plan.boundary % num_tokens == 0


@torch.no_grad()
def test_few_tokens_are_not_split() -> None:
    """One, a decoding step, and no more than the boundary; the logits are the model's."""
    reference = SMOLLM2_LIKE.model()
    ids = SMOLLM2_LIKE.inputs()["input_ids"]
    with split_model(SMOLLM2_LIKE, 4) as model:
        for part, is_split in ((ids[:1, :1], False), (ids[:, :1], False), (ids[:1, :4], False),
                               (ids[:1, :5], True), (ids[:2, :3], True)):  # fmt: skip
            assert_equal(model(part).logits, reference(part).logits, str(part.shape))
            assert was_split(model) == [is_split]
        for nothing in (ids[:0], ids[:, :0]):
            with pytest.raises(ConfigError, match="no tokens"):
                model(nothing)


@torch.no_grad()
def test_generate_with_a_split_prompt_gives_the_models_tokens() -> None:
    """Greedy and with beams: the cache is reordered between steps."""
    inputs = SMOLLM2_LIKE.inputs()
    for options in ({}, {"num_beams": 3}):
        asked = {**inputs, "max_new_tokens": 6, "do_sample": False, **options}
        expected = SMOLLM2_LIKE.model().generate(**asked)
        with split_model(SMOLLM2_LIKE, 14) as model:
            assert torch.equal(model.generate(**asked), expected)
            assert was_split(model)[0]


class OwnLayer(DynamicLayer):
    """Might keep its past elsewhere."""


@torch.no_grad()
def test_what_it_is_not_known_how_to_cut_is_not_split_and_the_plan_says_so() -> None:
    """A cache layer of another class, a tensor among the arguments."""
    reference = SMOLLM2_LIKE.model()
    ids = SMOLLM2_LIKE.inputs()["input_ids"]
    lengths = torch.tensor([0, ids.shape[1]])
    calls: list[tuple[Callable[[], dict[str, Any]], str]] = [
        (lambda: {"cache": Cache(layer_class_to_replicate=OwnLayer)}, "type OwnLayer"),
        (lambda: {"cu_seq_lens_q": lengths}, "cu_seq_lens_q is a Tensor"),
    ]
    with split_model(SMOLLM2_LIKE, 5) as model:
        for call, why in calls:
            assert_equal(model(ids, **call()).logits, reference(ids, **call()).logits, why)
            assert was_split(model) == [False]
            assert why in model.tokenweave.communication.last_plan.explain()


@torch.no_grad()
def test_restore_after_split_passes_is_bit_for_bit() -> None:
    """Nothing of a pass stays in the model."""
    model = SMOLLM2_LIKE.model()
    inputs = SMOLLM2_LIKE.inputs()
    expected = model(**inputs).logits
    with World(None, num_threads=1) as world:
        tokenweave.parallelize(model, world, WeaveConfig(split=5))
        model(**inputs)
        tokenweave.restore(model)
    assert_same_bits(model(**inputs).logits, expected, what="logits")
