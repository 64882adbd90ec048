"""What is to be planned: one attention call, in integers, and the bytes of its tensors. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

from tokenfabric.errors import ConfigError
from tokenring.blocks import Kind, Span
from tokenring.mask import Mask
from tokenring.partition import Layout, split_evenly
from tokenring.reach import Reach, Rows, asked_by

Pass = Literal["forward", "backward"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ElementSizes:
    """Bytes of one element on its way; sums are made in fp32 whatever these are."""

    inputs: int = 2
    """q, k, v and dout."""
    out: int = 2
    """A partial out. lse and delta are always fp32."""
    dq: int = 2
    """A partial dq. Each is rounded once and added in fp32 at its owner, so that the error does
    not grow with the number of ranks."""
    dkv: int = 4
    """A partial dk or dv. On a ring it is added up on the way, hence fp32."""

    def __post_init__(self) -> None:
        for name in ("inputs", "out", "dq", "dkv"):
            if (size := getattr(self, name)) < 1:
                raise ConfigError(f"{name} elements of {size} bytes: pass at least 1")


@dataclass(frozen=True, kw_only=True)
class RingProblem:
    """All that a plan depends on, besides strategy and topology. Equal on all ranks."""

    q_layout: Layout
    kv_layout: Layout
    mask: Mask
    direction: Pass
    batch: int
    heads_q: int
    heads_kv: int
    head_dim: int
    head_dim_v: int
    element_sizes: ElementSizes
    q_rows: tuple[tuple[Rows, ...], ...] = field(init=False, repr=False, compare=False)
    """Of each rank: its chunks, with their local rows."""
    kv_rows: tuple[tuple[Rows, ...], ...] = field(init=False, repr=False, compare=False)
    unit_bytes: dict[Kind, int] = field(init=False, repr=False, compare=False)
    """Bytes of one row of one head of one batch entry."""

    def __post_init__(self) -> None:
        _check(self)
        size, width = self.element_sizes, self.head_dim + self.head_dim_v
        same = self.q_layout is self.kv_layout or self.q_layout == self.kv_layout
        q_rows = _rows_of(self.q_layout)
        units: dict[Kind, int] = {
            "q": self.head_dim * size.inputs,
            "kv": width * size.inputs,
            "pack": width * size.inputs + 8,
            "out": self.head_dim_v * size.out + 4,
            "dq": self.head_dim * size.dq,
            "dkv": width * size.dkv,
        }
        # The class is frozen for its users; these three follow from the other fields.
        object.__setattr__(self, "q_rows", q_rows)
        object.__setattr__(self, "kv_rows", q_rows if same else _rows_of(self.kv_layout))
        object.__setattr__(self, "unit_bytes", units)

    @property
    def world_size(self) -> int:
        return self.q_layout.world_size

    @cached_property
    def keys_asked(self) -> tuple[Reach, ...]:
        """Which keys the queries of each rank see."""
        left, right = self.mask.left, self.mask.right
        return _reaches(self.q_rows, None if left is None else -left, right)

    @cached_property
    def queries_asked(self) -> tuple[Reach, ...]:
        """Which queries see the keys of each rank."""
        left, right = self.mask.left, self.mask.right
        return _reaches(self.kv_rows, None if right is None else -right, left)

    @property
    def group_size(self) -> int:
        """Query heads for each KV head."""
        return self.heads_q // self.heads_kv

    @property
    def q_kind(self) -> Kind:
        """What of the query side travels."""
        return "q" if self.direction == "forward" else "pack"

    @property
    def out_kind(self) -> Kind:
        """What a compute makes of its q rows."""
        return "out" if self.direction == "forward" else "dq"

    @property
    def flops_per_pair(self) -> int:
        """Floating-point operations of one (q, kv) pair of one head: 2 or 5 products."""
        if self.direction == "forward":
            return 2 * (self.head_dim + self.head_dim_v)
        return 2 * (3 * self.head_dim + 2 * self.head_dim_v)

    def num_bytes(self, kind: Kind, num_rows: int, num_heads: int) -> int:
        """Return the size of so many rows and heads of all batch entries."""
        return self.batch * num_rows * num_heads * self.unit_bytes[kind]

    def kv_heads_of(self, heads: Span) -> Span:
        """Return the KV heads that these query heads read."""
        group = self.group_size
        return Span(heads.start // group, -(-heads.stop // group))


def deal_heads(heads_q: int, heads_kv: int, num_parts: int) -> tuple[Span, ...]:
    """Deal query heads so that every part has whole groups, or lies in one group.

    With more parts than KV heads, parts are dealt to groups and the KV head goes to each of these;
    with more parts than query heads some parts get none. Example: 9 query heads in 3 groups are 6
    and 3 on 2 parts, and 2 1 2 1 2 1 on 6.
    """
    group = heads_q // heads_kv
    if num_parts <= heads_kv:
        sizes = [count * group for count in split_evenly(heads_kv, num_parts)]
    else:
        parts_of_group = split_evenly(num_parts, heads_kv)
        sizes = [size for parts in parts_of_group for size in split_evenly(group, parts)]
    spans, start = [], 0
    for size in sizes:
        spans.append(Span(start, start + size))
        start += size
    return tuple(spans)


def _rows_of(layout: Layout) -> tuple[tuple[Rows, ...], ...]:
    result = []
    for chunks in layout.ranks:
        row, mine = 0, []
        for chunk in chunks:
            if chunk.count:
                step = chunk.step if chunk.count > 1 else 1
                mine.append(Rows(chunk.sequence, chunk.start, step, chunk.count, row))
                row += chunk.count
        result.append(tuple(mine))
    return tuple(result)


def _reaches(
    ranks: Sequence[tuple[Rows, ...]], low: int | None, high: int | None
) -> tuple[Reach, ...]:
    """Return what each rank's rows ask for: one object where they ask for the same."""
    found: list[Reach] = []
    for rows in ranks:
        reach = asked_by(rows, low, high)
        found.append(found[-1] if found and found[-1] == reach else reach)
    return tuple(found)


