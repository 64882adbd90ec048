"""Walks one rank's plan: posts, sends, computes, merges. Decides nothing.

The walk is a generator: it yields each message it needs before it goes on. A real rank waits for it
(`run`), virtual ranks take turns (channel_virtual.run_virtual_ranks); the code in between is one.
"""

from collections import deque
from collections.abc import Generator, Mapping, Sequence

import torch
from torch import Tensor

from tokenfabric.channel import Channel, Receipt, unpack
from tokenring.blocks import Arrival, Block, Compute, Kind, Merge, Piece, RankPlan, Span, Transfer
from tokenring.combine import Numerics, add_gradients, merge_outs
from tokenring.held import Held, HeldOut, lay_out, partials_of_piece, rows_of_piece
from tokenring.partial import Partial

BlockKey = tuple[str, int, int, str, int]
Parts = dict[Kind, tuple[Tensor, ...]]
Walk = Generator[Receipt, None, Parts]


def run(walk: Walk) -> Parts:
    """Walk to the end, waiting for every message that is not there."""
    while True:
        try:
            next(walk).wait()
        except StopIteration as end:
            result: Parts = end.value
            return result


def slot_offsets(plan: RankPlan) -> tuple[int, ...]:
    """Return where each receive slot starts, and at the end the bytes of all."""
    offsets = [0]
    for num_bytes in plan.slots:
        offsets.append(offsets[-1] + -(-num_bytes // 64) * 64)
    return tuple(offsets)


def execute(
    plan: RankPlan,
    inputs: Mapping[Kind, tuple[Tensor, ...]],
    numerics: Numerics,
    channel: Channel,
    memory: Tensor,
) -> Walk:
    """Walk `plan`. Collective: every rank walks its part of one plan.

    Args:
        plan: this rank's part.
        inputs: this rank's q and kv, or pack and kv: the parts that held.py names, each [batch,
            rows, heads, ..].
        numerics: equal on all ranks.
        channel: to the other ranks.
        memory: uint8, at least `slot_offsets(plan)[-1]` bytes, from `channel.memory`.

    Returns:
        The merged results of this rank's rows, by kind: out, or dq and dkv. A kind is missing where
        the rank has no such rows.

    Raises:
        PeerLostError, CommTimeoutError: naming step, tensor and peer.
    """
    walk = _Rank(plan, inputs, numerics, channel, memory)
    for step in plan.steps:
        walk.post_receives()
        for transfer in step.sends:
            yield from walk.need(transfer.block)
            walk.send(transfer)
        for compute in step.computes:
            for piece in (*compute.q, *compute.kv):
                yield from walk.need(piece.block)
            walk.compute(compute)
        for merge in step.merges:
            for block in merge.inputs:
                yield from walk.need(block)
            walk.merge(merge)
        walk.end_step(step.index)
    return walk.results


class _Rank:
    """What a rank holds between two steps."""

    def __init__(
        self,
        plan: RankPlan,
        inputs: Mapping[Kind, tuple[Tensor, ...]],
        numerics: Numerics,
        channel: Channel,
        memory: Tensor,
    ) -> None:
        self.results: Parts = {}
        self._plan = plan
        self._inputs = inputs
        self._numerics = numerics
        self._channel = channel
        self._memory = memory
        self._offsets = slot_offsets(plan)
        self._held: dict[BlockKey, Held | HeldOut] = {}
        self._coming: dict[BlockKey, tuple[Receipt, Block, Tensor]] = {}
        self._last_use = _last_uses(plan)
        # A receive may be posted once those before it, from its peer and in its slot, are.
        self._of_peer: dict[int, deque[Arrival]] = {}
        self._of_slot: dict[int, deque[Arrival]] = {}
        self._busy_slots: set[int] = set()
        for arrival in plan.arrivals:
            self._of_peer.setdefault(arrival.transfer.src, deque()).append(arrival)
            self._of_slot.setdefault(arrival.slot, deque()).append(arrival)

    def post_receives(self) -> None:
        """Post every receive whose slot is free, be it for a later step: senders run ahead."""
        for waiting in self._of_peer.values():
            while waiting and self._is_free_for(waiting[0]):
                self._post(waiting.popleft())

    def need(self, block: Block) -> Generator[Receipt, None, None]:
        """Yield what must come before `block` is held."""
        coming = self._coming.pop(block.key, None)
        if coming is None:
            return
        receipt, arrived, message = coming
        if not receipt.is_ready():
            yield receipt
        receipt.wait()
        parts = tuple(unpack(message, self._numerics.wire.layout(arrived)))
        if block.kind == "out":
            lse, out = parts
            self._held[block.key] = HeldOut(arrived, (Partial(out, lse),))
        else:
            self._held[block.key] = Held(arrived, parts)

    def send(self, transfer: Transfer) -> None:
        block = transfer.block
        held = self._of(block)
        parts: Sequence[Tensor]
        if isinstance(held, HeldOut):
            parts = merge_outs(self._numerics, block, [held])
        else:
            parts = held.select(block.rows, block.heads)
        message = self._numerics.wire.encode(block.kind, parts)
        self._channel.send(transfer.dst, message, _describe(transfer))

    def compute(self, compute: Compute) -> None:
        n = self._numerics
        q = self._operand(compute.q, compute.q_rows, compute.heads)
        k, v = self._operand(compute.kv, compute.kv_rows, compute.kv_heads)
        if not compute.kv_outputs:
            partials = n.local.forward(
                *q, k, v, scale=n.scale, band=compute.band, softcap=n.softcap
            )
            for piece, output in zip(compute.q, compute.outputs, strict=True):
                own = tuple(partials_of_piece(piece, partials))
                self._held[output.key] = HeldOut(output, own)
            return
        lse, delta, query, dout = q
        gradients = [
            torch.zeros(like.shape, dtype=n.wire.sums, device=like.device) for like in (query, k, v)
        ]
        dq, dk, dv = gradients
        n.local.backward(
            dout, query, k, v, lse, delta,
            scale=n.scale, band=compute.band, softcap=n.softcap, dq=dq, dk=dk, dv=dv,
        )  # fmt: skip
        for piece, output in zip(compute.q, compute.outputs, strict=True):
            self._held[output.key] = Held(output, (dq[:, rows_of_piece(piece)],))
        for piece, output in zip(compute.kv, compute.kv_outputs, strict=True):
            rows = rows_of_piece(piece)
            self._held[output.key] = Held(output, (dk[:, rows], dv[:, rows]))

    def merge(self, merge: Merge) -> None:
        n, output = self._numerics, merge.output
        is_result = output.role == "merged"
        inputs = [self._of(block) for block in merge.inputs]
        if merge.op == "sum":
            sums = add_gradients(n, output, [held for held in inputs if isinstance(held, Held)])
            if is_result:
                self.results[output.kind] = tuple(part.to(n.result) for part in sums)
            else:
                self._held[output.key] = Held(output, sums)
            return
        outs = [held for held in inputs if isinstance(held, HeldOut)]
        lse, out = merge_outs(n, output, outs, is_result=is_result)
        if is_result:
            self.results[output.kind] = (lse, out)
        else:
            self._held[output.key] = HeldOut(output, (Partial(out, lse),))

    def end_step(self, step: int) -> None:
        """Forget what no later step reads, and give its slots back."""
        for key in [key for key in self._held if self._last_use.get(key, -1) <= step]:
            del self._held[key]
        for arrival in self._plan.arrivals:
            if arrival.release_step == step:
                self._busy_slots.discard(arrival.slot)

    def _is_free_for(self, arrival: Arrival) -> bool:
        return arrival.slot not in self._busy_slots and self._of_slot[arrival.slot][0] is arrival

    def _post(self, arrival: Arrival) -> None:
        transfer = arrival.transfer
        self._of_slot[arrival.slot].popleft()
        self._busy_slots.add(arrival.slot)
        start = self._offsets[arrival.slot]
        into = self._memory[start : start + transfer.num_bytes]
        receipt = self._channel.receive(transfer.src, into, _describe(transfer))
        self._coming[transfer.block.key] = (receipt, transfer.block, into)

    def _of(self, block: Block) -> Held | HeldOut:
        held = self._held.get(block.key)
        if held is not None:
            return held
        is_own = (block.role, block.producer) == ("input", self._plan.rank)
        assert is_own, f"{block} is not here"
        parts = self._inputs[block.kind]
        num_rows, num_heads = parts[0].shape[1:3]
        whole = block._replace(rows=(Span(0, num_rows),), heads=Span(0, num_heads))
        return Held(whole, parts)

    def _operand(self, pieces: Sequence[Piece], num_rows: int, heads: Span) -> tuple[Tensor, ...]:
        found = []
        for piece in pieces:
            held = self._of(piece.block)
            assert isinstance(held, Held), "outputs are not operands"
            found.append((piece, held.select(piece.rows, heads)))
        piece, parts = found[0]
        if len(found) == 1 and piece.offset == 0 and piece.stride == 1:
            return parts
        return lay_out(found, num_rows)


def _last_uses(plan: RankPlan) -> dict[BlockKey, int]:
    """Return the last step that reads each block."""
    uses: dict[BlockKey, int] = {}
    for step in plan.steps:
        blocks = [transfer.block for transfer in step.sends]
        for compute in step.computes:
            blocks += [piece.block for piece in (*compute.q, *compute.kv)]
        for merge in step.merges:
            blocks += merge.inputs
        for block in blocks:
            uses[block.key] = step.index
    return uses


def _describe(transfer: Transfer) -> str:
    block = transfer.block
    return (
        f"{block.kind} of rank {block.owner} in step {transfer.step}, from rank {transfer.src} to "
        f"rank {transfer.dst}"
    )
