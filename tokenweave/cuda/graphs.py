"""Captured calls of one model: inputs that stay where they are, graphs that read them.

Which calls may be captured, and when: graph_plan.py. A replay makes the launches that the capture
saw, and no Python runs; signals count their epochs in GPU memory, so replays, other graphs and
launches from the host follow each other in any order, as long as it is the same on all ranks.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from tokenweave.cuda.call import ranks_of
from tokenweave.graph_plan import GraphBook

if TYPE_CHECKING:
    from tokenfabric.world import World

Inputs = tuple[Tensor | None, ...]
Call = Callable[[Inputs], Tensor]
Replay = Callable[[], Tensor]


class Capture(Protocol):
    """Records what a call launches."""

    def __call__(self, call: Callable[[], Tensor]) -> Replay:
        """Return what launches it all again and returns the tensor that the call returned."""
        ...


class CudaCapture:
    """Implements Capture with CUDA graphs, which share one pool of memory.

    They may share it because what a replay returns is copied before another one begins.
    """

    def __init__(self) -> None:
        """Make no pool before the first capture."""
        self._pool: object | None = None

    def __call__(self, call: Callable[[], Tensor]) -> Replay:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Other threads of the process (a watchdog, a user's) may go on with their own streams.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):  # type: ignore[arg-type]
            output = call()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay


@dataclass(frozen=True, slots=True)
class _Static:
    """An input that stays where it is. What is repeated in it (stride 0) is there once."""

    base: Tensor
    whole: Tensor

    @classmethod
    def like(cls, tensor: Tensor) -> "_Static":
        once = _once(tensor)
        with torch.inference_mode(False):
            base = torch.empty_strided(
                once.shape, once.stride(), dtype=tensor.dtype, device=tensor.device
            )
        return cls(base, base.expand(tensor.shape))

    def take(self, tensor: Tensor) -> None:
        self.base.copy_(_once(tensor))


@dataclass(frozen=True, slots=True)
class _Graph:
    inputs: tuple[_Static | None, ...]
    replay: Replay
    held: object
    """What must stay alive for its launches."""


class CallGraphs:
    """The graphs of one model on a world of GPUs."""

    def __init__(
        self, world: "World", capture: Capture, held: Callable[[], object], book: GraphBook[_Graph]
    ):
        """Take the world, what records calls, what returns the memory that a call has used until
        it returns, and an empty book.
        """
        self._world = world
        self._capture = capture
        self._held = held
        self._book = book

    def run(self, key: Hashable, inputs: Inputs, call: Call) -> tuple[Tensor, bool]:
        """Return what `call(inputs)` returns, in the caller's memory, and whether it was replayed.

        Collective, if the call is. Bit for bit what the call returns without a graph.

        Args:
            key: equal for calls that launch the same for equal shapes: it names all that the call
                depends on besides the values of its inputs.
            inputs: what the call reads that is elsewhere each time; its tensors alone are copied.
            call: makes its results anew; run at the first two calls of a key and never again.

        Raises:
            CommError: a rank did not take part in an earlier replay; or what the call raises.
        """
        key = (key, tuple(None if it is None else _form(it) for it in inputs))
        step = self._book.next_step(key)
        if step == "warm up":
            return call(inputs), False
        if step == "capture":
            self._book.add(key, self._captured(inputs, call))
        return self._replayed(self._book.graph(key), inputs), step == "replay"

    def _captured(self, inputs: Inputs, call: Call) -> _Graph:
        statics = tuple(None if it is None else _Static.like(it) for it in inputs)
        static_inputs = tuple(None if it is None else it.whole for it in statics)
        replay = self._capture(lambda: call(static_inputs))
        return _Graph(statics, replay, self._held())

    def _replayed(self, graph: _Graph, inputs: Inputs) -> Tensor:
        ranks = ranks_of(self._world)
        # No launch of ours looks at the record while it replays: what the last one left is raised
        # here, or by whatever launch comes before.
        ranks.group.check("a replayed forward pass")
        # The world's launches take turns: from now on this stream is the one to wait for.
        ranks.stream()
        for static, tensor in zip(graph.inputs, inputs, strict=True):
            if static is not None and tensor is not None:
                static.take(tensor)
        return graph.replay().clone()


def _form(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype


def _once(tensor: Tensor) -> Tensor:
    """Return the tensor with what is repeated in it cut to one."""
    for dim, stride in enumerate(tensor.stride()):
        if stride == 0 and tensor.shape[dim] > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor
