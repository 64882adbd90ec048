"""Passes as CUDA graphs, but for the graphs: which are captured, what is copied, what is noticed.

A capture keeps the call, a replay makes it again with the inputs that stay where they are: as a
graph, it runs nothing when it is captured. The rest is as in test_gpu_models.py.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from tests.dist.llama_models import FAMILY_CASES, SMOLLM2_LIKE, ModelCase
from tests.unit.fake_cuda import FakeCuda
from tests.unit.gpu_models import on_ranks, put_fakes
from tokenfabric.errors import CommTimeoutError
from tokenfabric.testing.tolerance import assert_same_bits
from tokenweave import WeaveConfig
from tokenweave.integrations import pass_graphs

CASE = SMOLLM2_LIKE
BY_FAMILY = {case.family: case for case in FAMILY_CASES}
STEPS = 5


class Captures:
    """Implements Capture; `made` counts."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, call: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.made += 1
        return call


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """Put fakes in the place of launches, streams and captures."""
    monkeypatch.setattr(pass_graphs, "CudaCapture", Captures)
    return put_fakes(monkeypatch, "one_shot")


def captures_of(model: Any) -> Captures:
    """Return what was captured of a parallelized model."""
    made: Captures = model.model.forward._graphs._graphs._capture
    return made


def decode(model: Any, case: ModelCase, cache: Any, steps: int = STEPS) -> list[Tensor]:
    """Return the logits of a padded prompt and of some tokens after it."""
    inputs = case.inputs()
    mask = inputs["attention_mask"]
    logits = [model(**inputs, cache=cache).logits]
    for step in range(steps):
        token = torch.full((case.batch, 1), 3 + step)
        mask = torch.cat([mask, mask.new_ones(case.batch, 1)], dim=1)
        logits.append(model(token, attention_mask=mask, cache=cache).logits)
    return logits


def static_cache(model: Any) -> StaticCache:
    return StaticCache(config=model.config, max_cache_len=32)


@torch.no_grad()
def test_decoding_steps_are_replayed_with_the_same_bits(fake: FakeCuda) -> None:
    """Padding, positions, tokens and what is cached change; the prompt is launched one by one."""

    def of_rank(model: Any, world: Any) -> None:
        with model.tokenweave.passes.asked(graphs="off"):
            expected = decode(model, CASE, static_cache(model))
            assert "graphs='off'" in model.tokenweave.communication.last_graph.explain()
        assert captures_of(model).made == 0
        cache = static_cache(model)
        stats = model.tokenweave.communication
        stats.reset()
        for time in range(2):
            for number, (one, other) in enumerate(
                zip(decode(model, CASE, cache), expected, strict=True)
            ):
                assert_same_bits(one, other, what=f"time {time}, step {number}")
            cache.reset()
        # One step warms up and one is captured, of the first time; the prompt of the second time
        # warms up, since its cache has memory then.
        assert captures_of(model).made == 1
        assert stats.num_replays == 2 * STEPS - 2
        assert stats.last_graph.may_capture

    with torch.no_grad():
        on_ranks(fake, 2, CASE.model(), WeaveConfig(), of_rank)


def test_what_a_graph_cannot_follow_is_not_captured(fake: FakeCuda) -> None:
    """A cache that grows, hidden states, timed stages, experts: the reason is there."""

    def of_rank(model: Any, world: Any) -> None:
        stats = model.tokenweave.communication

        def explained(**given: Any) -> str:
            with torch.no_grad():
                for _ in range(3):
                    model(torch.tensor([[5]]), **given)
            return str(stats.last_graph.explain())

        assert "may grow" in explained(cache=DynamicCache(config=model.config))
        assert "hidden states" in explained(use_cache=False, output_hidden_states=True)
        stats.records = []
        assert "timed" in explained(use_cache=False)
        stats.records = None
        assert captures_of(model).made == 0
        assert "may be a CUDA graph" in explained(use_cache=False)
        assert captures_of(model).made == 1

    on_ranks(fake, 2, CASE.model(), WeaveConfig(), of_rank)

    def with_experts(model: Any, world: Any) -> None:
        with torch.no_grad():
            model(torch.tensor([[5]]), use_cache=False)
        assert "expert" in model.tokenweave.communication.last_graph.explain()

    on_ranks(fake, 2, BY_FAMILY["mixtral"].model(), WeaveConfig(), with_experts)


def test_other_weights_and_other_caches_are_other_graphs(fake: FakeCuda) -> None:
    """A weight that is replaced, a cache of the same size: never an old address."""

    def of_rank(model: Any, world: Any) -> None:
        with torch.no_grad():
            caches = [static_cache(model) for _ in range(2)]
            expected = decode(model, CASE, caches[0])
            again = decode(model, CASE, caches[1])
            assert all(map(torch.equal, expected, again))
            assert captures_of(model).made == 2
            norm = model.model.layers[1].input_layernorm
            norm.weight.data = norm.weight.data * 1.5
            caches[0].reset()
            other = decode(model, CASE, caches[0])
            assert not torch.equal(other[-1], expected[-1])
            assert captures_of(model).made == 3
            with model.tokenweave.passes.asked(graphs="off"):
                caches[0].reset()
                assert torch.equal(decode(model, CASE, caches[0])[-1], other[-1])

    on_ranks(fake, 2, CASE.model(), WeaveConfig(), of_rank)


def test_split_passes_without_a_cache_are_captured(fake: FakeCuda) -> None:
    """Both streams belong to the capture; the bits are those without it."""
    inputs = CASE.inputs()

    def of_rank(model: Any, world: Any) -> None:
        with torch.no_grad(), model.tokenweave.passes.asked(split=14):
            found = [model(**inputs, use_cache=False).logits for _ in range(4)]
        assert all(torch.equal(found[0], it) for it in found)
        assert captures_of(model).made == 1
        assert model.tokenweave.communication.num_replays == 2
        assert model.tokenweave.communication.last_plan.is_split

    on_ranks(fake, 2, CASE.model(), WeaveConfig(), of_rank)


def test_failure_of_a_replay_is_raised_by_the_next_call(
    fake: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its kernels have recorded, before anything else is launched."""

    def of_rank(model: Any, world: Any) -> None:
        ids = torch.tensor([[5]])
        with torch.no_grad():
            for _ in range(3):
                model(ids, use_cache=False)

            def failed(operation: str) -> None:
                raise CommTimeoutError("rank 1 is missing", rank=0, operation=operation)

            world.cuda.group.check = failed
            launches = len(fake.launches)
            world.cuda.group.meeting.wait(20)
            with pytest.raises(CommTimeoutError, match="rank 1 is missing"):
                model.model(ids, use_cache=False)
            world.cuda.group.meeting.wait(20)
            assert len(fake.launches) == launches

    on_ranks(fake, 2, CASE.model(), WeaveConfig(), of_rank)


def test_inputs_that_repeat_are_kept_as_such() -> None:
    """A mask that is expanded over the batch is copied once, and looks the same."""
    from tokenweave.cuda.graphs import _Static

    for tensor in (
        torch.randn(1, 1, 3, 4).expand(5, 1, 3, 4),
        torch.randn(4, 3).t(),
        torch.randn(2, 6)[:, ::2],
        torch.tensor(3.0),
        torch.randn(0, 2),
    ):
        static = _Static.like(tensor)
        static.take(tensor)
        assert (static.whole.shape, static.whole.stride()) == (tensor.shape, tensor.stride())
        assert torch.equal(static.whole, tensor)
