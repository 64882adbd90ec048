"""What one call of an enabled model means: whose tokens these are, or why it is refused.

model(shard(ids), position_ids=shard of them)           this rank's tokens of one sequence
model(shard(ids), ring_layout=layout)                   the same, or packed documents
model(shard(ids), ring_layout=layout, ring_cache=cache) a prompt, kept in the cache
model(new_ids, ring_cache=cache)                        new tokens, the same on all ranks
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tokenfabric.errors import ConfigError
from tokenring.cache import RingCache
from tokenring.exchange import gather_rows
from tokenring.partition import Layout
from tokenring.positions import layout_of_positions
from tokenring.sharding import position_ids as positions_of

if TYPE_CHECKING:
    from tokenfabric.world import World


@dataclass(frozen=True, kw_only=True, slots=True)
class RingCall:
    """What the layers need to know. It travels with the call, so that a layer that is computed
    again (gradient checkpointing) knows it too."""

    layout: Layout | None
    """Of the queries; None where every rank has all of them and the cache is sharded."""
    cache: RingCache | None


def prepare_call(world: "World", arguments: dict[str, Any]) -> dict[str, Any]:
    """Return a backbone's arguments with positions and a RingCall; refuse what would go wrong.

    Collective where neither ring_layout nor ring_cache is given: the ranks tell each other their
    positions.

    Args:
        world: the ranks.
        arguments: of the backbone's forward, by name; ring_layout and ring_cache among them.

    Raises:
        ConfigError: an argument cannot be computed on shards, or contradicts another.
        MismatchError, PeerLostError, CommTimeoutError: see `tokenfabric.errors`.
    """
    arguments = dict(arguments)
    layout: Layout | None = arguments.pop("ring_layout", None)
    cache: RingCache | None = arguments.pop("ring_cache", None)
    tokens = arguments.get("input_ids")
    tokens = arguments.get("inputs_embeds") if tokens is None else tokens
    if not isinstance(tokens, Tensor):
        raise ConfigError("pass input_ids or inputs_embeds")
    batch, rows = tokens.shape[:2]
    _refuse_arguments(arguments)
    given = _positions(arguments.get("position_ids"), batch, rows)
    if cache is not None and layout is None:
        expected = _new_positions(cache, batch, rows)
    else:
        if layout is None:
            layout = _gathered_layout(world, given)
        _check_layout(world, layout, cache, batch, rows)
        expected = positions_of(layout, world.rank).to(tokens.device)
    if given is not None and not torch.equal(given.expand_as(expected), expected):
        raise ConfigError(
            "position_ids are not those of the layout or of the cache: leave them out, or pass "
            "tokenring.position_ids(layout, rank)"
        )
    return {
        **arguments,
        "attention_mask": None,
        "position_ids": expected,
        "use_cache": False,
        "ring_call": RingCall(layout=layout, cache=cache),
    }


def check_mask(mask: Any) -> None:
    """Refuse an attention mask that hides anything.

    Raises:
        ConfigError: it has zeros, or is no mask of tokens.
    """
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ConfigError(
            f"attention_mask {shape} is no mask of tokens: attention over sharded tokens is causal "
            "(and windowed) by position; leave the mask out"
        )
    if not bool(mask.bool().all()):
        raise ConfigError(
            "attention_mask has zeros: padding is not supported. Pack the sequences one after "
            "another without padding, and pass ring_layout=packed_layout(cu_seqlens, world.size)"
        )


def _refuse_arguments(arguments: dict[str, Any]) -> None:
    check_mask(arguments.get("attention_mask"))
    # `past_key_values` is what transformers called it until 5.24, and still takes from callers.
    caches = (arguments.get(name) for name in ("cache", "past_key_values"))
    if any(cache is not None for cache in caches) or arguments.get("use_cache"):
        raise ConfigError(
            "a cache of transformers would hold this rank's tokens only: pass ring_cache=, a "
            "tokenring.RingCache, and leave cache and use_cache out"
        )
    if arguments.get("output_attentions"):
        raise ConfigError("output_attentions is not supported: no rank sees all scores")
    if arguments.get("is_causal") is False:
        raise ConfigError("is_causal=False is not supported: the model's attention is causal here")


def _positions(position_ids: Tensor | None, batch: int, rows: int) -> Tensor | None:
    """Return [1 or batch, rows], or None where no positions were given."""
    if position_ids is None:
        return None
    if (
        position_ids.dim() != 2
        or position_ids.shape[1] != rows
        or len(position_ids)
        not in (
            1,
            batch,
        )
    ):
        raise ConfigError(
            f"position_ids {tuple(position_ids.shape)} do not fit tokens [{batch}, {rows}]"
        )
    return position_ids


def _new_positions(cache: RingCache, batch: int, rows: int) -> Tensor:
    lengths = cache.layout().lengths
    if batch != len(lengths):
        raise ConfigError(
            f"the cache has {len(lengths)} sequences, the new tokens are [{batch}, {rows}]"
        )
    return torch.tensor(lengths)[:, None] + torch.arange(rows)[None]


def _gathered_layout(world: "World", positions: Tensor | None) -> Layout:
    """Return the layout that all ranks' positions make. Collective."""
    if positions is None:
        raise ConfigError(
            "which tokens of the sequence are these? Pass position_ids="
            "tokenring.position_ids(layout, rank), or ring_layout=, on every rank"
        )
    if not bool((positions == positions[:1]).all()):
        raise ConfigError(
            "position_ids differ between the entries of the batch: padding is not supported. Pack "
            "the sequences, and pass ring_layout=packed_layout(cu_seqlens, world.size)"
        )
    mine = positions[0].to("cpu", torch.int64).contiguous()
    counts = gather_rows(
        world, torch.tensor([[len(mine)]]), (1,) * world.size, terms="numbers of rows"
    )
    rows = [int(count) for count in counts]
    everyone = gather_rows(world, mine[:, None], rows, terms="positions")
    return layout_of_positions([part.flatten().tolist() for part in everyone])


def _check_layout(
    world: "World", layout: Layout, cache: RingCache | None, batch: int, rows: int
) -> None:
    if layout.world_size != world.size or layout.num_rows(world.rank) != rows:
        expected = (
            layout.num_rows(world.rank) if layout.world_size == world.size else "no number of"
        )
        raise ConfigError(
            f"rank {world.rank} of {world.size} has {rows} tokens, its layout is of "
            f"{layout.world_size} ranks and says {expected} tokens"
        )
    empty = [rank for rank in range(world.size) if not layout.num_rows(rank)]
    if empty:
        raise ConfigError(
            f"rank {empty[0]} has no tokens, which the layers of transformers cannot compute: use "
            f"at most {layout.num_tokens} ranks"
        )
    if cache is not None and batch != 1:
        raise ConfigError(
            f"a batch of {batch} with ring_cache: pack the prompts in one row, [1, tokens], each a "
            "sequence of ring_layout"
        )
