"""Attention that is not computed again where the layer around it is (activation checkpointing)."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from types import TracebackType

from torch import Tensor

from tokenfabric.errors import ConfigError

OutAndLse = tuple[Tensor, Tensor]


def keep_attention() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return contexts for a region that is computed again in the backward, all but its attention.

    As `context_fn` of `torch.utils.checkpoint.checkpoint(.., use_reentrant=False)`, or of Hugging
    Face models:

        model.activation_checkpointing_enable(
            {"use_reentrant": False, "context_fn": tokenring.keep_attention}
        )

    Ring attention in the region keeps (out, lse) of its first computation and takes them in the
    second, which then neither attends nor sends: two of nine matrix products of attention and all
    its messages but the backward's, for one more activation in memory. The gradients have the same
    bits. Selective recomputation of arXiv 2205.05198, the other way about: there it is attention
    that is computed again, whose scores were kept; here nothing but its result ever was.

    Not collective, but a region's second computation sends only if the others' do: all ranks use it
    or none. Not for compiled regions, where torch decides what is computed again.
    """
    kept: list[_Kept] = []
    return _Pass(kept, is_first=True), _Pass(kept, is_first=False)


def kept_or_computed(compute: Callable[[], OutAndLse]) -> OutAndLse:
    """Return what one attention call gives: of its first computation if this is its second.

    Raises:
        ConfigError: the first result was changed, or there was none.
    """
    region = _region.get()
    if region is None:
        return compute()
    if not region.is_first:
        return region.next_kept()
    out, lse = compute()
    region.kept.append(_Kept(out, lse))
    return out, lse


class _Kept:
    """Results without their place in the first computation's graph."""

    def __init__(self, out: Tensor, lse: Tensor) -> None:
        # Aliases: the caller's tensors become parts of the graph when they are returned.
        self._tensors = (out.detach(), lse.detach())
        self._versions = [tensor._version for tensor in self._tensors]

    def unchanged(self) -> OutAndLse:
        if [tensor._version for tensor in self._tensors] != self._versions:
            raise ConfigError(
                "attention's result was changed in place, and is to be used again: change a copy "
                "of it, or leave keep_attention out"
            )
        out, lse = self._tensors
        return out.detach(), lse.detach()


@dataclass(slots=True)
class _Pass:
    """The first or a later computation of a region. Entered as often as it is computed."""

    kept: list[_Kept]
    is_first: bool
    _num_used: int = 0
    _before: list[Token["_Pass | None"]] = field(default_factory=list)

    def __enter__(self) -> None:
        self._num_used = 0
        self._before.append(_region.set(self))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _region.reset(self._before.pop())

    def next_kept(self) -> OutAndLse:
        if self._num_used == len(self.kept):
            raise ConfigError(
                f"attention was called {self._num_used} times in this region, and is called again "
                "now that the region is computed once more: what it calls must not change"
            )
        kept = self.kept[self._num_used]
        self._num_used += 1
        return kept.unchanged()


# The region that this thread computes: torch computes one again on the thread of its backward.
_region: ContextVar[_Pass | None] = ContextVar("tokenring region", default=None)
