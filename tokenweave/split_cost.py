"""What a forward pass costs, split or not, in closed form. Pure.

The time of a split pass follows from the lockstep of its two streams. A phase is a block of one
half beside the reduction of the other:

    phase = max(reduction, block)      block: on what SMs the reduction leaves, then on all
    layer = 4 phases                   attention head, attention tail, mlp head, mlp tail
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from typing import Literal, NamedTuple

from tokenweave.batch import Batch
from tokenweave.block_cost import BlockCosts
from tokenweave.device import Device
from tokenweave.model_shape import ModelShape
from tokenweave.reduction_cost import (
    exposed_choice,
    one_shot_s,
    reduction_s,
    two_shot_s,
    unfused_s,
)
from tokenweave.split_plan import PartPlan, ReductionChoice, SplitPlan


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """How the present may differ from the device's table."""

    link: float = 1.0
    """Factor on the bandwidth of links."""
    communication: float = 1.0
    """Factor on the time of a reduction beside a block."""
    computation: float = 1.0
    """Factor on the time of a block beside a reduction."""


NOMINAL = Costs()
PESSIMISTIC = Costs(link=0.9, communication=1.26, computation=1.04)

PART_NAMES = ("attention", "mlp")
_REMEMBERED = 4096
"""Numbers of tokens of halves, for each model: about 2 MB."""


class _Rows(NamedTuple):
    """What depends on the number of a half's tokens alone; a list has one time for each budget."""

    beside_s: list[float]
    """Its reductions, two-shot."""
    exposed_s: float
    """A reduction beside which nothing runs."""
    attention_s: list[float]
    """Its attention block without attention, on all SMs and then on what each budget leaves."""
    mlp_s: list[float]


class SplitCost(NamedTuple):
    """The time of a pass split at a boundary, with the budgets of SMs that suit it best."""

    boundary: int
    time_s: float
    budgets: tuple[int, ...]
    """Of the reduction beside each phase's block, as indices of Device.reduction_sms."""


class _RowCosts:
    """What halves of any number of tokens cost on one rank of a world. Remembers the latest."""

    def __init__(self, shape: ModelShape, world_size: int, device: Device) -> None:
        self._of_world = shape.hidden, world_size, device
        self._blocks = BlockCosts(shape, world_size, device, Batch(()))
        self._budgets = device.reduction_sms
        self.sms = (device.num_sms, *(max(1, device.num_sms - it) for it in self._budgets))
        """All SMs, and then what each budget leaves."""
        self._known: dict[int, _Rows] = {}

    def of(self, tokens: int) -> _Rows:
        found = self._known.get(tokens)
        if found is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            found = self._known[tokens] = self._work_out(tokens)
        return found

    def _work_out(self, tokens: int) -> _Rows:
        beside_s = two_shot_s("fused", self._budgets, tokens, *self._of_world)
        return _Rows(
            beside_s=beside_s,
            exposed_s=min(one_shot_s("fused", tokens, *self._of_world), *beside_s),
            attention_s=self._blocks.without_attention_s(0, tokens, self.sms),
            mlp_s=self._blocks.without_attention_s(1, tokens, self.sms),
        )


@lru_cache(maxsize=32)
def _row_costs(shape: ModelShape, world_size: int, device: Device) -> _RowCosts:
    return _RowCosts(shape, world_size, device)


