"""A sharded model before the judge: its answer and logits beside the same model's on rank 0 alone.

What is compared, and when it passes, is in checking.py.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

import tokenweave
from launch.recipes.checking import Answers, Comparison, compare
from launch.recipes.split_check import split_logits
from launch.recipes.text import TextStream
from launch.recipes.threads import all_cores
from tokenfabric import World
from tokenweave.integrations.unsharded import load_reference, load_unsharded


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Prompts as one tensor."""

    ids: Tensor
    """int64 [batch, tokens], padded on the left."""
    mask: Tensor
    """int64 [batch, tokens], 0 where there is padding."""

    @classmethod
    def of(cls, prompts: list[Tensor]) -> Self:
        """Return prompts, int64 [1, tokens] each, padded to the longest."""
        longest = max(prompt.shape[-1] for prompt in prompts)
        ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - prompt.shape[-1] :] = prompt[0]
            mask[row, longest - prompt.shape[-1] :] = 1
        return cls(ids=ids, mask=mask)


@dataclass(frozen=True, kw_only=True, slots=True)
class Yardstick:
    """What rank 0 measures a sharded model by."""

    unsharded: Any
    """The same weights in one process, in the same dtype."""
    reference: Any
    """The same weights in one process, in higher precision."""

    @classmethod
    def load(cls, directory: Path, dtype: torch.dtype) -> Self:
        """Load both from a checkpoint's directory.

        Raises:
            ConfigError: it cannot be read.
        """
        return cls(
            unsharded=load_unsharded(directory, dtype), reference=load_reference(directory, dtype)
        )


def judge(
    world: World,
    sharded: Any,
    batch: Batch,
    tokens: Tensor,
    yardstick: Yardstick | None,
    *,
    checks_split: bool = False,
) -> Comparison | None:
    """Return rank 0's verdict, None on the other ranks. Collective.

    Args:
        world: the ranks of `sharded`.
        sharded: the model to judge.
        batch: what it was asked.
        tokens: its `greedy_answer`.
        yardstick: on rank 0, which computes on all cores while the others sleep; None on those.
        checks_split: also judge it with its passes split (split_check.py).
    """
    expected = torch.zeros_like(tokens)
    if yardstick is not None:
        with all_cores(world):
            expected = greedy_answer(yardstick.unsharded, batch, tokens.shape[-1])
    tokenweave.broadcast(expected, world=world)
    ids = torch.cat((batch.ids, expected), -1)
    mask = torch.cat((batch.mask, torch.ones_like(expected)), -1)
    logits = _logits(sharded, ids, mask)
    split = None
    if checks_split:
        split = split_logits(world, sharded, ids.numel(), lambda: _logits(sharded, ids, mask))
    if yardstick is None:
        return None
    with all_cores(world):
        unsharded_logits = _logits(yardstick.unsharded, ids, mask)
        reference_logits = _logits(yardstick.reference, ids, mask)
    return compare(
        Answers(tokens=tokens, logits=logits),
        Answers(tokens=expected, logits=unsharded_logits),
        reference_logits,
        mask,
        split=split,
    )


def greedy_answer(
    network: Any, batch: Batch, max_new_tokens: int, stream: TextStream | None = None
) -> Tensor:
    """Return a model's greedy answers, int64 [batch, max_new_tokens], 0 after an early end.

    Collective for a sharded model.
    """
    output = network.generate(
        batch.ids,
        attention_mask=batch.mask,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        pad_token_id=0,
        streamer=stream,
    )
    answer = output[:, batch.ids.shape[-1] :]
    tokens = torch.zeros(len(batch.ids), max_new_tokens, dtype=torch.int64)
    tokens[:, : answer.shape[-1]] = answer
    return tokens


@torch.inference_mode()
def _logits(network: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Return [batch, tokens, vocabulary]. Padding takes no positions, as in generate()."""
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    output = network(ids, attention_mask=mask, position_ids=positions, use_cache=False)
    logits = output.logits
    assert isinstance(logits, Tensor)
    return logits
