"""Reductions over several hosts: shared memory inside each, torch.distributed between them.

What is done is decided in host_plan.py, what travels is in host_partials.py and host_sums.py, what
happens in shared memory in host_native.py. All ranks of all hosts agree on the call first
(tokenfabric/hosts.py).
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokenweave.host_exchange import call_of, hosts_of
from tokenweave.host_native import Addresses, Finish
from tokenweave.host_partials import PartialsTravel
from tokenweave.host_plan import HierarchicalPlan
from tokenweave.host_sums import SumsTravel
from tokenweave.native_call import address

if TYPE_CHECKING:
    from tokenfabric.world import World


class HierarchicalReduction:
    """A planned reduction of one shape over several hosts; called as a PreparedReduction is.

    Calling it is collective, with tensors that the caller has checked.
    """

    def __init__(
        self,
        world: "World",
        plan: HierarchicalPlan,
        operation: int,
        *,
        dtype: torch.dtype,
        weight_dtype: torch.dtype | None = None,
    ) -> None:
        """Settle the call.

        Args:
            world: on several hosts.
            plan: how it is done.
            operation: native.weave.OP_*, what the user called.
            dtype: of the partial sums.
            weight_dtype: of the norm; default: dtype.
        """
        self._plan, self._operation, self._dtype = plan, operation, dtype
        self._weight_dtype = weight_dtype or dtype
        self._reduce = (
            PartialsTravel(world.layout, plan, dtype)
            if plan.travels == "partials"
            else SumsTravel(world, plan, dtype)
        )

    def __call__(
        self,
        world: "World",
        x: Tensor,
        residual: Tensor | None,
        bias: Tensor | None,
        weight: Tensor | None,
        out_address: int,
        residual_out: Tensor | None,
        eps: float,
        weight_offset: float,
        norm_bias: Tensor | None = None,
    ) -> None:
        """Reduce on `world`. See `tokenweave.allreduce_rmsnorm` for what each tensor is."""
        assert norm_bias is None, "LayerNorm is refused when a call over several hosts is prepared"
        plan, hosts = self._plan, hosts_of(world)
        is_absent = [tensor is None for tensor in (residual, residual_out, bias, weight)]
        options = (plan.output, plan.residual_layout, is_absent, self._weight_dtype, eps,
                   weight_offset)  # fmt: skip
        call = call_of(self._operation, self._dtype, plan.num_tokens, plan.hidden, *options)
        finish = Finish(
            hidden=plan.hidden,
            dtype=self._dtype,
            weight_dtype=self._weight_dtype,
            bias=bias,
            weight=weight,
            eps=eps,
            weight_offset=weight_offset,
            is_streaming=plan.is_streaming,
        )
        where = Addresses(
            residual=address(residual), out=out_address, residual_out=address(residual_out)
        )
        with hosts.collective(call):
            self._reduce(world, hosts, finish, x, where)
