"""A sharded model with its forward passes split: is it still right, and does overlap change a bit?

For `tokenfabric verify`. Passes are split in the middle whatever a plan would say, so that the
numbers are checked on machines where splitting does not pay, too.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import tokenweave
from tokenfabric import World


def split_logits(
    world: World, sharded: Any, num_tokens: int, logits_of: Callable[[], Tensor]
) -> tuple[Tensor, bool]:
    """Return a sharded model's logits from split passes, and whether overlap changes none of them.

    Collective. Between hosts nothing is overlapped, so nothing is compared.

    Args:
        world: the ranks of `sharded`.
        sharded: the model.
        num_tokens: of the batch that `logits_of` runs, counted over all its sequences.
        logits_of: runs the model once.
    """
    passes, boundary = sharded.tokenweave.passes, max(1, num_tokens // 2)
    with passes.asked(split=boundary, overlap="off"):
        in_order = logits_of()
    if world.num_hosts > 1:
        return in_order, True
    with passes.asked(split=boundary, overlap="on"):
        beside = logits_of()
    differs = torch.tensor([float(not torch.equal(in_order, beside))])
    return in_order, bool(tokenweave.all_reduce(differs, world=world) == 0)
