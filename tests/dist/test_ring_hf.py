"""Hugging Face models on sharded tokens: loss and gradients of a single process, and refusals."""

import time
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import tokenring
from tests.dist.exact_models import in_fp64
from tests.dist.ring_models import CASES, tokens_of
from tokenfabric.testing.spawn import run_ranks
from tokenfabric.testing.tolerance import assert_same_bits
from tokenfabric.world import World
from tokenring.exchange import gather_rows
from tokenring.partition import Layout, partition_tokens
from tokenring.sharding import position_ids, shard, shard_labels, token_cross_entropy
from tokenring.varlen import packed_layout

_SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 131,
    "sliding_window": 5,
    "pad_token_id": 0,
}
_OTHERS: dict[str, Any] = {
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**_SMALL)),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(
            **_SMALL,
            query_pre_attn_scalar=8,
            attn_logit_softcapping=3.0,
            final_logit_softcapping=None,
        )
    ),
    "gpt_oss": lambda: GptOssForCausalLM(
        GptOssConfig(**_SMALL, num_local_experts=2, num_experts_per_tok=1)
    ),
}


def other_model(name: str) -> PreTrainedModel:
    """Return a tiny random model whose attention has softcap, sinks or norms of its own."""
    torch.manual_seed(0)
    model: PreTrainedModel = _OTHERS[name]()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.set_attn_implementation("eager")
    return model


def single_process(model: PreTrainedModel, ids: Tensor, lengths: tuple[int, ...]) -> list[Tensor]:
    """Return loss and gradients of all parameters, documents one after another."""
    model.zero_grad()
    total, count = torch.zeros((), dtype=torch.float64), 0
    for part in ids.split(list(lengths), dim=1):
        if part.shape[1] > 1:
            logits: Any = model(input_ids=part, use_cache=False).logits
            flat = logits[:, :-1].flatten(0, 1)
            total = total + F.cross_entropy(flat, part[:, 1:].flatten(), reduction="sum").double()
            count += part[:, 1:].numel()
    loss = total / count
    loss.backward()  # type: ignore[no-untyped-call]
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def on_shards(
    model: PreTrainedModel, world: World, ids: Tensor, layout: Layout, **how: Any
) -> list[Tensor]:
    """Return the same of an enabled model; gradients are summed over the ranks."""
    model.zero_grad()
    backbone: Any = model.base_model
    head: Any = model.get_output_embeddings()
    hidden = backbone(input_ids=shard(ids, world=world, layout=layout), **how).last_hidden_state
    labels = shard_labels(ids, world=world, layout=layout)
    share, loss = token_cross_entropy(hidden, head.weight, labels, world=world, chunk_tokens=5)
    share.backward()  # type: ignore[no-untyped-call]
    grads = []
    for p in model.parameters():
        if p.grad is not None:
            parts = gather_rows(world, p.grad.reshape(1, -1).contiguous(), (1,) * world.size)
            grads.append(torch.stack(parts).sum(0).view(p.shape))
    return [loss.double(), *grads]


def check(actual: list[Tensor], exact: list[Tensor], same: list[Tensor], what: str) -> None:
    assert len(actual) == len(exact) == len(same), what
    for index, (x, reference, baseline) in enumerate(zip(actual, exact, same, strict=True)):
        # Twice the baseline's error in the root mean square, beside 4e-6 of the whole, the least
        # that fp32 sums can be asked for. The largest of some thousand errors scatters with the
        # order of a machine's sums: it is within 3 times.
        ours, torchs = x.double() - reference, baseline.double() - reference
        for norm, factor in ((_root_mean_square, 2), (_largest, 3)):
            error, allowed = norm(ours), factor * norm(torchs) + 4e-6 * norm(reference)
            assert error <= allowed, f"{what} {index}: {norm.__name__} {error} against {allowed}"


def _root_mean_square(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def _largest(x: Tensor) -> float:
    return float(x.abs().max())


def _rank_parity(world: World) -> None:
    for number, case in enumerate(CASES):
        ids = tokens_of(17 + number, batch=2 if number == 0 else 1)
        lengths = (ids.shape[1],)
        exact = single_process(in_fp64(case.model()), ids, lengths)
        same = single_process(case.model(), ids, lengths)
        for partition in ("zigzag", "contiguous", "striped"):
            if partition == "striped" and number:
                continue
            layout = partition_tokens(ids.shape[1], world.size, partition)  # type: ignore[arg-type]
            model = tokenring.enable(case.model(), world)
            if world.rank == number % world.size:
                time.sleep(0.002)  # one rank is late
            positions = position_ids(layout, world.rank)
            actual = on_shards(model, world, ids, layout, position_ids=positions)
            check(actual, exact, same, f"{case} {partition}")


@pytest.mark.parametrize("world_size", [2, 3])
def test_loss_and_gradients_are_those_of_one_process(world_size: int) -> None:
    """Layouts found from positions; windows of every layer as the config says."""
    run_ranks(_rank_parity, world_size, timeout_s=110)


def _rank_others(world: World) -> None:
    for name in _OTHERS:
        ids = tokens_of(19)
        same = single_process(other_model(name), ids, (19,))
        layout = partition_tokens(19, world.size)
        model = tokenring.enable(other_model(name), world)
        actual = on_shards(model, world, ids, layout, ring_layout=layout)
        assert len(actual) == len(same)
        for index, (x, expected) in enumerate(zip(actual, same, strict=True)):
            # Two layers in fp32: errors are 1e-6 of the largest, those of a lost sink 1e-2.
            assert (x - expected).abs().max() <= 5e-5 * expected.abs().max(), f"{name} {index}"


def test_softcap_sinks_and_windows_come_from_the_model() -> None:
    """Gemma 2, gpt-oss and Qwen 3 pass them to the attention function."""
    run_ranks(_rank_others, 2, timeout_s=110)


def _rank_packed(world: World) -> None:
    case = CASES[0]
    lengths = (5, 1, 9, 0, 7)
    ids = tokens_of(sum(lengths))
    exact = single_process(in_fp64(case.model()), ids, lengths)
    same = single_process(case.model(), ids, lengths)
    layout = packed_layout([0, 5, 6, 15, 15, 22], world.size)
    model = tokenring.enable(case.model(), world)
    check(on_shards(model, world, ids, layout, ring_layout=layout), exact, same, "packed")
    # A mask within documents is not the mask of one sequence: the test could tell.
    whole = partition_tokens(22, world.size)
    wrong = on_shards(model, world, ids, whole, ring_layout=whole)
    assert abs(float(wrong[0] - exact[0])) > 1e-3


def test_packed_documents_do_not_see_each_other() -> None:
    """Documents shorter than the ranks, and empty ones, with positions that begin again."""
    run_ranks(_rank_packed, 3, timeout_s=110)


def _rank_checkpointing(world: World) -> None:
    ids = tokens_of(18)
    layout = partition_tokens(18, world.size)
    model = tokenring.enable(CASES[0].model(), world)
    expected = on_shards(model, world, ids, layout, ring_layout=layout)
    model.train()
    model.gradient_checkpointing_enable()
    again = on_shards(model, world, ids, layout, ring_layout=layout)
    for index, (x, same) in enumerate(zip(again, expected, strict=True)):
        assert_same_bits(x, same, what=f"result {index}")


def test_layers_computed_again_know_their_tokens() -> None:
    """Gradient checkpointing gives the same gradients."""
    run_ranks(_rank_checkpointing, 2, timeout_s=110)
