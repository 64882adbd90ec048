"""Keys and values of a forward pass whose tokens come in pieces, one after the other.

Every piece attends to the past in the user's cache, and to the tokens of its own sequences up to
its last. The user's cache is updated once a layer, by the last piece, with the keys and values of
the whole batch: it then holds what it would hold had the batch come in one piece.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticLayer,
)

from tokenweave.split_plan import Piece

# Of these it is known where the past lies. An exact match: a subclass may keep it elsewhere.
_KNOWN_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer, StaticLayer)

KeysValues = tuple[Tensor, Tensor]


def why_not_cut(cache: Cache | None) -> str | None:
    """Return why a batch with this cache cannot come in pieces, or None if it can."""
    if cache is None:
        return None
    if not isinstance(cache, Cache):
        return f"the cache is a {type(cache).__name__}"
    if cache.offloading:
        return "the cache is offloaded"
    kinds = {type(layer) for layer in cache.layers}
    if cache.layer_class_to_replicate is not None:
        kinds.add(cache.layer_class_to_replicate)
    unknown = sorted(kind.__name__ for kind in kinds if kind not in _KNOWN_LAYERS)
    return f"the cache has layers of type {', '.join(unknown)}" if unknown else None


class SplitCache:
    """What the pieces of one forward pass share."""

    def __init__(self, cache: Cache | None, sequences: tuple[int, int], num_tokens: int):
        """Take the user's cache, if any.

        Args:
            cache: updated with all sequences, if there is one.
            sequences: (start, stop) of those that come here; all of the batch if there is a cache.
            num_tokens: of each sequence.
        """
        self._cache = cache
        self._sequences, self._num_tokens = sequences, num_tokens
        self._arrived: dict[int, KeysValues] = {}

    def num_past(self, layer_idx: int) -> int:
        """Return how many columns of a layer's keys and masks come before the batch's own."""
        layers = () if self._cache is None else self._cache.layers
        if layer_idx >= len(layers) or not layers[layer_idx].is_initialized:
            return 0
        layer = layers[layer_idx]
        if type(layer) is StaticLayer:
            return int(layer.get_seq_length())
        num_columns: int = layer.get_mask_sizes(self._num_tokens)[0]
        return num_columns - self._num_tokens

    def update(
        self, piece: Piece, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> KeysValues:
        """Add a piece's keys and values of a layer; return those it attends to.

        Args:
            piece: which part of the batch it is. The pieces of a layer come in order of rows.
            keys, values: [sequences of the piece, heads, tokens of the piece, head_dim].
            layer_idx: the model's layer.
            args, kwargs: what else the user's cache is given.
        """
        if layer_idx not in self._arrived:
            self._arrived[layer_idx] = self._allocate(keys), self._allocate(values)
        all_keys, all_values = self._arrived[layer_idx]
        first, stop = self._sequences
        sequences = slice(piece.sequences[0] - first, piece.sequences[1] - first)
        tokens = slice(*piece.tokens)
        all_keys[sequences, :, tokens] = keys
        all_values[sequences, :, tokens] = values

        num_past = self.num_past(layer_idx)
        attended = slice(0, num_past + tokens.stop)
        if (piece.sequences[1], tokens.stop) == (stop, self._num_tokens):
            del self._arrived[layer_idx]
            if self._cache is not None:
                all_keys, all_values = self._cache.update(
                    all_keys, all_values, layer_idx, *args, **kwargs
                )
            return all_keys[sequences, :, attended], all_values[sequences, :, attended]
        own_keys = all_keys[sequences, :, : tokens.stop]
        own_values = all_values[sequences, :, : tokens.stop]
        if num_past == 0:
            return own_keys, own_values
        past_keys, past_values = self._past(layer_idx, num_past)
        return (
            torch.cat([past_keys[sequences], own_keys], dim=2),
            torch.cat([past_values[sequences], own_values], dim=2),
        )

    def _allocate(self, x: Tensor) -> Tensor:
        num_sequences = self._sequences[1] - self._sequences[0]
        return x.new_empty(num_sequences, x.shape[1], self._num_tokens, x.shape[3])

    def _past(self, layer_idx: int, num_past: int) -> KeysValues:
        assert self._cache is not None
        layer = self._cache.layers[layer_idx]
        assert layer.keys is not None
        assert layer.values is not None
        # A static layer fills its memory from the start; a window has what came last at the end.
        stop = num_past if type(layer) is StaticLayer else layer.keys.shape[2]
        columns = slice(stop - num_past, stop)
        return layer.keys[:, :, columns], layer.values[:, :, columns]


class PieceCache:
    """Stands in for the cache of transformers in the attention modules, for one piece."""

    def __init__(self, shared: SplitCache, piece: Piece):
        """Take what the pieces share, and which of them this is."""
        self._shared = shared
        self._piece = piece

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> KeysValues:
        """Add the piece's keys and values of a layer; return those it attends to."""
        return self._shared.update(self._piece, keys, values, layer_idx, *args, **kwargs)
