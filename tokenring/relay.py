"""Relay: blocks go round the ring from neighbour to neighbour, past every rank. Pure.

At distance s from its owner, in the direction of travel, a block is computed on in step s and
passed on in step s. It carries the rows that this rank or one still ahead of it needs, and ends
where none does. Results of relayed q go straight home. Those of relayed kv travel with it, one step
behind: each rank adds its part and passes on the sum; the last one that has any sends it home.
"""

from tokenring.blocks import Block, Direction, Kind, Span, Transfer
from tokenring.direction import rows_needed, rows_that_ask, rows_that_travel
from tokenring.inputs import (
    Finish,
    Inputs,
    Product,
    ResultKey,
    input_block,
    own_items,
    transfer_of,
)
from tokenring.movement import Movement
from tokenring.problem import RingProblem
from tokenring.reach import Reach, Rows, local_spans, part_of

_OPPOSITE: dict[Direction, Direction] = {
    "clockwise": "counterclockwise",
    "counterclockwise": "clockwise",
}


def relay_inputs(problem: RingProblem, movement: Movement, rank: int) -> Inputs:
    """Return what a rank sends, receives and computes on in a relay strategy."""
    result = Inputs()
    if movement.is_bidirectional:
        halves_heads = problem.heads_kv % 2 == 0
        for part, direction in enumerate(_OPPOSITE):
            _Ring(problem, movement, rank, direction, part, halves_heads, result).fill()
        if not halves_heads:
            _pair_up(result)
    else:
        _Ring(problem, movement, rank, movement.direction, None, False, result).fill()
    return result


def _pair_up(result: Inputs) -> None:
    """Compute what comes in a step from both sides as one product: it is for the same heads."""
    of_step: dict[int, Product] = {}
    for product in result.products:
        other = of_step.get(product.step)
        kv = product.kv if other is None else [*other.kv, *product.kv]
        of_step[product.step] = product._replace(kv=kv)
    result.products[:] = of_step.values()


