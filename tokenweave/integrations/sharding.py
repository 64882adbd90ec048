"""How one parameter is cut over the ranks and put together again. Which are cut is in llama.py."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenfabric.world import World
from tokenweave import ops
from tokenweave.shard_plan import Span


@dataclass(frozen=True, slots=True)
class ParameterShard:
    """A parameter is cut along `dim`; rank r holds `spans[r]` of it."""

    dim: int
    spans: tuple[Span, ...]
    """In order and without gaps. Neighbours may hold the same span (a replicated KV head)."""

    @property
    def extent(self) -> int:
        """Size of the complete parameter along `dim`."""
        return self.spans[-1].stop

    def index(self, rank: int) -> tuple[slice, ...]:
        """Return the index expression of `rank`'s share."""
        span = self.spans[rank]
        return (*(slice(None),) * self.dim, slice(span.start, span.stop))

    def take(self, full: Tensor, rank: int) -> Tensor:
        """Return `rank`'s share of `full` in memory of its own."""
        return full[self.index(rank)].clone(memory_format=torch.contiguous_format)

    def gather(self, local: Tensor, world: World) -> Tensor:
        """Return the complete parameter, bit for bit; replicas come from their first owner.

        Collective. `local` is what `take` returned on this rank.
        """
        sizes = [span.size for span in self.spans]
        dim = -1 if self.dim == local.dim() - 1 else self.dim
        pieces = torch.split(
            ops.all_gather(local, world=world, dim=dim, sizes=sizes), sizes, self.dim
        )
        covered, owned = 0, []
        for span, piece in zip(self.spans, pieces, strict=True):
            if span.start == covered:
                owned.append(piece)
                covered = span.stop
        return torch.cat(owned, dim=self.dim)


ParameterShards = dict[str, ParameterShard | None]
"""Every parameter of a model by its name in the state dict; None: complete on every rank."""
