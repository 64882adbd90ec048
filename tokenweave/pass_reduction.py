"""The reductions of a forward pass as a world's ranks run them: chosen, then prepared once."""

from typing import TYPE_CHECKING

import torch

from tokenfabric import native
from tokenweave.plan import split_rows
from tokenweave.prepare import Prepared, prepare_reduction
from tokenweave.reduction_choice import choose_on_world
from tokenweave.split_plan import ReductionChoice

if TYPE_CHECKING:
    from tokenfabric.world import World


def prepare_of_pass(
    world: "World",
    num_tokens: int,
    hidden: int,
    dtype: torch.dtype,
    *,
    keep_residuals: bool,
    choice: ReductionChoice | None,
) -> tuple[Prepared, tuple[int, int] | None]:
    """Return the prepared reduction and norm, and the shape of this rank's rows of the residual.

    None in place of the shape: the residual is replicated.

    Args:
        world: the ranks.
        num_tokens, hidden, dtype: the partial sums.
        keep_residuals: every rank needs every residual.
        choice: of the pass's plan; None: what costs least.
    """
    algorithm, layout = choose_on_world(
        world,
        num_tokens=num_tokens,
        hidden=hidden,
        dtype=dtype,
        keep_residuals=keep_residuals,
        choice=choice,
    )
    prepared = prepare_reduction(
        world,
        native.weave.OP_ALLREDUCE_RMSNORM,
        num_tokens=num_tokens,
        hidden=hidden,
        dtype=dtype,
        algorithm=algorithm,
        residual_layout=layout,
        sm_budget=choice.num_sms or None if choice is not None else None,
    )
    if layout != "row_sharded":
        return prepared, None
    start, stop = split_rows(num_tokens, world.size)[world.rank]
    return prepared, (stop - start, hidden)