class _Ring:
    """One way round, for one rank."""

    def __init__(
        self,
        problem: RingProblem,
        movement: Movement,
        rank: int,
        direction: Direction,
        part: int | None,
        halves_heads: bool,
        result: Inputs,
    ) -> None:
        self._problem, self._rank, self._result = problem, rank, result
        self._direction = direction
        sign, size = 1 if direction == "clockwise" else -1, problem.world_size
        self._ranks = [(rank + sign * distance) % size for distance in range(size)]
        self._is_q = movement.a > 1
        self._kind: Kind = problem.q_kind if self._is_q else "kv"
        heads = problem.heads_q if self._is_q else problem.heads_kv
        self._heads = Span(0, heads)
        if part is not None and halves_heads:
            self._heads = Span(part * heads // 2, (part + 1) * heads // 2)
        self._part = part or 0
        self._half = part if not halves_heads else None

    def fill(self) -> None:
        """Add this way's transfers and products to the result."""
        problem, rank, size = self._problem, self._rank, self._problem.world_size
        kv_heads, group = self._heads, problem.group_size
        heads = kv_heads if self._is_q else Span(kv_heads.start * group, kv_heads.stop * group)
        own = own_items(problem, "kv" if self._is_q else problem.q_kind, rank)
        askers = rows_that_ask(problem, self._is_q)
        reaches = problem.kv_reach if self._is_q else problem.q_reach
        here, behind = reaches[rank], self._reach()
        held, passed = self._ahead()
        sums = not self._is_q and problem.direction == "backward"
        for distance in range(1, size):
            owner = self._at(-distance)
            if distance > 1:
                behind.add(askers[self._at(1 - distance)])
            rows = held[distance]
            if not rows:
                continue
            block = self._block(owner, rows)
            arriving = self._transfer(distance - 1, block, self._at(-1), rank)
            self._result.arrivals.append((arriving, distance))
            mine = self._need(self._rows(owner), here)
            if mine:
                items = [(item, block) for item in mine]
                q, kv = (items, own) if self._is_q else (own, items)
                self._result.products.append(Product(distance, q, kv, heads))
            if self._is_q and mine:
                self._owe(owner, distance, local_spans(mine))
            elif sums:
                self._pass_sum(owner, distance, behind, here, bool(passed[distance]))
        for distance in range(size - 1):
            if passed[distance]:
                block = self._block(self._at(-distance), passed[distance])
                self._result.sends.append(self._transfer(distance, block, rank, self._at(1)))
        if self._is_q:
            self._expect_out()
        elif sums:
            self._expect_sum()

    def _ahead(self) -> tuple[list[list[Rows]], list[list[Rows]]]:
        """Return, by distance of the owner, the rows that come here and those that go on."""
        size, askers = self._problem.world_size, rows_that_ask(self._problem, self._is_q)
        held: list[list[Rows]] = [[] for _ in range(size)]
        passed: list[list[Rows]] = [[] for _ in range(size)]
        to_here, to_next = self._reach(), self._reach()
        for distance in range(size - 1, -1, -1):
            rows = self._rows(self._at(-distance))
            passed[distance] = self._need(rows, to_next)
            ahead = size - 1 - distance
            to_here.add(askers[self._at(ahead)])
            held[distance] = self._need(rows, to_here)
            if distance:
                to_next.add(askers[self._at(ahead + 1)])
        return held, passed

    def _owe(self, owner: int, distance: int, rows: tuple[Span, ...]) -> None:
        key = ResultKey(self._problem.out_kind, owner, 0)
        made = Block(self._problem.out_kind, owner, rows, self._heads, self._rank, "returned", 0)
        back = _OPPOSITE[self._direction]
        home = transfer_of(self._problem, distance + 1, made, self._rank, owner, back)
        self._result.finishes[key] = Finish(distance, home)

    def _pass_sum(
        self, owner: int, distance: int, behind: Reach, here: Reach, goes_on: bool
    ) -> None:
        """Add this rank's part to the sum of a block's gradient and pass it on, or home."""
        rows = self._rows(owner)
        before = local_spans(self._need(rows, behind))
        after = local_spans([*self._need(rows, behind), *self._need(rows, here)])
        arriving = None
        if before:
            made = self._sum_block(owner, before, self._at(-1))
            arriving = self._transfer(distance, made, self._at(-1), self._rank)
            self._result.arrivals.append((arriving, distance))
        if not after:
            return
        size = self._problem.world_size
        dst = self._at(1) if goes_on else owner
        direction = self._direction if goes_on or distance == size - 1 else "direct"
        key = ResultKey("dkv", owner, self._part)
        made = self._sum_block(owner, after, self._rank)
        home = transfer_of(self._problem, distance + 1, made, self._rank, dst, direction)
        self._result.finishes[key] = Finish(distance, home, arriving)

    def _expect_out(self) -> None:
        """Receive the results of every rank that computes on this one's q."""
        problem, rank = self._problem, self._rank
        for distance in range(1, problem.world_size):
            there = self._at(distance)
            rows = self._need(problem.q_rows[rank], problem.kv_reach[there])
            if rows:
                spans = local_spans(rows)
                made = Block(problem.out_kind, rank, spans, self._heads, there, "returned", 0)
                back = _OPPOSITE[self._direction]
                self._result.homecoming.append(
                    transfer_of(problem, distance + 1, made, there, rank, back)
                )

    def _expect_sum(self) -> None:
        """Receive the sum of this rank's kv gradients from the last rank that needs its kv."""
        problem, rank, size = self._problem, self._rank, self._problem.world_size
        rows = self._rows(rank)
        others, last = self._reach(), 0
        for distance in range(1, size):
            asking = problem.q_rows[self._at(distance)]
            others.add(asking)
            if self._need(rows, problem.q_reach[self._at(distance)]):
                last = distance
        if last == 0:
            return
        made = self._sum_block(rank, local_spans(self._need(rows, others)), self._at(last))
        direction = self._direction if last == size - 1 else "direct"
        self._result.homecoming.append(
            transfer_of(problem, last + 1, made, self._at(last), rank, direction)
        )

    def _reach(self, rows: tuple[Rows, ...] = ()) -> Reach:
        return Reach(rows, has_runs=self._problem.mask.is_two_sided)

    def _at(self, distance: int) -> int:
        """Return the rank so far ahead; behind this one if negative."""
        return self._ranks[distance]

    def _rows(self, owner: int) -> tuple[Rows, ...]:
        """Return what of a rank's rows goes this way round."""
        rows = rows_that_travel(self._problem, self._is_q)[owner]
        if self._half is None:
            return rows
        total = self._problem.kv_layout.num_rows(owner)
        middle = -(-total // 2)
        first, stop = (0, middle) if self._half == 0 else (middle, total)
        found = []
        for item in rows:
            a, b = max(first - item.row, 0), min(stop - item.row, item.size)
            if a < b:
                found.append(part_of(item, a, b))
        return tuple(found)

    def _need(self, rows: tuple[Rows, ...], reach: Reach) -> list[Rows]:
        return rows_needed(self._problem, self._is_q, rows, reach)

    def _block(self, owner: int, rows: list[Rows]) -> Block:
        return input_block(self._kind, owner, rows, self._heads, self._part)

    def _sum_block(self, owner: int, rows: tuple[Span, ...], producer: int) -> Block:
        return Block("dkv", owner, rows, self._heads, producer, "returned", self._part)

    def _transfer(self, step: int, block: Block, src: int, dst: int) -> Transfer:
        return transfer_of(self._problem, step, block, src, dst, self._direction)
