"""Plans end whatever the order of messages: ranks in any order, slots that must be free. Pure."""

import random
from collections import deque
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.ring_cases import calls
from tokenring.blocks import Arrival, Block, RankPlan, Transfer
from tokenring.plan import plan_attention


class Deadlock(AssertionError):
    """Nobody can go on."""


class ReplayedRank:
    """A rank that posts, computes, merges and releases as blocks.py says, one action at a time."""

    def __init__(self, plan: RankPlan) -> None:
        self.plan = plan
        self.here: set[object] = set()
        self.free = [True] * len(plan.slots)
        self.unsent: list[Transfer] = []
        self.posted: dict[Transfer, Arrival] = {}
        self.in_slot: list[Arrival] = []
        self.actions = deque(
            (kind, step)
            for step in plan.steps
            for kind in ("receive", "send", "compute", "merge", "release")
        )

    def try_action(self) -> bool:
        """Do the next action if nothing it needs is missing."""
        if not self.actions:
            return False
        kind, step = self.actions[0]
        if kind == "receive":
            if not all(self.free[arrival.slot] for arrival in step.arrivals):
                return False
            for arrival in step.arrivals:
                assert self.free[arrival.slot]
                self.free[arrival.slot] = False
                self.posted[arrival.transfer] = arrival
        elif kind == "send":
            if not self._has([transfer.block for transfer in step.sends]):
                return False
            self.unsent += step.sends
        elif kind == "compute":
            for compute in step.computes:
                if not self._has([piece.block for piece in (*compute.q, *compute.kv)]):
                    return False
            for compute in step.computes:
                self.here |= {b.key for b in (*compute.outputs, *compute.kv_outputs)}
        elif kind == "merge":
            for merge in step.merges:
                made = {m.output.key for m in step.merges}
                if not self._has([b for b in merge.inputs if b.key not in made]):
                    return False
            self.here |= {merge.output.key for merge in step.merges}
        else:
            done = [a for a in self.in_slot if a.release_step == step.index]
            keys = {arrival.transfer.block.key for arrival in done}
            if any(transfer.block.key in keys for transfer in self.unsent):
                return False
            for arrival in done:
                self.in_slot.remove(arrival)
                self.here.discard(arrival.transfer.block.key)
                self.free[arrival.slot] = True
        self.actions.popleft()
        return True

    def _has(self, blocks: list[Block]) -> bool:
        return all(
            b.key in self.here or (b.role == "input" and b.producer == self.plan.rank)
            for b in blocks
        )


def replay(plans: tuple[RankPlan, ...], chance: random.Random, *, in_order: bool) -> None:
    """Run all ranks in a random order; messages of a pair in order, or in any order.

    A message moves only when both sides have posted it: the strictest of transports.
    """
    ranks = [ReplayedRank(plan) for plan in plans]
    while any(rank.actions or rank.unsent for rank in ranks):
        moves: list[tuple[str, ReplayedRank, Transfer | None]] = []
        for rank in ranks:
            moves.append(("act", rank, None))
            blocked: set[int] = set()
            for transfer in rank.unsent:
                if in_order and transfer.dst in blocked:
                    continue
                blocked.add(transfer.dst)
                if transfer in ranks[transfer.dst].posted:
                    moves.append(("move", rank, transfer))
        chance.shuffle(moves)
        for kind, rank, transfer in moves:
            if kind == "act" and rank.try_action():
                break
            if transfer is not None:
                receiver = ranks[transfer.dst]
                rank.unsent.remove(transfer)
                arrival = receiver.posted.pop(transfer)
                receiver.here.add(transfer.block.key)
                receiver.in_slot.append(arrival)
                break
        else:
            raise Deadlock([(rank.plan.rank, list(rank.actions)[:1]) for rank in ranks])
    assert all(not rank.posted and not rank.in_slot and all(rank.free) for rank in ranks)


@given(calls(max_world=6), st.integers(0, 10_000), st.booleans())
@settings(max_examples=100, deadline=None)
def test_no_order_of_messages_deadlocks(call: dict[str, Any], seed: int, in_order: bool) -> None:
    """Every rank gets to its end, has sent all, and holds nothing in a slot."""
    replay(plan_attention(**call).ranks, random.Random(seed), in_order=in_order)


def test_circle_is_noticed() -> None:
    """Two ranks that compute before they send wait for each other."""
    plan = plan_attention(
        world_size=2, tokens=8, heads_q=1, heads_kv=1, head_dim=1, strategy="kv_push"
    )
    ranks = []
    for part in plan.ranks:
        first, second = part.steps
        first = first._replace(sends=(), computes=(*first.computes, *second.computes))
        second = second._replace(sends=part.steps[0].sends, computes=())
        ranks.append(replace(part, steps=(first, second)))
    with pytest.raises(Deadlock):
        replay(tuple(ranks), random.Random(0), in_order=True)
