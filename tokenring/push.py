"""Push: every owner sends its blocks straight to the ranks that compute on them. Pure.

What passes between two ranks is the same for both, so that a `Grid` makes it once for all ranks of
a plan.
"""

from collections.abc import Iterable
from typing import NamedTuple

from tokenring.blocks import Block, Kind, Span, Transfer
from tokenring.inputs import Finish, Inputs, Product, transfer_of
from tokenring.movement import Movement
from tokenring.own import OwnRows
from tokenring.problem import RingProblem, deal_heads
from tokenring.reach import Reach, Rows, join_reaches, local_spans, needed_rows
from tokenring.runs import Item, Operands, operands_of, read_both


class Exchange(NamedTuple):
    """What one rank sends another of one tensor, and what comes back."""

    rows: tuple[Rows, ...]
    send: Transfer
    home: Transfer | None


class Grid:
    """What passes between the ranks of the u x a x b grid of a push strategy."""

    def __init__(self, problem: RingProblem, movement: Movement) -> None:
        self.problem, self.movement = problem, movement
        self.heads = deal_heads(problem.heads_q, problem.heads_kv, movement.u)
        """Query heads of each x."""
        self._kv_heads = [
            problem.kv_heads_of(heads) if heads.size else Span(0, 0) for heads in self.heads
        ]
        self._queries_asked: dict[int, Reach] = {}
        self._keys_asked: dict[int, Reach] = {}
        self._spans: dict[tuple[Kind, int, int], tuple[tuple[Rows, ...], tuple[Span, ...]]] = {}
        self._exchanges: dict[tuple[Kind, int, int], Exchange | None] = {}

    def q_exchange(self, src: int, dst: int) -> Exchange | None:
        """Return what passes of q from a rank to another with the same z."""
        problem, movement = self.problem, self.movement
        key = (problem.q_kind, src, dst)
        if key in self._exchanges:
            return self._exchanges[key]
        _, src_y, _ = movement.coordinates(src)
        x, y, _ = movement.coordinates(dst)
        stage = movement.q_stage(src_y, y) or 1
        # Where KV comes in rounds, each q is computed with all of it.
        finish = movement.num_stages if movement.b > 1 else stage
        if y not in self._queries_asked:
            ranks = [
                movement.rank_at(i, y, z) for z in range(movement.b) for i in range(movement.u)
            ]
            self._queries_asked[y] = _joined(problem.queries_asked[rank] for rank in ranks)
        rows = (problem.q_rows[src], self._queries_asked[y])
        made = self._exchange(key, y, rows, self.heads[x], problem.out_kind, stage, finish)
        self._exchanges[key] = made
        return made

    def kv_exchange(self, src: int, dst: int) -> Exchange | None:
        """Return what passes of kv from a rank to another with the same y."""
        problem, movement = self.problem, self.movement
        key: tuple[Kind, int, int] = ("kv", src, dst)
        if key in self._exchanges:
            return self._exchanges[key]
        _, _, src_z = movement.coordinates(src)
        x, _, z = movement.coordinates(dst)
        stage = movement.kv_stage(src_z, z) or 1
        finish = movement.num_stages if movement.b == 1 else stage
        if z not in self._keys_asked:
            ranks = [
                movement.rank_at(i, y, z) for y in range(movement.a) for i in range(movement.u)
            ]
            self._keys_asked[z] = _joined(problem.keys_asked[rank] for rank in ranks)
        rows = (problem.kv_rows[src], self._keys_asked[z])
        result: Kind | None = "dkv" if problem.direction == "backward" else None
        made = self._exchange(key, z, rows, self._kv_heads[x], result, stage, finish)
        self._exchanges[key] = made
        return made

    def _exchange(
        self,
        key: tuple[Kind, int, int],
        group: int,
        whole: tuple[tuple[Rows, ...], Reach],
        heads: Span,
        result: Kind | None,
        stage: int,
        finish: int,
    ) -> Exchange | None:
        if heads.start == heads.stop:
            return None
        kind, src, dst = key
        # All ranks of a group ask for the same rows.
        found = self._spans.get((kind, src, group))
        if found is None:
            rows = needed_rows(*whole)
            found = self._spans[kind, src, group] = (rows, local_spans(rows) if rows else ())
        rows, spans = found
        if not rows:
            return None
        block = Block(kind, src, spans, heads, src, "input", 0)
        send = transfer_of(self.problem, stage - 1, block, src, dst, "direct")
        home = None
        if result is not None:
            made = Block(result, src, spans, heads, dst, "returned", 0)
            home = transfer_of(self.problem, finish + 1, made, dst, src, "direct")
        return Exchange(rows, send, home)


