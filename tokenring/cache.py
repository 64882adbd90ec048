"""Keys and values of past tokens, sharded over the ranks: each rank holds some rows of each layer.

Which rank holds what is decode_plan.py's; attention over a cache is decode.py's.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokenfabric.errors import ConfigError
from tokenring.decode_plan import deal_tokens, empty_layout, extend_cache, rows_of_sequences
from tokenring.partition import Layout

if TYPE_CHECKING:
    from tokenfabric.world import World


class RingCache:
    """K and V of every layer, for sequences of any lengths; a rank holds its share of each.

    Memory grows by doubling, and only on this rank: nothing here is collective. All ranks append
    the same layouts in the same order, or later attention raises MismatchError.
    """

    def __init__(
        self,
        world: "World",
        *,
        num_layers: int,
        num_sequences: int = 1,
        block_tokens: int = 64,
        capacity_tokens: int = 0,
    ) -> None:
        """Make an empty cache; shapes and dtype are those of what is appended first.

        Args:
            world: the ranks.
            num_layers: layers with keys of their own.
            num_sequences: how many sequences are decoded together.
            block_tokens: of new tokens of a sequence so many follow each other on one rank.
            capacity_tokens: length of a sequence up to which nothing need grow.

        Raises:
            ConfigError: a number is out of range.
        """
        for name, value, least in (
            ("num_layers", num_layers, 1),
            ("num_sequences", num_sequences, 1),
            ("block_tokens", block_tokens, 1),
            ("capacity_tokens", capacity_tokens, 0),
        ):
            if value < least:
                raise ConfigError(f"{name} is {value}: pass at least {least}")
        self.rank = world.rank
        self.num_layers = num_layers
        self.num_sequences = num_sequences
        self.block_tokens = block_tokens
        share = -(-capacity_tokens // world.size)
        self._first_capacity = share + block_tokens if capacity_tokens else 0
        empty = empty_layout(num_sequences, world.size)
        self._layouts = [empty] * num_layers
        self._slabs: list[tuple[Tensor, Tensor] | None] = [None] * num_layers
        # All layers take the same steps: the layout of the last is kept for the next layer.
        self._last_step: tuple[Layout, Layout, Layout] | None = None

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each sequence over all ranks, in the layer that has most."""
        return max((layout.lengths for layout in self._layouts), key=sum)

    @property
    def num_bytes(self) -> int:
        """Memory of this rank's share, rows yet to come included."""
        return sum(
            x.numel() * x.element_size() for slab in self._slabs if slab is not None for x in slab
        )

    def layout(self, layer: int = 0) -> Layout:
        """Return which tokens each rank holds of a layer.

        Raises:
            ConfigError: there is no such layer.
        """
        return self._layouts[self._checked(layer)]

    def deal(self, num_tokens: int | Sequence[int], layer: int = 0) -> Layout:
        """Return who shall keep the next tokens of each sequence, balanced; appends nothing.

        Args:
            num_tokens: of each sequence, or of every one.
            layer: whose tokens are followed; any gives the same between two steps of a model.
        """
        if isinstance(num_tokens, int):
            num_tokens = (num_tokens,) * self.num_sequences
        return deal_tokens(self.layout(layer), num_tokens, self.block_tokens)

    def append(self, k: Tensor, v: Tensor, layout: Layout, layer: int = 0) -> None:
        """Append this rank's rows of new tokens, as a prefill has them.

        Args:
            k: [1, rows, heads_kv, head_dim], in the order of layout; copied.
            v: [1, rows, heads_kv, head_dim_v].
            layout: of the new tokens, starts being the lengths so far; any partition.
            layer: which layer.

        Raises:
            ConfigError: the tensors do not fit the layout or the cache, or the layout does not
                start where the cache ends.
        """
        rows = layout.num_rows(self.rank)
        if k.dim() != 4 or v.dim() != 4 or k.shape[:2] != (1, rows) or v.shape[:3] != k.shape[:3]:
            raise ConfigError(
                f"rank {self.rank} must append k and v of [1, {rows}, heads_kv, head_dim], got "
                f"{tuple(k.shape)} and {tuple(v.shape)}"
            )
        fill, slab = self._grown(k, v, layout, layer)
        row = 0
        for chunk in layout.ranks[self.rank]:
            start = fill[chunk.sequence]
            for memory, x in zip(slab, (k, v), strict=True):
                memory[chunk.sequence, start : start + chunk.count] = x[0, row : row + chunk.count]
            fill[chunk.sequence] += chunk.count
            row += chunk.count

    def append_replicated(self, k: Tensor, v: Tensor, layer: int = 0) -> None:
        """Append new tokens that every rank has; this one keeps what `deal` gives it.

        Args:
            k: [num_sequences, new tokens, heads_kv, head_dim], the same on all ranks; copied.
            v: [num_sequences, new tokens, heads_kv, head_dim_v].
            layer: which layer.

        Raises:
            ConfigError: the tensors do not fit the cache.
        """
        if (
            k.dim() != 4 or v.dim() != 4 or v.shape[:3] != k.shape[:3]
            or k.shape[0] != self.num_sequences
        ):  # fmt: skip
            raise ConfigError(
                f"k and v must be [{self.num_sequences}, new tokens, heads_kv, head_dim], got "
                f"{tuple(k.shape)} and {tuple(v.shape)}"
            )
        layout = self.deal(k.shape[1], layer)
        fill, slab = self._grown(k, v, layout, layer)
        for chunk in layout.ranks[self.rank]:
            start = fill[chunk.sequence]
            first = chunk.start - layout.starts[chunk.sequence]
            for memory, x in zip(slab, (k, v), strict=True):
                memory[chunk.sequence, start : start + chunk.count] = x[
                    chunk.sequence, first : first + chunk.count
                ]
            fill[chunk.sequence] += chunk.count

    def slab(self, layer: int = 0) -> tuple[Tensor, Tensor]:
        """Return K and V of a layer, [num_sequences, capacity, heads_kv, ..], not contiguous.

        Rows of a sequence beyond what this rank holds of it mean nothing.

        Raises:
            ConfigError: nothing was appended to the layer yet.
        """
        slab = self._slabs[self._checked(layer)]
        if slab is None:
            raise ConfigError(f"layer {layer} of the cache is empty: append keys before attention")
        return slab

    def packed(self, layer: int = 0) -> tuple[Tensor, Tensor]:
        """Return this rank's K and V, [1, rows, heads_kv, ..], in the order of `layout`.

        Of one sequence they are views, of several a copy.

        Raises:
            ConfigError: nothing was appended to the layer yet.
        """
        k, v = self.slab(layer)
        fill = rows_of_sequences(self.layout(layer), self.rank)
        if self.num_sequences == 1:
            return k[:, : fill[0]], v[:, : fill[0]]
        parts = (torch.cat([x[i, :n] for i, n in enumerate(fill)])[None] for x in (k, v))
        return next(parts), next(parts)

    def forget(self, layout: Layout, layer: int = 0) -> None:
        """Go back to an earlier layout of a layer: rows appended since are forgotten.

        Args:
            layout: what `layout(layer)` returned then.
            layer: which layer.
        """
        self._layouts[self._checked(layer)] = layout

    def _checked(self, layer: int) -> int:
        if not 0 <= layer < self.num_layers:
            raise ConfigError(f"layer {layer} is not in 0..{self.num_layers - 1}")
        return layer

    def _grown(
        self, k: Tensor, v: Tensor, layout: Layout, layer: int
    ) -> tuple[list[int], tuple[Tensor, Tensor]]:
        """Take new tokens into the layout; return the rows filled before, and memory for all."""
        before = self._layouts[self._checked(layer)]
        slab = self._slabs[layer]
        for x, like in zip((k, v), slab or (k, v), strict=True):
            if x.shape[2:] != like.shape[2:] or x.dtype != like.dtype or x.device != like.device:
                raise ConfigError(
                    f"layer {layer} of the cache holds {like.dtype} of {tuple(like.shape[2:])} on "
                    f"{like.device}, not {x.dtype} of {tuple(x.shape[2:])} on {x.device}"
                )
        after = self._after(before, layout)
        fill = rows_of_sequences(before, self.rank)
        needed = max(rows_of_sequences(after, self.rank), default=0)
        if slab is None or slab[0].shape[1] < needed:
            held = 0 if slab is None else slab[0].shape[1]
            capacity = max(needed, 2 * held, self._first_capacity)
            slab = (self._enlarged(k, slab, 0, capacity), self._enlarged(v, slab, 1, capacity))
            self._slabs[layer] = slab
        self._layouts[layer] = after
        return fill, slab

    def _enlarged(
        self, like: Tensor, slab: tuple[Tensor, Tensor] | None, index: int, capacity: int
    ) -> Tensor:
        # Rows of a head lie together: a kernel with few queries then takes half the time.
        heads, width = like.shape[2:]
        memory = like.new_empty((self.num_sequences, heads, capacity, width)).transpose(1, 2)
        if slab is not None:
            memory[:, : slab[index].shape[1]] = slab[index]
        return memory

    def _after(self, before: Layout, new: Layout) -> Layout:
        last = self._last_step
        if last is not None and last[0] is before and (last[1] is new or last[1] == new):
            return last[2]
        after = extend_cache(before, new)
        self._last_step = (before, new, after)
        return after
