"""What single families do not support is refused by name; so is every module that was replaced."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Gemma3ForConditionalGeneration

import tokenweave
from tests.dist.llama_models import ALL_CASES, FAMILY_CASES, ModelCase
from tokenfabric.errors import ConfigError, MismatchError
from tokenfabric.testing.spawn import run_ranks
from tokenfabric.testing.tolerance import assert_same_bits
from tokenfabric.world import World
from tokenweave.integrations.adapter import adapter_for

BY_NAME = {str(case): case for case in ALL_CASES}


def assert_refused(world: World, model: Any, message: str) -> None:
    weights = {name: (p.data_ptr(), p.data.clone()) for name, p in model.named_parameters()}
    modules = list(model.modules())
    with pytest.raises(ConfigError, match=message):
        tokenweave.parallelize(model, world)
    for name, parameter in model.named_parameters():
        pointer, value = weights[name]
        assert parameter.data_ptr() == pointer, name
        assert_same_bits(parameter.data, value, what=name)
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert not hasattr(model, "tokenweave")


def _rank_replaced(world: World) -> int:
    num_refused = 0
    for case in FAMILY_CASES:
        model = case.model()
        for name, module in list(model.named_modules()):
            if not list(module.parameters(recurse=False)):
                continue
            own_class = type(module)
            # As quantized linears, LoRA layers and other replacements are: subclasses at best.
            module.__class__ = type(f"Replaced{own_class.__name__}", (own_class,), {})
            named = name.removeprefix("model.").replace(".", r"\.")
            with pytest.raises(ConfigError, match=rf"^{named} is a .*\.Replaced"):
                tokenweave.parallelize(model, world)
            module.__class__ = own_class
            num_refused += 1
        tokenweave.parallelize(model, world)
    return num_refused


def test_every_replaced_module_with_weights_is_refused_by_its_name() -> None:
    """Quantized linears, LoRA layers, other norms, embeddings, routers and experts."""
    (num_refused,) = run_ranks(_rank_replaced, 1)
    assert num_refused > 9 * 3 * len(FAMILY_CASES)


OPTIONS: dict[tuple[str, str], tuple[Callable[[Any], Any], str]] = {
    ("gemma2", "sdpa"): (
        lambda model: setattr(model.config, "_attn_implementation", "sdpa"),
        "attention implementation 'sdpa' is not supported; .* one of eager",
    ),
    ("gemma2", "both directions"): (
        lambda model: setattr(model.config, "use_bidirectional_attention", True),
        "config.use_bidirectional_attention is not supported",
    ),
    ("gemma3", "both directions"): (
        lambda model: setattr(model.config, "use_bidirectional_attention", True),
        "config.use_bidirectional_attention is not supported",
    ),
    ("qwen3", "kind of layer"): (
        lambda model: setattr(model.config, "layer_types", ["linear_attention"] * 3),
        "layer types .*linear_attention",
    ),
    ("mixtral", "router logits"): (
        lambda model: setattr(model.config, "output_router_logits", True),
        "config.output_router_logits is for training and not supported",
    ),
    ("qwen3-moe", "experts"): (
        lambda model: setattr(model.config, "_experts_implementation_internal", "deepgemm"),
        "experts implementation 'deepgemm' is not supported; .* eager, batched_mm, grouped_mm",
    ),
    ("mixtral-eager-experts", "odd rows"): (
        lambda model: model.set_experts_implementation("grouped_mm"),
        r"experts of 37 columns are dealt as \[19, 18\].*multiple of 16 bytes of torch.float32",
    ),
    ("phi3", "pruned projection"): (
        lambda model: setattr(
            model.model.layers[1].self_attn.qkv_proj, "weight", nn.Parameter(torch.zeros(100, 72))
        ),
        r"qkv_proj\.weight has shape \(100, 72\), but model\.config says 120 along dimension 0",
    ),
    ("mixtral", "another mlp"): (
        lambda model: setattr(model.model.layers[1], "mlp", nn.Linear(72, 72)),
        r"layers\.1\.mlp is a torch\.nn\..*Linear, not a .*MixtralSparseMoeBlock",
    ),
    ("mixtral", "extra parameter of an expert"): (
        lambda model: model.model.layers[0].mlp.experts.register_parameter(
            "bias", nn.Parameter(torch.zeros(3))
        ),
        r"architecture has not: model\.layers\.0\.mlp\.experts\.bias",
    ),
}


def _rank_options(world: World) -> None:
    for (case, _), (change, message) in OPTIONS.items():
        model = BY_NAME[case].model()
        change(model)
        assert_refused(world, model, message)
    for name in ("mixtral", "qwen3-moe"):
        case = BY_NAME[name]
        model = tokenweave.parallelize(case.model(), world)
        with pytest.raises(ConfigError, match="output_router_logits is for training"):
            model(**case.inputs(), output_router_logits=True)
        model(**case.inputs(), output_router_logits=False)


def test_options_of_families_are_refused_before_a_weight_is_touched() -> None:
    """By name, on every rank; calls too, and the ranks stay in step."""
    run_ranks(_rank_options, 2, timeout_s=110)


@torch.no_grad()
def _rank_hooks(world: World) -> None:
    gemma, calls = BY_NAME["gemma3"].model(), []
    gemma.model.rotary_emb.register_forward_hook(lambda *args: calls.append(args[1]))
    inputs = BY_NAME["gemma3"].inputs()
    expected = gemma(**inputs).logits
    num_calls = len(calls)
    tokenweave.parallelize(gemma, world)
    assert torch.allclose(gemma(**inputs).logits, expected, atol=2e-4, rtol=1e-4)
    assert sorted(args[2] for args in calls[num_calls:]) == ["full_attention", "sliding_attention"]
    mixtral: Any = tokenweave.parallelize(BY_NAME["mixtral"].model(), world)
    watched = {
        "model.rotary_emb": (gemma, gemma.model.rotary_emb),
        "model.layers.1.post_feedforward_layernorm": (
            gemma,
            gemma.model.layers[1].post_feedforward_layernorm,
        ),
        "model.layers.2.mlp.gate": (mixtral, mixtral.model.layers[2].mlp.gate),
        "model.layers.2.mlp.experts": (mixtral, mixtral.model.layers[2].mlp.experts),
    }
    for name, (model, module) in watched.items():
        handle = module.register_forward_hook(lambda *args: None)
        with pytest.raises(ConfigError, match=f"^{name} has a forward hook"):
            model(**inputs)
        handle.remove()
        model(**inputs)


def test_hooks_inside_are_right_or_refused() -> None:
    """On the tables by kind of layer they are called as before; on norms, routers, experts not."""
    run_ranks(_rank_hooks, 2)


def test_models_with_images_are_refused() -> None:
    """Gemma 3 comes with and without a part for images; the error lists what is supported."""
    with pytest.raises(
        ConfigError, match=r"Gemma3ForConditionalGeneration is not.*Gemma3TextModel"
    ):
        adapter_for(Gemma3ForConditionalGeneration)


def _rank_arithmetic(world: World) -> None:
    torch.set_num_threads(1 + (world.rank == 1))
    for case in (BY_NAME["mixtral"], BY_NAME["qwen3-moe"]):
        model = case.model()
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(MismatchError, match=r"arithmetic .*[12] threads.* on rank 1 than on"):
            tokenweave.parallelize(model, world)
        for name, value in model.state_dict().items():
            assert_same_bits(value, weights[name], what=name)
    dense = BY_NAME["qwen3"]
    tokenweave.parallelize(dense.model(), world)(**dense.inputs())


def test_ranks_that_compute_differently_share_no_experts() -> None:
    """Another number of threads on one rank could choose other experts there."""
    run_ranks(_rank_arithmetic, 2)


def routing_of(model: Any, case: ModelCase) -> list[torch.Tensor]:
    """Return what the routers of a model return in one forward pass, and two steps with a cache."""
    router = type(next(m for n, m in model.named_modules() if n.endswith("mlp.gate")))
    forward, seen = router.forward, []

    def recorded(module: Any, hidden_states: torch.Tensor) -> Any:
        found = forward(module, hidden_states)
        seen.extend(found)
        return found

    router.forward = recorded
    model.generate(**case.inputs(), max_new_tokens=3, do_sample=False)
    router.forward = forward
    return seen


def _rank_routing(world: World) -> None:
    for name in ("mixtral", "mixtral-eager-experts", "qwen3-moe", "qwen3-moe-unnormalized"):
        case = BY_NAME[name]
        model = tokenweave.parallelize(case.model(), world)
        routing = routing_of(model, case)
        num_routed = sum(hasattr(layer.mlp, "gate") for layer in model.base_model.layers)
        assert len(routing) == 3 * 3 * num_routed
        for number, own in enumerate(routing):
            first = tokenweave.broadcast(own.clone(), world=world)
            assert_same_bits(own, first, what=f"{name}: {number}")
        experts = [chosen for chosen in routing if not chosen.is_floating_point()]
        assert len(torch.cat([e.flatten() for e in experts]).unique()) > 2, "a choice is made"


@pytest.mark.parametrize("world_size", [2, 4])
def test_all_ranks_route_alike(world_size: int) -> None:
    """Router logits, weights and chosen experts have the same bits on all ranks."""
    run_ranks(_rank_routing, world_size, timeout_s=110)
