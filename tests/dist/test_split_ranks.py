"""Split passes on several ranks: within the numbers contract, overlapped or not the same bits."""

import hashlib
import threading
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

import tokenweave
from tests.dist.broken import assert_world_is_broken
from tests.dist.exact_models import in_fp64
from tests.dist.llama_models import CASES, FAMILY_CASES, SMOLLM2_LIKE, ModelCase, is_attended
from tokenfabric.errors import ConfigError, PeerLostError
from tokenfabric.testing.spawn import run_ranks
from tokenfabric.testing.tolerance import assert_close, assert_same_bits
from tokenfabric.world import World
from tokenweave import WeaveConfig
from tokenweave.config import Overlap
from tokenweave.split_plan import ReductionChoice, SplitPlan

BY_NAME = {str(case): case for case in CASES}
SPLIT_CASES = [
    SMOLLM2_LIKE,
    BY_NAME["biases"],
    BY_NAME["qwen2-mixed-windows"],
    BY_NAME["bf16"],
    # Two-shot reductions with a row-sharded residual; partial sums of all pieces, 230 tokens and
    # more, are large enough for shared memory.
    ModelCase(name="long-prompt", batch=2, tokens=461, config={"attention_bias": True}),
    BY_NAME["bf16-long-prompt"],
    ModelCase(name="one-above-a-tile", batch=1, tokens=129),
    *(case for case in FAMILY_CASES if case.family in ("gemma3", "mixtral")),
]


