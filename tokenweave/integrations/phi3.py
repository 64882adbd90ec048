"""Phi-3: q, k and v in one projection, gate and up in another."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from tokenweave.integrations.blocks import (
    BlockKind,
    Expected,
    OwnClass,
    attach_linears,
    cut_columns,
    cut_rows,
)
from tokenweave.integrations.decoder import DecoderAdapter
from tokenweave.integrations.llama import full_or_sliding
from tokenweave.integrations.patches import Patches
from tokenweave.integrations.sharding import ParameterShards
from tokenweave.reduction import Reduction
from tokenweave.shard_plan import ShardPlan

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class _HeadsOfRank:
    """A model's config as an attention layer sees it that has fewer heads than the model."""

    def __init__(self, config: "PreTrainedConfig", num_attention_heads: int):
        self._config = config
        self.num_attention_heads = num_attention_heads

    def __getattr__(self, name: str) -> Any:
        return getattr(self._config, name)


class FusedAttention:
    """Attention with one projection `qkv_proj`: the rows of q, then those of k, then those of v."""

    def expected(self, block: Any, own_class: OwnClass) -> Iterator[Expected]:
        yield "", block, own_class("Attention")
        for name in ("qkv_proj", "o_proj"):
            yield name, getattr(block, name), nn.Linear

    def shards(self, block: Any, plan: ShardPlan) -> ParameterShards:
        query = tuple(span.scaled(block.head_dim) for span in plan.query_heads)
        kv = tuple(span.scaled(block.head_dim) for span in plan.kv_heads)
        return cut_rows("qkv_proj", query, kv, kv) | cut_columns("o_proj", query)

    def attach(
        self, block: Any, plan: ShardPlan, rank: int, reduction: Reduction, patches: Patches
    ) -> None:
        num_query_heads, num_kv_heads = plan.query_heads[rank].size, plan.kv_heads[rank].size
        # Where q ends in what the projection returns is read off these two.
        patches.set(block, "config", _HeadsOfRank(block.config, num_query_heads))
        patches.set(block, "num_key_value_heads", num_kv_heads)
        patches.set(block, "num_key_value_groups", num_query_heads // num_kv_heads)
        attach_linears(block, ("qkv_proj",), "o_proj", reduction, patches)

    def bias(self, block: Any) -> Tensor | None:
        bias: Tensor | None = block.o_proj.bias
        return bias


class FusedGatedMlp:
    """An MLP with one projection `gate_up_proj`: the rows of gate, then those of up."""

    def expected(self, block: Any, own_class: OwnClass) -> Iterator[Expected]:
        yield "", block, own_class("MLP")
        for name in ("gate_up_proj", "down_proj"):
            yield name, getattr(block, name), nn.Linear

    def shards(self, block: Any, plan: ShardPlan) -> ParameterShards:
        columns = plan.mlp_columns
        return cut_rows("gate_up_proj", columns, columns) | cut_columns("down_proj", columns)

    def attach(
        self, block: Any, plan: ShardPlan, rank: int, reduction: Reduction, patches: Patches
    ) -> None:
        attach_linears(block, ("gate_up_proj",), "down_proj", reduction, patches)

    def bias(self, block: Any) -> Tensor | None:
        bias: Tensor | None = block.down_proj.bias
        return bias


class Phi3Adapter(DecoderAdapter):
    """Implements ModelAdapter."""

    prefix = "Phi3"
    attention = FusedAttention()

    def layer_types(self, config: "PreTrainedConfig") -> list[str]:
        return full_or_sliding(config)

    def mlp(self, layer: Any) -> BlockKind:
        return FusedGatedMlp()
