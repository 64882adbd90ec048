"""Greedy decoding in segments that can be repeated: what the demo measures."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tokenweave.integrations.handle import WeaveHandle


@dataclass(frozen=True, slots=True)
class Segment:
    """Times of one segment on this rank, seconds."""

    total_s: float
    reduction_s: tuple[float, ...]
    """Of every reduction in order, waiting for slower ranks included; none of an unsharded
    model."""


class SegmentDecoder:
    """Decodes the same number of tokens after the same prompt again and again.

    Nothing but the model's forward and an argmax: generate() adds work per token that would hide
    what a reduction costs. No token of a segment is kept, so every segment does the same work.
    """

    def __init__(self, model: "PreTrainedModel", prompt_ids: Tensor, num_tokens: int) -> None:
        """Run the prompt. Collective for a sharded model.

        Args:
            model: sharded or not.
            prompt_ids: int64 [1, tokens].
            num_tokens: of a segment.
        """
        self._model = model
        self._handle: WeaveHandle | None = getattr(model, "tokenweave", None)
        self._num_tokens = num_tokens
        self.segments: list[Segment] = []
        with torch.inference_mode():
            output = model(prompt_ids, use_cache=True)
        self._cache = output.cache
        self._first = output.logits[:, -1:].argmax(-1)

    @torch.inference_mode()
    def __call__(self) -> list[int]:
        """Decode one segment, note its times, forget its tokens. Collective for a sharded model."""
        log_s: list[float] = []
        if self._handle is not None:
            self._handle.communication.reduction_log_s = log_s
        token, tokens = self._first, [int(self._first)]
        start_s = time.perf_counter()
        for _ in range(self._num_tokens):
            output = self._model(token, cache=self._cache, use_cache=True)
            token = output.logits[:, -1:].argmax(-1)
            tokens.append(int(token))
        total_s = time.perf_counter() - start_s
        if self._handle is not None:
            self._handle.communication.reduction_log_s = None
        self.segments.append(Segment(total_s, tuple(log_s)))
        self._cache.crop(-self._num_tokens)
        return tokens
