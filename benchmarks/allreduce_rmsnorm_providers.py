"""The providers of bench_allreduce_rmsnorm.py: all-reduce + residual add + RMSNorm, ten ways.

All work on the same inputs; those that return private memory write the same preallocated outputs:
fresh ones cost a page fault for every 4 KiB, which would favour whoever reuses memory.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

import tokenweave
from tokenfabric.testing.bench import Call, Prepared
from tokenfabric.testing.poison import assert_overwritten, poison
from tokenfabric.testing.tolerance import assert_close
from tokenfabric.world import World
from tokenweave.plan import Algorithm, split_rows
from tokenweave.shared_output import SharedOutput

BASELINE = "gloo + compiled"
EPS = 1e-6
_CHECKED_ROWS = 32

AddNorm = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One problem on one rank. Shapes [tokens, hidden] unless said otherwise."""

    world: World
    x: Tensor
    """This rank's partial sum, different on every rank."""
    residual: Tensor
    """Replicated."""
    weight: Tensor
    """[hidden]"""
    x_work: Tensor
    """Scratch for providers that reduce in place."""
    out: Tensor
    residual_out: Tensor

    @classmethod
    def make(cls, world: World, tokens: int, hidden: int, dtype: torch.dtype) -> "Problem":
        shape = (tokens, hidden)
        own, common = torch.Generator().manual_seed(1 + world.rank), torch.Generator()
        common.manual_seed(0)
        return cls(
            world=world,
            x=torch.randn(shape, generator=own, dtype=torch.float32).to(dtype),
            residual=torch.randn(shape, generator=common, dtype=torch.float32).to(dtype),
            weight=torch.randn(hidden, generator=common, dtype=torch.float32).to(dtype),
            x_work=torch.empty(shape, dtype=dtype),
            out=torch.empty(shape, dtype=dtype),
            residual_out=torch.empty(shape, dtype=dtype),
        )

    @property
    def own_rows(self) -> slice:
        return slice(*split_rows(self.x.shape[0], self.world.size)[self.world.rank])


def add_norm(
    x: Tensor, residual: Tensor, weight: Tensor, out: Tensor, residual_out: Tensor
) -> None:
    """Write residual_out = x + residual and out = RMSNorm(residual_out), in fp32 inside."""
    s = x.float() + residual.float()
    residual_out.copy_(s)
    out.copy_(s * torch.rsqrt(s.square().mean(dim=-1, keepdim=True) + EPS) * weight.float())


def eager_add_norm(
    x: Tensor, residual: Tensor, weight: Tensor, out: Tensor, residual_out: Tensor
) -> None:
    """The same from torch's own operations."""
    torch.add(x, residual, out=residual_out)
    out.copy_(F.rms_norm(residual_out, weight.shape, weight, EPS))


def make_providers(problem: Problem, compiled: AddNorm) -> dict[str, Call | Prepared]:
    """Return name -> provider; each leaves `normed` in a tensor that it returns."""
    return dict(_torch_providers(problem, compiled)) | dict(_our_providers(problem))


def _torch_providers(p: Problem, compiled: AddNorm) -> Iterator[tuple[str, Call | Prepared]]:
    def refill() -> None:
        p.x_work.copy_(p.x)

    def gloo_then(then: AddNorm) -> Callable[[], Tensor]:
        def call() -> Tensor:
            dist.all_reduce(p.x_work, group=p.world.group)
            then(p.x_work, p.residual, p.weight, p.out, p.residual_out)
            return p.out

        return call

    def shared_memory_then_compiled() -> Tensor:
        tokenweave.all_reduce(p.x, world=p.world, out=p.x_work)
        compiled(p.x_work, p.residual, p.weight, p.out, p.residual_out)
        return p.out

    # gloo reduces in place, so its input is refilled outside the timed region.
    yield BASELINE, Prepared(refill, gloo_then(compiled))
    yield "gloo + eager", Prepared(refill, gloo_then(eager_add_norm))
    yield "shared memory + compiled", shared_memory_then_compiled


def _our_providers(p: Problem) -> Iterator[tuple[str, Call | Prepared]]:
    own_residual, own_out = p.residual[p.own_rows], p.residual_out[p.own_rows]
    place: list[Tensor] = []

    def write_in_place() -> None:
        # What a block's last GEMM does: it writes its partial sum where the reduction reads it.
        buffer = tokenweave.partial_sum_buffer(p.world, *p.x.shape, p.x.dtype)
        place[:] = [p.x if buffer is None else buffer.copy_(p.x)]

    def fused(
        algorithm: Algorithm,
        *,
        sharded: bool = False,
        in_place: bool = False,
        out: Tensor | SharedOutput = p.out,
    ) -> Call | Prepared:
        def call() -> Tensor:
            normed, _ = tokenweave.allreduce_rmsnorm(
                place[0] if in_place else p.x,
                own_residual if sharded else p.residual,
                p.weight,
                world=p.world,
                eps=EPS,
                residual_layout="row_sharded" if sharded else "replicated",
                algorithm=algorithm,
                out=out,
                residual_out=own_out if sharded else p.residual_out,
            )
            return normed

        return Prepared(write_in_place, call) if in_place else call

    shared = SharedOutput(p.world, *p.x.shape, p.x.dtype)
    yield "one-shot", fused("one_shot")
    yield "two-shot", fused("two_shot")
    yield "auto", fused("auto")
    yield "auto, in place", fused("auto", in_place=True)
    yield "rows", fused("two_shot", sharded=True)
    yield "rows, in place", fused("two_shot", sharded=True, in_place=True)
    yield "rows, in place, shared out", fused("two_shot", sharded=True, in_place=True, out=shared)


def make_check(p: Problem) -> Callable[[str, Tensor], None]:
    """Return a check of a provider's result against fp64 on some rows, the first and last included.

    Collective: the ranks exchange their partial sums of these rows.
    """
    tokens = p.x.shape[0]
    rows = torch.linspace(0, tokens - 1, min(tokens, _CHECKED_ROWS)).round().long()
    partials = [torch.empty_like(p.x[rows]) for _ in range(p.world.size)]
    dist.all_gather(partials, p.x[rows].contiguous(), group=p.world.group)
    exact = torch.stack(partials).double().sum(dim=0) + p.residual[rows].double()
    reference = F.rms_norm(exact, p.weight.shape, p.weight.double(), EPS)
    rounded = sum(partials[1:], partials[0]) + p.residual[rows]
    same_dtype = F.rms_norm(rounded, p.weight.shape, p.weight, EPS)
    poison(p.out)

    def check(name: str, normed: Tensor) -> None:
        assert_overwritten(normed, what=f"{name}: normed")
        assert_close(normed[rows], reference, same_dtype, what=f"{name}: normed")
        if normed is p.out:
            poison(p.out)

    return check
