"""Whole tensors to each rank's tokens and back: inputs, positions, labels, and the loss over them.

Labels are shifted before they are dealt: the last token of a rank predicts a token of another.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor

from tokenfabric.errors import ConfigError
from tokenring.exchange import gather_rows, sum_over_ranks
from tokenring.partition import Layout, Partition, partition_tokens

if TYPE_CHECKING:
    from tokenfabric.world import World

IGNORED_LABEL = -100


def shard(
    x: Tensor,
    dim: int = 1,
    *,
    world: "World",
    partition: Partition = "zigzag",
    layout: Layout | None = None,
) -> Tensor:
    """Return this rank's tokens of a whole tensor that every rank has. Not collective.

    Args:
        x: whole along `dim`. Gradients flow back to the tokens taken.
        dim: of the tokens.
        world: the ranks.
        partition: how tokens are dealt; nothing need be divisible by anything.
        layout: instead of partition, for packed sequences and uneven ranks.

    Returns:
        New memory, contiguous.

    Raises:
        ConfigError: the layout is for another number of tokens or ranks.
    """
    layout = _layout(x.shape[dim], world, partition, layout)
    taken = torch.tensor(layout.shard_indices(world.rank), dtype=torch.long, device=x.device)
    return x.index_select(dim, taken)


def unshard(
    x: Tensor,
    dim: int = 1,
    *,
    world: "World",
    partition: Partition = "zigzag",
    num_tokens: int | None = None,
    layout: Layout | None = None,
) -> Tensor:
    """Return the whole tensor from all ranks' tokens: the inverse of `shard`. Collective.

    Args:
        x: this rank's tokens along `dim`; without gradient.
        dim, world, partition, layout: as `shard` was given.
        num_tokens: of the whole; default: as many on every rank as here.

    Raises:
        ConfigError: x wants a gradient, or has not the rows that the layout gives this rank.
        MismatchError, PeerLostError, CommTimeoutError: see `tokenfabric.errors`.
    """
    if x.requires_grad and torch.is_grad_enabled():
        raise ConfigError(
            "x requires a gradient and unshard has none: compute the loss on the shards "
            "(token_cross_entropy), or detach x"
        )
    whole = x.shape[dim] * world.size if num_tokens is None else num_tokens
    layout = _layout(whole if layout is None else layout.num_tokens, world, partition, layout)
    if x.shape[dim] != layout.num_rows(world.rank):
        raise ConfigError(
            f"rank {world.rank} has {x.shape[dim]} tokens, its layout says "
            f"{layout.num_rows(world.rank)} of {layout.num_tokens}: pass num_tokens= or layout="
        )
    rows = [layout.num_rows(rank) for rank in range(world.size)]
    parts = gather_rows(world, x.movedim(dim, 0).contiguous(), rows)
    order = torch.tensor(layout.unshard_indices(), dtype=torch.long, device=x.device)
    return torch.cat(parts).index_select(0, order).movedim(0, dim).contiguous()


def position_ids(layout: Layout, rank: int) -> Tensor:
    """Return the position of each of a rank's tokens within its sequence, [1, rows] int64.

    Args:
        layout: which tokens the ranks hold, as `partition_tokens` says it.
        rank: whose tokens.
    """
    return torch.tensor([layout.positions(rank)], dtype=torch.long)


def shard_labels(
    input_ids: Tensor,
    *,
    world: "World",
    partition: Partition = "zigzag",
    layout: Layout | None = None,
) -> Tensor:
    """Return for each of this rank's tokens the token that follows it. Not collective.

    Args:
        input_ids: [batch, tokens], whole; -100 where there is nothing to learn.
        world, partition, layout: as for `shard`. Each of a layout's sequences ends with nothing to
            predict.

    Returns:
        [batch, rows of this rank], -100 for last tokens.
    """
    layout = _layout(input_ids.shape[1], world, partition, layout)
    labels = torch.full_like(input_ids, IGNORED_LABEL)
    start = 0
    for length in layout.lengths:
        stop = start + length
        labels[:, start : stop - 1] = input_ids[:, start + 1 : stop]
        start = stop
    return shard(labels, world=world, layout=layout)


def token_cross_entropy(
    hidden: Tensor,
    lm_head: Tensor,
    labels: Tensor,
    *,
    world: "World",
    gradients: Literal["sum", "mean"] = "sum",
    chunk_tokens: int = 512,
) -> tuple[Tensor, Tensor]:
    """Return the mean cross-entropy over the tokens of all ranks, without whole logits. Collective.

        loss = sum over all ranks' tokens of -log softmax(hidden lm_head^T)[label] / their number

    Tokens with label -100 count neither in the sum nor in the number. Dividing each rank's sum by
    its own number would weigh tokens by the rank they lie on.

    Args:
        hidden: [batch, rows, hidden_size], this rank's.
        lm_head: [vocabulary, hidden_size].
        labels: [batch, rows], from `shard_labels`.
        world: the ranks.
        gradients: how the ranks' gradients are put together afterwards: "sum" added, "mean"
            averaged, as DistributedDataParallel does.
        chunk_tokens: tokens whose logits exist at one time, forward and backward.

    Returns:
        (share, loss): share is what to call backward on, loss [] the whole value, equal on all
        ranks, without gradient. With gradients="sum", the shares add up to the loss.

    Raises:
        ConfigError: shapes do not fit.
        MismatchError, PeerLostError, CommTimeoutError: see `tokenfabric.errors`.
    """
    if hidden.shape[:2] != labels.shape or hidden.shape[-1] != lm_head.shape[-1]:
        raise ConfigError(
            f"hidden {tuple(hidden.shape)}, lm_head {tuple(lm_head.shape)} and labels "
            f"{tuple(labels.shape)} do not fit: [batch, rows, size], [vocabulary, size], "
            "[batch, rows]"
        )
    flat, targets = hidden.flatten(0, 1), labels.flatten()
    total = hidden.new_zeros((), dtype=torch.float32)
    for rows, wanted in _chunks(flat, targets, chunk_tokens):
        total = total + torch.utils.checkpoint.checkpoint(
            _summed_loss, rows, lm_head, wanted, use_reentrant=False
        )
    mine = torch.stack([total.detach().double(), (targets != IGNORED_LABEL).sum().double()])
    whole, count = sum_over_ranks(world, mine)
    count = count.clamp(min=1.0)
    factor = world.size if gradients == "mean" else 1
    return total * (factor / count.item()), (whole / count).float()


def _summed_loss(hidden: Tensor, lm_head: Tensor, labels: Tensor) -> Tensor:
    logits = F.linear(hidden, lm_head).float()
    return F.cross_entropy(logits, labels, ignore_index=IGNORED_LABEL, reduction="sum")


def _chunks(hidden: Tensor, labels: Tensor, size: int) -> Sequence[tuple[Tensor, Tensor]]:
    return list(zip(hidden.split(size), labels.split(size), strict=True))


def _layout(num_tokens: int, world: "World", partition: Partition, layout: Layout | None) -> Layout:
    if layout is None:
        return partition_tokens(num_tokens, world.size, partition)
    if layout.num_tokens != num_tokens or layout.world_size != world.size:
        raise ConfigError(
            f"the layout is of {layout.num_tokens} tokens on {layout.world_size} ranks, the tensor "
            f"has {num_tokens}, the world {world.size}"
        )
    return layout
