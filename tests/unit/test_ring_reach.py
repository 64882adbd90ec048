"""reach.py: what ranks ask for, joined, against sets of positions. Pure."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from tokenring.reach import Reach, Rows, asked_by, join_reaches, needed_rows

BOUNDS = st.sampled_from([None, 0, 1, 2, 5, 30])


@st.composite
def stripes(draw: st.DrawFn, step: int) -> tuple[Rows, ...]:
    """Draw chunks of two sequences that are equally far apart, or single rows."""
    sizes = draw(st.lists(st.integers(1, 6), max_size=4))
    starts = draw(st.lists(st.integers(0, 40), min_size=len(sizes), max_size=len(sizes)))
    sequences = draw(st.lists(st.integers(0, 1), min_size=len(sizes), max_size=len(sizes)))
    rows, found = 0, []
    for sequence, start, size in zip(sequences, starts, sizes, strict=True):
        found.append(Rows(sequence, start, step if size > 1 else 1, size, rows))
        rows += size
    return tuple(found)


def positions(rows: tuple[Rows, ...]) -> list[tuple[int, int, int]]:
    """Return (sequence, position, local row) of each row."""
    return [
        (item.sequence, item.start + item.step * index, item.row + index)
        for item in rows
        for index in range(item.size)
    ]


@given(st.data(), st.integers(1, 9), BOUNDS, BOUNDS)
@settings(max_examples=100, deadline=None)
def test_rows_are_needed_as_a_look_at_every_pair_says(
    data: st.DataObject, step: int, left: int | None, right: int | None
) -> None:
    """However ranks' reaches are joined, exactly the rows that one of them sees are needed."""
    travelling = data.draw(stripes(step))
    asking = data.draw(st.lists(stripes(step), max_size=5))
    low = None if left is None else -left
    reach: Reach = {}
    for rows in asking:
        reach = join_reaches(reach, asked_by(rows, low, right))
    seen = [place for rows in asking for place in positions(rows)]
    expected = [
        (sequence, x, row)
        for sequence, x, row in positions(travelling)
        if any(
            sequence == other
            and (left is None or x >= y - left)
            and (right is None or x <= y + right)
            for other, y, _ in seen
        )
    ]
    needed = needed_rows(travelling, reach)
    assert positions(needed) == expected
    assert (needed is travelling) == (expected == positions(travelling))


def test_stripes_of_neighbours_become_one_interval() -> None:
    """A window as wide as the stripes are apart, or all stripes of a narrow one, leave no gaps."""
    world_size = 8
    ranks = [(Rows(0, rank, world_size, 100, 0),) for rank in range(world_size)]
    assert asked_by(ranks[3], -7, 0) == {0: ((-4, 796, 1, 1),)}
    reach = asked_by(ranks[0], -1, 0)
    assert reach == {0: ((-1, 1, 8, 100),)}
    for rows in ranks[1:-1]:
        reach = join_reaches(reach, asked_by(rows, -1, 0))
        assert len(reach[0]) == 1
    assert reach == {0: ((-1, 799, 1, 1),)}


def test_joining_what_adds_nothing_makes_nothing_new() -> None:
    """The larger of two reaches is returned as it is: what hangs on it is found again."""
    causal = [asked_by((Rows(0, start, 1, 10, 0),), None, 0) for start in (0, 50, 90)]
    for smaller, larger in pairwise(causal):
        assert join_reaches(larger, smaller) is larger
        assert join_reaches(smaller, larger) is larger
