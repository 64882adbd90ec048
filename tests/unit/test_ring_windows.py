"""Bands as windows of flash kernels: exactly the same pairs, and no negative bound."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenring.windows import Window, window_of_band

BOUND = st.none() | st.integers(-14, 14)


def pairs_of_band(
    q_rows: int, kv_rows: int, lower: int | None, upper: int | None
) -> set[tuple[int, int]]:
    return {
        (a, b)
        for a in range(q_rows)
        for b in range(kv_rows)
        if (lower is None or lower <= b - a) and (upper is None or b - a <= upper)
    }


def pairs_of_window(window: Window) -> set[tuple[int, int]]:
    """Return what a kernel computes that counts from the bottom right."""
    q_rows, kv_rows = window.q_stop - window.q_start, window.kv_stop - window.kv_start
    left = window.left
    lower = None if left is None else kv_rows - q_rows - left
    upper = None if window.right is None else kv_rows - q_rows + window.right
    inner = pairs_of_band(q_rows, kv_rows, lower, upper)
    return {(a + window.q_start, b + window.kv_start) for a, b in inner}


@given(st.integers(1, 10), st.integers(1, 10), BOUND, BOUND)
def test_window_has_the_pairs_of_the_band(
    q_rows: int, kv_rows: int, lower: int | None, upper: int | None
) -> None:
    expected = pairs_of_band(q_rows, kv_rows, lower, upper)
    window = window_of_band(q_rows, kv_rows, lower, upper)
    assert (pairs_of_window(window) if window else set()) == expected
    if window:
        # Kernels give a row without keys an lse of their own making: there is none.
        seen = {a for a, _ in expected}
        assert seen == set(range(window.q_start, window.q_stop))
        assert all(bound is None or bound >= 0 for bound in (window.left, window.right))


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ((4, 4, None, 0), Window(0, 4, 0, 4, None, 0)),
        ((4, 6, None, 1), Window(0, 4, 0, 5, None, 0)),
        ((4, 4, None, None), Window(0, 4, 0, 4, None, None)),
        ((4, 4, None, -4), None),
    ],
)
def test_examples(case: tuple[int, int, int | None, int | None], expected: Window | None) -> None:
    assert window_of_band(*case) == expected
