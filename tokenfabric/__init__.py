"""tokenfabric: what every rank stands on. Shared memory between ranks, signals, errors.

Importing does no work: no process group, no native module, no logging handler.
"""

from typing import TYPE_CHECKING, Any

from tokenfabric.errors import (
    CommError,
    CommTimeoutError,
    ConfigError,
    MismatchError,
    PeerLostError,
    TokenFabricError,
    TopologyError,
)
from tokenfabric.lazy import load

if TYPE_CHECKING:
    from tokenfabric.start import init
    from tokenfabric.symmetric import SymmetricBuffer
    from tokenfabric.world import World

__all__ = [
    "CommError",
    "CommTimeoutError",
    "ConfigError",
    "MismatchError",
    "PeerLostError",
    "SymmetricBuffer",
    "TokenFabricError",
    "TopologyError",
    "World",
    "init",
]

# torch is imported with the first of these, not with the package.
_LAZY = {
    "SymmetricBuffer": "tokenfabric.symmetric",
    "World": "tokenfabric.world",
    "init": "tokenfabric.start",
}


def __getattr__(name: str) -> Any:
    return load(__name__, name, _LAZY)


def __dir__() -> list[str]:
    return sorted(__all__)
