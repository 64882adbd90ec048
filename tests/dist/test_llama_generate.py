"""generate() over several ranks: the same tokens everywhere, whatever a rank's own state says."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

import tokenweave
from tests.dist.llama_models import FAMILY_CASES, PAD, SMOLLM2_LIKE, ModelCase
from tokenfabric.errors import ConfigError, MismatchError
from tokenfabric.testing.spawn import run_ranks
from tokenfabric.world import World

GREEDY = {"max_new_tokens": 7, "do_sample": False}


class Collector(BaseStreamer):
    """Keeps what is streamed."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []
        self.has_ended = False

    def put(self, value: Tensor) -> None:
        self.values.append(value.clone())

    def end(self) -> None:
        self.has_ended = True


class StopsAt(StoppingCriteria):
    """Stops after so many calls."""

    def __init__(self, num_calls: int):
        self.num_calls = num_calls

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.num_calls -= 1
        return torch.full((input_ids.shape[0],), self.num_calls <= 0)


def modes_of(model: Any, case: ModelCase) -> dict[str, dict[str, Any]]:
    """Return the arguments of generate() in every mode."""
    inputs = case.inputs()
    ids = inputs["input_ids"]
    with torch.no_grad():
        embeds = model.get_input_embeddings()(ids)
    return {
        "greedy": {**inputs, **GREEDY},
        "static cache": {**inputs, **GREEDY, "cache_implementation": "static"},
        "chunked prefill": {"input_ids": ids, **GREEDY, "prefill_chunk_size": 4},
        "embeddings": {"inputs_embeds": embeds, **GREEDY},
        "beams": {**inputs, **GREEDY, "num_beams": 3},
        "without cache": {**inputs, **GREEDY, "use_cache": False},
        "chunked static prefill": {
            "input_ids": ids,
            **GREEDY,
            "prefill_chunk_size": 4,
            "cache_implementation": "static",
        },
        "several beams returned": {**inputs, **GREEDY, "num_beams": 3, "num_return_sequences": 2},
        "penalty": {**inputs, **GREEDY, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
        "sampled": {**inputs, "max_new_tokens": 7, "do_sample": True, "top_k": 20},
        "sampled beams": {**inputs, "max_new_tokens": 5, "do_sample": True, "num_beams": 2},
    }


_NUM_MODES_OF_CACHES = 5
"""The first modes: those in which caches, masks and positions differ."""


def _rank_modes(world: World) -> None:
    for case in FAMILY_CASES:
        model = case.model()
        num_modes = None if case is SMOLLM2_LIKE else _NUM_MODES_OF_CACHES
        modes = dict(list(modes_of(model, case).items())[:num_modes])

        def generate_all(
            model: Any = model, modes: dict[str, dict[str, Any]] = modes
        ) -> dict[str, Tensor]:
            results = {}
            for name, arguments in modes.items():
                torch.manual_seed(3)
                results[name] = model.generate(**arguments)
            return results

        expected = generate_all()
        tokenweave.parallelize(model, world)
        for name, tokens in generate_all().items():
            assert torch.equal(tokens, expected[name]), f"{case}: {name}"


def test_every_mode_gives_the_tokens_of_the_complete_model() -> None:
    """Greedy, sampled and beam search, with every kind of cache."""
    run_ranks(_rank_modes, 2, timeout_s=110)


def _rank_sampled(world: World) -> tuple[list[int], list[int], list[int], bool]:
    model = tokenweave.parallelize(SMOLLM2_LIKE.model(), world)
    inputs = SMOLLM2_LIKE.inputs()
    torch.manual_seed(100 + world.rank)
    streamer = Collector()
    arguments = {"max_new_tokens": 20, "do_sample": True, "temperature": 5.0}
    tokens = model.generate(**inputs, **arguments, streamer=streamer)
    again = model.generate(**inputs, **arguments)
    # Beams are drawn on each rank: only the shared random state keeps them together.
    model.generate(**inputs, max_new_tokens=5, do_sample=True, num_beams=2)
    # Sampling on this rank differs from rank 0's behind the back of the shared random state.
    real_multinomial = torch.multinomial

    def own_multinomial(probs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return (real_multinomial(probs, *args, **kwargs) + world.rank) % probs.shape[-1]

    torch.multinomial = own_multinomial  # type: ignore[assignment]
    drifting = model.generate(**inputs, **arguments, streamer=(drifted := Collector()))
    torch.multinomial = real_multinomial
    for streamed, result in ((streamer, tokens), (drifted, drifting)):
        prompt, *steps = streamed.values
        assert streamed.has_ended
        assert torch.equal(torch.cat((prompt, torch.stack(steps, dim=1)), dim=1), result)
    return (
        tokens.flatten().tolist(),
        again.flatten().tolist(),
        drifting.flatten().tolist(),
        torch.equal(tokens, again),
    )


def test_sampled_tokens_and_streams_are_rank_zeros() -> None:
    """With other seeds, and even another sampler, all ranks return and stream the same."""
    results = run_ranks(_rank_sampled, 3)
    assert all(result == results[0] for result in results)
    assert results[0][0] != results[0][2]
    assert not results[0][3], "a second call draws new tokens"


def _rank_stops(world: World) -> list[int]:
    model = tokenweave.parallelize(SMOLLM2_LIKE.model(), world)
    inputs = SMOLLM2_LIKE.inputs()
    prompt = inputs["input_ids"].shape[1]

    def length(**arguments: Any) -> int:
        tokens = model.generate(**inputs, do_sample=False, max_new_tokens=60, **arguments)
        return int(tokens.shape[1]) - prompt

    own = StoppingCriteriaList([StopsAt(5 + 3 * world.rank)])
    # Rank 0 has no time at all and stops after one token; the others would go on.
    max_time = 1e-6 if world.rank == 0 else 1000.0
    return [length(stopping_criteria=own), length(max_time=max_time), length()]


def test_the_stop_decision_is_rank_zeros() -> None:
    """A user's criterion and a time limit that differ between ranks end all of them together."""
    for lengths in run_ranks(_rank_stops, 2):
        assert lengths == [5, 1, 60]


def _rank_finished_rows(world: World) -> None:
    model = SMOLLM2_LIKE.model()
    inputs = SMOLLM2_LIKE.inputs()
    free = model.generate(**inputs, **GREEDY)
    prompt = inputs["input_ids"].shape[1]
    # What row 0 says second ends it there; its further tokens must then be padding.
    end = int(free[0, prompt + 1])
    expected = model.generate(**inputs, **GREEDY, eos_token_id=end, pad_token_id=PAD)
    assert set(expected[0, prompt + 2 :].tolist()) <= {PAD}
    tokenweave.parallelize(model, world)
    tokens = model.generate(**inputs, **GREEDY, eos_token_id=end, pad_token_id=PAD)
    assert torch.equal(tokens, expected)


def test_finished_rows_are_padded() -> None:
    """Rows of a batch end at different steps, as in the complete model."""
    run_ranks(_rank_finished_rows, 2)


def _rank_different_inputs(world: World) -> str:
    model = tokenweave.parallelize(SMOLLM2_LIKE.model(), world)
    inputs = SMOLLM2_LIKE.inputs()
    expected = model.generate(**inputs, **GREEDY)
    other = {**inputs, "input_ids": inputs["input_ids"].clone()}
    other["input_ids"][0, 3] += world.rank
    longer = torch.ones(1, 4 + world.rank, dtype=torch.long)
    calls: list[Callable[[], Any]] = [
        lambda: model.generate(**other, **GREEDY),
        lambda: model.generate(longer, **GREEDY),
        lambda: model.generate(longer[:, :4], attention_mask=longer[:, :4] - world.rank, **GREEDY),
    ]
    for call in calls:
        with pytest.raises(MismatchError, match="different input tensor on rank 1") as caught:
            call()
        assert caught.value.rank == world.rank
        assert caught.value.operation == "generate"
    # Nothing moved: the world and the model go on.
    assert torch.equal(model.generate(**inputs, **GREEDY), expected)
    return str(caught.value)


def test_different_inputs_are_noticed_on_every_rank() -> None:
    """Other tokens, lengths or masks on one rank raise MismatchError on all."""
    run_ranks(_rank_different_inputs, 2)


def _rank_drifting_beams(world: World) -> None:
    model = tokenweave.parallelize(SMOLLM2_LIKE.model(), world)
    real_topk = torch.topk

    def own_topk(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        values, indices = real_topk(x, *args, **kwargs)
        return values, (indices + world.rank) % x.shape[-1]

    torch.topk = own_topk  # type: ignore[assignment]
    with pytest.raises(MismatchError, match="beam search came to different tokens"):
        model.generate(**SMOLLM2_LIKE.inputs(), **GREEDY, num_beams=2)
    torch.topk = real_topk


def test_beams_that_drift_are_noticed_on_every_rank() -> None:
    """Beam search cannot be put right from outside, so drift is an error."""
    run_ranks(_rank_drifting_beams, 2)


def _rank_refusals(world: World) -> None:
    model = tokenweave.parallelize(SMOLLM2_LIKE.model(), world)
    inputs = SMOLLM2_LIKE.inputs()
    refused: dict[str, dict[str, Any]] = {
        "assistant_model": {"assistant_model": model},
        "custom_generate": {"custom_generate": lambda *args, **kwargs: None},
        "assisted_generation": {"prompt_lookup_num_tokens": 3},
        "generate_batch": {"cache_implementation": "paged"},
    }
    for name, arguments in refused.items():
        with pytest.raises(ConfigError, match=name):
            model.generate(**inputs, **GREEDY, **arguments)
    for name in ("save_pretrained", "resize_token_embeddings", "generate_batch"):
        with pytest.raises(ConfigError, match=rf"{name}\(\) does not work on a parallelized model"):
            getattr(model, name)("anything")
    start_s = time.perf_counter()
    assert model.generate(**inputs, **GREEDY).shape[1] == 11 + 7
    assert time.perf_counter() - start_s < 30


def test_what_would_not_come_out_right_is_refused_by_name() -> None:
    """Assisted and custom generation, continuous batching, saving a share."""
    run_ranks(_rank_refusals, 2)
