"""What a forward pass costs, split or not, in closed form. Pure.

The time of a split pass follows from the lockstep of its two streams. A phase is a block of one
half beside the reduction of the other:

    phase = max(reduction, block)      block: on what SMs the reduction leaves, then on all
    layer = 4 phases                   attention head, attention tail, mlp head, mlp tail
"""

from dataclasses import dataclass
from typing import Literal

from tokenweave.batch import Batch
from tokenweave.block_cost import BlockCosts
from tokenweave.device import Device
from tokenweave.model_shape import ModelShape
from tokenweave.reduction_cost import exposed_choice, reduction_s, unfused_s
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


class PassCosts:
    """What one batch costs on one rank of a world."""

    def __init__(self, shape: ModelShape, world_size: int, device: Device, batch: Batch) -> None:
        """Take what decides the costs."""
        self._shape, self._world_size, self._device = shape, world_size, device
        self._num_tokens = batch.num_tokens
        self.blocks = BlockCosts(shape, world_size, device, batch)

    def whole_s(self, kind: Literal["fused", "unfused"], costs: Costs = NOMINAL) -> float:
        """Return the time of the pass with all tokens at once, fused or not."""
        tokens, hidden, layers = self._num_tokens, self._shape.hidden, self._shape.num_layers
        device = self._device.with_link(costs.link) if costs.link != 1.0 else self._device
        if kind == "fused":
            choice = exposed_choice(tokens, hidden, self._world_size, self._device)
            one_s = reduction_s("fused", choice, tokens, hidden, self._world_size, device)
        else:
            one_s = unfused_s(tokens, hidden, self._world_size, device)
        blocks_s = sum(self.blocks.block_s(part, 0, tokens, device.num_sms) for part in (0, 1))
        return layers * blocks_s + (2 * layers + 1) * one_s

    def split_s(self, plan: SplitPlan, costs: Costs = NOMINAL) -> float:
        """Return the time of a split plan."""
        boundary, tokens = plan.boundary, self._num_tokens
        device = self._device.with_link(costs.link) if costs.link != 1.0 else self._device
        layer_s = 0.0
        for part, start, stop, choice, reduced in self.phases(plan.parts, boundary):
            layer_s += self.phase_s(part, start, stop, choice, reduced, device, costs)
        exposed_s = self.reduce_s(plan.entry[0], boundary, device)
        exposed_s += self.reduce_s(plan.last, tokens - boundary, device)
        return self._shape.num_layers * layer_s + exposed_s + 2 * device.join_s

    def phases(
        self, parts: tuple[PartPlan, ...], boundary: int
    ) -> tuple[tuple[int, int, int, ReductionChoice, int], ...]:
        """Return (part, start, stop) of each block, and the reduction beside it with its tokens."""
        tokens = self._num_tokens
        (attention_head, attention_tail), (mlp_head, mlp_tail) = (it.reductions for it in parts)
        tail = tokens - boundary
        return (
            (0, 0, boundary, mlp_tail, tail),
            (0, boundary, tokens, attention_head, boundary),
            (1, 0, boundary, attention_tail, tail),
            (1, boundary, tokens, mlp_head, boundary),
        )

    def phase_s(
        self, part: int, start: int, stop: int, choice: ReductionChoice, reduced: int,
        device: Device, costs: Costs,
    ) -> float:  # fmt: skip
        """Return the time of a block beside the reduction of `reduced` tokens."""
        beside_s = self.reduce_s(choice, reduced, device) * costs.communication
        left = max(1, device.num_sms - choice.num_sms)
        slow_s = self.blocks.block_s(part, start, stop, left) * costs.computation
        if beside_s >= slow_s:
            return beside_s + device.join_s
        all_s = self.blocks.block_s(part, start, stop, device.num_sms)
        return beside_s + (1.0 - beside_s / slow_s) * all_s + device.join_s

    def reduce_s(self, choice: ReductionChoice, tokens: int, device: Device) -> float:
        """Return the time of a fused reduction alone."""
        return reduction_s("fused", choice, tokens, self._shape.hidden, self._world_size, device)
