"""Models on GPUs, down to the launch: memory, layouts, split passes; against unsharded models.

Kernels are torch on the CPU (fake_cuda.py), ranks are threads. What streams do: test_streams.py.
"""

from typing import Any

import pytest
import torch

from tests.dist.llama_models import FAMILY_CASES, SMOLLM2_LIKE, ModelCase, is_attended
from tests.unit.gpu_models import noted, on_ranks, put_fakes
from tests.unit.stream_trace import NotedStreams
from tokenweave import WeaveConfig
from tokenweave.cuda import model_memory
from tokenweave.cuda.model_memory import GpuPart
from tokenweave.stream_runner import StreamRunner

LONG = ModelCase(name="long", batch=2, tokens=23, config={"attention_bias": True})
CASES = [SMOLLM2_LIKE, LONG, *(it for it in FAMILY_CASES if it.family in ("gemma3", "mixtral"))]
ALGORITHMS = ("one_shot", "two_shot")


@torch.no_grad()
def outputs_of(model: Any, case: ModelCase, *, keeps_hidden: bool = True) -> list[torch.Tensor]:
    """Return logits and hidden states where there is no padding."""
    inputs = case.inputs()
    result = model(**inputs, output_hidden_states=keeps_hidden, use_cache=True)
    return [it[is_attended(inputs)] for it in (result.logits, *(result.hidden_states or ()))]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_models_compute_what_they_did(
    monkeypatch: pytest.MonkeyPatch, case: ModelCase, algorithm: str
) -> None:
    """Logits and hidden states of an unsharded model, split or not, twice on one memory."""
    fake = put_fakes(monkeypatch, algorithm)
    model = case.model()
    expected = outputs_of(model, case)
    boundary = case.batch * case.tokens * 2 // 5

    def of_rank(sharded: Any, world: Any) -> None:
        for keeps_hidden in (True, False):
            for split in ("never", boundary):
                with sharded.tokenweave.passes.asked(split=split):
                    found = outputs_of(sharded, case, keeps_hidden=keeps_hidden)
                assert sharded.tokenweave.communication.last_plan.is_split == (split == boundary)
                for index, (one, other) in enumerate(zip(found, expected, strict=False)):
                    torch.testing.assert_close(
                        one, other, atol=2e-3, rtol=2e-3, msg=lambda it, i=index: f"{i}: {it}"
                    )
        forms = {form for _, form, _ in fake.launches}
        assert forms == {fake.ONE_SHOT if algorithm == "one_shot" else fake.TWO_SHOT}

    on_ranks(fake, 2, model, WeaveConfig(), of_rank)


def test_partial_sums_are_written_where_they_are_reduced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A split pass copies nothing through slots, and its residual rows never travel."""
    fake = put_fakes(monkeypatch, "two_shot")
    inputs = LONG.inputs()

    def of_rank(model: Any, world: Any) -> list[int]:
        with torch.no_grad(), model.tokenweave.passes.asked(split=23):
            fake.copies.clear()
            world.cuda.group.meeting.wait(20)
            model.model(**inputs, use_cache=False)
            world.cuda.group.meeting.wait(20)
        return list(fake.copies)

    assert on_ranks(fake, 2, LONG.model(), WeaveConfig(), of_rank) == [[], []]


def test_results_are_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later pass, shorter or longer, leaves them as they were."""
    fake = put_fakes(monkeypatch, "two_shot")
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, 131, (1, tokens), generator=generator) for tokens in (17, 5, 90)]

    def of_rank(model: Any, world: Any) -> None:
        with torch.no_grad():
            first = model.model(ids[0], output_hidden_states=True)
            states = (first.last_hidden_state, *first.hidden_states)
            before = [it.clone() for it in states]
            for later in ids[1:]:
                model.model(later, output_hidden_states=True)
            assert all(map(torch.equal, states, before))

    on_ranks(fake, 2, SMOLLM2_LIKE.model(), WeaveConfig(), of_rank)


