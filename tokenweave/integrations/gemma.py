"""Gemma 2 and Gemma 3 (text): four norms a layer, (1 + w), a scaled embedding, windows in turns.

The caps of the attention scores and of the final logits are computed by transformers' own modules.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tokenfabric.errors import ConfigError
from tokenfabric.world import World
from tokenweave.integrations.blocks import SplitAttention
from tokenweave.integrations.decoder import DecoderAdapter
from tokenweave.integrations.partial import VocabParallelEmbedding
from tokenweave.integrations.patches import Patches
from tokenweave.reduction import Norm, Reduction
from tokenweave.sandwich import SandwichNorm, SandwichReduction
from tokenweave.shard_plan import Span

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


class ScaledVocabParallelEmbedding(VocabParallelEmbedding):
    """An embedding times a scale that is rounded to its dtype; each row is scaled where it lies."""

    def __init__(self, embedding: Any, rows: Span, world: World):
        super().__init__(embedding, rows, world)
        self.embed_scale = nn.Buffer(embedding.embed_scale, persistent=False)

    def partial(self, ids: Tensor) -> Tensor:
        return super().partial(ids).mul_(self.embed_scale.to(self.weight.dtype))


class GemmaAdapter(DecoderAdapter):
    """What Gemma 2 and Gemma 3 share."""

    layer_norms = (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    )

    def layer_types(self, config: "PreTrainedConfig") -> list[str]:
        return list(config.layer_types)

    def norm(self, module: Any) -> Norm:
        return Norm(module, eps=module.eps, weight_offset=1.0)

    def norms_after(self, layer: Any, next_norm: Norm) -> tuple[Norm, Norm]:
        return (
            self._sandwich(layer.post_attention_layernorm, layer.pre_feedforward_layernorm),
            self._sandwich(layer.post_feedforward_layernorm, next_norm.module),
        )

    def _sandwich(self, post: Any, following: Any) -> SandwichNorm:
        norm = self.norm(following)
        return SandwichNorm(
            norm.module, eps=norm.eps, weight_offset=norm.weight_offset, post=self.norm(post)
        )

    def embedding_class(self) -> type:
        return self.own_class("TextScaledWordEmbedding")

    def embedding(self, module: Any, rows: Span, world: World) -> VocabParallelEmbedding:
        return ScaledVocabParallelEmbedding(module, rows, world)

    def with_buffers(self, module: Any, config: "PreTrainedConfig") -> nn.Module:
        if not isinstance(module, self.embedding_class()):
            return super().with_buffers(module, config)
        scale = torch.tensor(module.scalar_embed_scale, dtype=module.weight.dtype)
        module.embed_scale = nn.Buffer(scale, persistent=False)
        return module

    def reduction(self, reduction: Reduction, world: World) -> Reduction:
        return SandwichReduction(reduction, world)

    def check_config(self, config: "PreTrainedConfig") -> None:
        if config.use_bidirectional_attention:
            raise ConfigError("config.use_bidirectional_attention is not supported")


class Gemma2Adapter(GemmaAdapter):
    """Implements ModelAdapter."""

    prefix = "Gemma2"
    # sdpa has no cap of the scores.
    attentions = ("eager",)


class SideBySideRotary(nn.Module):
    """The rotary tables of all layer types as one pair of tables, side by side."""

    def __init__(self, rotary: nn.Module, layer_types: Sequence[str]):
        super().__init__()
        self.by_type = rotary
        self._layer_types = tuple(layer_types)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin, each [batch or 1, tokens, layer types * head_dim]."""
        cos, sin = zip(
            *(self.by_type(x, position_ids, layer_type) for layer_type in self._layer_types),
            strict=True,
        )
        return torch.cat(cos, dim=-1), torch.cat(sin, dim=-1)


class Gemma3Adapter(GemmaAdapter):
    """Implements ModelAdapter for the models of text only."""

    prefix = "Gemma3"
    attention = SplitAttention("q_norm", "k_norm")

    @property
    def model_classes(self) -> tuple[str, str]:
        return "Gemma3ForCausalLM", "Gemma3TextModel"

    def hookable(self, model: "PreTrainedModel") -> tuple[nn.Module, ...]:
        *others, rotary = super().hookable(model)
        return *others, rotary.by_type if isinstance(rotary, SideBySideRotary) else rotary

    def rotary_columns(self, backbone: Any, patches: Patches) -> Callable[[str], slice]:
        used = sorted(set(self.layer_types(backbone.config)))
        patches.set(backbone, "rotary_emb", SideBySideRotary(backbone.rotary_emb, used))
        head_dim = backbone.layers[0].self_attn.head_dim

        def columns(layer_type: str) -> slice:
            start = used.index(layer_type) * head_dim
            return slice(start, start + head_dim)

        return columns