class PassCosts:
    """What one batch costs on one rank of a world."""

    def __init__(self, shape: ModelShape, world_size: int, device: Device, batch: Batch) -> None:
        """Take what decides the costs."""
        self._shape, self._world_size, self._device = shape, world_size, device
        self._num_tokens = batch.num_tokens
        self.blocks = BlockCosts(shape, world_size, device, batch)
        self._rows = _row_costs(shape, world_size, device)

    def whole_s(self, kind: Literal["fused", "unfused"], costs: Costs = NOMINAL) -> float:
        """Return the time of the pass with all tokens at once, fused or not."""
        tokens, hidden, layers = self._num_tokens, self._shape.hidden, self._shape.num_layers
        device = _present(self._device, costs.link)
        if kind == "fused":
            one_s = self._reduce_s(self.exposed(tokens), tokens, device)
        else:
            one_s = unfused_s(tokens, hidden, self._world_size, device)
        sms = (device.num_sms,)
        blocks_s = sum(self.blocks.block_s(part, 0, tokens, sms)[0] for part in (0, 1))
        return layers * blocks_s + (2 * layers + 1) * one_s

    def best_split(self, boundary: int) -> SplitCost:
        """Return what splitting at a boundary costs if every reduction gets its best budget."""
        tokens, sms, join_s = self._num_tokens, self._rows.sms, self._device.join_s
        head, tail = self._rows.of(boundary), self._rows.of(tokens - boundary)
        attention = self.blocks.with_attention_s
        phases = (
            _least_phase(tail.beside_s, attention(head.attention_s, 0, boundary, sms)),
            _least_phase(head.beside_s, attention(tail.attention_s, boundary, tokens, sms)),
            _least_phase(tail.beside_s, head.mlp_s),
            _least_phase(head.beside_s, tail.mlp_s),
        )
        layer_s = 4 * join_s + sum(least_s for least_s, _ in phases)
        ends_s = 2 * join_s + head.exposed_s + tail.exposed_s
        return SplitCost(
            boundary=boundary,
            time_s=self._shape.num_layers * layer_s + ends_s,
            budgets=tuple(index for _, index in phases),
        )

    def split_s(self, plan: SplitPlan, costs: Costs = NOMINAL) -> float:
        """Return the time of a split plan."""
        boundary, tokens = plan.boundary, self._num_tokens
        device = _present(self._device, costs.link)
        (attention_head, attention_tail), (mlp_head, mlp_tail) = (
            part.reductions for part in plan.parts
        )
        tail = tokens - boundary
        layer_s = 4 * device.join_s
        for part, start, stop, choice, reduced in (
            (0, 0, boundary, mlp_tail, tail),
            (0, boundary, tokens, attention_head, boundary),
            (1, 0, boundary, attention_tail, tail),
            (1, boundary, tokens, mlp_head, boundary),
        ):
            sms = (device.num_sms, max(1, device.num_sms - choice.num_sms))
            all_s, left_s = self.blocks.block_s(part, start, stop, sms)
            beside_s = self._reduce_s(choice, reduced, device) * costs.communication
            layer_s += _least_phase((beside_s,), (all_s, left_s * costs.computation))[0]
        exposed_s = self._reduce_s(plan.entry[0], boundary, device)
        exposed_s += self._reduce_s(plan.last, tail, device)
        return self._shape.num_layers * layer_s + exposed_s + 2 * device.join_s

    def exposed(self, tokens: int) -> ReductionChoice:
        """Return the fastest reduction of so many tokens with nothing beside it."""
        return exposed_choice(tokens, self._shape.hidden, self._world_size, self._device)

    def exposed_s(self, tokens: int) -> float:
        """Return the time of that reduction."""
        return self._reduce_s(self.exposed(tokens), tokens, self._device)

    def plan_of(self, cost: SplitCost) -> SplitPlan:
        """Return the plan that splits so."""
        mlp_tail, attention_head, attention_tail, mlp_head = (
            ReductionChoice(algorithm="two_shot", num_sms=self._device.reduction_sms[index])
            for index in cost.budgets
        )
        ends = (attention_head, attention_tail), (mlp_head, mlp_tail)
        return SplitPlan(
            kind="split",
            num_tokens=self._num_tokens,
            boundary=cost.boundary,
            num_layers=self._shape.num_layers,
            parts=tuple(
                PartPlan(name=name, reductions=choices)
                for name, choices in zip(PART_NAMES, ends, strict=True)
            ),
            entry=(self.exposed(cost.boundary), mlp_tail),
            last=self.exposed(self._num_tokens - cost.boundary),
        )

    def _reduce_s(self, choice: ReductionChoice, tokens: int, device: Device) -> float:
        return reduction_s("fused", choice, tokens, self._shape.hidden, self._world_size, device)


@lru_cache(maxsize=32)
def _present(device: Device, link: float) -> Device:
    return device if link == 1.0 else device.with_link(link)


def _least_phase(beside_s: Sequence[float], block_s: Sequence[float]) -> tuple[float, int]:
    """Return the shortest phase and the index of its budget.

    Args:
        beside_s: the reduction with each budget.
        block_s: the block on all SMs, and then on what each budget leaves.
    """
    all_s, least_s, best = block_s[0], inf, 0
    # From the largest budget: with smaller ones the reduction alone may take longer already.
    for index in range(len(beside_s) - 1, -1, -1):
        one_s = beside_s[index]
        if one_s < least_s:
            slow_s = block_s[index + 1]
            phase_s = one_s if one_s >= slow_s else one_s + (1.0 - one_s / slow_s) * all_s
            if phase_s < least_s:
                least_s, best = phase_s, index
    return least_s, best
