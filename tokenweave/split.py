"""Where a forward pass is split in two halves, if anywhere. Pure.

What a split pass costs is in split_cost.py. Blocks cost the same until a strip of tiles is full,
counted from either end of the batch: only boundaries there are compared.
The plan is split only where that pays with the device's rates *and* with pessimistic ones, so that
a link or a contention that is worse than expected does not turn a gain into a loss.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache

from tokenfabric.errors import ConfigError
from tokenweave.batch import Batch
from tokenweave.device import Device
from tokenweave.model_shape import ModelShape
from tokenweave.split_cost import PART_NAMES, PESSIMISTIC, PassCosts, SplitCost
from tokenweave.split_plan import PartPlan, Prediction, SplitKind, SplitPlan
from tokenweave.split_reasons import split_reasons
from tokenweave.waves import adds_no_wave, equal_wave_ranges

NEAR_ENOUGH = 0.01
"""A boundary between sequences, or one without a wave more, is taken if it costs at most this share
more than the best."""
_FIRST_LOOK = 32
"""A batch is cut at so many places at first."""
_PLACES = 2
"""Around so many of the cheapest of them it is looked at closely."""
_FEW = 8
"""Of other boundaries so many are looked at: those without a wave more, those closer by."""


def plan_split(
    num_tokens: int,
    *,
    shape: ModelShape,
    world_size: int,
    device: Device,
    batch: Batch | None = None,
    alignment: int = 1,
) -> SplitPlan:
    """Plan one forward pass. The same on every rank, since all arguments are.

    Args:
        num_tokens: of the whole batch.
        shape: the model's sizes.
        world_size: ranks that share the model.
        device: what each rank runs on.
        batch: the sequences, with what is cached of each; one sequence without a cache if None.
            The boundary is put between sequences where that costs next to nothing.
        alignment: a boundary inside a sequence is a multiple of so many positions of it, the
            cached ones included: the page of a cache, or a prefill's chunk.

    Raises:
        ConfigError: a number is below 1, the batch has other tokens, or the model cannot be dealt
            to so many ranks.
    """
    if num_tokens < 0 or world_size < 1 or alignment < 1:
        raise ConfigError(
            f"num_tokens {num_tokens}, world_size {world_size} and alignment {alignment}: pass at "
            "least 0, 1 and 1"
        )
    if batch is None:
        batch = Batch((num_tokens,) if num_tokens else ())
    if batch.num_tokens != num_tokens:
        raise ConfigError(f"the batch has {batch.num_tokens} tokens, not {num_tokens}")
    return _planned(shape, world_size, device, batch, alignment)


@lru_cache(maxsize=1024)
def _planned(
    shape: ModelShape, world_size: int, device: Device, batch: Batch, alignment: int
) -> SplitPlan:
    return _Planner(shape, world_size, device, batch, alignment).plan()


class _Planner:
    def __init__(
        self, shape: ModelShape, world_size: int, device: Device, batch: Batch, alignment: int
    ) -> None:
        self._shape, self._world_size, self._device = shape, world_size, device
        self._batch, self._alignment = batch, alignment
        self._num_tokens = batch.num_tokens
        self._costs = PassCosts(shape, world_size, device, batch)
        self._tried: dict[int, SplitCost] = {}

    def plan(self) -> SplitPlan:
        if self._world_size == 1:
            return self._unsplit("none", None, "there is one rank")
        if not self._device.has_streams:
            return self._unsplit(
                "fused_only", None, f"{self._device.name} has no streams: nothing can overlap"
            )
        bound = self._no_gain_possible()
        if bound:
            return self._unsplit("fused_only", None, bound)
        best = self._best()
        if best is None:
            return self._unsplit("fused_only", None, "no boundary is allowed")
        plan, expected = self._costs.plan_of(best), self._prediction(best.time_s)
        for name, split_s, whole_s in self._comparisons(plan, expected):
            if split_s >= whole_s:
                reason = (
                    f"splitting at {best.boundary} would take {_ms(split_s)} with {name} costs, "
                    f"not splitting {_ms(whole_s)}"
                )
                return self._unsplit("fused_only", best.time_s, reason)
        reasons = split_reasons(plan, expected, self._costs.blocks, self._device)
        return replace(plan, prediction=expected, reasons=reasons)

    def _comparisons(
        self, plan: SplitPlan, expected: Prediction
    ) -> Iterator[tuple[str, float, float]]:
        """Yield by what costs, how long the plan takes and how long all tokens at once."""
        assert expected.split_s is not None
        yield "expected", expected.split_s, expected.fused_only_s
        whole_s = self._costs.whole_s("fused", PESSIMISTIC)
        yield "pessimistic", self._costs.split_s(plan, PESSIMISTIC), whole_s

    def _no_gain_possible(self) -> str:
        """Return why not even reductions for nothing would pay for a second launch of each kernel;
        "" if they might.
        """
        added_s = self._costs.blocks.layer_start_s + 4 * self._device.join_s
        hidden_s = 2 * self._costs.exposed_s(self._num_tokens)
        if self._num_tokens < 2 or hidden_s <= added_s:
            return (
                f"all reductions of a layer take {hidden_s * 1e6:.0f} us, launching its kernels "
                f"twice and joining streams {added_s * 1e6:.0f} us"
            )
        return ""

    def _best(self) -> SplitCost | None:
        tokens, strip = self._num_tokens, max(tile.rows for tile in self._device.tiles)
        stride = strip * -(-tokens // (strip * _FIRST_LOOK))
        starts = self._batch.starts
        middle = bisect_left(starts, tokens // 2)
        self._try(starts[max(0, middle - _FEW // 2) : middle + _FEW // 2])
        # Halves of less than an eighth hide nothing: the other half's reductions are too long.
        first = max(stride, tokens // 8 // stride * stride)
        self._try_both([tokens // 2, *range(first, tokens // 2, stride)])
        if not self._tried:
            return None
        places = self._cheapest(_PLACES, apart=stride)
        tilings = tuple(self._costs.blocks.tilings().values())
        reach = tokens // 4  # beyond, what is near is no longer cheap
        waves = tilings, tokens, self._device.num_sms
        ranges = equal_wave_ranges(*waves, (places[0] - reach, places[0] + reach))
        ends = sorted({end for it in ranges for end in it}, key=lambda it: abs(it - places[0]))
        self._try(ends[:_FEW])
        step = max(strip, stride // 4 // strip * strip)
        for place in places:
            around = range(place - stride, place + stride + 1)
            for end in (0, tokens):
                self._try(around[(end - around.start) % step :: step])
        # Where reductions take longer than blocks, strips do not matter but the balance does.
        place, quarter = self._cheapest(1)[0], max(1, strip // 4)
        self._try(place + count * quarter for count in (-2, -1, 1, 2))
        limit_s = min(map(_time_s, self._tried.values())) * (1.0 + NEAR_ENOUGH)
        near = [it for it in self._tried.values() if it.time_s <= limit_s]
        between_sequences = [it for it in near if self._batch.is_start(it.boundary)]
        ranked = sorted(between_sequences or near, key=lambda it: (it.time_s, it.boundary))
        return next((it for it in ranked if adds_no_wave(*waves, it.boundary)), ranked[0])

    def _cheapest(self, count: int, apart: int = 0) -> list[int]:
        """Return the cheapest boundaries that were tried, farther from each other than `apart`."""
        found: list[int] = []
        for cost in sorted(self._tried.values(), key=_time_s):
            if len(found) < count and all(abs(cost.boundary - it) > apart for it in found):
                found.append(cost.boundary)
        return found

    def _try_both(self, boundaries: Iterable[int]) -> None:
        """Try boundaries that are counted from the head, and the same counted from the tail: their
        halves have the same sizes, so that the second costs little to work out.
        """
        self._try(it for head in boundaries for it in (head, self._num_tokens - head))

    def _try(self, boundaries: Iterable[int]) -> None:
        if self._alignment > 1:
            boundaries = [near for it in boundaries for near in self._aligned(it)]
        for boundary in boundaries:
            if 0 < boundary < self._num_tokens and boundary not in self._tried:
                self._tried[boundary] = self._costs.best_split(boundary)

    def _aligned(self, boundary: int) -> tuple[int, ...]:
        """Return the boundary, or the allowed ones before and after it."""
        if not 0 < boundary < self._num_tokens or self._batch.is_start(boundary):
            return (boundary,)
        start, end, past = self._batch.at(boundary)
        over = (boundary - start + past) % self._alignment
        if over == 0:
            return (boundary,)
        return max(start, boundary - over), min(end, boundary - over + self._alignment)

    def _prediction(self, split_s: float | None) -> Prediction:
        return Prediction(
            unfused_s=self._costs.whole_s("unfused"),
            fused_only_s=self._costs.whole_s("fused"),
            split_s=split_s,
        )

    def _unsplit(self, kind: SplitKind, split_s: float | None, reason: str) -> SplitPlan:
        choice = self._costs.exposed(self._num_tokens)
        return SplitPlan(
            kind=kind,
            num_tokens=self._num_tokens,
            boundary=self._num_tokens,
            num_layers=self._shape.num_layers,
            parts=tuple(PartPlan(name=name, reductions=(choice,)) for name in PART_NAMES),
            entry=(choice,),
            last=choice,
            reasons=(reason,),
            prediction=self._prediction(split_s),
        )


def _time_s(cost: SplitCost) -> float:
    return cost.time_s


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f} ms"
