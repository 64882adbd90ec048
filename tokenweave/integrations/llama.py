"""The Llama family (Llama, Mistral, Qwen2): its modules, how they are cut, and its two blocks.

The forward pass around the blocks (cache, masks, rotary embedding, outputs) is in
decoder_forward.py; what is refused for every family in refusals.py.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from tokenfabric.errors import ConfigError
from tokenfabric.world import World
from tokenweave.executor import CommunicationStats, Executor, Stage
from tokenweave.integrations.decoder_forward import MASK_FUNCTIONS, BlockInputs, DecoderForward
from tokenweave.integrations.partial import (
    PartialLinear,
    VocabParallelEmbedding,
    VocabParallelHead,
)
from tokenweave.integrations.patches import Patches
from tokenweave.integrations.refusals import HookWatch
from tokenweave.integrations.sharding import ParameterShard, ParameterShards
from tokenweave.reduction import Norm, Reduction
from tokenweave.shard_plan import ModelDimensions, ShardPlan

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_ATTENTIONS = ("sdpa", "eager")


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """What differs between the families whose layers are Llama's."""

    prefix: str
    """Of the class names: <prefix>Model, <prefix>Attention, ..."""
    layer_types: Callable[["PreTrainedConfig"], list[str]]
    """The mask of each layer, as a key of MASK_FUNCTIONS."""

    @property
    def module(self) -> str:
        """Where transformers defines the classes."""
        name = self.prefix.lower()
        return f"transformers.models.{name}.modeling_{name}"

    @property
    def model_classes(self) -> tuple[str, str]:
        return f"{self.prefix}ForCausalLM", f"{self.prefix}Model"


def _full(config: "PreTrainedConfig") -> list[str]:
    return ["full_attention"] * config.num_hidden_layers


def _full_or_sliding(config: "PreTrainedConfig") -> list[str]:
    kind = "full_attention" if config.sliding_window is None else "sliding_attention"
    return [kind] * config.num_hidden_layers


def _by_layer(config: "PreTrainedConfig") -> list[str]:
    return list(config.layer_types)


FAMILIES = (
    Family(prefix="Llama", layer_types=_full),
    Family(prefix="Mistral", layer_types=_full_or_sliding),
    Family(prefix="Qwen2", layer_types=_by_layer),
)


def _backbone(model: "PreTrainedModel") -> Any:
    """Return the part of `model` that turns token ids into hidden states."""
    return model.base_model


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


class AttentionBlock:
    """This rank's heads of one attention layer."""

    def __init__(self, module: nn.Module, layer_type: str):
        self._module = module
        self._layer_type = layer_type

    def __call__(self, normed: Tensor, inputs: BlockInputs) -> Tensor:
        x_partial, _ = self._module(
            hidden_states=normed,
            position_embeddings=inputs.position_embeddings,
            attention_mask=inputs.masks[self._layer_type],
            position_ids=inputs.position_ids,
            past_key_values=inputs.past_key_values,
            **inputs.attention_kwargs,
        )
        assert isinstance(x_partial, Tensor)
        return x_partial


class MlpBlock:
    """This rank's columns of one MLP."""

    def __init__(self, module: nn.Module):
        self._module = module

    def __call__(self, normed: Tensor, inputs: BlockInputs) -> Tensor:
        x_partial = self._module(normed)
        assert isinstance(x_partial, Tensor)
        return x_partial


