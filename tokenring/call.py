"""One attention call on a world: checked, planned once for its shape, agreed between ranks, walked.

attention.py puts autograd around it.
"""

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from zlib import crc32

import torch
from torch import Tensor

from tokenfabric import native
from tokenfabric.hosts import Call
from tokenring.capability import LocalChoice, LocalNeeds, band_kind
from tokenring.combine import Numerics
from tokenring.connection import collective
from tokenring.engine import Parts, execute, run, slot_offsets
from tokenring.held import WireFormat
from tokenring.local import choose_local
from tokenring.local_protocol import LocalAttention, accumulation_dtype
from tokenring.merge_native import MergeThreads
from tokenring.partition import Layout
from tokenring.plan import RingPlan, plan_attention
from tokenring.problem import ElementSizes, Pass
from tokenring.topology import Topology

if TYPE_CHECKING:
    from tokenfabric.world import World

# Of gloo between two hosts, bytes per second; what decides is that it is far below shared memory's.
_NETWORK_BANDWIDTH = 1e9


@dataclass(frozen=True, kw_only=True, slots=True)
class Attention:
    """What is asked for, equal on all ranks. Hashable: plans are kept by it."""

    q_layout: Layout
    kv_layout: Layout
    batch: int
    heads_q: int
    heads_kv: int
    head_dim: int
    head_dim_v: int
    dtype: torch.dtype
    causal: bool
    window: int | tuple[int, int] | None
    scale: float
    softcap: float | None
    has_sinks: bool
    strategy: str
    deterministic: bool
    needs_gradient: bool
    local: str = "auto"
    """Which implementation of local attention: its name in `explain()`."""

    def plan(self, direction: Pass, topology: Topology) -> RingPlan:
        """Return the plan of one direction for all ranks."""
        size = self.dtype.itemsize
        return plan_attention(
            heads_q=self.heads_q,
            heads_kv=self.heads_kv,
            head_dim=self.head_dim,
            head_dim_v=self.head_dim_v,
            batch=self.batch,
            q_layout=self.q_layout,
            kv_layout=self.kv_layout,
            causal=self.causal,
            window=self.window,
            direction=direction,
            element_sizes=ElementSizes(inputs=size, out=size, dq=size, dkv=max(size, 4)),
            strategy=self.strategy,
            topology=topology,
        )

    def fingerprint(self, direction: Pass) -> Call:
        """Return what the ranks compare before anything moves."""
        text = f"{direction} {self!r}"
        return Call(
            native.fabric.OP_MESSAGES,
            rows=self.q_layout.num_tokens,
            row_elems=self.heads_q * self.head_dim,
            options=crc32(text.encode()),
        )


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What is settled once for one attention and direction."""

    plan: RingPlan
    local: LocalAttention
    memory_bytes: int
    """Receive memory of the rank that needs most; all take as much."""
    call: Call


def walk_plan(
    world: "World",
    attention: Attention,
    direction: Pass,
    inputs: Parts,
    sinks: Tensor | None = None,
) -> Parts:
    """Compute one direction of an attention call. Collective.

    Args:
        world: the ranks.
        attention: what is asked for.
        direction: forward or backward.
        inputs: this rank's q and kv, or pack and kv (see held.py), contiguous in the last dim.
        sinks: [heads_q], forward only.

    Returns:
        out as (lse, out), or dq and dkv, in the dtype of the inputs. Kinds of which this rank has
        no rows are missing.

    Raises:
        MismatchError: the ranks ask for different things; nothing moved.
        PeerLostError, CommTimeoutError: naming step, tensor and peer.
    """
    prepared = _prepare(world, attention, direction)
    device = inputs["kv"][0].device
    numerics = Numerics(
        local=prepared.local,
        scale=attention.scale,
        softcap=attention.softcap,
        sinks=sinks,
        wire=wire_format(attention),
        result=attention.dtype,
        threads=MergeThreads.of_communicator(world.host_comm) if device.type == "cpu" else None,
        device=device,
    )
    part = prepared.plan.of_rank(world.rank)
    with collective(world, prepared.call, device) as channel:
        memory = channel.memory(prepared.memory_bytes)
        return run(execute(part, inputs, numerics, channel, memory))


def wire_format(attention: Attention) -> WireFormat:
    """Return how the tensors of an attention travel: each partial is rounded once, sums never."""
    sums = accumulation_dtype(attention.dtype)
    return WireFormat(
        batch=attention.batch,
        head_dim=attention.head_dim,
        head_dim_v=attention.head_dim_v,
        inputs=attention.dtype,
        sums=sums,
        out=attention.dtype,
        dq=attention.dtype,
        dkv=sums,
    )


def choose_kernels(
    attention: Attention, plan: RingPlan, device: str = "cpu"
) -> tuple[LocalAttention, LocalChoice]:
    """Return the local attention that can do every block of a plan; what none can do is refused."""
    return choose_local(
        LocalNeeds(
            device=device,
            dtype=str(attention.dtype).removeprefix("torch."),
            head_dim=attention.head_dim,
            head_dim_v=attention.head_dim_v,
            bands=frozenset(
                band_kind(*compute.band) for part in plan.ranks for compute in part.computes
            ),
            has_softcap=attention.softcap is not None,
            needs_backward=attention.needs_gradient,
            is_deterministic=attention.deterministic,
        ),
        attention.local,
    )


def topology_of(world: "World") -> Topology:
    """Return what connects the ranks of a world, and how fast it is taken to be."""
    if world.cuda is not None:
        # Of what joins GPUs that map each other's memory nothing more is known: a port each.
        return Topology.preset("switch")
    shared = Topology.preset("shared_memory")
    if world.hosts is None:
        return shared
    return replace(
        shared,
        kind="two_level",
        ranks_per_host=world.layout.local_size,
        network_bandwidth=_NETWORK_BANDWIDTH,
    )


def _prepare(world: "World", attention: Attention, direction: Pass) -> _Prepared:
    key: Hashable = (attention, direction)
    prepared: _Prepared | None = world.prepared.get(key)
    if prepared is None:
        plan = attention.plan(direction, topology_of(world))
        local, _ = choose_kernels(attention, plan, world.device.type)
        memory_bytes = max(slot_offsets(part)[-1] for part in plan.ranks)
        prepared = _Prepared(plan, local, memory_bytes, attention.fingerprint(direction))
        world.prepared.remember(key, prepared)
    return prepared
