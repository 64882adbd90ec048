"""What would not come out right is refused by name, before a weight is touched or anything sent."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, LlamaForSequenceClassification

import tokenweave
from tests.dist.llama_models import SMOLLM2_LIKE, ModelCase
from tokenfabric.errors import ConfigError, MismatchError
from tokenfabric.testing.spawn import run_ranks
from tokenfabric.testing.tolerance import assert_same_bits
from tokenfabric.world import World
from tokenweave import WeaveConfig

BIASED = ModelCase(name="biased", config={"attention_bias": True})


class LoraLinear(nn.Linear):
    """A subclass whose forward could do anything."""


def identity_hook(module: nn.Module, args: Any, output: Any = None) -> None:
    return None


def attention(model: Any) -> Any:
    return model.model.layers[1].self_attn


def with_lora(model: Any) -> None:
    attention(model).q_proj.__class__ = LoraLinear


def with_quantized(model: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.ao.quantization.quantize_dynamic(model.model.layers[1].mlp, {nn.Linear})
    model.model.layers[1].mlp = quantized


def with_parametrization(model: Any) -> None:
    nn.utils.parametrizations.weight_norm(attention(model).o_proj)


def with_replaced_forward(model: Any) -> None:
    mlp = model.model.layers[0].mlp
    mlp.forward = functools.partial(type(mlp).forward, mlp)


def with_extra_parameter(model: Any) -> None:
    model.model.layers[0].register_parameter("prompt", nn.Parameter(torch.zeros(3)))


def with_pruned_mlp(model: Any) -> None:
    mlp = model.model.layers[0].mlp
    for linear in (mlp.gate_proj, mlp.up_proj):
        linear.weight = nn.Parameter(linear.weight.data[:50])


def with_max_norm(model: Any) -> None:
    model.model.embed_tokens.max_norm = 1.0


MODELS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "training mode": (lambda model: model.train(), "training mode; call model.eval()"),
    "hook on a layer": (
        lambda model: model.model.layers[1].register_forward_hook(identity_hook),
        r"model\.layers\.1 has a forward hook",
    ),
    "pre-hook on an mlp": (
        lambda model: model.model.layers[2].mlp.register_forward_pre_hook(identity_hook),
        r"model\.layers\.2\.mlp has a forward hook",
    ),
    "hook on a norm": (
        lambda model: model.model.norm.register_forward_hook(identity_hook),
        r"model\.norm has a forward hook",
    ),
    "hook on the head": (
        lambda model: model.lm_head.register_forward_hook(identity_hook),
        "lm_head has a forward hook",
    ),
    "adapter": (with_lora, r"q_proj is a .*LoraLinear, not a torch\.nn.*Linear"),
    "quantized": (with_quantized, r"gate_proj is a torch\.ao\..*Linear, not a torch\.nn"),
    "parametrized": (with_parametrization, r"o_proj is a .*ParametrizedLinear, not a"),
    "replaced forward": (with_replaced_forward, r"the forward of model\.layers\.0\.mlp has been"),
    "device map hook": (
        lambda model: setattr(model.model, "_hf_hook", object()),
        "the forward of model has been replaced",
    ),
    "compiled": (lambda model: model.compile(backend="eager"), "is compiled"),
    "extra parameter": (with_extra_parameter, r"architecture has not: model\.layers\.0\.prompt"),
    "pruned": (with_pruned_mlp, r"gate_proj\.weight has shape \(50, 72\), but model\.config says"),
    "embedding with max_norm": (with_max_norm, "max_norm"),
    "half precision": (lambda model: model.half(), "the parameters are torch.float16"),
    "mixed dtypes": (lambda model: model.lm_head.bfloat16(), "bfloat16, torch.float32"),
    "meta device": (lambda model: model.to("meta"), "on meta, the world on cpu"),
    "attention maps": (
        lambda model: setattr(model.config, "output_attentions", True),
        "config.output_attentions is not supported",
    ),
    "attention implementation": (
        lambda model: setattr(model.config, "_attn_implementation", "flex_attention"),
        "'flex_attention' is not supported.*sdpa, eager",
    ),
    "missing layer": (
        lambda model: setattr(model.config, "num_hidden_layers", 2),
        "num_hidden_layers is 2, but the model has 3 layers",
    ),
}


def _rank_refused_models(world: World) -> None:
    for name, (change, message) in MODELS.items():
        model: Any = BIASED.model()
        model.set_attn_implementation("eager")
        change(model)
        weights = {n: p for n, p in model.named_parameters() if not p.is_meta}
        before = {n: (p.data_ptr(), p.data.clone(), p.requires_grad) for n, p in weights.items()}
        modules = list(model.modules())
        with pytest.raises(ConfigError, match=message):
            tokenweave.parallelize(model, world)
        for n, p in weights.items():
            pointer, value, flag = before[n]
            assert (p.data_ptr(), p.requires_grad) == (pointer, flag), f"{name}: {n}"
            assert_same_bits(p.data, value, what=f"{name}: {n}")
        assert all(a is b for a, b in zip(model.modules(), modules, strict=True)), name
        assert not hasattr(model, "tokenweave"), name


def test_models_are_refused_before_a_weight_is_touched() -> None:
    """Every kind of unsupported model, each named, each left as it was."""
    run_ranks(_rank_refused_models, 2, timeout_s=110)


def _rank_other_architectures(world: World) -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=16)).eval()
    with pytest.raises(ConfigError, match=r"GPT2LMHeadModel is not a supported.*LlamaForCausalLM"):
        tokenweave.parallelize(gpt2, world)
    classifier = LlamaForSequenceClassification(SMOLLM2_LIKE.model().config).eval()
    with pytest.raises(ConfigError, match="LlamaForSequenceClassification is not a supported"):
        tokenweave.parallelize(classifier, world)
    with pytest.raises(ConfigError, match="reduction must be one of fused, gloo, none; got 'nccl'"):
        WeaveConfig(reduction="nccl")  # type: ignore[arg-type]
    model = tokenweave.parallelize(SMOLLM2_LIKE.model(), world)
    with pytest.raises(ConfigError, match="parallelized already"):
        tokenweave.parallelize(model, world)


def test_other_architectures_and_repetition_are_refused() -> None:
    """The error names the class and those that are supported."""
    run_ranks(_rank_other_architectures, 2)


def _rank_too_many(world: World) -> None:
    few = ModelCase(name="few", config={"num_attention_heads": 2, "num_key_value_heads": 1})
    with pytest.raises(ConfigError, match=r"2 query heads cannot be dealt to 3 ranks.*at most 2"):
        tokenweave.parallelize(few.model(), world)


def test_more_ranks_than_query_heads_are_refused() -> None:
    """With value and limit."""
    run_ranks(_rank_too_many, 3)


def _rank_disagree(world: World) -> None:
    def refused(error: type[Exception], message: str, model: Any, **options: Any) -> None:
        weights = model.state_dict()
        before = {name: value.clone() for name, value in weights.items()}
        with pytest.raises(error, match=message):
            tokenweave.parallelize(model, world, **options)
        for name, value in model.state_dict().items():
            assert_same_bits(value, before[name], what=name)

    mismatch = "different model or config on rank 1 than on rank 0"
    refused(MismatchError, mismatch, SMOLLM2_LIKE.model(seed=world.rank))
    gloo_on_1 = WeaveConfig(reduction=("fused", "gloo")[world.rank])
    refused(MismatchError, mismatch, SMOLLM2_LIKE.model(), config=gloo_on_1)
    eager_on_1 = SMOLLM2_LIKE.model()
    eager_on_1.set_attn_implementation(("sdpa", "eager")[world.rank])
    refused(MismatchError, mismatch, eager_on_1)
    # Only rank 1 has something to refuse; rank 0 must not go on alone.
    model = SMOLLM2_LIKE.model().train(world.rank == 1)
    refused(ConfigError, ("rank 1 refused", "training mode")[world.rank], model)
    tokenweave.parallelize(model.eval(), world)
    model(**SMOLLM2_LIKE.inputs())


def test_ranks_parallelize_the_same_model_or_none() -> None:
    """Another seed, option or refusal on one rank stops all of them, with the weights untouched."""
    run_ranks(_rank_disagree, 2)


def _rank_refused_calls(world: World) -> None:
    model: Any = SMOLLM2_LIKE.model()
    ids = SMOLLM2_LIKE.inputs()["input_ids"]
    full_cache = DynamicCache(config=model.config)
    with torch.no_grad():
        expected = model(ids).logits
        model(ids, cache=full_cache)
        embeds = model.get_input_embeddings()(ids)
    tokenweave.parallelize(model, world)
    per_head = torch.zeros(1, 9, ids.shape[1], ids.shape[1])
    calls: dict[str, Callable[[], Any]] = {
        "output_attentions is not supported": lambda: model(ids, output_attentions=True),
        "one mask per head": lambda: model(ids, attention_mask=per_head),
        "the KV cache has 3 heads": lambda: model(ids, cache=full_cache),
        "token id 131 is outside of 0..130": lambda: model(ids + 131 - ids.max()),
        "token id -1 is outside": lambda: model(ids - ids.min() - 1),
        "exactly one of input_ids": lambda: model(),
        "inputs_embeds requires gradients": lambda: model(inputs_embeds=embeds.requires_grad_()),
        r"expected torch.float32 \[batch, tokens, 72\]": lambda: model(
            inputs_embeds=embeds.detach().double()
        ),
    }
    for message, call in calls.items():
        with pytest.raises(ConfigError, match=message):
            call()
    model.train()
    with pytest.raises(ConfigError, match="training mode"):
        model(ids)
    model.eval()
    # Refused before any communication: the ranks are still in step.
    assert torch.allclose(model(ids).logits, expected, atol=2e-4, rtol=1e-4)


def test_calls_are_refused_on_every_rank() -> None:
    """Per-head masks, foreign caches, gradients, ids outside of the vocabulary; then it goes on."""
    run_ranks(_rank_refused_calls, 2)


@torch.no_grad()
def _rank_hooks(world: World) -> None:
    model: Any = SMOLLM2_LIKE.model()
    ids = SMOLLM2_LIKE.inputs()["input_ids"]

    def double(module: nn.Module, args: Any, output: Any) -> Any:
        output.last_hidden_state.mul_(2)
        return output

    # transformers leaves its own hooks on layers, which are harmless.
    model(ids, output_hidden_states=True, output_attentions=False)
    kept = [
        model.model.register_forward_hook(double),
        model.register_forward_pre_hook(identity_hook),
        model.model.rotary_emb.register_forward_hook(identity_hook),
    ]
    expected = model(ids).logits
    tokenweave.parallelize(model, world)
    assert torch.allclose(model(ids).logits, expected, atol=4e-4, rtol=1e-4)

    layer = model.model.layers[1]
    for name, module in {
        "model.layers.1": layer,
        "model.layers.1.self_attn.o_proj": layer.self_attn.o_proj,
        "model.layers.1.mlp": layer.mlp,
        "model.layers.1.mlp.act_fn": layer.mlp.act_fn,
        "model.embed_tokens": model.model.embed_tokens,
        "model.norm": model.model.norm,
    }.items():
        for register in (module.register_forward_hook, module.register_forward_pre_hook):
            handle = register(identity_hook)
            with pytest.raises(ConfigError, match=f"^{name} has a forward hook"):
                model(ids)
            handle.remove()
    assert torch.allclose(model(ids).logits, expected, atol=4e-4, rtol=1e-4)
    for handle in kept:
        handle.remove()


def test_hooks_are_right_or_refused() -> None:
    """On the model, its backbone and the rotary table they work; elsewhere they are refused."""
    run_ranks(_rank_hooks, 2)
