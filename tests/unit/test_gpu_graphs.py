"""Passes as CUDA graphs, but for the graphs: which are captured, what is copied, what is noticed.

A capture keeps the call, a replay makes it again with the inputs that stay where they are: as a
graph, it runs nothing when it is captured. The rest is as in test_gpu_models.py.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from transformers import DynamicCache, StaticCache

from tests.dist.llama_models import FAMILY_CASES, SMOLLM2_LIKE, ModelCase
from tests.unit.fake_cuda import FakeCuda, FakeReduction
from tests.unit.gpu_models import Captures, on_ranks, put_fakes
from tokenfabric.errors import CommTimeoutError
from tokenfabric.testing.tolerance import assert_same_bits
from tokenweave import WeaveConfig
from tokenweave.integrations.experts import MixtralAdapter

CASE = SMOLLM2_LIKE
BY_FAMILY = {case.family: case for case in FAMILY_CASES}
EAGER_EXPERTS = replace(
    BY_FAMILY["mixtral"],
    config=BY_FAMILY["mixtral"].config | {"experts_implementation": "eager"},
)
STEPS = 5


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """Put fakes in the place of launches, streams and captures."""
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

    on_ranks(fake, 2, EAGER_EXPERTS.model(), WeaveConfig(), with_experts)


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


class OnlyOnTheGpu(TorchDispatchMode):
    """Notes what a capture refuses: numbers read by the host, tensors that it makes elsewhere."""

    READS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.mistakes: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name in self.READS:
            self.mistakes.append(f"{name} is read by the host")
        device = [it for it in func._schema.arguments if it.name == "device"]
        makes = not any(isinstance(it, Tensor) for it in args) and bool(device)
        if makes and (kwargs or {}).get("device") is None:
            self.mistakes.append(f"{name} without a device")
        return func(*args, **(kwargs or {}))


def _outside_of_modes(run: Any) -> Any:
    def kernel(self: Any, *args: Any) -> None:
        with _disable_current_modes():
            run(self, *args)

    return kernel


def mistakes_of_captures(
    monkeypatch: pytest.MonkeyPatch, case: ModelCase, config: WeaveConfig
) -> list[list[str]]:
    """Return what a capture would refuse of a decoding step and of a pass without a cache."""
    fake = put_fakes(monkeypatch, "two_shot")
    monkeypatch.setattr(FakeReduction, "run", _outside_of_modes(FakeReduction.run))

    def of_rank(model: Any, world: Any) -> list[str]:
        rules = OnlyOnTheGpu()

        class Watched(Captures):
            def __call__(self, call: Callable[[], Tensor]) -> Callable[[], Tensor]:
                def replay() -> Tensor:
                    with rules:
                        return call()

                return super().__call__(replay)

        graphs = model.model.forward
        graphs = getattr(graphs, "_forward", graphs)._graphs._graphs
        graphs._capture = watched = Watched()
        with torch.no_grad():
            decode(model, case, static_cache(model), steps=3)
            for _ in range(2):
                model(**case.inputs(), use_cache=False)
        return rules.mistakes if watched.made else ["nothing was captured"]

    return on_ranks(fake, 2, case.model(), config, of_rank)


FULL = {"layer_types": ["full_attention"] * 3}
CAPTURED = [
    CASE,
    ModelCase(name="biases", config={"attention_bias": True, "mlp_bias": True}),
    replace(BY_FAMILY["gemma3"], config=BY_FAMILY["gemma3"].config | FULL),
    BY_FAMILY["qwen3"],
    BY_FAMILY["phi3"],
    BY_FAMILY["mixtral"],
]


@pytest.mark.parametrize("case", CAPTURED, ids=str)
@pytest.mark.parametrize("split", ["never", 14])
def test_captured_walks_leave_nothing_to_the_host(
    monkeypatch: pytest.MonkeyPatch, case: ModelCase, split: Any
) -> None:
    """No number is read back and every new tensor is on the device of others, in all families."""
    assert mistakes_of_captures(monkeypatch, case, WeaveConfig(split=split)) == [[], []]


def test_what_the_host_decides_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts one by one, if they were captured: the rule that leaves them out is needed."""
    monkeypatch.setattr(MixtralAdapter, "decided_on_host", lambda self, config: "")
    found = mistakes_of_captures(monkeypatch, EAGER_EXPERTS, WeaveConfig())
    assert all(any("read by the host" in it for it in mistakes) for mistakes in found), found
