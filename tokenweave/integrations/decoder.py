"""The adapter that all families share: a decoder's modules, how they are cut, and its stages.

A family overrides what it does otherwise (llama.py has those that differ least). The forward pass
around the blocks is in decoder_forward.py; what is refused for every family in refusals.py.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from tokenfabric.errors import ConfigError
from tokenfabric.world import World
from tokenweave.executor import CommunicationStats, Executor, Stage
from tokenweave.integrations.blocks import (
    AttentionBlock,
    BlockKind,
    Expected,
    GatedMlp,
    MlpBlock,
    SplitAttention,
)
from tokenweave.integrations.checkpoint import StoredTensors
from tokenweave.integrations.decoder_forward import MASK_FUNCTIONS, BlockInputs, DecoderForward
from tokenweave.integrations.partial import VocabParallelEmbedding, VocabParallelHead
from tokenweave.integrations.pass_graphs import PassGraphs
from tokenweave.integrations.patches import Patches
from tokenweave.integrations.refusals import HookWatch
from tokenweave.integrations.sharding import ParameterShard, ParameterShards
from tokenweave.reduction import Norm, Reduction
from tokenweave.shard_plan import ModelDimensions, ShardPlan, Span

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


class DecoderAdapter:
    """Implements ModelAdapter for decoders of transformers; as it stands, for layers like Llama's.

    Layers are `layers.N` with an attention `self_attn` and an MLP `mlp`; the embedding is
    `embed_tokens`, the last norm `norm`, the head `lm_head`, the rotary tables `rotary_emb`.
    """

    prefix: ClassVar[str]
    """Of the class names: <prefix>Model, <prefix>Attention, ..."""
    attention: ClassVar[BlockKind] = SplitAttention()
    layer_norms: ClassVar[tuple[str, ...]] = ("input_layernorm", "post_attention_layernorm")
    """All norms of a layer."""
    attentions: ClassVar[tuple[str, ...]] = ("sdpa", "eager")
    """The attention implementations of transformers that are right on some of the heads."""
    needs_equal_arithmetic: ClassVar[bool] = False

    @property
    def module(self) -> str:
        """Where transformers defines the classes."""
        name = self.prefix.lower()
        return f"transformers.models.{name}.modeling_{name}"

    @property
    def model_classes(self) -> tuple[str, str]:
        """The classes with and without a head."""
        return f"{self.prefix}ForCausalLM", f"{self.prefix}Model"

    def layer_types(self, config: "PreTrainedConfig") -> list[str]:
        """Return the mask of each layer, as a key of MASK_FUNCTIONS."""
        return ["full_attention"] * config.num_hidden_layers

    def mlp(self, layer: Any) -> BlockKind:
        """Return the kind of the MLP of a layer."""
        return GatedMlp()

    def decided_on_host(self, config: "PreTrainedConfig") -> str:
        """Return what the blocks have the host decide from numbers on the GPU, so that no CUDA
        graph can replay them; empty if nothing.
        """
        return ""

    def norm(self, module: Any) -> Norm:
        """Return what an RMSNorm of the family computes."""
        return Norm(module, eps=module.variance_epsilon)

    def norms_after(self, layer: Any, next_norm: Norm) -> tuple[Norm, Norm]:
        """Return the norms of the reductions after a layer's attention and after its MLP.

        Args:
            layer: the layer.
            next_norm: the first norm of the next layer, or the last one of the model.
        """
        return self.norm(layer.post_attention_layernorm), next_norm

    def embedding_class(self) -> type:
        """Return the only class that the embedding may have."""
        return nn.Embedding

    def embedding(self, module: Any, rows: Span, world: World) -> VocabParallelEmbedding:
        """Return what stands in for the embedding `module`, of which this rank has `rows`."""
        return VocabParallelEmbedding(module, rows, world)

    def rotary_columns(self, backbone: Any, patches: Patches) -> Callable[[str], slice]:
        """Return which columns of the rotary tables a layer type reads."""
        return lambda layer_type: slice(None)

    def reduction(self, reduction: Reduction, world: World) -> Reduction:
        """Return the strategy that the norms of `norms_after` need, made of the one asked for."""
        return reduction

    def forward(self, forward: DecoderForward) -> Callable[..., Any]:
        """Return what stands in for the forward of the model without its head."""
        return forward

    def check_config(self, config: "PreTrainedConfig") -> None:
        """Raise ConfigError, naming it, for an option that would not come out right."""

    def with_buffers(self, module: nn.Module, config: "PreTrainedConfig") -> nn.Module:
        """Return what `module`, with buffers on the meta device, is with those of its config."""
        made: nn.Module = type(module)(config=config)
        return made

    def stored(self, tensors: StoredTensors) -> StoredTensors:
        """Return a checkpoint's tensors under the names of the parameters, where others are usual.

        Raises:
            ConfigError: something is missing.
        """
        return tensors

    def hookable(self, model: "PreTrainedModel") -> tuple[nn.Module, ...]:
        backbone = _backbone(model)
        return model, backbone, backbone.rotary_emb

    def check(self, model: "PreTrainedModel") -> None:
        config, backbone = model.config, _backbone(model)
        if config._attn_implementation not in self.attentions:
            raise ConfigError(
                f"attention implementation {config._attn_implementation!r} is not supported; "
                f"call model.set_attn_implementation() with one of {', '.join(self.attentions)}"
            )
        self.check_config(config)
        if unknown := set(self.layer_types(config)) - MASK_FUNCTIONS.keys():
            raise ConfigError(f"layer types {sorted(unknown)} are not supported")
        if len(backbone.layers) != config.num_hidden_layers:
            raise ConfigError(
                f"config.num_hidden_layers is {config.num_hidden_layers}, "
                f"but the model has {len(backbone.layers)} layers"
            )
        for name, module, expected in self._expected(model):
            # An exact match: a subclass may compute something else in its forward.
            if type(module) is not expected:
                raise ConfigError(
                    f"{name} is a {_full_name(type(module))}, not a {_full_name(expected)}: "
                    f"replaced, quantized or adapter-wrapped modules are not supported; merge "
                    f"adapters into the weights (peft: merge_and_unload()) before"
                )
        if backbone.embed_tokens.max_norm is not None:
            raise ConfigError("an embedding with max_norm rewrites its weight and is not supported")

    def own_class(self, suffix: str) -> type:
        """Return a class of the family by the end of its name: "MLP" for LlamaMLP."""
        found: type = getattr(sys.modules[self.module], f"{self.prefix}{suffix}")
        return found

    def _expected(self, model: "PreTrainedModel") -> Iterator[Expected]:
        """Yield (name, module, the only class whose computation is known) for all modules used."""
        backbone = _backbone(model)
        norm_class = self.own_class("RMSNorm")
        for i, layer in enumerate(backbone.layers):
            yield f"layers.{i}", layer, self.own_class("DecoderLayer")
            for part, kind in self._blocks(layer):
                for name, module, expected in kind.expected(getattr(layer, part), self.own_class):
                    yield f"layers.{i}.{part}.{name}".removesuffix("."), module, expected
            for name in self.layer_norms:
                yield f"layers.{i}.{name}", getattr(layer, name), norm_class
        yield "norm", backbone.norm, norm_class
        yield "embed_tokens", backbone.embed_tokens, self.embedding_class()
        if backbone is not model:
            yield "lm_head", model.lm_head, nn.Linear

    def _blocks(self, layer: Any) -> tuple[tuple[str, BlockKind], tuple[str, BlockKind]]:
        return ("self_attn", self.attention), ("mlp", self.mlp(layer))

    def dimensions(self, model: "PreTrainedModel") -> ModelDimensions:
        config = model.config
        return ModelDimensions(
            num_query_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            intermediate_size=config.intermediate_size,
            vocab_size=_backbone(model).embed_tokens.num_embeddings,
            expert_intermediate_size=self.expert_intermediate_size(config),
        )

    def expert_intermediate_size(self, config: "PreTrainedConfig") -> int | None:
        """Return the width of one expert, None for a family without experts."""
        return None

    def parameter_shards(self, model: "PreTrainedModel", plan: ShardPlan) -> ParameterShards:
        backbone = _backbone(model)
        root = "" if backbone is model else f"{model.base_model_prefix}."
        vocab = ParameterShard.along(0, plan.vocab_rows)
        shards: ParameterShards = {
            f"{root}embed_tokens.weight": vocab,
            f"{root}norm.weight": None,
            "lm_head.weight": vocab,
            "lm_head.bias": vocab,
        }
        for i, layer in enumerate(backbone.layers):
            at = f"{root}layers.{i}"
            shards |= {f"{at}.{name}.weight": None for name in self.layer_norms}
            for part, kind in self._blocks(layer):
                of_block = kind.shards(getattr(layer, part), plan)
                shards |= {f"{at}.{part}.{name}": shard for name, shard in of_block.items()}
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
        reduction = self.reduction(reduction, world)
        for layer in backbone.layers:
            for part, kind in self._blocks(layer):
                kind.attach(getattr(layer, part), plan, rank, reduction, patches)
        rows = plan.vocab_rows
        embedding = self.embedding(backbone.embed_tokens, rows[rank], world)
        patches.set(backbone, "embed_tokens", embedding)

        layer_types = self.layer_types(model.config)
        columns = self.rotary_columns(backbone, patches)
        executor = self._executor(backbone, layer_types, columns, reduction)
        if backbone is not model:
            head = VocabParallelHead(model.lm_head, rows, reduction, executor.stats)
            patches.set(model, "lm_head", head)
        hooks = HookWatch(model, self.hookable(model))
        num_kv_heads = plan.kv_heads[rank].size
        graphs = PassGraphs(backbone, executor, world, self.decided_on_host(model.config))
        forward = DecoderForward(backbone, executor, graphs, hooks, layer_types, num_kv_heads, rank)
        patches.set(backbone, "forward", self.forward(forward))
        return executor.stats

    def _executor(
        self,
        backbone: Any,
        layer_types: Sequence[str],
        columns: Callable[[str], slice],
        reduction: Reduction,
    ) -> Executor[BlockInputs]:
        layers = list(backbone.layers)
        entries = [self.norm(layer.input_layernorm) for layer in layers]
        next_norms = [*entries[1:], self.norm(backbone.norm)]
        stages: list[Stage[BlockInputs]] = []
        for layer, layer_type, next_norm in zip(layers, layer_types, next_norms, strict=True):
            (_, attention), (_, mlp) = self._blocks(layer)
            after_attention, after_mlp = self.norms_after(layer, next_norm)
            stages += [
                Stage(
                    block=AttentionBlock(layer.self_attn, layer_type, columns(layer_type)),
                    bias=attention.bias(layer.self_attn),
                    norm=after_attention,
                    ends_layer=False,
                ),
                Stage(
                    block=MlpBlock(layer.mlp),
                    bias=mlp.bias(layer.mlp),
                    norm=after_mlp,
                    ends_layer=True,
                    is_per_token=True,
                ),
            ]
        return Executor(entries[0], stages, reduction)


def _backbone(model: "PreTrainedModel") -> Any:
    """Return the part of `model` that turns token ids into hidden states."""
    return model.base_model


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