class LlamaAdapter:
    """Implements ModelAdapter for models whose layers are Llama's."""

    def __init__(self, family: Family):
        self._family = family

    def hookable(self, model: "PreTrainedModel") -> tuple[nn.Module, ...]:
        return model, _backbone(model), _backbone(model).rotary_emb

    def check(self, model: "PreTrainedModel") -> None:
        config, backbone = model.config, _backbone(model)
        if config._attn_implementation not in _ATTENTIONS:
            raise ConfigError(
                f"attention implementation {config._attn_implementation!r} is not supported; "
                f"call model.set_attn_implementation() with one of {', '.join(_ATTENTIONS)}"
            )
        if unknown := set(self._family.layer_types(config)) - MASK_FUNCTIONS.keys():
            raise ConfigError(f"layer types {sorted(unknown)} are not supported")
        if len(backbone.layers) != config.num_hidden_layers:
            raise ConfigError(
                f"config.num_hidden_layers is {config.num_hidden_layers}, "
                f"but the model has {len(backbone.layers)} layers"
            )
        for name, module, expected in self._expected_types(model):
            # An exact match: a subclass may compute something else in its forward.
            if type(module) is not expected:
                raise ConfigError(
                    f"{name} is a {_full_name(type(module))}, not a {_full_name(expected)}: "
                    f"replaced, quantized or adapter-wrapped modules are not supported"
                )
        if backbone.embed_tokens.max_norm is not None:
            raise ConfigError("an embedding with max_norm rewrites its weight and is not supported")

    def _expected_types(self, model: "PreTrainedModel") -> Iterator[tuple[str, nn.Module, type]]:
        """Yield (name, module, the only class whose computation is known) for all modules used."""
        prefix, defining = self._family.prefix, sys.modules[self._family.module]
        backbone = _backbone(model)
        norm_class = getattr(defining, f"{prefix}RMSNorm")
        for i, layer in enumerate(backbone.layers):
            yield f"layers.{i}", layer, getattr(defining, f"{prefix}DecoderLayer")
            attention, mlp = layer.self_attn, layer.mlp
            yield f"layers.{i}.self_attn", attention, getattr(defining, f"{prefix}Attention")
            yield f"layers.{i}.mlp", mlp, getattr(defining, f"{prefix}MLP")
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                yield f"layers.{i}.self_attn.{name}", getattr(attention, name), nn.Linear
            for name in ("gate_proj", "up_proj", "down_proj"):
                yield f"layers.{i}.mlp.{name}", getattr(mlp, name), nn.Linear
            for name in ("input_layernorm", "post_attention_layernorm"):
                yield f"layers.{i}.{name}", getattr(layer, name), norm_class
        yield "norm", backbone.norm, norm_class
        yield "embed_tokens", backbone.embed_tokens, nn.Embedding
        if backbone is not model:
            yield "lm_head", model.lm_head, nn.Linear

    def dimensions(self, model: "PreTrainedModel") -> ModelDimensions:
        config = model.config
        return ModelDimensions(
            num_query_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            intermediate_size=config.intermediate_size,
            vocab_size=_backbone(model).embed_tokens.num_embeddings,
        )

    def parameter_shards(self, model: "PreTrainedModel", plan: ShardPlan) -> ParameterShards:
        backbone = _backbone(model)
        head_dim = backbone.layers[0].self_attn.head_dim
        query = tuple(span.scaled(head_dim) for span in plan.query_heads)
        kv = tuple(span.scaled(head_dim) for span in plan.kv_heads)
        by_rows = {
            "self_attn.q_proj": query,
            "self_attn.k_proj": kv,
            "self_attn.v_proj": kv,
            "mlp.gate_proj": plan.mlp_columns,
            "mlp.up_proj": plan.mlp_columns,
        }
        by_columns = {"self_attn.o_proj": query, "mlp.down_proj": plan.mlp_columns}
        of_layer: ParameterShards = {
            "input_layernorm.weight": None,
            "post_attention_layernorm.weight": None,
        }
        for name, spans in by_rows.items():
            of_layer[f"{name}.weight"] = of_layer[f"{name}.bias"] = ParameterShard(0, spans)
        for name, spans in by_columns.items():
            of_layer[f"{name}.weight"] = ParameterShard(1, spans)
            of_layer[f"{name}.bias"] = None

        root = "" if backbone is model else f"{model.base_model_prefix}."
        vocab = ParameterShard(0, plan.vocab_rows)
        shards: ParameterShards = {
            f"{root}embed_tokens.weight": vocab,
            f"{root}norm.weight": None,
            "lm_head.weight": vocab,
            "lm_head.bias": vocab,
        }
        for i in range(len(backbone.layers)):
            shards |= {f"{root}layers.{i}.{name}": shard for name, shard in of_layer.items()}
        return shards

    def attach(
        self,
        model: "PreTrainedModel",
        plan: ShardPlan,
        world: World,
        reduction: Reduction,
        patches: Patches,
    ) -> CommunicationStats:
        backbone, rank = _backbone(model), world.rank
        num_kv_heads = plan.kv_heads[rank].size
        for layer in backbone.layers:
            attention, mlp = layer.self_attn, layer.mlp
            num_groups = plan.query_heads[rank].size // num_kv_heads
            patches.set(attention, "num_key_value_groups", num_groups)
            patches.set(attention, "o_proj", PartialLinear(attention.o_proj, reduction))
            patches.set(mlp, "down_proj", PartialLinear(mlp.down_proj, reduction))
            for linear in (
                attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj,
            ):  # fmt: skip
                patches.set(linear, "out_features", linear.weight.shape[0])
        rows = plan.vocab_rows
        embedding = VocabParallelEmbedding(backbone.embed_tokens, rows[rank], world)
        patches.set(backbone, "embed_tokens", embedding)

        executor = self._executor(backbone, reduction)
        if backbone is not model:
            head = VocabParallelHead(model.lm_head, rows, reduction, executor.stats)
            patches.set(model, "lm_head", head)
        layer_types = self._family.layer_types(model.config)
        hooks = HookWatch(model, self.hookable(model))
        forward = DecoderForward(backbone, executor, hooks, layer_types, num_kv_heads, rank)
        patches.set(backbone, "forward", forward)
        return executor.stats

    def _executor(self, backbone: Any, reduction: Reduction) -> Executor[BlockInputs]:
        def norm(module: Any) -> Norm:
            return Norm(module, eps=module.variance_epsilon)

        layer_types = self._family.layer_types(backbone.config)
        layers = list(backbone.layers)
        next_norms = [norm(layer.input_layernorm) for layer in layers[1:]] + [norm(backbone.norm)]
        stages: list[Stage[BlockInputs]] = []
        for layer, layer_type, next_norm in zip(layers, layer_types, next_norms, strict=True):
            attention, mlp = layer.self_attn, layer.mlp
            stages += [
                Stage(
                    block=AttentionBlock(attention, layer_type),
                    bias=attention.o_proj.bias,
                    norm=norm(layer.post_attention_layernorm),
                    ends_layer=False,
                ),
                Stage(
                    block=MlpBlock(mlp),
                    bias=mlp.down_proj.bias,
                    norm=next_norm,
                    ends_layer=True,
                ),
            ]
        return Executor(norm(layers[0].input_layernorm), stages, reduction)
