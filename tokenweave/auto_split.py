"""split="auto" on GPUs: plan_split with the table of the GPUs at hand and the sizes of the model.

Rates that `tokenfabric bench --tune` has measured on so many of these very GPUs go before those of
the table; the ranks share a host and its file of them. What cannot be planned (no table for this
GPU, a model of unknown sizes) is not split; the plan and, once, the log say so. Never is another
GPU's table used in its place.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tokenfabric.errors import ConfigError
from tokenfabric.log import rank_logger
from tokenweave.batch import Batch
from tokenweave.device import Device
from tokenweave.device_at_hand import choose_table
from tokenweave.device_tables import load_device
from tokenweave.model_shape import ModelShape
from tokenweave.split import plan_split
from tokenweave.split_plan import ReductionChoice, SplitPlan
from tokenweave.tuned_tables import default_path, gpu_key, tuned_device

if TYPE_CHECKING:
    from tokenfabric.cuda.capability import AgreedCapability


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AutoSplit:
    """What all automatic plans of a model on a world of GPUs depend on. Equal on all ranks, and on
    each of them one object a model, by which its plans are found again.
    """

    device: Device | None
    shape: ModelShape | None
    world_size: int
    reason: str
    """By what passes are planned, or why they are not."""

    @classmethod
    def of(
        cls, agreed: "AgreedCapability", shape: ModelShape | None, why_no_shape: str
    ) -> "AutoSplit":
        """Settle it.

        Args:
            agreed: the world's GPUs.
            shape: the model's sizes; None if they are not known.
            why_no_shape: why not.
        """
        found = choose_table(agreed.gpu, agreed.num_devices, agreed.world_size)
        device, reason = None, found.reason
        if found.name:
            device = tuned_device(default_path(), gpu_key(agreed.gpu, agreed.world_size))
            if device is None:
                device = load_device(found.name)
            else:
                reason = f"rates measured on {agreed.gpu}, in {default_path()}"
            if device.num_sms != agreed.num_sms:
                reason = (
                    f"{agreed.gpu} has {agreed.num_sms} SMs here and {device.num_sms} in device "
                    f"table {found.name}"
                )
                device = None
            elif device.link == "multicast" and agreed.reach != "multicast":
                # The switch takes no part: what the ranks do is what the plan must reckon with.
                device = replace(device, link="peer")
                reason = f"{reason}, without multicast ({agreed.reason})"
        if device is not None and shape is None:
            device, reason = None, why_no_shape
        return cls(device=device, shape=shape, world_size=agreed.world_size, reason=reason)

    def log(self, rank: int) -> None:
        """Say by what passes are planned; a warning where they are not."""
        logger = rank_logger(rank, self.world_size)
        if self.device is None:
            logger.warning("split='auto' splits nothing: %s", self.reason)
        else:
            logger.info("split='auto' plans by %s", self.reason)

    def plan(self, lengths: tuple[int, ...], alignment: int) -> SplitPlan | None:
        """Return the plan of a pass, None where nothing can be planned.

        Cached tokens are not asked for: they may be known to the GPU alone. Attention over them
        makes blocks longer, so that what hides without them hides with them.

        Args:
            lengths: the new tokens of each sequence.
            alignment: see `plan_split`.
        """
        if self.device is None or self.shape is None:
            return None
        plan = plan_split(
            sum(lengths),
            shape=self.shape,
            world_size=self.world_size,
            device=self.device,
            batch=Batch(lengths),
            alignment=alignment,
        )
        return replace(_two_shot_everywhere(plan), reasons=(*plan.reasons, self.reason))


def shape_of(config: dict[str, object], name: str) -> tuple[ModelShape | None, str]:
    """Return the sizes of a model by its config, or None and why they are not known."""
    try:
        return ModelShape.from_config(config, name), ""
    except ConfigError as error:
        return None, f"the sizes of {name} are not known to the planner: {error}"


def _two_shot_everywhere(plan: SplitPlan) -> SplitPlan:
    """Return the plan of a split pass with the residual left to its rows' owners throughout.

    One one-shot reduction, at the start or the end, would want complete residuals of all others,
    which then move twice as much.
    """
    if not plan.is_split:
        return plan

    def two_shot(choice: ReductionChoice) -> ReductionChoice:
        if choice.algorithm == "two_shot":
            return choice
        return ReductionChoice(algorithm="two_shot", num_sms=0)

    return replace(
        plan,
        entry=tuple(two_shot(choice) for choice in plan.entry),
        parts=tuple(
            replace(part, reductions=tuple(two_shot(choice) for choice in part.reductions))
            for part in plan.parts
        ),
        last=two_shot(plan.last),
    )
