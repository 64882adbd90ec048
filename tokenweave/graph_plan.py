"""Which forward passes are captured as CUDA graphs, and when. Pure.

A graph replays launches with the addresses that they had: a pass can be one if nothing of it is
decided on the host while it runs, and if whatever it reads and writes stays where it was. Small
passes gain from it, because the host takes longer to launch their kernels than the GPU to run them.
"""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

GraphT = TypeVar("GraphT")

MOST_ROWS = 512
"""Tokens of a batch up to which a pass is captured. Beyond them its kernels take longer than their
launches, and each number of tokens would be a graph that may never be used again."""
MOST_GRAPHS = 16
"""Graphs that a model keeps. The least recently used one goes first."""
_MOST_SEEN = 256
"""Keys that are remembered as warmed up."""

CacheKind = Literal["none", "static", "other"]
"""Of keys and values: none outlive the pass; memory that stays where it is, its length on the GPU;
or anything else."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphRequest:
    """What is known of a pass before it runs."""

    asked: Literal["auto", "off"]
    device: str
    """ "cuda" or "cpu"."""
    reduction: str
    num_rows: int
    """Tokens of the batch, padding included."""
    cache: CacheKind
    is_cache_ready: bool
    """Whether the memory of keys and values is there; without a cache, True."""
    is_split: bool
    keeps_hidden: bool
    is_recorded: bool
    """Whether somebody wants to know when its stages ran."""
    decided_on_host: str
    """What of the model the host decides from numbers of the GPU; empty if nothing."""
    foreign_arguments: tuple[str, ...]
    """Names of arguments for attention that are neither numbers nor None."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphDecision:
    """Whether a pass may be a graph."""

    may_capture: bool
    reason: str

    def explain(self) -> str:
        """Return one readable line."""
        return f"{'may be a CUDA graph' if self.may_capture else 'launched one by one'}: " + (
            self.reason
        )


def decide_graph(request: GraphRequest) -> GraphDecision:
    """Return whether a pass may be captured, and why not. Equal on all ranks for equal passes."""
    for is_so, reason in (
        (request.device != "cuda", f"the ranks are on {request.device}"),
        (request.asked == "off", "graphs='off'"),
        (request.reduction != "fused", f"reduction={request.reduction!r} may use the host"),
        (request.num_rows > MOST_ROWS, f"{request.num_rows} tokens are more than {MOST_ROWS}"),
        (request.cache == "other", "the cache may grow, or is counted on the host"),
        (not request.is_cache_ready, "the cache has no memory yet"),
        (
            request.is_split and request.cache != "none",
            "how much is cached decides on the host how a split pass is cut",
        ),
        (request.keeps_hidden, "hidden states are new memory at every pass"),
        (request.is_recorded, "its stages are timed"),
        (bool(request.decided_on_host), request.decided_on_host),
        (
            bool(request.foreign_arguments),
            f"attention reads {', '.join(request.foreign_arguments)}, which may change",
        ),
    ):
        if is_so:
            return GraphDecision(may_capture=False, reason=reason)
    return GraphDecision(
        may_capture=True, reason=f"{request.num_rows} tokens, all of it on the GPU"
    )


class GraphBook(Generic[GraphT]):
    """The graphs of a model by key: a bounded number, each captured at the second pass of its key.

    The first pass of a key runs launch by launch: libraries load kernels and allocate workspaces
    then, which a capture must not.
    """

    def __init__(self, most_graphs: int = MOST_GRAPHS) -> None:
        """Start without graphs."""
        self._most_graphs = most_graphs
        self._graphs: OrderedDict[Hashable, GraphT] = OrderedDict()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._graphs)

    def next_step(self, key: Hashable) -> Literal["warm up", "capture", "replay"]:
        """Return what to do with a pass of this key. A pass that warms up is noted as that."""
        if key in self._graphs:
            return "replay"
        if key in self._seen:
            self._seen.move_to_end(key)
            return "capture"
        self._seen[key] = None
        if len(self._seen) > _MOST_SEEN:
            self._seen.popitem(last=False)
        return "warm up"

    def graph(self, key: Hashable) -> GraphT:
        """Return a graph that is there; it is now the most recently used one."""
        self._graphs.move_to_end(key)
        return self._graphs[key]

    def add(self, key: Hashable, graph: GraphT) -> None:
        """Keep a graph; the least recently used ones go if there are too many."""
        self._graphs[key] = graph
        while len(self._graphs) > self._most_graphs:
            self._graphs.popitem(last=False)

    def drop(self, key: Hashable) -> None:
        """Forget a graph and that it was warmed up, if they are there."""
        self._graphs.pop(key, None)
        self._seen.pop(key, None)

    def clear(self) -> None:
        """Forget all graphs, and what was warmed up."""
        self._graphs.clear()
        self._seen.clear()
