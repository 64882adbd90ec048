"""Plans as schedules: one resource for each rank's computing and for each way between two. Pure."""

from collections.abc import Sequence

from tokenfabric.schedule import Schedule, Stage
from tokenring.blocks import Block, RankPlan, Transfer
from tokenring.rank_plan import issue_key

_Held = tuple[int, object]
"""A rank, and the key of a block on it."""


def lower_plans(plans: Sequence[RankPlan]) -> Schedule:
    """Return the stages of all given ranks, step by step.

    A transfer waits for what it carries and for the readers of what lay in its slot before; a
    compute waits for the transfers of what it reads. Where a peer's plan is not given, what comes
    from it waits for nothing.
    """
    return _Lowering(plans).schedule()


class _Lowering:
    def __init__(self, plans: Sequence[RankPlan]) -> None:
        self._plans = plans
        self._stages: list[Stage] = []
        self._maker: dict[_Held, int] = {}
        self._readers: dict[_Held, list[int]] = {}
        self._slot_of: dict[Transfer, int] = {}
        self._lay_in: dict[tuple[int, int], _Held] = {}

    def schedule(self) -> Schedule:
        size = max((plan.rank for plan in self._plans), default=0) + 1
        num_steps = max((len(plan.steps) for plan in self._plans), default=0)
        for step in range(num_steps):
            here = [plan.steps[step] for plan in self._plans]
            transfers: dict[Transfer, None] = {}
            for item in here:
                for arrival in item.arrivals:
                    self._slot_of[arrival.transfer] = arrival.slot
                    transfers[arrival.transfer] = None
                transfers |= dict.fromkeys(item.sends)
            for transfer in sorted(transfers, key=lambda t: (t.src, issue_key(t, size))):
                self._add_transfer(transfer)
            for item in here:
                for compute in item.computes:
                    reads = [piece.block for piece in (*compute.q, *compute.kv)]
                    heads = f"heads {compute.heads.start}:{compute.heads.stop}"
                    op = f"step {step} attention {compute.q_rows} x {compute.kv_rows}, {heads}"
                    makes = (*compute.outputs, *compute.kv_outputs)
                    self._add_work(compute.rank, op, reads, makes, compute.flops)
                for merge in item.merges:
                    op = f"step {step} merge {merge.output.kind} of rank {merge.output.owner}"
                    self._add_work(merge.rank, op, list(merge.inputs), (merge.output,), 0)
        return Schedule(tuple(self._stages))

    def _add_transfer(self, transfer: Transfer) -> None:
        block, src, dst = transfer.block, transfer.src, transfer.dst
        source, held = (src, block.key), (dst, block.key)
        waits = [self._maker[source]] if source in self._maker else []
        slot = self._slot_of.get(transfer)
        if slot is not None:
            before = self._lay_in.get((dst, slot))
            if before is not None:
                waits += self._readers.get(before, [])
            self._lay_in[dst, slot] = held
        self._readers.setdefault(source, []).append(len(self._stages))
        self._maker[held] = len(self._stages)
        op = f"step {transfer.step} {block.kind} of rank {block.owner}, {block.num_rows} rows"
        self._stages.append(
            Stage(
                resource=f"rank {src} to {dst} {transfer.direction}",
                op=op,
                num_bytes=transfer.num_bytes,
                waits=tuple(dict.fromkeys(waits)),
            )
        )

    def _add_work(
        self, rank: int, op: str, reads: list[Block], makes: tuple[Block, ...], flops: int
    ) -> None:
        index = len(self._stages)
        waits = []
        for block in reads:
            held = (rank, block.key)
            if held in self._maker:
                waits.append(self._maker[held])
            self._readers.setdefault(held, []).append(index)
        for block in makes:
            self._maker[rank, block.key] = index
        self._stages.append(
            Stage(
                resource=f"rank {rank} compute",
                op=op,
                flops=flops,
                waits=tuple(wait for wait in dict.fromkeys(waits) if wait != index),
            )
        )
