"""What bench_ring.py measures: our strategies, the ring as it is usually written, and no transfers.

The usual ring (`plain ring`): keys and values go round one way by torch.distributed's isend and
irecv over gloo, posted before the block is computed and waited for after it; each block is merged
into an fp32 output at once; causal blocks that see nothing are skipped; tokens lie contiguous. In
the backward dk and dv go round with the keys, in fp32. It computes its blocks with the same local
kernel as ours.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tokenfabric.testing.bench import Passes, SameAs
from tokenfabric.world import World
from tokenring.attention import ring_attention
from tokenring.blocks import RankPlan, Transfer
from tokenring.call import Attention, choose_kernels, topology_of
from tokenring.check_call import check_attention
from tokenring.local_protocol import LocalAttention, row_delta
from tokenring.merge import merge_partials
from tokenring.partial import Partial
from tokenring.partition import Layout, Partition, partition_tokens
from tokenring.plan import RingPlan
from tokenring.problem import Pass
from tokenring.sharding import shard

PLAIN = "plain ring"
BLOCKS = "blocks alone"


@dataclass(frozen=True, kw_only=True)
class RingProblem:
    """One attention over all ranks' tokens, as one rank has it."""

    world: World
    tokens: int
    heads_q: int
    heads_kv: int
    head_dim: int
    causal: bool
    backward: bool
    dtype: torch.dtype

    @property
    def partition(self) -> Partition:
        """Balanced under a causal mask; without one nothing needs balancing."""
        return "zigzag" if self.causal else "contiguous"

    def layout(self, partition: Partition) -> Layout:
        return partition_tokens(self.tokens, self.world.size, partition)

    def tensors(self, partition: Partition) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return this rank's q, k, v, dout: the same whole tensors whatever the partition."""
        random = torch.Generator().manual_seed(11)
        heads = (self.heads_q, self.heads_kv, self.heads_kv, self.heads_q)
        return tuple(  # type: ignore[return-value]  # four of them
            shard(
                torch.randn(1, self.tokens, count, self.head_dim, generator=random).to(self.dtype),
                world=self.world,
                layout=self.layout(partition),
            )
            for count in heads
        )

    @property
    def passes(self) -> tuple[Pass, ...]:
        """Return what is measured, in order."""
        return ("forward", "backward") if self.backward else ("forward",)

    def strategies(self, names: Sequence[str]) -> dict[str, Passes | SameAs]:
        """Return a provider for each strategy; what has the plans of one before it is SameAs that.

        Between two ranks, for instance, there is only one way round, and a relay is a push.
        """
        providers: dict[str, Passes | SameAs] = {}
        first: dict[tuple[Any, ...], str] = {}
        for name in names:
            work = tuple(_work(self._plan(name, direction)[1]) for direction in self.passes)
            same = first.setdefault(work, name)
            providers[name] = self.ours(name) if same == name else SameAs(same)
        return providers

    def ours(self, strategy: str) -> Passes:
        """Return a call of ring_attention, and of its backward if that is measured."""
        q, k, v, dout = self.tensors(self.partition)
        layout = self.layout(self.partition)

        def call() -> Iterator[tuple[Tensor, ...]]:
            if not self.backward:
                with torch.no_grad():
                    out = self._attend(q, k, v, layout, strategy)
                yield (out,)
                return
            inputs = [x.detach().requires_grad_() for x in (q, k, v)]
            out = self._attend(*inputs, layout, strategy)
            yield (out.detach(),)
            yield (out.detach(), *torch.autograd.grad(out, inputs, dout))

        return call

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, strategy: str) -> Tensor:
        return ring_attention(
            q, k, v, world=self.world, causal=self.causal, layout=layout, strategy=strategy
        )

    def plain(self) -> Passes:
        """Return the usual ring on the same tokens, dealt contiguously."""
        ring = PlainRing(self, *self.tensors("contiguous"))

        def call() -> Iterator[tuple[Tensor, ...]]:
            out, lse = ring.forward()
            yield (out,)
            if self.backward:
                yield (out, *ring.backward(out, lse))

        return call

    def blocks_alone(self, strategy: str) -> Passes:
        """Return the blocks that a strategy's plan gives this rank, computed with transfers off."""
        calls = [self._block_calls(strategy, direction) for direction in self.passes]

        def call() -> Iterator[None]:
            for blocks in calls:
                for block in blocks:
                    block()
                yield None

        return call

    def chosen(self) -> list[str]:
        """Return what auto takes, in each direction that is measured."""
        return [self._plan("auto", direction)[1].strategy for direction in self.passes]

    def _block_calls(self, strategy: str, direction: Pass) -> list[Callable[[], object]]:
        attention, plan = self._plan(strategy, direction)
        local, _ = choose_kernels(attention, plan)
        return [
            self._block_call(local, attention.scale, compute)
            for compute in plan.of_rank(self.world.rank).computes
        ]

    def _plan(self, strategy: str, direction: Pass) -> tuple[Attention, RingPlan]:
        q, k, v, _ = self.tensors(self.partition)
        layout = self.layout(self.partition)
        attention = check_attention(
            q, k, v, self.world, q_layout=layout, kv_layout=layout, causal=self.causal, scale=None,
            window=None, softcap=None, sinks=None, strategy=strategy, deterministic=False,
        )  # fmt: skip
        return attention, attention.plan(direction, topology_of(self.world))

    def _block_call(
        self, local: LocalAttention, scale: float, compute: Any
    ) -> Callable[[], object]:
        def rows(count: int, heads: Any) -> Tensor:
            return torch.randn(1, count, heads.size, self.head_dim).to(self.dtype)

        q = rows(compute.q_rows, compute.heads)
        k, v = (rows(compute.kv_rows, compute.kv_heads) for _ in range(2))
        if not compute.kv_outputs:
            return lambda: local.forward(q, k, v, scale=scale, band=compute.band)
        lse, delta = torch.full(q.shape[:3], 8.0), torch.zeros(q.shape[:3])
        sums = [torch.zeros(x.shape) for x in (q, k, v)]
        return lambda: local.backward(
            q, q, k, v, lse, delta, scale=scale, band=compute.band,
            dq=sums[0], dk=sums[1], dv=sums[2],
        )  # fmt: skip