@pytest.mark.parametrize(("algorithm", "most"), [("one_shot", 2), ("two_shot", 1)])
def test_memory_is_made_for_the_longest_pass(
    monkeypatch: pytest.MonkeyPatch, algorithm: str, most: int
) -> None:
    """Passes that grow by a token allocate seldom, shorter ones never; rows that stay with their
    owners need none.
    """
    fake = put_fakes(monkeypatch, algorithm)
    monkeypatch.setattr(model_memory, "_LEAST_BYTES", 1024)

    def of_rank(model: Any, world: Any) -> list[int]:
        made, before = [], len(world.cuda._shared)
        with torch.no_grad():
            for tokens in (40, *range(41, 50), 7, 60, 60):
                model.model(torch.full((1, tokens), 5), use_cache=False)
                made.append(len(world.cuda._shared) - before)
        return made

    made, other = on_ranks(fake, 2, SMOLLM2_LIKE.model(), WeaveConfig(), of_rank)
    assert made == other
    assert made == [most] * 11 + [2 * most] * 2


def test_passes_in_and_out_of_inference_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory that the first one made serves the next."""
    fake = put_fakes(monkeypatch, "two_shot")
    inputs = SMOLLM2_LIKE.inputs()

    def of_rank(model: Any, world: Any) -> None:
        with torch.inference_mode():
            first = model(**inputs).logits
        with torch.no_grad():
            assert torch.equal(model(**inputs).logits, first)

    on_ranks(fake, 2, SMOLLM2_LIKE.model(), WeaveConfig(), of_rank)


def mistakes_of(model: Any, case: ModelCase, boundary: int, *, keeps_hidden: bool) -> list[str]:
    """Return what is unordered in two split passes."""
    inputs = case.inputs()

    def passes() -> None:
        for _ in range(2):
            model(**inputs, output_hidden_states=keeps_hidden, use_cache=True)

    with model.tokenweave.passes.asked(split=boundary):
        found = noted(model, passes)
    assert found.trace.num_accesses[0] > found.trace.num_accesses[1] > 0
    return list(found.trace.mistakes)


GEMMA3 = next(it for it in FAMILY_CASES if it.family == "gemma3")


@pytest.mark.parametrize(
    ("case", "algorithm"), [(LONG, "one_shot"), (LONG, "two_shot"), (GEMMA3, "two_shot")], ids=str
)
def test_all_that_two_streams_touch_is_ordered(
    monkeypatch: pytest.MonkeyPatch, case: ModelCase, algorithm: str
) -> None:
    """Every tensor operation of real passes, and all memory that is used again; split between
    sequences, and inside one.
    """
    fake = put_fakes(monkeypatch, algorithm)

    def of_rank(model: Any, world: Any) -> list[str]:
        between = mistakes_of(model, case, case.tokens, keeps_hidden=False)
        return between + mistakes_of(model, case, case.tokens + 7, keeps_hidden=True)

    assert on_ranks(fake, 2, case.model(), WeaveConfig(), of_rank) == [[], []]


def _no_wait_for_blocks(patch: pytest.MonkeyPatch) -> None:
    wait = NotedStreams.wait
    patch.setattr(
        NotedStreams, "wait", lambda self, stream, event: None if stream else wait(self, 0, event)
    )


def _no_wait_for_reductions(patch: pytest.MonkeyPatch) -> None:
    wait = NotedStreams.wait
    patch.setattr(
        NotedStreams,
        "wait",
        lambda self, stream, event: wait(self, stream, event) if stream else None,
    )


def _halves_share_their_partial_sums(patch: pytest.MonkeyPatch) -> None:
    made = GpuPart.__init__

    def wrong(self: GpuPart, memory: Any, start: int, stop: int) -> None:
        made(self, memory, start, stop)
        self.partial = memory.partial[: stop - start]

    patch.setattr(GpuPart, "__init__", wrong)


def _results_are_read_before_the_join(patch: pytest.MonkeyPatch) -> None:
    run = StreamRunner.run

    def wrong(self: Any, stages: Any, perform: Any) -> None:
        run(self, stages[:-1], perform)
        with self._streams.on(self._communication):
            perform(stages[-1])

    patch.setattr(StreamRunner, "run", wrong)


MISTAKES = [
    _no_wait_for_blocks,
    _no_wait_for_reductions,
    _halves_share_their_partial_sums,
    _results_are_read_before_the_join,
]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_noticed(monkeypatch: pytest.MonkeyPatch, mistake: Any) -> None:
    """A wait that is missing, memory that halves share, results read too early."""
    fake = put_fakes(monkeypatch, "two_shot")
    mistake(monkeypatch)
    found = on_ranks(
        fake, 2, LONG.model(), WeaveConfig(),
        lambda model, world: mistakes_of(model, LONG, 23, keeps_hidden=False),
    )  # fmt: skip
    assert all(found)