def boundaries_of(case: ModelCase) -> list[int]:
    """Return the middle of the second sequence and all tokens but one; where there are few tokens,
    a sequence and one token, too.
    """
    batch, tokens = case.batch, case.tokens
    found = {tokens + tokens // 2, batch * tokens - 1}
    if tokens < 100:
        found |= {1, tokens}
    return sorted(boundary for boundary in found if boundary < batch * tokens)


@torch.no_grad()
def outputs_of(model: Any, case: ModelCase, *, keeps_hidden: bool) -> list[Tensor]:
    """Return logits and hidden states where there is no padding, then all keys and values."""
    inputs = case.inputs()
    result = model(**inputs, output_hidden_states=keeps_hidden, use_cache=True)
    states = [result.logits, *(result.hidden_states or ())]
    layers = result.cache.layers
    cached = [x for layer in layers for x in (layer.keys, layer.values)]
    return [x[is_attended(inputs)] for x in states] + cached


def split_outputs(
    model: Any, case: ModelCase, split: int, overlap: Overlap, *, keeps_hidden: bool
) -> list[Tensor]:
    with model.tokenweave.passes.asked(split=split, overlap=overlap):
        found = outputs_of(model, case, keeps_hidden=keeps_hidden)
    assert model.tokenweave.communication.last_plan.is_split
    return found


def _rank_boundaries(world: World) -> list[str]:
    digests = []
    for number, case in enumerate(SPLIT_CASES):
        model: Any = case.model()
        is_judge = world.rank == number % world.size
        if is_judge:
            exact, same_dtype = (
                outputs_of(m, case, keeps_hidden=True) for m in (in_fp64(model), model)
            )
        tokenweave.parallelize(model, world)
        for split in boundaries_of(case):
            actual = split_outputs(model, case, split, "off", keeps_hidden=True)
            num_states = len(actual) - 2 * model.config.num_hidden_layers
            if world.rank == (number + 1) % world.size:
                time.sleep(0.002)  # one rank is late
            for keeps_hidden in (True, False):
                beside = split_outputs(model, case, split, "on", keeps_hidden=keeps_hidden)
                kept = actual if keeps_hidden else [actual[0], *actual[num_states:]]
                for a, b in zip(beside, kept, strict=True):
                    assert_same_bits(a, b, what=f"{case}, split {split}, overlapped")
            if is_judge:
                for index in range(num_states):
                    assert_close(
                        actual[index], exact[index], same_dtype[index], factor=2.5,
                        what=f"{case}, split {split}, output {index}",
                    )  # fmt: skip
            hashed = hashlib.sha256()
            for x in actual[:num_states]:
                hashed.update(x.contiguous().flatten().view(torch.uint8).numpy())
            digests.append(hashed.hexdigest())
    return digests


@pytest.mark.parametrize("world_size", [2, 3])
def test_any_boundary_is_within_the_contract_and_overlap_changes_no_bit(world_size: int) -> None:
    """Logits, hidden states and caches; all ranks hold the same logits and hidden states."""
    digests = run_ranks(_rank_boundaries, world_size, timeout_s=110)
    assert len(digests[0]) == sum(len(boundaries_of(case)) for case in SPLIT_CASES)
    for rank in range(1, world_size):
        assert digests[rank] == digests[0]


def replan(world: World, plan: SplitPlan) -> None:
    """Put a plan whose reductions are done in different ways in the place of a plan."""
    one, two = (ReductionChoice(algorithm=a, num_sms=0) for a in ("one_shot", "two_shot"))
    other = replace(
        plan,
        entry=(one, two),
        parts=(plan.parts[0], replace(plan.parts[1], reductions=(two, one))),
        last=two,
    )
    (key,) = (key for key, known in world.prepared.items() if known is plan)
    world.prepared.remember(key, other)


@torch.no_grad()
def _rank_many_passes(world: World) -> None:
    case = SMOLLM2_LIKE
    inputs = case.inputs()
    asked = {"max_new_tokens": 8, "do_sample": False}
    expected = case.model().generate(**inputs, **asked)
    model: Any = case.model()
    tokenweave.parallelize(model, world, WeaveConfig(split=7, overlap="on"))
    model.tokenweave.communication.records = []
    threads = threading.active_count()
    first = model(**inputs).logits
    replan(world, model.tokenweave.communication.last_plan)
    for _ in range(20):
        assert_same_bits(model(**inputs).logits, first, what="logits")
        walked = model.tokenweave.communication.last_plan
        assert [choice.algorithm for choice in walked.entry] == ["one_shot", "two_shot"]
        assert torch.equal(model.generate(**inputs, **asked), expected)
    assert threading.active_count() == threads
    prompts = [r for r in model.tokenweave.communication.records if r.plan.is_split]
    assert len(prompts) == 41
    streams = {f"rank {world.rank} compute", f"rank {world.rank} communication"}
    for prompt in prompts:
        assert {span.stage.resource for span in prompt.timeline.spans} == streams
    weights = tokenweave.restore(model).state_dict()
    for name, value in case.model().state_dict().items():
        assert_same_bits(weights[name], value, what=name)


def test_many_overlapped_passes_give_the_same_bits_and_leave_no_thread() -> None:
    """Prompts are split, decoding steps are not; how a reduction is done changes nothing."""
    run_ranks(_rank_many_passes, 2)


@torch.no_grad()
def _rank_other_reductions(world: World) -> None:
    case = SMOLLM2_LIKE
    inputs = case.inputs()
    expected = case.model()(**inputs).logits
    for split in (1, 14):
        gloo = WeaveConfig(reduction="gloo", split=split)
        logits = tokenweave.parallelize(case.model(), world, gloo)(**inputs).logits
        assert torch.allclose(logits, expected, atol=2e-4, rtol=1e-4)
        none = WeaveConfig(reduction="none", split=split)
        wrong = tokenweave.parallelize(case.model(), world, none)(**inputs).logits
        assert wrong.shape == expected.shape
    with pytest.raises(ConfigError, match="overlap='on' is for fused reductions"):
        tokenweave.parallelize(case.model(), world, WeaveConfig(reduction="gloo", overlap="on"))


def test_the_baselines_are_split_too() -> None:
    """The same plan over torch.distributed, and over nothing."""
    run_ranks(_rank_other_reductions, 2)


class StageFailedError(Exception):
    """Raised by the module that a test made fail."""


class FailsAtCall(nn.Module):
    """A module that computes what another does, until its n-th call."""

    def __init__(self, module: nn.Module, call: int):
        super().__init__()
        self._module = module
        self._calls_left = call

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self._calls_left -= 1
        if self._calls_left == 0:
            raise StageFailedError("on purpose")
        return self._module(*args, **kwargs)


FAILURES: list[tuple[Overlap, Any, int]] = [
    ("off", "never", 1),
    ("off", 7, 1),
    ("on", 7, 1),
    ("on", 7, 2),
]
"""overlap, split, and at which call a module of one rank fails: the first is the head's."""


@torch.no_grad()
def _rank_failing_stage(world: World) -> None:
    case, victim = SMOLLM2_LIKE, 1
    for overlap, split, call in FAILURES:
        # Who waited until the deadline would raise CommTimeoutError.
        with World.from_group(world.group, timeout_s=30.0, num_threads=1) as broken:
            model: Any = case.model()
            config = WeaveConfig(split=split, overlap=overlap)
            tokenweave.parallelize(model, broken, config)
            model(**case.inputs())
            cache = DynamicCache(config=model.config)
            if broken.rank == victim:
                layer = model.base_model.layers[1]
                layer.mlp.up_proj = FailsAtCall(layer.mlp.up_proj, call)
            threads = threading.active_count()
            broken.barrier()
            with pytest.raises(StageFailedError if broken.rank == victim else PeerLostError):
                model(**case.inputs(), cache=cache)
            assert threading.active_count() == threads
            assert_world_is_broken(broken, PeerLostError)
            # A peer that still looks at this world must not find it closed instead.
            world.barrier()


def test_a_stage_that_fails_on_one_rank_ends_the_pass_on_all() -> None:
    """In the head or the tail, unsplit too: its own error there, a lost peer elsewhere."""
    run_ranks(_rank_failing_stage, 3)