def _work(plan: RingPlan) -> tuple[RankPlan, ...]:
    """Return all that the ranks do, without the names of the ways, which no engine reads."""

    def unnamed(transfer: Transfer) -> Transfer:
        return transfer._replace(direction="direct")

    return tuple(
        replace(
            part,
            steps=tuple(
                step._replace(
                    sends=tuple(map(unnamed, step.sends)),
                    arrivals=tuple(
                        arrival._replace(transfer=unnamed(arrival.transfer))
                        for arrival in step.arrivals
                    ),
                )
                for step in part.steps
            ),
        )
        for part in plan.ranks
    )


class PlainRing:
    """The usual ring; see the head of the file."""

    def __init__(self, problem: RingProblem, q: Tensor, k: Tensor, v: Tensor, dout: Tensor) -> None:
        layout = problem.layout("contiguous")
        attention = check_attention(
            q, k, v, problem.world, q_layout=layout, kv_layout=layout, causal=problem.causal,
            scale=None, window=None, softcap=None, sinks=None, strategy="kv", deterministic=False,
        )  # fmt: skip
        plan = attention.plan("forward", topology_of(problem.world))
        self._local, _ = choose_kernels(attention, plan)
        self._scale = attention.scale
        self._causal = problem.causal
        self._q, self._kv, self._dout = q, torch.stack([k, v]), dout
        self._group = problem.world.group
        self._rank, self._size = problem.world.rank, problem.world.size

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return out in the dtype of q and lse [batch, rows, heads]."""
        q = self._q
        out = torch.zeros(q.shape, dtype=torch.float32)
        lse = torch.full(q.shape[:3], -torch.inf)
        kv = self._kv
        for step in range(self._size):
            coming, works = self._pass_on(kv, step)
            band = self._band(step)
            if band is not None:
                for part in self._local.forward(q, *kv, scale=self._scale, band=band):
                    merged, merged_lse = torch.empty_like(out), torch.empty_like(lse)
                    merge_partials([Partial(out, lse), part], merged, merged_lse)
                    out, lse = merged, merged_lse
            for work in works:
                work.wait()
            kv = coming
        return out.to(q.dtype), lse

    def backward(self, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return dq, dk, dv in the dtype of q."""
        q, kv = self._q, self._kv
        delta = row_delta(self._dout, out)
        dq = torch.zeros(q.shape)
        dkv = torch.zeros(kv.shape)
        for step in range(self._size):
            coming, works = self._pass_on(kv, step)
            band = self._band(step)
            if band is not None:
                self._local.backward(
                    self._dout, q, *kv, lse, delta, scale=self._scale, band=band,
                    dq=dq, dk=dkv[0], dv=dkv[1],
                )  # fmt: skip
            for work in works:
                work.wait()
            # The gradients of these keys go on with them, and after the last step home.
            dkv = self._shift(dkv)
            kv = coming
        return dq.to(q.dtype), dkv[0].to(q.dtype), dkv[1].to(q.dtype)

    def _band(self, step: int) -> tuple[int | None, int | None] | None:
        owner = (self._rank - step) % self._size
        if not self._causal or owner < self._rank:
            return (None, None)
        return (None, 0) if owner == self._rank else None

    def _pass_on(self, x: Tensor, step: int) -> tuple[Tensor, list[dist.Work]]:
        if step == self._size - 1:
            return x, []
        return self._exchange(x)

    def _shift(self, x: Tensor) -> Tensor:
        if self._size == 1:
            return x
        coming, works = self._exchange(x)
        for work in works:
            work.wait()
        return coming

    def _exchange(self, x: Tensor) -> tuple[Tensor, list[dist.Work]]:
        coming = torch.empty_like(x)
        to, come_from = (self._rank + 1) % self._size, (self._rank - 1) % self._size
        works = [
            dist.isend(x, group=self._group, group_dst=to),
            dist.irecv(coming, group=self._group, group_src=come_from),
        ]
        return coming, [work for work in works if work is not None]
