"""What a reduction costs in a whole model: variants of one model decode in turn, in one run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from launch.recipes.decoding import SegmentDecoder
from launch.recipes.threads import all_cores
from tokenfabric import World
from tokenfabric.testing.bench import Budget, WorldRanks, measure
from tokenfabric.testing.bench_cell import Spread

WHOLE = "whole"
# A segment is long against the meeting of the ranks before it, short against a machine's moods.
_SEGMENT_S = 0.4
_MIN_SEGMENT_TOKENS, _MAX_SEGMENT_TOKENS = 4, 16
_MIN_ROUNDS = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """One variant's result."""

    tokens_per_s: Spread
    relative: Spread
    """Its speed / the first variant's in the same round; for the first one itself, its second
    entry's: how far equal code lies apart on this machine."""
    reduction_share: float | None
    """Of a token's time; None for the whole model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """Equal on all ranks."""

    speeds: Mapping[str, Speed]
    num_rounds: int
    segment_tokens: int


def measure_variants(
    world: World,
    sharded: Mapping[str, Any],
    whole: Any | None,
    prompt_ids: Tensor,
    *,
    token_s: float,
    seconds: float,
) -> Measurement:
    """Let variants of a model decode segments in turn and return how fast they were. Collective.

    The share of the reductions is what lies on the critical path: of every single reduction the
    least time that a rank spent in it, which is that of the last rank to arrive; the others also
    waited for that rank's computation. Over the segment's time on the slowest rank.

    Args:
        world: the ranks of the sharded models.
        sharded: name -> model, in the same order on all ranks; the first is what the others are
            compared with.
        whole: the unsharded model, on rank 0; None on the others. It computes on all cores while
            the other ranks sleep.
        prompt_ids: int64 [1, tokens]: what every segment follows.
        token_s: about what a token takes; decides how many make a segment.
        seconds: about how long to measure.
    """
    ranks = WorldRanks(world)
    slowest_s = float(ranks.maximum(np.array([token_s]))[0])
    wanted = int(_SEGMENT_S / slowest_s)
    num_tokens = max(_MIN_SEGMENT_TOKENS, min(wanted, _MAX_SEGMENT_TOKENS))
    decoders = {
        name: SegmentDecoder(model, prompt_ids, num_tokens) for name, model in sharded.items()
    }
    cell = measure(
        {**decoders, WHOLE: _whole_decoder(world, whole, prompt_ids, num_tokens)},
        baseline=next(iter(sharded)),
        check=lambda name, tokens: None,
        labels={},
        ranks=ranks,
        budget=Budget(seconds=seconds, min_rounds=_MIN_ROUNDS, warmup_calls=1),
        prime=False,
    )
    shares = {
        name: _reduction_share(decoder, ranks, cell.num_rounds)
        for name, decoder in decoders.items()
    }
    speeds = {
        name: Speed(
            tokens_per_s=_per_second(num_tokens, seconds),
            relative=cell.speedup.get(name, cell.baseline_again),
            reduction_share=shares.get(name),
        )
        for name, seconds in cell.seconds.items()
    }
    return Measurement(speeds=speeds, num_rounds=cell.num_rounds, segment_tokens=num_tokens)


def _whole_decoder(world: World, model: Any | None, prompt_ids: Tensor, num_tokens: int) -> Any:
    if model is None:
        return lambda: None
    with all_cores(world):
        decoder = SegmentDecoder(model, prompt_ids, num_tokens)

    def decode() -> list[int]:
        with all_cores(world):
            return decoder()

    return decode


def _per_second(count: int, seconds: Spread) -> Spread:
    return Spread(
        median=count / seconds.median,
        p25=count / seconds.p75,
        p75=count / seconds.p25,
        min=count / seconds.max,
        max=count / seconds.min,
    )


def _reduction_share(decoder: SegmentDecoder, ranks: WorldRanks, num_rounds: int) -> float:
    segments = decoder.segments[-num_rounds:]  # the untimed ones came first
    least_s = -ranks.maximum(-np.array([segment.reduction_s for segment in segments]))
    total_s = ranks.maximum(np.array([segment.total_s for segment in segments]))
    return float(np.median(least_s.sum(axis=1) / total_s))
