"""One rank's share of ring attention on one GPU: its plan, its kernels, and all its bytes moved.

The other ranks are not there. A message that would come from one is copied from memory beside, one
that would go to one is copied there, on streams of their own as the channel between GPUs has them
(tokenfabric/channel_cuda.py); nobody gives or waits for credit. Each byte is read and written in
the memory of this GPU, where between GPUs the sender reads it and the receiver writes it: copies
take twice the memory bandwidth that they take there. Whether the driver gives a copy within one GPU
to a copy engine or to a kernel is its own choice.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenfabric import native
from tokenfabric.channel import message_bytes
from tokenring.call import Attention, choose_kernels, wire_format
from tokenring.combine import Numerics
from tokenring.engine import execute, run, slot_offsets
from tokenring.partition import partition_tokens
from tokenring.plan import RingPlan
from tokenring.topology import Topology


class LoopbackChannel:
    """Implements Channel for one rank whose peers are memory of its own GPU."""

    def __init__(self, rank: int, size: int, device: torch.device, num_bytes: int) -> None:
        self.rank, self.size = rank, size
        self.bytes_sent: Counter[int] = Counter()
        # Numbers around 1 in bf16, so that the kernels meet what they meet elsewhere.
        values = torch.randn(num_bytes // 2 + 1, device=device).bfloat16()
        self._coming = values.view(torch.uint8)
        self._going = torch.empty_like(self._coming)
        self._memory = torch.empty(num_bytes, dtype=torch.uint8, device=device)
        self._in = torch.cuda.Stream(device)
        self._out = [torch.cuda.Stream(device) for _ in range(2)]
        self._kept: list[Tensor] = []
        # A stream that has nothing to do with a captured call must stay out of its graph.
        self._used: list[torch.cuda.Stream] = []

    def memory(self, num_bytes: int) -> Tensor:
        """See Channel."""
        return self._memory[:num_bytes]

    def receive(self, peer: int, into: Tensor, what: str) -> "_Coming":
        """See Channel. The message comes when the current stream is done with the memory."""
        start = int(into.storage_offset())
        self._follow(self._in)
        native.cuda.copy(
            into.data_ptr(), self._coming[start:].data_ptr(), into.numel(), self._in.cuda_stream
        )
        event = torch.cuda.Event()
        event.record(self._in)
        return _Coming(event)

    def send(self, peer: int, parts: Sequence[Tensor], what: str) -> None:
        """See Channel."""
        kept = [part.contiguous() for part in parts if part.numel()]
        stream = self._out[2 * ((peer - self.rank) % self.size) > self.size]
        self._follow(stream)
        for part in kept:
            size = part.numel() * part.element_size()
            native.cuda.copy(self._going.data_ptr(), part.data_ptr(), size, stream.cuda_stream)
        self._kept += kept
        self.bytes_sent[peer] += message_bytes(parts)

    def flush(self) -> None:
        """See Channel."""
        for stream in self._used:
            torch.cuda.current_stream().wait_stream(stream)
        self._used.clear()
        self._kept.clear()

    def close(self) -> None:
        """See Channel."""

    def _follow(self, stream: torch.cuda.Stream) -> None:
        stream.wait_stream(torch.cuda.current_stream())
        if stream not in self._used:
            self._used.append(stream)


class _Coming:
    """Implements Receipt."""

    def __init__(self, event: torch.cuda.Event) -> None:
        self._event = event

    def is_ready(self) -> bool:
        return True

    def wait(self) -> None:
        torch.cuda.current_stream().wait_event(self._event)


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """Causal self-attention, zigzag, of which one rank's share is computed."""

    ranks: int
    tokens: int
    """Of a rank."""
    heads_q: int
    heads_kv: int
    head_dim: int

    def attention(self) -> Attention:
        """Return the call, bf16 and forward."""
        layout = partition_tokens(self.ranks * self.tokens, self.ranks, "zigzag")
        return Attention(
            q_layout=layout, kv_layout=layout, batch=1, heads_q=self.heads_q,
            heads_kv=self.heads_kv, head_dim=self.head_dim, head_dim_v=self.head_dim,
            dtype=torch.bfloat16, causal=True, window=None, scale=self.head_dim**-0.5,
            softcap=None, has_sinks=False, strategy="auto", deterministic=False,
            needs_gradient=False,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Loopback:
    """What is timed: rank 0's walk, and one kernel of the same work."""

    plan: RingPlan
    walk: Callable[[], object]
    kernel: Callable[[], object]
    """One unmasked block with as many pairs of a query and a key, give or take one row."""


def prepare(share: Share, device: torch.device) -> Loopback:
    """Return the calls over tensors of their own."""
    attention = share.attention()
    plan = attention.plan("forward", Topology.preset("switch"))
    part = plan.of_rank(0)
    local, _ = choose_kernels(attention, plan, device.type)
    numerics = Numerics(
        local=local, scale=attention.scale, softcap=None, sinks=None,
        wire=wire_format(attention), result=attention.dtype, threads=None, device=device,
    )  # fmt: skip

    def random(rows: int, heads: int) -> Tensor:
        shape = (1, rows, heads, share.head_dim)
        return torch.randn(shape, device=device, dtype=torch.bfloat16)

    q, k, v = (random(share.tokens, n) for n in (share.heads_q, share.heads_kv, share.heads_kv))
    num_bytes = max(slot_offsets(part)[-1], max((t.num_bytes for t in part.sends), default=0))
    channel = LoopbackChannel(0, share.ranks, device, num_bytes)

    def walk() -> object:
        memory = channel.memory(num_bytes)
        made = run(execute(part, {"q": (q,), "kv": (k, v)}, numerics, channel, memory))
        channel.flush()
        return made["out"]

    num_pairs = sum(compute.num_pairs for compute in part.computes)
    keys = [random(round(num_pairs / share.tokens), share.heads_kv) for _ in range(2)]

    def kernel() -> object:
        return local.forward(q, *keys, scale=attention.scale)

    return Loopback(plan, walk, kernel)
