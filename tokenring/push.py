"""Push: every owner sends its blocks straight to the ranks that compute on them. Pure."""

from typing import NamedTuple

from tokenring.blocks import Block, Kind, Span, Transfer
from tokenring.inputs import (
    Finish,
    Inputs,
    Product,
    ResultKey,
    own_items,
)
from tokenring.movement import Movement
from tokenring.problem import RingProblem, deal_heads
from tokenring.reach import Reach, Rows, local_spans, needed_rows
from tokenring.runs import Item


class Exchange(NamedTuple):
    """What one rank sends another of one tensor, and what comes back."""

    rows: list[Rows]
    send: Transfer
    home: Transfer | None


Shared = dict[tuple[Kind, int, int], Exchange | None]
"""Exchanges by (kind, sender, receiver): both sides need them, a plan of all ranks makes them
once."""


def push_inputs(
    problem: RingProblem, movement: Movement, rank: int, shared: Shared | None = None
) -> Inputs:
    """Return what a rank sends, receives and computes on in a push strategy."""
    return _Push(problem, movement, rank, {} if shared is None else shared).inputs()


class _Push:
    def __init__(self, problem: RingProblem, movement: Movement, rank: int, shared: Shared) -> None:
        self._problem, self._movement, self._rank = problem, movement, rank
        self._shared = shared
        self._x, self._y, self._z = movement.coordinates(rank)
        self._heads = deal_heads(problem.heads_q, problem.heads_kv, movement.u)
        mask = problem.mask
        self._to_left = None if mask.left is None else -mask.left
        self._to_right = None if mask.right is None else -mask.right
        self._kv_reaches: dict[int, Reach] = {}
        self._q_reaches: dict[int, Reach] = {}
        self._result = Inputs()

    def inputs(self) -> Inputs:
        problem, movement = self._problem, self._movement
        num_stages = movement.num_stages
        own_q = own_items(problem, problem.q_kind, self._rank)
        own_kv = own_items(problem, "kv", self._rank)
        q_stages: list[list[Item]] = [[] for _ in range(num_stages + 1)]
        kv_stages: list[list[Item]] = [[] for _ in range(num_stages + 1)]
        for y in range(movement.a):
            for x in range(movement.u):
                peer = movement.rank_at(x, y, self._z)
                if peer != self._rank:
                    self._send(self._q_exchange(self._rank, peer, self._y, x, y))
                    mine = self._q_exchange(peer, self._rank, y, self._x, self._y)
                    self._receive(mine, q_stages)
        for z in range(movement.b):
            for x in range(movement.u):
                peer = movement.rank_at(x, self._y, z)
                if peer != self._rank:
                    self._send(self._kv_exchange(self._rank, peer, self._z, x, z))
                    mine = self._kv_exchange(peer, self._rank, z, self._x, self._z)
                    self._receive(mine, kv_stages)
        heads = self._heads[self._x]
        products = self._result.products
        if movement.local == "fused":
            q_stages[1] = own_q + q_stages[1]
            kv_stages[1] = own_kv + kv_stages[1]
            self._combine(q_stages, kv_stages)
        elif movement.b == 1:
            for stage in range(1, num_stages + 1):
                products.append(Product(stage, q_stages[stage], own_kv, heads))
        else:
            remote_q = q_stages[1]
            products.append(Product(1, remote_q, own_kv, heads))
            for stage in range(1, num_stages + 1):
                products.append(Product(stage, own_q + remote_q, kv_stages[stage], heads))
        return self._result

    def _combine(self, q_stages: list[list[Item]], kv_stages: list[list[Item]]) -> None:
        """Pair what has come by each round with what comes in it, and every pair once."""
        heads = self._heads[self._x]
        q_held: list[Item] = []
        kv_held: list[Item] = []
        for stage in range(1, self._movement.num_stages + 1):
            q_new, kv_new = q_stages[stage], kv_stages[stage]
            if stage == 1 or not kv_new:
                self._result.products.append(Product(stage, q_new, kv_held + kv_new, heads))
            else:
                self._result.products.append(Product(stage, q_held + q_new, kv_new, heads))
            q_held += q_new
            kv_held += kv_new

    def _q_exchange(self, src: int, dst: int, src_y: int, x: int, y: int) -> Exchange | None:
        """Return what passes from a rank at src_y to the one at (x, y), both in this group."""
        problem, movement = self._problem, self._movement
        key = (problem.q_kind, src, dst)
        if key in self._shared:
            return self._shared[key]
        rows = needed_rows(
            problem.q_rows[src], self._kv_reach(y), self._to_right, problem.mask.left
        )
        stage = movement.q_stage(src_y, y) or 1
        # Where KV comes in rounds, each q is computed with all of it.
        finish = movement.num_stages if movement.b > 1 else stage
        exchange = self._exchange(key, rows, self._heads[x], problem.out_kind, stage, finish)
        self._shared[key] = exchange
        return exchange

    def _kv_exchange(self, src: int, dst: int, src_z: int, x: int, z: int) -> Exchange | None:
        """Return what passes from a rank in group src_z to the one at x of group z."""
        problem, movement = self._problem, self._movement
        key: tuple[Kind, int, int] = ("kv", src, dst)
        if key in self._shared:
            return self._shared[key]
        rows = needed_rows(
            problem.kv_rows[src], self._q_reach(z), self._to_left, problem.mask.right
        )
        stage = movement.kv_stage(src_z, z) or 1
        finish = movement.num_stages if movement.b == 1 else stage
        heads = problem.kv_heads_of(self._heads[x]) if self._heads[x].size else Span(0, 0)
        result: Kind | None = "dkv" if problem.direction == "backward" else None
        exchange = self._exchange(key, rows, heads, result, stage, finish)
        self._shared[key] = exchange
        return exchange

    def _exchange(
        self,
        key: tuple[Kind, int, int],
        rows: list[Rows],
        heads: Span,
        result: Kind | None,
        stage: int,
        finish: int,
    ) -> Exchange | None:
        if not rows or heads.start == heads.stop:
            return None
        kind, src, dst = key
        spans = local_spans(rows)
        units = self._problem.batch * sum([r.size for r in rows]) * (heads.stop - heads.start)
        unit_bytes = self._problem.unit_bytes
        block = Block(kind, src, spans, heads, src, "input", 0)
        send = Transfer(stage - 1, block, src, dst, units * unit_bytes[kind], "direct")
        home = None
        if result is not None:
            made = Block(result, src, spans, heads, dst, "returned", 0)
            num_bytes = units * unit_bytes[result]
            home = Transfer(finish + 1, made, dst, src, num_bytes, "direct")
        return Exchange(rows, send, home)

    def _send(self, exchange: Exchange | None) -> None:
        """Send rows to a rank, and expect what it makes of them."""
        if exchange is not None:
            self._result.sends.append(exchange.send)
            if exchange.home is not None:
                self._result.homecoming.append(exchange.home)

    def _receive(self, exchange: Exchange | None, stages: list[list[Item]]) -> None:
        """Receive rows of a rank, and owe it what becomes of them."""
        if exchange is None:
            return
        rows, send, home = exchange
        block, stage = send.block, send.step + 1
        stages[stage] += [(item, block) for item in rows]
        if home is None:
            is_kept = block.kind == "kv" and self._movement.b == 1
            finish = self._movement.num_stages if is_kept else stage
        else:
            finish = home.step - 1
            key = ResultKey(home.block.kind, block.owner, 0)
            self._result.finishes[key] = Finish(finish, home)
        self._result.arrivals.append((send, finish))

    def _kv_reach(self, y: int) -> Reach:
        """Return where the keys are that the ranks of row y of the grid see among them."""
        movement = self._movement
        if movement.u * movement.b == 1:
            return self._problem.kv_reach[y]
        if y not in self._kv_reaches:
            reach = self._kv_reaches[y] = Reach(has_runs=self._problem.mask.is_two_sided)
            for z in range(movement.b):
                for x in range(movement.u):
                    reach.add(self._problem.kv_rows[movement.rank_at(x, y, z)])
        return self._kv_reaches[y]

    def _q_reach(self, z: int) -> Reach:
        """Return where the queries are of group z of the grid."""
        movement = self._movement
        if movement.u * movement.a == 1:
            return self._problem.q_reach[z]
        if z not in self._q_reaches:
            reach = self._q_reaches[z] = Reach(has_runs=self._problem.mask.is_two_sided)
            for y in range(movement.a):
                for x in range(movement.u):
                    reach.add(self._problem.q_rows[movement.rank_at(x, y, z)])
        return self._q_reaches[z]
