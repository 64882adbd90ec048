"""What the blocks read besides hidden states, cut into the pieces of a split forward pass."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from tokenweave.halves import HalfInputs, PieceInputs
from tokenweave.integrations.split_cache import PieceCache, SplitCache
from tokenweave.split_plan import Piece, SplitPlan


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockInputs:
    """What the blocks of one forward pass read besides the hidden states; the same on all ranks.

    Of all tokens of the batch, or of a piece: some sequences, and a range of tokens of each.
    """

    masks: dict[str, Any]
    """By layer type: [batch or 1, 1, queries, keys], or None for plain causal attention."""
    position_ids: Tensor
    """[batch or 1, tokens]."""
    position_embeddings: tuple[Tensor, Tensor]
    """cos and sin, each [batch or 1, tokens, head_dim]."""
    cache: Cache | PieceCache | None
    """The keys and values of this rank's KV heads."""
    attention_kwargs: dict[str, Any] = field(default_factory=dict)


def cut_inputs(
    inputs: BlockInputs,
    plan: SplitPlan,
    num_sequences: int,
    num_tokens: int,
    first_layers: Mapping[str, int],
) -> tuple[HalfInputs[BlockInputs], ...]:
    """Return what the blocks read in each half of a plan.

    Args:
        inputs: of all tokens, with masks that let no token attend to a later one unless the plan's
            boundary lies between sequences; the cache is one that `why_not_cut` lets pass.
        plan: of num_sequences * num_tokens tokens.
        num_sequences, num_tokens: the batch.
        first_layers: the first layer of each type in `masks`.
    """
    if not plan.is_split:
        return (HalfInputs((PieceInputs(num_sequences, num_tokens, inputs),)),)
    cache = inputs.cache
    assert not isinstance(cache, PieceCache)
    # Without a user's cache only the pieces of a sequence that is cut know of each other.
    cut_sequence = plan.boundary // num_tokens
    shared = SplitCache(
        cache,
        (cut_sequence, cut_sequence + 1) if cache is None else (0, num_sequences),
        num_tokens,
    )
    num_past = {kind: shared.num_past(layer_idx) for kind, layer_idx in first_layers.items()}

    def cut(piece: Piece) -> PieceInputs[BlockInputs]:
        is_alone = cache is None and piece.tokens == (0, num_tokens)
        cos, sin = inputs.position_embeddings
        return PieceInputs(
            piece.sequences[1] - piece.sequences[0],
            piece.tokens[1] - piece.tokens[0],
            replace(
                inputs,
                masks={
                    kind: _cut_mask(mask, piece, num_past[kind], cos.device)
                    for kind, mask in inputs.masks.items()
                    if kind in num_past
                },
                position_ids=_cut_positions(inputs.position_ids, piece),
                position_embeddings=(_cut_positions(cos, piece), _cut_positions(sin, piece)),
                cache=None if is_alone else PieceCache(shared, piece),
            ),
        )

    return tuple(
        HalfInputs(tuple(cut(piece) for piece in pieces)) for pieces in plan.pieces(num_sequences)
    )


def _cut_positions(x: Tensor, piece: Piece) -> Tensor:
    """Cut [batch or 1, tokens, ...]."""
    if x.shape[0] > 1:
        x = x[slice(*piece.sequences)]
    return x[:, slice(*piece.tokens)]


def _cut_mask(
    mask: Tensor | None, piece: Piece, num_past: int, device: torch.device
) -> Tensor | None:
    """Cut [batch or 1, 1, queries, keys] to the piece's queries and the keys they are given."""
    start, stop = piece.tokens
    if mask is None:
        # Plain causal attention aligns the first query with the first key, so it is right for
        # queries from the first token on. There is no past then, or a single query.
        if start == 0:
            return None
        return torch.ones(1, 1, stop - start, stop, dtype=torch.bool, device=device).tril(start)
    if mask.shape[0] > 1:
        mask = mask[slice(*piece.sequences)]
    if mask.shape[2] > 1:
        mask = mask[:, :, start:stop]
    return mask[..., : num_past + stop]
