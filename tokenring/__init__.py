"""tokenring: exact attention over a sequence that is sharded across ranks.

Importing does no work: what a name needs comes with the first use of it.
"""

from typing import TYPE_CHECKING, Any

from tokenfabric.lazy import load

if TYPE_CHECKING:
    from tokenring.partition import partition_tokens
    from tokenring.plan import RingPlan, plan_attention
    from tokenring.topology import Topology

__all__ = ["RingPlan", "Topology", "partition_tokens", "plan_attention"]

_LAZY = {
    "RingPlan": "tokenring.plan",
    "Topology": "tokenring.topology",
    "partition_tokens": "tokenring.partition",
    "plan_attention": "tokenring.plan",
}


def __getattr__(name: str) -> Any:
    return load(__name__, name, _LAZY)


def __dir__() -> list[str]:
    return sorted(__all__)
