"""What the stages of a SplitPlan launch: the link between plans and the simulator. Pure.

schedule = plan.lower(FusedWork(shape, world_size, device, Batch([8192])))
timeline = simulate(schedule, machine_of(device))
"""

from tokenfabric.kernel import Kernel
from tokenfabric.machine import Machine
from tokenweave.batch import Batch
from tokenweave.block_cost import BlockCosts
from tokenweave.device import Device
from tokenweave.model_shape import ModelShape
from tokenweave.reduction_cost import norm_s, reduction_kernel, reduction_s, two_shot_bytes
from tokenweave.split_plan import PlanStage, ReductionChoice, StageWork


class FusedWork:
    """Every reduction is one fused kernel."""

    def __init__(self, shape: ModelShape, world_size: int, device: Device, batch: Batch) -> None:
        """Take the model, the ranks that share it, what each of them is, and the batch."""
        self._shape, self._world_size, self._device = shape, world_size, device
        self._costs = BlockCosts(shape, world_size, device, batch)
        self._num_tokens = batch.num_tokens
        self._found: dict[tuple[object, ...], StageWork] = {}

    def __call__(self, stage: PlanStage, start: int, stop: int) -> StageWork:
        """Return what a stage for the flattened tokens [start, stop) does."""
        if stage.op == "embed":
            return StageWork()
        key = (stage.op, stage.part, start, stop, stage.reduction)
        found = self._found.get(key)
        if found is None:
            if stage.reduction is not None:
                found = self._reduction(stage.reduction, stop - start)
            else:
                found = StageWork(
                    flops=self._costs.flops(stage.part, start, stop),
                    kernels=self._costs.kernels(stage.part, start, stop),
                )
            self._found[key] = found
        return found

    def _reduction(self, choice: ReductionChoice, num_tokens: int) -> StageWork:
        hidden = self._shape.hidden
        return StageWork(
            num_bytes=two_shot_bytes(2 * num_tokens * hidden, self._world_size, self._device),
            kernels=self._launches(choice, num_tokens),
        )

    def _launches(self, choice: ReductionChoice, num_tokens: int) -> tuple[Kernel, ...]:
        hidden = self._shape.hidden
        return (reduction_kernel(choice, num_tokens, hidden, self._world_size, self._device),)


class UnfusedWork(FusedWork):
    """A plain all-reduce, then a norm of all rows: what fusing is compared with."""

    def __init__(
        self,
        shape: ModelShape,
        world_size: int,
        device: Device,
        batch: Batch,
        *,
        has_all_reduce: bool = True,
    ) -> None:
        """Take what FusedWork takes.

        Args:
            shape, world_size, device, batch: as there.
            has_all_reduce: False leaves the all-reduce out, so that the numbers would be wrong.
        """
        super().__init__(shape, world_size, device, batch)
        self._has_all_reduce = has_all_reduce

    def _launches(self, choice: ReductionChoice, num_tokens: int) -> tuple[Kernel, ...]:
        hidden, device = self._shape.hidden, self._device
        norm = Kernel(name="add, norm", serial_s=norm_s(num_tokens, hidden, device))
        if not self._has_all_reduce or self._world_size == 1:
            return (norm,)
        time_s = reduction_s("all_reduce", choice, num_tokens, hidden, self._world_size, device)
        return (Kernel(name="all-reduce", serial_s=time_s, held_sms=choice.num_sms), norm)


def machine_of(
    device: Device,
    *,
    has_graphs: bool = True,
    communication_slowdown: float = 1.0,
    computation_slowdown: float = 1.0,
) -> Machine:
    """Return the machine that simulates a rank's device.

    Args:
        device: the device.
        has_graphs: launches cost the host nothing; else each its time, one after the other.
        communication_slowdown: of a reduction beside a block.
        computation_slowdown: of a block beside a reduction.
    """
    slow = (("experts gate_up", device.expert_launch_s),) if device.expert_launch_s else ()
    return Machine(
        num_sms=device.num_sms,
        bandwidth=device.link_bandwidth,
        join_s=device.join_s,
        launch_s=0.0 if has_graphs else device.launch_s,
        slow_launches=() if has_graphs else slow,
        communication_slowdown=communication_slowdown,
        computation_slowdown=computation_slowdown,
    )
