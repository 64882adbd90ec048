"""The only importer of `tokenfabric._C`. Loads it on first use and explains when it cannot."""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tokenfabric.errors import TokenFabricError

if TYPE_CHECKING:
    from tokenfabric import _C

_BUILD_HINT = (
    "Build it where the source is with `pip install -e .` (it needs a C++20 compiler, cmake and "
    "pybind11), or install a wheel for this Python."
)


def require() -> "ModuleType":
    """Return the native module.

    Raises:
        TokenFabricError: it is missing or does not load, with the reason and what to do.
    """
    try:
        return importlib.import_module("tokenfabric._C")
    except ModuleNotFoundError as error:
        raise TokenFabricError(
            f"the native module tokenfabric._C is not built for this Python. {_BUILD_HINT}"
        ) from error
    except ImportError as error:
        raise TokenFabricError(
            f"the native module tokenfabric._C does not load: {error}. {_BUILD_HINT}"
        ) from error


def why_unavailable() -> str | None:
    """Return None when the native module loads, otherwise the reason."""
    try:
        require()
    except TokenFabricError as error:
        return str(error)
    return None


if TYPE_CHECKING:
    cuda = _C.cuda
    fabric = _C.fabric
    ring = _C.ring
    weave = _C.weave
else:

    def __getattr__(name: str) -> Any:
        if name in ("cuda", "fabric", "ring", "weave"):
            # Kept, or every later use would come here again, which costs 1 us.
            globals()[name] = getattr(require(), name)
            return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
