"""Relay: blocks go round the ring from neighbour to neighbour, past every rank. Pure.

At distance s from its owner, in the direction of travel, a block is computed on in step s and
passed on in step s. It carries the rows that this rank or one still ahead of it needs, and ends
where none does. Results of relayed q go straight home. Those of relayed kv travel with it, one step
behind: each rank adds its part and passes on the sum; the last one that has any sends it home.

What passes between two ranks is the same for both, so that a `Ring` makes it once for all ranks of
a plan.
"""

from collections.abc import Iterable

from tokenring.blocks import Block, Direction, Kind, Span, Transfer
from tokenring.direction import asked_by_rank, rows_that_travel
from tokenring.inputs import Finish, Inputs, Product
from tokenring.movement import Movement
from tokenring.own import OwnRows
from tokenring.problem import RingProblem
from tokenring.reach import Reach, Rows, join_reaches, local_spans, needed_rows, part_of
from tokenring.runs import Operands, operands_of, read_both

_OPPOSITE: dict[Direction, Direction] = {
    "clockwise": "counterclockwise",
    "counterclockwise": "clockwise",
}


def make_rings(problem: RingProblem, movement: Movement) -> tuple["Ring", ...]:
    """Return the ways round that a relay strategy uses."""
    if not movement.is_bidirectional:
        return (Ring(problem, movement, movement.direction),)
    return tuple(Ring(problem, movement, way, part) for part, way in enumerate(_OPPOSITE))


def relay_inputs(rings: tuple["Ring", ...], own: OwnRows, rank: int) -> Inputs:
    """Return what a rank sends, receives and computes on in a relay strategy."""
    result = Inputs()
    for ring in rings:
        ring.fill(own, rank, result)
    if len(rings) > 1 and rings[0].heads == rings[1].heads:
        _pair_up(result)
    return result


def _pair_up(result: Inputs) -> None:
    """Compute what comes in a step from both sides as one product: it is for the same heads."""
    of_step: dict[int, Product] = {}
    for product in result.products:
        other = of_step.get(product.step)
        kv = product.kv if other is None else read_both(other.kv, product.kv)
        of_step[product.step] = product._replace(kv=kv)
    result.products[:] = of_step.values()


class _Part:
    """Some rows of an owner, as they travel."""

    def __init__(self, rows: tuple[Rows, ...], block: Block) -> None:
        self.rows, self.block = rows, block
        self.num_rows = sum([item[3] for item in rows])
        self._operands: Operands | None = None

    @property
    def operands(self) -> Operands:
        """The rows, read from a block that has no others. Made once for all who need the same."""
        if self._operands is None:
            self._operands = operands_of([(item, self.block) for item in self.rows])
        return self._operands