def _check(problem: RingProblem) -> None:
    q, kv = problem.q_layout, problem.kv_layout
    if q.world_size != kv.world_size:
        raise ConfigError(
            f"queries lie on {q.world_size} ranks and keys on {kv.world_size}: partition both for "
            "the same world"
        )
    if len(q.lengths) != len(kv.lengths):
        raise ConfigError(
            f"{len(q.lengths)} query sequences but {len(kv.lengths)} key sequences: give each "
            "sequence both, with length 0 where it has none"
        )
    if problem.direction not in get_args(Pass):
        raise ConfigError(f"direction {problem.direction!r} must be one of {get_args(Pass)}")
    sizes = ("heads_q", "heads_kv", "head_dim", "head_dim_v")
    for name, least in (("batch", 0), *((name, 1) for name in sizes)):
        if (value := getattr(problem, name)) < least:
            raise ConfigError(f"{name} is {value}: pass at least {least}")
    if problem.heads_q % problem.heads_kv:
        raise ConfigError(
            f"heads_q {problem.heads_q} is not a multiple of heads_kv {problem.heads_kv}: every KV "
            "head must serve equally many query heads"
        )
    if problem.mask != Mask(None, None):
        _check_steps(q, kv)


def _check_steps(q: Layout, kv: Layout) -> None:
    """Refuse a mask between rows of different spacing, which would not be a band."""
    if q is kv:
        return
    steps: Sequence[set[tuple[int, int]]] = [
        {(c.sequence, c.step) for chunks in layout.ranks for c in chunks if c.count > 1}
        for layout in (q, kv)
    ]
    kv_steps: dict[int, set[int]] = {}
    for sequence, step in steps[1]:
        kv_steps.setdefault(sequence, set()).add(step)
    for sequence, step in sorted(steps[0]):
        if others := kv_steps.get(sequence, set()) - {step}:
            raise ConfigError(
                f"a mask needs queries and keys equally far apart: those of sequence {sequence} "
                f"are {step} and {min(others)} positions apart; partition both striped, or neither"
            )
