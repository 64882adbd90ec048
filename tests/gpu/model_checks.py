"""What must hold of a model on a world of GPUs; called on every rank of it.

The same checks run without a GPU on fakes of the kernels (tests/unit/test_gpu_model_checks.py),
which says that they are right, and nothing about the kernels.
"""

from typing import Any, Literal
from unittest import mock

import torch
from torch import Tensor
from transformers import StaticCache

import tokenweave
from tests.dist.llama_models import FAMILY_CASES, ModelCase, is_attended
from tokenfabric.testing.tolerance import assert_same_bits
from tokenfabric.world import World
from tokenweave.cuda import plan as cuda_plan

LONG = ModelCase(name="long", batch=2, tokens=150, config={"attention_bias": True})
WITH_WINDOWS = [it for it in FAMILY_CASES if it.family in ("gemma3", "qwen3")]
STEPS = 4
# Of fp32 models of three layers whose logits spread over tens: sums in another order and GEMMs in
# other tiles move them by some 1e-5 of that. TF32, which would not fit in, is off unless asked for.
TOLERANCE = 2e-3


def prefer(algorithm: Literal["one_shot", "two_shot"]) -> Any:
    """Return a context in which reductions of tiny models are done in this way. On every rank.

    One-shot is what their sizes ask for.
    """
    microseconds = 4.5 if algorithm == "one_shot" else 1e6
    return mock.patch.object(cuda_plan, "_ONE_BARRIER_US", microseconds)


def inputs_of(case: ModelCase, device: torch.device) -> dict[str, Tensor]:
    """Return padded token ids and their mask on the device."""
    return {name: value.to(device) for name, value in case.inputs().items()}


@torch.no_grad()
def check_passes(world: World, case: ModelCase) -> None:
    """Whole and split, overlapped and in order, with hidden states or without: logits of an
    unsharded model; one plan, one result.
    """
    inputs = inputs_of(case, world.device)
    where = is_attended(inputs)
    model: Any = case.model().to(world.device)
    expected = model(**inputs).logits[where]
    tokenweave.parallelize(model, world)
    tokens = case.batch * case.tokens
    for split in ("never", tokens // 2, tokens // 2 + 5):
        found = []
        for overlap in ("off", "on", "on"):
            with model.tokenweave.passes.asked(split=split, overlap=overlap):
                found.append(model(**inputs, use_cache=True).logits)
                states = model(**inputs, output_hidden_states=True).logits
            assert_same_bits(found[-1], found[0], what=f"{case}, {split}, overlap {overlap}")
            assert_same_bits(states, found[0], what=f"{case}, {split}, with hidden states")
        plan = model.tokenweave.communication.last_plan
        assert plan.is_split == (split != "never")
        torch.testing.assert_close(found[0][where], expected, atol=TOLERANCE, rtol=TOLERANCE)
    assert world.broken is None
    tokenweave.restore(model)
    again = model(**inputs).logits[where]
    assert_same_bits(again, expected, what=f"{case}, restored")


def _decoded(model: Any, case: ModelCase, cache: StaticCache, device: torch.device) -> list[Tensor]:
    """Return the logits of a padded prompt and of the tokens after it."""
    inputs = inputs_of(case, device)
    mask = inputs["attention_mask"]
    logits = [model(**inputs, cache=cache).logits]
    for step in range(STEPS):
        mask = torch.cat([mask, mask.new_ones(case.batch, 1)], dim=1)
        token = torch.full((case.batch, 1), 3 + step, device=device)
        logits.append(model(token, attention_mask=mask, cache=cache).logits)
    return logits


@torch.no_grad()
def check_graphs(world: World, case: ModelCase) -> None:
    """Decoding by replays, twice on one cache and between other passes, has the bits of launches
    one by one; so has a split pass.
    """
    model: Any = tokenweave.parallelize(case.model(), world)
    stats = model.tokenweave.communication

    def cache() -> StaticCache:
        return StaticCache(config=model.config, max_cache_len=case.tokens + STEPS + 3)

    with model.tokenweave.passes.asked(graphs="off"):
        expected = _decoded(model, case, cache(), world.device)
    stats.reset()
    kept = cache()
    for time in range(2):
        found = _decoded(model, case, kept, world.device)
        for step, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same_bits(one, other, what=f"{case}, time {time}, step {step}")
        kept.reset()
    assert stats.num_replays == 2 * STEPS - 2, stats.last_graph
    inputs = inputs_of(case, world.device)
    with model.tokenweave.passes.asked(split=case.tokens):
        logits = [model(**inputs, use_cache=False).logits for _ in range(4)]
    assert stats.num_replays == 2 * STEPS, stats.last_graph
    for one in logits[1:]:
        assert_same_bits(one, logits[0], what=f"{case}, split, as a graph")
    assert world.broken is None


def check_generation(world: World, case: ModelCase) -> None:
    """Greedy tokens of an unsharded model, with caches that grow and that do not."""
    inputs = inputs_of(case, world.device)
    asked = {"max_new_tokens": 6, "do_sample": False}
    model: Any = case.model().to(world.device)
    expected = model.generate(**inputs, **asked)
    tokenweave.parallelize(model, world)
    for form in ({}, {"cache_implementation": "static"}, {"cache_implementation": "static"}):
        assert torch.equal(model.generate(**inputs, **asked, **form), expected), form
    sampled = [
        model.generate(**inputs, max_new_tokens=4, do_sample=True, cache_implementation="static")
        for _ in range(2)
    ]
    for tokens in sampled:
        everywhere = tokenweave.all_gather(tokens.unsqueeze(0).contiguous(), world=world)
        assert torch.equal(everywhere, tokens.expand_as(everywhere))
