"""Where a forward pass is split in two halves, if anywhere. Pure.

What a split pass costs is in split_cost.py. Few boundaries matter: GEMMs cost the same until a row
of tiles is full, counted from either end.
The plan is split only where that pays with the device's rates *and* with pessimistic ones, so that
a link or a contention that is worse than expected does not turn a gain into a loss.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

from tokenfabric.errors import ConfigError
from tokenfabric.kernel import num_waves
from tokenweave.batch import Batch
from tokenweave.block_cost import part_gemms
from tokenweave.device import Device
from tokenweave.model_shape import ModelShape
from tokenweave.reduction_cost import exposed_choice
from tokenweave.split_cost import NOMINAL, PESSIMISTIC, PassCosts
from tokenweave.split_plan import PartPlan, Prediction, ReductionChoice, SplitPlan
from tokenweave.split_reasons import split_reasons
from tokenweave.waves import choose_tile, num_tiles, tile_s

PART_NAMES = ("attention", "mlp")
NEAR_ENOUGH = 0.004
"""A boundary between sequences, or one with fewer waves, is taken if it costs at most this share
more than the best."""
_TILE_ROWS = 64
_SCANNED = 24
"""So many multiples of a tile, from either end, are compared by the waves of their GEMMs."""
_TRIED = 20
"""So many of them are worked out with one budget of SMs."""
_DECIDED = 12
"""So many of those with the best budget of each reduction."""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Candidate:
    boundary: int
    time_s: float
    extra_waves: int
    is_between: bool


class _Planner:
    def __init__(
        self, shape: ModelShape, world_size: int, device: Device, batch: Batch, alignment: int
    ) -> None:
        self._shape, self._world_size, self._device = shape, world_size, device
        self._batch, self._alignment = batch, alignment
        self._num_tokens = batch.num_tokens
        self._pass = PassCosts(shape, world_size, device, batch)
        self._tiled = [
            (gemm, tile, tile_s(gemm.k, tile, device.gemm_flops_per_sm, device.tile_start_s))
            for part in part_gemms(shape, world_size)
            for gemm in part
            for tile in (choose_tile(max(1, batch.num_tokens // 2), gemm.n, gemm.k, device),)
        ]

    def plan(self) -> SplitPlan:
        if self._world_size == 1:
            return self._unsplit("none", None, ("there is one rank",))
        if not self._device.has_streams:
            return self._unsplit(
                "fused_only", None, (f"{self._device.name} has no streams: nothing can overlap",)
            )
        bound = self._no_gain_possible()
        if bound:
            return self._unsplit("fused_only", None, (bound,))
        best = self._best()
        if best is None:
            return self._unsplit("fused_only", None, ("no boundary is allowed",))
        plan = self._split(best.boundary)
        for costs, name in ((NOMINAL, "expected"), (PESSIMISTIC, "pessimistic")):
            split_s, whole_s = self._pass.split_s(plan, costs), self._pass.whole_s("fused", costs)
            if split_s >= whole_s:
                reason = (
                    f"splitting at {best.boundary} would take {_ms(split_s)} with {name} costs, "
                    f"not splitting {_ms(whole_s)}"
                )
                return self._unsplit("fused_only", best.time_s, (reason,))
        return plan

    def _no_gain_possible(self) -> str:
        """Return why not even reductions for nothing would pay for a second launch of each kernel;
        "" if they might.
        """
        kernels = (*self._pass.blocks.kernels(0, 0, self._num_tokens),
                   *self._pass.blocks.kernels(1, 0, self._num_tokens))  # fmt: skip
        added_s = sum(kernel.start_s for kernel in kernels) + 4 * self._device.join_s
        choice = exposed_choice(
            self._num_tokens, self._shape.hidden, self._world_size, self._device
        )
        hidden_s = 2 * self._pass.reduce_s(choice, self._num_tokens, self._device)
        if self._num_tokens < 2 or hidden_s <= added_s:
            return (
                f"all reductions of a layer take {hidden_s * 1e6:.0f} us, launching its kernels "
                f"twice and joining streams {added_s * 1e6:.0f} us"
            )
        return ""

    def _best(self) -> _Candidate | None:
        found: dict[int, _Candidate] = {}

        def add(boundary: int) -> None:
            if boundary not in found and 0 < boundary < self._num_tokens:
                found[boundary] = self._candidate(boundary)

        tried = [it for it in self._first_boundaries() if 0 < it < self._num_tokens]
        between = [it for it in tried if self._batch.is_start(it)]
        for boundary in (*between, *sorted(tried, key=self._one_budget_s)[:_DECIDED]):
            add(boundary)
        if not found:
            return None
        limit_s = min(it.time_s for it in found.values()) * (1.0 + NEAR_ENOUGH)
        near = [it for it in found.values() if it.time_s <= limit_s]
        return min(near, key=lambda it: (not it.is_between, it.extra_waves, it.time_s, it.boundary))

    def _first_boundaries(self) -> list[int]:
        tokens, half = self._num_tokens, self._num_tokens // 2
        starts = self._batch.starts
        between = sorted(starts[1:-1], key=lambda start: abs(start - half))[:4]
        low, high = tokens * 3 // 10, -(-tokens * 7 // 10)
        stride = _TILE_ROWS * max(1, (high - low) // (_TILE_ROWS * _SCANNED))
        heads = range(-(-low // stride) * stride, high, stride)
        tails = range(tokens - (tokens - low) // stride * stride, high, stride)
        inside = dict.fromkeys(self._aligned(boundary) for boundary in (*heads, *tails))
        by_waves = sorted(inside, key=self._gemms_s)
        # Of each third also its best: the reductions may ask for another balance than the GEMMs.
        thirds = [
            min((it for it in by_waves if low <= it < stop), default=half, key=by_waves.index)
            for stop in ((2 * low + high) // 3, (low + 2 * high) // 3)
        ]
        return list(dict.fromkeys((*between, self._aligned(half), *by_waves[:_TRIED], *thirds)))

    def _one_budget_s(self, boundary: int) -> float:
        """Return the time of a layer's phases with the same budget for every reduction."""
        parts = self._parts(boundary, self._middle_choice())
        phases = self._pass.phases(parts, boundary)
        return sum(self._pass.phase_s(*phase, self._device, NOMINAL) for phase in phases)

    def _gemms_s(self, boundary: int) -> float:
        """Return the time of the GEMMs of both halves beside reductions, in few steps."""
        device, tokens = self._device, self._num_tokens
        left = max(1, device.num_sms - device.reduction_sms[-2:][0])
        return sum(
            num_waves(num_tiles(rows, gemm.n, tile), left, device.wave_smoothing) * time_s
            for gemm, tile, time_s in self._tiled
            for rows in (boundary, tokens - boundary)
        )

    def _aligned(self, boundary: int) -> int:
        """Return the boundary moved down to a multiple of the alignment in its sequence."""
        if self._alignment == 1 or not 0 < boundary < self._num_tokens:
            return boundary
        start, past = self._batch.at(boundary)
        return max(start, boundary - (boundary - start + past) % self._alignment)

    def _candidate(self, boundary: int) -> _Candidate:
        return _Candidate(
            boundary=boundary,
            time_s=self._pass.split_s(self._decided(boundary)),
            extra_waves=self._extra_waves(boundary),
            is_between=self._batch.is_start(boundary),
        )

    def _extra_waves(self, boundary: int) -> int:
        sms, tokens = self._device.num_sms, self._num_tokens
        extra = 0
        for part in (0, 1):
            for start, stop, sign in ((0, boundary, 1), (boundary, tokens, 1), (0, tokens, -1)):
                kernels = self._pass.blocks.kernels(part, start, stop)
                extra += sign * sum(-(-kernel.tiles // sms) for kernel in kernels)
        return extra

    def _middle_choice(self) -> ReductionChoice:
        budgets = self._device.reduction_sms
        return ReductionChoice(algorithm="two_shot", num_sms=budgets[len(budgets) // 2])

    def _parts(self, boundary: int, choice: ReductionChoice) -> tuple[PartPlan, ...]:
        return tuple(PartPlan(name=name, reductions=(choice, choice)) for name in PART_NAMES)

    def _decided(self, boundary: int) -> SplitPlan:
        """Return the plan of a boundary with the budgets that suit it."""
        phases = self._pass.phases(self._parts(boundary, self._middle_choice()), boundary)
        beside = [self._budget(*phase[:3], phase[4]) for phase in phases]
        parts = (
            PartPlan(name=PART_NAMES[0], reductions=(beside[1], beside[2])),
            PartPlan(name=PART_NAMES[1], reductions=(beside[3], beside[0])),
        )
        tail = self._num_tokens - boundary
        args = (self._shape.hidden, self._world_size, self._device)
        return SplitPlan(
            kind="split",
            num_tokens=self._num_tokens,
            boundary=boundary,
            num_layers=self._shape.num_layers,
            parts=parts,
            entry=(exposed_choice(boundary, *args), beside[0]),
            last=exposed_choice(tail, *args),
        )

    def _split(self, boundary: int) -> SplitPlan:
        plan = self._decided(boundary)
        prediction = self._prediction(self._pass.split_s(plan, NOMINAL))
        reasons = split_reasons(plan, prediction, self._pass.blocks, self._device)
        return replace(plan, prediction=prediction, reasons=reasons)

    def _budget(self, part: int, start: int, stop: int, reduced: int) -> ReductionChoice:
        choices = [
            ReductionChoice(algorithm="two_shot", num_sms=num_sms)
            for num_sms in self._device.reduction_sms
        ]
        return min(
            choices,
            key=lambda it: self._pass.phase_s(
                part, start, stop, it, reduced, self._device, NOMINAL
            ),
        )

    def _prediction(self, split_s: float | None) -> Prediction:
        return Prediction(
            unfused_s=self._pass.whole_s("unfused"),
            fused_only_s=self._pass.whole_s("fused"),
            split_s=split_s,
        )

    def _unsplit(self, kind: str, split_s: float | None, reasons: tuple[str, ...]) -> SplitPlan:
        choice = exposed_choice(
            self._num_tokens, self._shape.hidden, self._world_size, self._device
        )
        return SplitPlan(
            kind="none" if kind == "none" else "fused_only",
            num_tokens=self._num_tokens,
            boundary=self._num_tokens,
            num_layers=self._shape.num_layers,
            parts=tuple(PartPlan(name=name, reductions=(choice,)) for name in PART_NAMES),
            entry=(choice,),
            last=choice,
            reasons=reasons,
            prediction=self._prediction(split_s),
        )


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f} ms"