class Ring:
    """One way round, and what passes on it."""

    def __init__(
        self,
        problem: RingProblem,
        movement: Movement,
        direction: Direction,
        part: int | None = None,
    ) -> None:
        """Take the whole tensor round, or the first or second half of its heads or tokens."""
        self._problem, self._direction = problem, direction
        self._size = size = problem.world_size
        self._sign = 1 if direction == "clockwise" else -1
        self._is_q = movement.a > 1
        self._kind: Kind = problem.q_kind if self._is_q else "kv"
        self._part = part or 0
        num_heads = problem.heads_q if self._is_q else problem.heads_kv
        self.heads = Span(0, num_heads)
        self._rows = rows_that_travel(problem, self._is_q)
        if part is not None and num_heads % 2 == 0:
            self.heads = Span(part * num_heads // 2, (part + 1) * num_heads // 2)
        elif part is not None:
            self._rows = tuple(_half(rows, part) for rows in self._rows)
        self._row_bytes = problem.num_bytes(self._kind, 1, self.heads.size)
        self._result_kind: Kind = problem.out_kind if self._is_q else "dkv"
        self._result_row_bytes = problem.num_bytes(self._result_kind, 1, self.heads.size)
        self._asked = asked_by_rank(problem, self._is_q)
        self._joined = {sign: [[reach] for reach in self._asked] for sign in (1, -1)}
        self._parts: list[dict[object, _Part | None]] = [{} for _ in range(size)]
        self._hops: list[dict[int, Transfer | None]] = [{} for _ in range(size)]
        self._homes: list[dict[int, Transfer | None]] = [{} for _ in range(size)]

    def fill(self, own_rows: OwnRows, rank: int, result: Inputs) -> None:
        """Add a rank's transfers and products on this way to the result."""
        problem, size, heads = self._problem, self._size, self.heads
        is_q, asked, sign = self._is_q, self._asked[rank], self._sign
        if not is_q:
            group = problem.group_size
            heads = Span(heads.start * group, heads.stop * group)
        own = own_rows.operands("kv" if is_q else problem.q_kind, rank)
        has_results = is_q or problem.direction == "backward"
        for distance in range(1, size):
            owner = (rank - sign * distance) % size
            arriving = self._hop(owner, distance)
            if arriving is None:
                continue
            result.arrivals.append((arriving, distance))
            mine = self._part_for(owner, asked)
            if mine is not None:
                block = arriving.block
                items = (
                    mine.operands
                    if block is mine.block
                    else operands_of([(item, block) for item in mine.rows])
                )
                q, kv = (items, own) if is_q else (own, items)
                result.products.append(Product(distance, q, kv, heads))
            if not has_results:
                continue
            home = self._home(owner, distance)
            if is_q and home is not None:
                result.finishes[self._result_kind, owner, 0] = Finish(distance, home)
            elif not is_q:
                before = self._home(owner, distance - 1) if distance > 1 else None
                if before is not None:
                    result.arrivals.append((before, distance))
                if home is not None:
                    result.finishes["dkv", owner, self._part] = Finish(distance, home, before)
        for distance in range(1, size):
            passed = self._hop((rank - sign * (distance - 1)) % size, distance)
            if passed is not None:
                result.sends.append(passed)
        if has_results:
            result.homecoming += self._homecoming(rank)

    def _homecoming(self, rank: int) -> Iterable[Transfer]:
        """Return the results that come to an owner: of every rank that has one, or their sum."""
        distances: Iterable[int] = range(1, self._size)
        if not self._is_q:
            ahead = ((rank + self._sign * distance) % self._size for distance in distances)
            needs = [self._part_for(rank, self._asked[there]) is not None for there in ahead]
            # The last that needs the block sends the sum home.
            distances = [distance for distance, need in enumerate(needs, 1) if need][-1:]
        homes = (self._home(rank, distance) for distance in distances)
        return [home for home in homes if home is not None]

    def _hop(self, owner: int, distance: int) -> Transfer | None:
        """Return what of an owner's block comes to the rank at a distance, from the one before."""
        hops = self._hops[owner]
        if distance in hops:
            return hops[distance]
        size, sign = self._size, self._sign
        rank = (owner + sign * distance) % size
        part = self._part_for(owner, self._asked_by(rank, size - distance, sign))
        made = None
        if part is not None:
            num_bytes = part.num_rows * self._row_bytes
            src = (rank - sign) % size
            made = Transfer(distance - 1, part.block, src, rank, num_bytes, self._direction)
        hops[distance] = made
        return made

    def _home(self, owner: int, distance: int) -> Transfer | None:
        """Return the result that leaves the rank at a distance from the owner it is for.

        For relayed q what the rank makes, straight home; for relayed kv the sum up to it.
        """
        homes = self._homes[owner]
        if distance in homes:
            return homes[distance]
        size, sign, made = self._size, self._sign, None
        rank, dst, way = (owner + sign * distance) % size, owner, _OPPOSITE[self._direction]
        reach = self._asked[rank] if self._is_q else self._asked_by(rank, distance, -sign)
        part = self._part_for(owner, reach)
        if part is not None:
            if not self._is_q:
                is_last = distance == size - 1
                goes_on = not is_last and self._hop(owner, distance + 1) is not None
                dst = (rank + sign) % size if goes_on else owner
                way = self._direction if goes_on or is_last else "direct"
            rows, heads, number = part.block.rows, self.heads, self._part
            block = Block(self._result_kind, owner, rows, heads, rank, "returned", number)
            num_bytes = part.num_rows * self._result_row_bytes
            made = Transfer(distance + 1, block, rank, dst, num_bytes, way)
        homes[distance] = made
        return made

    def _part_for(self, owner: int, reach: Reach) -> _Part | None:
        """Return what of an owner's rows is asked for; one object for the same rows."""
        parts = self._parts[owner]
        key = id(reach)
        if key in parts:
            return parts[key]
        rows = needed_rows(self._rows[owner], reach)
        # All of the rows are the same tuple; of other parts the values are compared.
        name = id(rows) if rows is self._rows[owner] else rows
        found = parts.get(name)
        if found is None and rows:
            block = Block(
                self._kind, owner, local_spans(rows), self.heads, owner, "input", self._part
            )
            found = parts[name] = _Part(rows, block)
        parts[key] = found
        return found

    def _asked_by(self, rank: int, count: int, sign: int) -> Reach:
        """Return what so many ranks ask for: this one and those next to it on one side."""
        joined = self._joined[sign][rank]
        while len(joined) < count:
            following = self._asked[(rank + sign * len(joined)) % self._size]
            joined.append(join_reaches(joined[-1], following))
        return joined[count - 1]


def _half(rows: tuple[Rows, ...], part: int) -> tuple[Rows, ...]:
    """Return the first or the second half of a rank's rows, the first the larger."""
    total = sum(item.size for item in rows)
    middle = -(-total // 2)
    first, stop = (0, middle) if part == 0 else (middle, total)
    found = []
    for item in rows:
        a, b = max(first - item.row, 0), min(stop - item.row, item.size)
        if a < b:
            found.append(part_of(item, a, b))
    return tuple(found)