def _joined(reaches: Iterable[Reach]) -> Reach:
    result: Reach = {}
    for reach in reaches:
        result = join_reaches(result, reach)
    return result


def push_inputs(grid: Grid, own: OwnRows, rank: int) -> Inputs:
    """Return what a rank sends, receives and computes on in a push strategy."""
    problem, movement = grid.problem, grid.movement
    x, y, z = movement.coordinates(rank)
    num_stages, heads = movement.num_stages, grid.heads[x]
    result = Inputs()
    own_q, own_kv = own.operands(problem.q_kind, rank), own.operands("kv", rank)
    q_stages: list[list[Item]] = [[] for _ in range(num_stages + 1)]
    kv_stages: list[list[Item]] = [[] for _ in range(num_stages + 1)]
    for peer_y in range(movement.a):
        for peer_x in range(movement.u):
            peer = movement.rank_at(peer_x, peer_y, z)
            if peer != rank:
                _send(grid.q_exchange(rank, peer), result)
                _receive(grid.q_exchange(peer, rank), movement, q_stages, result)
    for peer_z in range(movement.b):
        for peer_x in range(movement.u):
            peer = movement.rank_at(peer_x, y, peer_z)
            if peer != rank:
                _send(grid.kv_exchange(rank, peer), result)
                _receive(grid.kv_exchange(peer, rank), movement, kv_stages, result)
    q, kv = [*map(operands_of, q_stages)], [*map(operands_of, kv_stages)]
    if movement.local == "fused":
        q[1], kv[1] = read_both(own_q, q[1]), read_both(own_kv, kv[1])
        result.products += _combined(q, kv, heads)
    elif movement.b == 1:
        for stage in range(1, num_stages + 1):
            result.products.append(Product(stage, q[stage], own_kv, heads))
    else:
        result.products.append(Product(1, q[1], own_kv, heads))
        all_q = read_both(own_q, q[1])
        for stage in range(1, num_stages + 1):
            result.products.append(Product(stage, all_q, kv[stage], heads))
    return result


def _combined(q: list[Operands], kv: list[Operands], heads: Span) -> Iterable[Product]:
    """Pair what has come by each round with what comes in it, and every pair once."""
    q_held: Operands = {}
    kv_held: Operands = {}
    for stage in range(1, len(q)):
        q_new, kv_new = q[stage], kv[stage]
        all_q, all_kv = read_both(q_held, q_new), read_both(kv_held, kv_new)
        if stage == 1 or not kv_new:
            yield Product(stage, q_new, all_kv, heads)
        else:
            yield Product(stage, all_q, kv_new, heads)
        q_held, kv_held = all_q, all_kv


def _send(exchange: Exchange | None, result: Inputs) -> None:
    """Send rows to a rank, and expect what it makes of them."""
    if exchange is not None:
        result.sends.append(exchange.send)
        if exchange.home is not None:
            result.homecoming.append(exchange.home)


def _receive(
    exchange: Exchange | None, movement: Movement, stages: list[list[Item]], result: Inputs
) -> None:
    """Receive rows of a rank, and owe it what becomes of them."""
    if exchange is None:
        return
    rows, send, home = exchange
    block, stage = send.block, send.step + 1
    stages[stage] += [(item, block) for item in rows]
    if home is None:
        is_kept = block.kind == "kv" and movement.b == 1
        finish = movement.num_stages if is_kept else stage
    else:
        finish = home.step - 1
        result.finishes[home.block.kind, block.owner, 0] = Finish(finish, home)
    result.arrivals.append((send, finish))
