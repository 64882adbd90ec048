"""How one parameter is cut over the ranks and put together again. Which are cut is in blocks.py."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from tokenfabric.world import World
from tokenweave import ops
from tokenweave.shard_plan import Span


@dataclass(frozen=True, slots=True)
class ParameterShard:
    """A parameter is cut along `dim`; rank r holds its span of each section, one after the other.

    A fused projection has several sections: the rows of q, k and v, or of gate and up.
    """

    dim: int
    sections: tuple[tuple[Span, ...], ...]
    """sections[s][r]: what rank r holds of section s, counted from the start of that section. The
    spans of a section are in order and without gaps; neighbours may hold the same span (a
    replicated KV head)."""

    @classmethod
    def along(cls, dim: int, *sections: tuple[Span, ...]) -> Self:
        """Return the shard of a parameter that is these sections side by side along `dim`."""
        return cls(dim, sections)

    @property
    def extent(self) -> int:
        """Size of the complete parameter along `dim`."""
        return sum(spans[-1].stop for spans in self.sections)

    def indices(self, rank: int) -> tuple[tuple[slice, ...], ...]:
        """Return the index expression of `rank`'s span of each section."""
        start, found = 0, []
        for spans in self.sections:
            span = spans[rank]
            along_dim = slice(start + span.start, start + span.stop)
            found.append((*(slice(None),) * self.dim, along_dim))
            start += spans[-1].stop
        return tuple(found)

    def take(self, full: Tensor, rank: int) -> Tensor:
        """Return `rank`'s share of `full` in memory of its own."""
        pieces = [full[index] for index in self.indices(rank)]
        if len(pieces) == 1:
            return pieces[0].clone(memory_format=torch.contiguous_format)
        return torch.cat(pieces, dim=self.dim)

    def gather(self, local: Tensor, world: World) -> Tensor:
        """Return the complete parameter, bit for bit; replicas come from their first owner.

        Collective. `local` is what `take` returned on this rank.
        """
        if 0 < self.dim < local.dim() - 1:
            # What is gathered is joined along the first or the last dimension: expert by expert.
            inner = ParameterShard(self.dim - 1, self.sections)
            return torch.stack([inner.gather(part, world) for part in local])
        dim = -1 if self.dim == local.dim() - 1 else 0
        shares = [[spans[rank].size for spans in self.sections] for rank in range(world.size)]
        sizes = [sum(share) for share in shares]
        received = ops.all_gather(local, world=world, dim=dim, sizes=sizes).split(sizes, dim)
        pieces = [one.split(share, dim) for one, share in zip(received, shares, strict=True)]
        owned = [
            pieces[rank][number]
            for number, spans in enumerate(self.sections)
            for rank in _owners(spans)
        ]
        return torch.cat(owned, dim=dim)


def _owners(spans: tuple[Span, ...]) -> list[int]:
    """Return the first rank of each span, in order: together they hold everything once."""
    covered, owners = 0, []
    for rank, span in enumerate(spans):
        if span.start == covered:
            owners.append(rank)
            covered = span.stop
    return owners


ParameterShards = dict[str, ParameterShard | None]
"""Every parameter of a model by its name in the state dict; None: complete on every rank."""
