"""A band of visible pairs as one call of a flash kernel with a window. Pure.

Such a kernel counts from the bottom right: row a of Q rows sees row b of KV rows iff

    -left <= b - a - (KV - Q) <= right        left or right None: no bound

and takes no negative bound. With the rows cut off that see nothing, or that nobody sees, no bound
that is left over is negative.
"""

from typing import NamedTuple

from tokenring.tiles import trim


class Window(NamedTuple):
    """q rows [q_start, q_stop) over kv rows [kv_start, kv_stop)."""

    q_start: int
    q_stop: int
    kv_start: int
    kv_stop: int
    left: int | None
    right: int | None


def window_of_band(
    q_rows: int, kv_rows: int, lower: int | None, upper: int | None
) -> Window | None:
    """Return the window of all pairs (a, b) with lower <= b - a <= upper; None if there are none.

    Example: 4 q rows over 6 kv rows, upper 1: kv row 5 is seen by nobody, so 4 rows over 5, whose
    right bound counted from the bottom right is 0.
    """
    whole = trim(q_rows, kv_rows, lower, upper)
    if whole is None:
        return None
    excess = (whole.kv_stop - whole.kv_start) - (whole.q_stop - whole.q_start)
    right = None if whole.upper is None else whole.upper - excess
    left = None if whole.lower is None else excess - whole.lower
    for bound in (left, right):
        assert bound is None or bound >= 0, "see the head of the file"
    return Window(whole.q_start, whole.q_stop, whole.kv_start, whole.kv_stop, left, right)
