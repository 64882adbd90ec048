"""One kernel on one GPU, held by CuPy: code in, launches out. Nothing else here imports CuPy."""

from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from tokenfabric.errors import TokenFabricError

if TYPE_CHECKING:
    from tokenfabric import native

# CuPy's errors from CUDA are RuntimeErrors; a cooperative grid that is too large is a ValueError.
_REFUSALS = (RuntimeError, ValueError)


def load_kernel(symbol: str, code: bytes) -> "Callable[[native.cuda.KernelLaunch], None]":
    """Put code on the current GPU; return what launches it there.

    Raises:
        TokenFabricError: CUDA does not take the code.
    """
    module: Any = import_module("cupy.cuda.function").Module()
    try:
        module.load(code)
        function = module.get_function(symbol)
    except _REFUSALS as error:
        raise TokenFabricError(
            f"CUDA does not load the code of {symbol}: {error}. Is the driver older than the CUDA "
            "of NVRTC?"
        ) from error
    frombuffer = import_module("numpy").frombuffer

    def launch(call: "native.cuda.KernelLaunch") -> None:
        params = call.params
        try:
            function(
                call.grid,
                (call.num_threads,),
                # One element, however long: CuPy passes an array of one element by value.
                (frombuffer(params, dtype=f"V{len(params)}"),),
                shared_mem=call.shared_bytes,
                stream=SimpleNamespace(ptr=call.stream),
                # CuPy makes the grid of one rank smaller where it does not fit, and says so in a
                # warning; ours then has several ranks, and CuPy raises.
                enable_cooperative_groups=call.is_cooperative,
            )
        except _REFUSALS as error:
            raise TokenFabricError(
                f"launching {' x '.join(map(str, call.grid))} blocks of {call.num_threads} threads "
                f"failed: {error}"
            ) from error

    return launch
