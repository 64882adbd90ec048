"""Attention over virtual ranks: the real engine, planner and kernels, in one thread."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenfabric.channel_virtual import VirtualChannel, run_virtual_ranks
from tokenring.blocks import RankPlan
from tokenring.call import Attention, choose_kernels, wire_format
from tokenring.combine import Numerics
from tokenring.engine import Parts, Walk, execute, slot_offsets
from tokenring.held import WireFormat
from tokenring.local_protocol import row_delta
from tokenring.partition import Layout, partition_tokens
from tokenring.plan import RingPlan
from tokenring.problem import Pass
from tokenring.reference import attention as reference_attention
from tokenring.reference import visible
from tokenring.topology import Topology

Mutate = Callable[[RingPlan], Sequence[RankPlan]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One attention call on virtual ranks."""

    world_size: int = 2
    tokens: int = 29
    heads_q: int = 4
    heads_kv: int = 2
    partition: str = "zigzag"
    strategy: str = "kv"
    causal: bool = True
    window: int | None = None
    softcap: float | None = None
    dtype: torch.dtype = torch.float32
    seed: int = 0

    def __str__(self) -> str:
        mask = "causal" if self.causal else "full"
        window = f"-window{self.window}" if self.window else ""
        softcap = "-softcap" if self.softcap else ""
        return (
            f"{self.world_size}x{self.tokens}-{self.strategy}-{self.partition}-{mask}{window}"
            f"{softcap}-{self.heads_q}:{self.heads_kv}-{str(self.dtype)[6:]}-seed{self.seed}"
        )

    @property
    def layout(self) -> Layout:
        return partition_tokens(self.tokens, self.world_size, self.partition)  # type: ignore[arg-type]

    @property
    def attention(self) -> Attention:
        return Attention(
            q_layout=self.layout,
            kv_layout=self.layout,
            batch=2,
            heads_q=self.heads_q,
            heads_kv=self.heads_kv,
            head_dim=16,
            head_dim_v=8,
            dtype=self.dtype,
            causal=self.causal,
            window=self.window,
            scale=0.25,
            softcap=self.softcap,
            has_sinks=False,
            strategy=self.strategy,
            deterministic=False,
            needs_gradient=True,
        )

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return whole q, k, v, dout."""
        random = torch.Generator().manual_seed(self.seed)
        widths = ((self.heads_q, 16), (self.heads_kv, 16), (self.heads_kv, 8), (self.heads_q, 8))
        q, k, v, dout = (
            torch.randn(2, self.tokens, *width, generator=random).to(self.dtype) for width in widths
        )
        return q, k, v, dout


NAMES = ("out", "lse", "dq", "dk", "dv")
Results = dict[str, Tensor]


def on_one_device(case: Case, dtype: torch.dtype) -> Results:
    """Return out, lse and gradients of the whole, computed in `dtype` from the case's inputs."""
    q, k, v, dout = (x.to(dtype) for x in case.tensors())
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    positions = torch.arange(case.tokens)
    left = None if case.window is None else case.window - 1
    mask = visible(positions, positions, is_causal=case.causal, window=(left, None))
    out, lse = reference_attention(q, k, v, scale=0.25, mask=mask, softcap=case.softcap)
    gradients = torch.autograd.grad(out, (q, k, v), dout)
    return dict(zip(NAMES, (out.detach(), lse.detach(), *gradients), strict=True))


def by_torch(case: Case) -> Results:
    """Return the same from torch's flash kernel for CPUs, in the case's dtype: what is usual."""
    q, k, v, dout = case.tensors()
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    positions = torch.arange(case.tokens)
    left = None if case.window is None else case.window - 1
    mask = visible(positions, positions, is_causal=case.causal, window=(left, None))
    bias = torch.zeros(mask.shape, dtype=case.dtype).masked_fill(~mask, -torch.inf)
    # It wants one head_dim, and as many KV heads as query heads.
    group = case.heads_q // case.heads_kv
    wide = (q, k.repeat_interleave(group, dim=2), F.pad(v, (0, 8)).repeat_interleave(group, dim=2))
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *(x.transpose(1, 2) for x in wide), attn_mask=bias, scale=0.25
    )
    out, lse = out.transpose(1, 2)[..., :8], lse.transpose(1, 2)
    gradients = torch.autograd.grad(out, (q, k, v), dout)
    return dict(zip(NAMES, (out.detach(), lse.detach(), *gradients), strict=True))


