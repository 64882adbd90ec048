"""From a plan's choice of a reduction to what this world does: algorithm and residual layout."""

from typing import TYPE_CHECKING

import torch

from tokenweave.cuda.prepare import plan_on_gpus
from tokenweave.plan import Algorithm, ResidualLayout
from tokenweave.plan_on_world import plan_on
from tokenweave.prepare import cheapest_residual_layout
from tokenweave.split_plan import ReductionChoice

if TYPE_CHECKING:
    from tokenfabric.world import World


def choice_on_world(
    world: "World", *, num_tokens: int, hidden: int, dtype: torch.dtype, keep_residuals: bool
) -> ReductionChoice:
    """Return how the ranks do the reductions of a forward pass best.

    Between hosts the messages decide (host_plan.py), and the algorithm says nothing.
    """
    layout: ResidualLayout = "replicated"
    if not keep_residuals:
        layout = cheapest_residual_layout(world, num_tokens=num_tokens, hidden=hidden, dtype=dtype)
    if world.cuda is not None:
        on_gpus = plan_on_gpus(
            world, dtype, num_tokens=num_tokens, hidden=hidden, residual_layout=layout
        )
        return ReductionChoice(algorithm=on_gpus.algorithm, num_sms=0)
    if world.layout.num_hosts > 1:
        return ReductionChoice(algorithm="two_shot", num_sms=0)
    plan = plan_on(world, dtype, num_tokens, hidden, "auto", "private", layout, has_residual=True)
    return ReductionChoice(algorithm=plan.algorithm, num_sms=0)


def choose_on_world(
    world: "World",
    *,
    num_tokens: int,
    hidden: int,
    dtype: torch.dtype,
    keep_residuals: bool,
    choice: ReductionChoice | None,
) -> tuple[Algorithm, ResidualLayout]:
    """Return the algorithm and the residual's layout of the reductions of a forward pass.

    Args:
        world: the ranks.
        num_tokens, hidden, dtype: the partial sums.
        keep_residuals: every rank needs every residual.
        choice: of the pass's plan; None: what costs least.
    """
    if choice is not None and world.layout.num_hosts == 1:
        is_sharded = choice.algorithm == "two_shot" and world.size > 1 and not keep_residuals
        return choice.algorithm, "row_sharded" if is_sharded else "replicated"
    if keep_residuals:
        return "auto", "replicated"
    return "auto", cheapest_residual_layout(
        world, num_tokens=num_tokens, hidden=hidden, dtype=dtype
    )
