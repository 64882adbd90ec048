"""Mixtral and Qwen3-MoE: every rank has some columns of every expert, and the whole router.

All ranks hold the same bits of what the router reads, compute the same logits from it and so choose
the same experts; each adds what its columns give for all tokens, and one reduction follows. How
experts are stored is in stored_experts.py.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.modeling_outputs import MoeModelOutputWithPast

from tokenfabric.errors import ConfigError
from tokenweave.integrations.blocks import BlockKind, Expected, GatedMlp, OwnClass, SplitAttention
from tokenweave.integrations.checkpoint import StoredTensors
from tokenweave.integrations.decoder import DecoderAdapter
from tokenweave.integrations.decoder_forward import DecoderForward
from tokenweave.integrations.llama import full_or_sliding
from tokenweave.integrations.patches import Patches
from tokenweave.integrations.sharding import ParameterShard, ParameterShards
from tokenweave.integrations.stored_experts import StoredExperts
from tokenweave.reduction import Reduction
from tokenweave.shard_plan import ShardPlan, Span

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_EXPERTS = ("eager", "batched_mm", "grouped_mm")
"""The implementations of transformers that are right on some of an expert's columns."""
_GROUPED_ROW_BYTES = 16
_ROUTER_LOGITS_REFUSED = "output_router_logits is for training and not supported"


class Experts:
    """A router `gate` and the weights of all experts in two parameters of `experts`."""

    def expected(self, block: Any, own_class: OwnClass) -> Iterator[Expected]:
        yield "", block, own_class("SparseMoeBlock")
        yield "gate", block.gate, own_class("TopKRouter")
        yield "experts", block.experts, own_class("Experts")

    def shards(self, block: Any, plan: ShardPlan) -> ParameterShards:
        columns = plan.expert_columns
        if block.experts.config._experts_implementation == "grouped_mm":
            _check_grouped(block.experts.down_proj.dtype, columns)
        return {
            "gate.weight": None,
            # [experts, gate rows then up rows, hidden] and [experts, hidden, columns].
            "experts.gate_up_proj": ParameterShard.along(1, columns, columns),
            "experts.down_proj": ParameterShard.along(2, columns),
        }

    def attach(
        self, block: Any, plan: ShardPlan, rank: int, reduction: Reduction, patches: Patches
    ) -> None:
        patches.set(block.experts, "intermediate_dim", plan.expert_columns[rank].size)

    def bias(self, block: Any) -> Tensor | None:
        return None


def _check_grouped(dtype: torch.dtype, columns: tuple[Span, ...]) -> None:
    """Raise ConfigError for shares whose rows torch's grouped GEMM does not take."""
    widths = [span.size for span in columns]
    if any(width * dtype.itemsize % _GROUPED_ROW_BYTES for width in widths):
        raise ConfigError(
            f"experts of {sum(widths)} columns are dealt as {widths}, and a row of each share must "
            f"be a multiple of {_GROUPED_ROW_BYTES} bytes of {dtype} for grouped_mm: use another "
            f"number of ranks, or call model.set_experts_implementation('eager')"
        )


class MoeForward:
    """A DecoderForward whose output has the class that a model with experts returns."""

    def __init__(self, forward: DecoderForward):
        self._forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> MoeModelOutputWithPast | tuple[Any, ...]:
        if kwargs.pop("output_router_logits", None):
            raise ConfigError(_ROUTER_LOGITS_REFUSED)
        output = self._forward(*args, **kwargs)
        return output if isinstance(output, tuple) else MoeModelOutputWithPast(**output)


class MoeAdapter(DecoderAdapter):
    """What Mixtral and Qwen3-MoE share."""

    needs_equal_arithmetic = True

    def layer_types(self, config: "PreTrainedConfig") -> list[str]:
        return full_or_sliding(config)

    def mlp(self, layer: Any) -> BlockKind:
        return Experts()

    def decided_on_host(self, config: "PreTrainedConfig") -> str:
        if config._experts_implementation != "eager":
            return ""
        return "which experts have tokens is decided on the host (experts implementation 'eager')"

    def forward(self, forward: DecoderForward) -> Callable[..., Any]:
        return MoeForward(forward)

    def check_config(self, config: "PreTrainedConfig") -> None:
        if config.output_router_logits:
            raise ConfigError(f"config.{_ROUTER_LOGITS_REFUSED}")
        if config._experts_implementation not in _EXPERTS:
            raise ConfigError(
                f"experts implementation {config._experts_implementation!r} is not supported; "
                f"call model.set_experts_implementation() with one of {', '.join(_EXPERTS)}"
            )


class MixtralAdapter(MoeAdapter):
    """Implements ModelAdapter."""

    prefix = "Mixtral"

    def expert_intermediate_size(self, config: "PreTrainedConfig") -> int:
        size: int = config.intermediate_size
        return size

    def stored(self, tensors: StoredTensors) -> StoredTensors:
        projections = {"gate_up_proj": ("w1", "w3"), "down_proj": ("w2",)}
        return StoredExperts(tensors, projections, stored_mlp="block_sparse_moe")


class Qwen3MoeAdapter(MoeAdapter):
    """Implements ModelAdapter. Layers without experts are Qwen3's."""

    prefix = "Qwen3Moe"
    attention = SplitAttention("q_norm", "k_norm")

    def mlp(self, layer: Any) -> BlockKind:
        return Experts() if hasattr(layer.mlp, "experts") else GatedMlp()

    @property
    def module(self) -> str:
        return "transformers.models.qwen3_moe.modeling_qwen3_moe"

    def expert_intermediate_size(self, config: "PreTrainedConfig") -> int:
        size: int = config.moe_intermediate_size
        return size

    def stored(self, tensors: StoredTensors) -> StoredTensors:
        projections = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
        return StoredExperts(tensors, projections)