def on_virtual_ranks(
    case: Case,
    *,
    mutate: Mutate = lambda plan: plan.ranks,
    wire: Callable[[WireFormat], WireFormat] = lambda wire: wire,
    pick: Callable[[Sequence[int]], int] = lambda ready: ready[0],
    device: str = "cpu",
) -> Results:
    """Return the same from virtual ranks, put together to wholes.

    Args:
        case: the call.
        mutate: returns the ranks' plans, for seeded mistakes.
        wire: returns the wire format, for the same.
        pick: which rank goes on, of those that could.
        device: where all ranks compute; the results are on it.
    """
    layout, attention = case.layout, case.attention
    rows = [torch.tensor(layout.shard_indices(r), dtype=torch.long) for r in range(case.world_size)]
    q, k, v, dout = ([x[:, index].to(device) for index in rows] for x in case.tensors())

    def run(direction: Pass, inputs: list[Parts]) -> list[Parts]:
        plan = attention.plan(direction, Topology.preset("shared_memory"))
        ranks = mutate(plan)
        local, _ = choose_kernels(attention, plan, torch.device(device).type)
        numerics = Numerics(
            local=local,
            scale=attention.scale,
            softcap=attention.softcap,
            sinks=None,
            wire=wire(wire_format(attention)),
            result=attention.dtype,
            threads=None,
            device=torch.device(device),
        )

        def work(channel: VirtualChannel) -> Walk:
            part = ranks[channel.rank]
            memory = channel.memory(slot_offsets(part)[-1])
            results = yield from execute(part, inputs[channel.rank], numerics, channel, memory)
            if part is plan.ranks[channel.rank]:
                assert sum(channel.bytes_sent.values()) == plan.bytes_sent(channel.rank)
            return results

        return run_virtual_ranks(case.world_size, work, pick, device)

    made = run("forward", [{"q": (q[r],), "kv": (k[r], v[r])} for r in range(case.world_size)])
    empty = q[0].new_empty((2, 0, case.heads_q, 8)), q[0].new_empty((2, 0, case.heads_q)).float()
    out = [made[r]["out"][1] if "out" in made[r] else empty[0] for r in range(case.world_size)]
    lse = [made[r]["out"][0] if "out" in made[r] else empty[1] for r in range(case.world_size)]
    packs: list[Parts] = [
        {"pack": (lse[r], row_delta(dout[r], out[r]), q[r], dout[r]), "kv": (k[r], v[r])}
        for r in range(case.world_size)
    ]
    gradients = run("backward", packs)
    parts: dict[str, list[Any]] = {"out": out, "lse": lse, "dq": [], "dk": [], "dv": []}
    for r in range(case.world_size):
        if rows[r].numel():
            parts["dq"].append(gradients[r]["dq"][0])
            parts["dk"].append(gradients[r]["dkv"][0])
            parts["dv"].append(gradients[r]["dkv"][1])
    order = torch.tensor(layout.unshard_indices(), dtype=torch.long, device=device)
    return {name: torch.cat(parts[name], dim=1)[:, order] for name in NAMES}


def with_change(
    plan: RingPlan, rank: int, change: Callable[[RankPlan], RankPlan]
) -> list[RankPlan]:
    """Return the ranks' plans with one of them changed."""
    return [change(part) if part.rank == rank else part for part in plan.ranks]


def map_steps(part: RankPlan, change: Callable[[Any], Any]) -> RankPlan:
    """Return a rank's plan with every step changed."""
    return replace(part, steps=tuple(change(step) for step in part.steps))
