"""tokenring: exact attention over a sequence that is sharded across ranks.

Importing does no work: what a name needs comes with the first use of it.
"""

from typing import TYPE_CHECKING, Any

from tokenfabric.lazy import load

if TYPE_CHECKING:
    from tokenring.attention import ring_attention
    from tokenring.cache import RingCache
    from tokenring.decode import ring_decode, ring_prefill
    from tokenring.integrations import disable, enable
    from tokenring.movement import STRATEGIES
    from tokenring.partition import partition_tokens
    from tokenring.plan import RingPlan, plan_attention
    from tokenring.recompute import keep_attention
    from tokenring.sharding import position_ids, shard, shard_labels, token_cross_entropy, unshard
    from tokenring.topology import Topology
    from tokenring.varlen import packed_layout, ring_attention_varlen

__all__ = [
    "STRATEGIES",
    "RingCache",
    "RingPlan",
    "Topology",
    "disable",
    "enable",
    "keep_attention",
    "packed_layout",
    "partition_tokens",
    "plan_attention",
    "position_ids",
    "ring_attention",
    "ring_attention_varlen",
    "ring_decode",
    "ring_prefill",
    "shard",
    "shard_labels",
    "token_cross_entropy",
    "unshard",
]

_LAZY = {
    "RingCache": "tokenring.cache",
    "RingPlan": "tokenring.plan",
    "STRATEGIES": "tokenring.movement",
    "Topology": "tokenring.topology",
    "disable": "tokenring.integrations",
    "enable": "tokenring.integrations",
    "keep_attention": "tokenring.recompute",
    "packed_layout": "tokenring.varlen",
    "partition_tokens": "tokenring.partition",
    "plan_attention": "tokenring.plan",
    "position_ids": "tokenring.sharding",
    "ring_attention": "tokenring.attention",
    "ring_attention_varlen": "tokenring.varlen",
    "ring_decode": "tokenring.decode",
    "ring_prefill": "tokenring.decode",
    "shard": "tokenring.sharding",
    "shard_labels": "tokenring.sharding",
    "token_cross_entropy": "tokenring.sharding",
    "unshard": "tokenring.sharding",
}


def __getattr__(name: str) -> Any:
    return load(__name__, name, _LAZY)


def __dir__() -> list[str]:
    return sorted(__all__)
