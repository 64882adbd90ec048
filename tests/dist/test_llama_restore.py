"""restore gives the complete model back; in between each rank holds its share."""

import gc
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel

import tokenweave
from tests.dist.llama_models import ALL_CASES, SMOLLM2_LIKE, ModelCase
from tokenfabric.errors import ConfigError
from tokenfabric.testing.spawn import run_ranks
from tokenfabric.testing.tolerance import assert_same_bits
from tokenfabric.world import World

GREEDY = {"max_new_tokens": 5, "do_sample": False}


def num_live_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters, a tied one once."""
    return sum(p.untyped_storage().nbytes() for p in model.parameters())


def attributes(model: Any) -> list[tuple[str, ...]]:
    """Return what a change of a module would show in: its attributes and their kinds."""
    return [
        (name, str(module), *(f"{k}={type(v).__name__}" for k, v in sorted(vars(module).items())))
        for name, module in model.named_modules()
    ]


def check_case(world: World, case: ModelCase) -> None:
    model: Any = case.model()
    model.base_model.norm.weight.requires_grad_(False)
    for parameter in model.parameters():
        # Survives only if nothing is computed on the way.
        parameter.data.view(-1)[0] = -0.0
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    modules = list(model.modules())
    parameters = dict(model.named_parameters())
    flags = {name: p.requires_grad for name, p in parameters.items()}
    complete_bytes = num_live_bytes(model)
    with torch.no_grad():
        expected = model(**case.inputs()).logits
    # After a call: some rotary tables are made in the first one.
    before = attributes(model)

    for _ in range(2):
        tokenweave.parallelize(model, world)
        assert all(not p.requires_grad for p in model.parameters())
        assert num_live_bytes(model) < (0.75 if world.size > 1 else 1.01) * complete_bytes
        model(**case.inputs())
        assert tokenweave.restore(model) is model
        for name, value in model.state_dict().items():
            assert_same_bits(value, weights[name], what=name)
        assert dict(model.named_parameters()) == parameters
        assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
        assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
        assert attributes(model) == before
        with torch.no_grad():
            assert_same_bits(model(**case.inputs()).logits, expected, what="logits")
    with pytest.raises(ConfigError, match="not parallelized"):
        tokenweave.restore(model)
    if world.rank == 0:
        # Alone: no other rank takes part any more.
        model.generate(**case.inputs(), **GREEDY)
        model.train()(**case.inputs()).logits.sum().backward()


def _rank_restore(world: World) -> None:
    for case in ALL_CASES:
        try:
            check_case(world, case)
        except AssertionError as error:
            raise AssertionError(f"{case}: {error}") from error


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_restore_is_bit_for_bit(world_size: int) -> None:
    """Weights, parameter objects, flags, modules and results are the original ones, repeatedly."""
    run_ranks(_rank_restore, world_size, timeout_s=110)


def num_bytes_of_all_tensors() -> int:
    """Return the bytes of the storages of all tensors that Python still refers to."""
    gc.collect()
    storages = [x.untyped_storage() for x in gc.get_objects() if isinstance(x, torch.Tensor)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _rank_memory(world: World) -> tuple[int, int, int]:
    before = num_bytes_of_all_tensors()
    model = SMOLLM2_LIKE.model()
    num_complete = num_live_bytes(model)
    buffers = sum(b.nbytes for b in model.buffers())
    tokenweave.parallelize(model, world)
    return num_complete, num_live_bytes(model), num_bytes_of_all_tensors() - before - buffers


def test_each_rank_holds_its_share_only() -> None:
    """After parallelize the shares add up to the model (norms on every rank), the rest is freed."""
    results = run_ranks(_rank_memory, 3)
    num_complete = results[0][0]
    shares = [share for _, share, _ in results]
    assert num_complete <= sum(shares) <= 1.03 * num_complete
    assert max(shares) < 0.36 * num_complete
    assert [in_use for _, _, in_use in results] == shares


def _rank_tied(world: World) -> None:
    model: Any = tokenweave.parallelize(SMOLLM2_LIKE.model(), world)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.shape[0] == model.tokenweave.plan.vocab_rows[world.rank].size
    assert list(model.state_dict()) == list(SMOLLM2_LIKE.model().state_dict())


def test_tied_embeddings_stay_tied() -> None:
    """One share of one tensor serves the embedding and the LM head."""
    run_ranks(_rank_tied, 2)


@torch.no_grad()
def _rank_backbone(world: World) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, vocab_size=97,
    )  # fmt: skip
    model = LlamaModel(config).eval()
    ids = torch.arange(12).view(2, 6)
    expected = model(ids)
    seen = []
    model.register_forward_hook(lambda module, args, output: seen.append(output))
    tokenweave.parallelize(model, world)
    actual = model(ids)
    assert torch.allclose(actual.last_hidden_state, expected.last_hidden_state, atol=1e-5)
    assert seen == [actual], "hooks on the model itself are called as before"
    tokenweave.restore(model)
    assert_same_bits(model(ids).last_hidden_state, expected.last_hidden_state)


def test_a_model_without_a_head_works_too() -> None:
    """LlamaModel alone: sharded, hooked, restored."""
    run_ranks(_rank_backbone, 3)
