"""The two blocks of a decoder layer, attention and MLP: how each is checked, cut and called.

What is here is Llama's and that of most families. Other kinds of blocks are beside the family that
has them: fused projections in phi3.py, experts in experts.py.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from torch import Tensor, nn

from tokenweave.integrations.decoder_forward import BlockInputs
from tokenweave.integrations.partial import PartialLinear
from tokenweave.integrations.patches import Patches
from tokenweave.integrations.sharding import ParameterShard, ParameterShards
from tokenweave.reduction import Reduction
from tokenweave.shard_plan import ShardPlan, Span

OwnClass = Callable[[str], type]
"""Returns a class of the family by the end of its name: "MLP" for LlamaMLP."""
Expected = tuple[str, nn.Module, type]
"""Name relative to the block ("" for the block itself), module, the only class it may have."""


class BlockKind(Protocol):
    """Knows one kind of block of a layer. `block` is the module, of any layer of the family."""

    def expected(self, block: Any, own_class: OwnClass) -> Iterator[Expected]:
        """Yield every module whose computation is relied on."""
        ...

    def shards(self, block: Any, plan: ShardPlan) -> ParameterShards:
        """Return the cut of every parameter that the block may have, by name relative to it."""
        ...

    def attach(
        self, block: Any, plan: ShardPlan, rank: int, reduction: Reduction, patches: Patches
    ) -> None:
        """Make the block, whose parameters are cut already, return its partial sum."""
        ...

    def bias(self, block: Any) -> Tensor | None:
        """Return the bias [hidden] that the reduction after the attached block adds once."""
        ...


def cut_rows(name: str, *sections: tuple[Span, ...]) -> ParameterShards:
    """Return the cut of a linear layer of which each rank computes some outputs."""
    shard = ParameterShard.along(0, *sections)
    return {f"{name}.weight": shard, f"{name}.bias": shard}


def cut_columns(name: str, spans: tuple[Span, ...]) -> ParameterShards:
    """Return the cut of a linear layer of which each rank reads some inputs: it sums partially."""
    return {f"{name}.weight": ParameterShard.along(1, spans), f"{name}.bias": None}


def attach_linears(
    block: Any, by_rows: tuple[str, ...], last: str, reduction: Reduction, patches: Patches
) -> None:
    """Make linear layer `last` of a block return its partial sum, and the cut ones say their size.

    Args:
        block: the module.
        by_rows: names of the layers that were cut by `cut_rows`.
        last: name of the one that was cut by `cut_columns`.
        reduction: what reads the partial sum.
        patches: keeps what was there before.
    """
    for name in by_rows:
        linear = getattr(block, name)
        patches.set(linear, "out_features", linear.weight.shape[0])
    patches.set(block, last, PartialLinear(getattr(block, last), reduction))


class SplitAttention:
    """Attention with a projection for each of q, k and v, and perhaps norms of single heads."""

    def __init__(self, *head_norms: str):
        """Take the names of the norms [head_dim] that q and k go through."""
        self._head_norms = head_norms

    def expected(self, block: Any, own_class: OwnClass) -> Iterator[Expected]:
        yield "", block, own_class("Attention")
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            yield name, getattr(block, name), nn.Linear
        for name in self._head_norms:
            yield name, getattr(block, name), own_class("RMSNorm")

    def shards(self, block: Any, plan: ShardPlan) -> ParameterShards:
        query = tuple(span.scaled(block.head_dim) for span in plan.query_heads)
        kv = tuple(span.scaled(block.head_dim) for span in plan.kv_heads)
        norms: ParameterShards = {f"{name}.weight": None for name in self._head_norms}
        projections = cut_rows("q_proj", query) | cut_rows("k_proj", kv) | cut_rows("v_proj", kv)
        return projections | cut_columns("o_proj", query) | norms

    def attach(
        self, block: Any, plan: ShardPlan, rank: int, reduction: Reduction, patches: Patches
    ) -> None:
        num_groups = plan.query_heads[rank].size // plan.kv_heads[rank].size
        patches.set(block, "num_key_value_groups", num_groups)
        attach_linears(block, ("q_proj", "k_proj", "v_proj"), "o_proj", reduction, patches)

    def bias(self, block: Any) -> Tensor | None:
        bias: Tensor | None = block.o_proj.bias
        return bias


class GatedMlp:
    """down(act(gate(x)) * up(x))."""

    def expected(self, block: Any, own_class: OwnClass) -> Iterator[Expected]:
        yield "", block, own_class("MLP")
        for name in ("gate_proj", "up_proj", "down_proj"):
            yield name, getattr(block, name), nn.Linear

    def shards(self, block: Any, plan: ShardPlan) -> ParameterShards:
        columns = plan.mlp_columns
        projections = cut_rows("gate_proj", columns) | cut_rows("up_proj", columns)
        return projections | cut_columns("down_proj", columns)

    def attach(
        self, block: Any, plan: ShardPlan, rank: int, reduction: Reduction, patches: Patches
    ) -> None:
        attach_linears(block, ("gate_proj", "up_proj"), "down_proj", reduction, patches)

    def bias(self, block: Any) -> Tensor | None:
        bias: Tensor | None = block.down_proj.bias
        return bias


class AttentionBlock:
    """This rank's heads of one attention layer."""

    def __init__(self, module: nn.Module, layer_type: str, rotary_columns: slice = slice(None)):
        """Take the attached module, which of the masks it reads and which part of the tables."""
        self._module = module
        self._layer_type = layer_type
        self._rotary_columns = rotary_columns

    def __call__(self, normed: Tensor, inputs: BlockInputs) -> Tensor:
        cos, sin = inputs.position_embeddings
        columns = self._rotary_columns
        x_partial, _ = self._module(
            hidden_states=normed,
            position_embeddings=(cos[..., columns], sin[..., columns]),
            attention_mask=inputs.masks[self._layer_type],
            position_ids=inputs.position_ids,
            cache=inputs.cache,
            **inputs.attention_kwargs,
        )
        assert isinstance(x_partial, Tensor)
        return x_partial


class MlpBlock:
    """This rank's columns of one MLP, or of each of its experts."""

    def __init__(self, module: nn.Module):
        self._module = module

    def __call__(self, normed: Tensor, inputs: BlockInputs) -> Tensor:
        x_partial = self._module(normed)
        assert isinstance(x_partial, Tensor)
        return x_partial
