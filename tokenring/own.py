"""What the ranks of a problem hold themselves, as what products read, and the kernels on it. Pure.

None of it depends on the strategy: what is worked out for one that auto tries serves the others.
"""

from collections.abc import Sequence

from tokenring.blocks import Block, Kind, Span
from tokenring.kernels import Kernel, kernels_between
from tokenring.problem import RingProblem
from tokenring.reach import part_of
from tokenring.runs import Item, Operand, Operands, operands_of


class OwnRows:
    """The local tensors of every rank of a problem."""

    def __init__(self, problem: RingProblem) -> None:
        """Begin with nothing: ranks are looked at when they are asked for."""
        self._problem = problem
        self._operands: dict[tuple[Kind, int], Operands] = {}
        self._kernels: dict[tuple[Operand, Operand], list[Kernel]] = {}

    def operands(self, kind: Kind, rank: int) -> Operands:
        """Return all rows of a rank, read from its own tensor."""
        found = self._operands.get((kind, rank))
        if found is None:
            problem, is_kv = self._problem, kind == "kv"
            layout = problem.kv_layout if is_kv else problem.q_layout
            heads = Span(0, problem.heads_kv if is_kv else problem.heads_q)
            rows = (problem.kv_rows if is_kv else problem.q_rows)[rank]
            block = Block(kind, rank, (Span(0, layout.num_rows(rank)),), heads, rank, "input", 0)
            found = self._operands[kind, rank] = operands_of([(item, block) for item in rows])
        return found

    def group_kernels(self, q: Operands, kv: Operands) -> list[Kernel]:
        """Return kernels that compute every visible pair of the two sides once, and no other."""
        kernels: list[Kernel] = []
        for sequence, q_part in q.items():
            kv_part = kv.get(sequence)
            if kv_part is None:
                continue
            found = self._kernels.get((q_part, kv_part))
            if found is None:
                found = kernels_between(self._problem.mask, q_part, kv_part)
                self._kernels[q_part, kv_part] = found
            kernels += found
        return kernels


def rows_between(operands: Operands, first: int, stop: int) -> Operands:
    """Return what of a rank's own operands lies in rows first..stop-1, the same where all does."""
    result = {}
    for sequence, operand in operands.items():
        items = _items_between(operand.items, first, stop)
        if items:
            result[sequence] = operand if items == operand.items else Operand(items)
    return result


def _items_between(items: Sequence[Item], first: int, stop: int) -> list[Item]:
    found = []
    for item, block in items:
        a, b = max(first - item.row, 0), min(stop - item.row, item.size)
        if a < b:
            found.append((part_of(item, a, b), block))
    return found
