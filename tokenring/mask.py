"""Which positions see each other, as bands over rows. Pure.

A query at position p sees a key at position k of the same sequence iff -left <= k - p <= right.
Causal is right = 0. A causal window of W tokens is left = W - 1: positions p-W+1 .. p, W keys with
the query's own. Without causal, a window is the pair (left, right) around the query's own position.
"""

from dataclasses import dataclass

from tokenfabric.errors import ConfigError
from tokenring.blocks import Band


@dataclass(frozen=True, slots=True)
class Mask:
    """How far a query sees to either side, in positions; None is without end."""

    left: int | None = None
    right: int | None = None

    @property
    def is_two_sided(self) -> bool:
        return self.left is not None and self.right is not None


def make_mask(*, is_causal: bool, window: int | tuple[int, int] | None) -> Mask:
    """Return the mask that a caller's arguments mean.

    Raises:
        ConfigError: a window below 1, a negative side, or one number without causal.
    """
    if window is None:
        return Mask(None, 0 if is_causal else None)
    if isinstance(window, int):
        if window < 1:
            raise ConfigError(
                f"window is {window}: it counts the keys a query sees, its own among them, so pass "
                "at least 1, or None for no window"
            )
        if not is_causal:
            raise ConfigError(
                f"window={window} without causal is ambiguous: pass (left, right), the numbers of "
                "keys seen on either side of the query's own position"
            )
        return Mask(window - 1, 0)
    left, right = window
    if left < 0 or right < 0:
        raise ConfigError(f"window {window} has a negative side: pass 0 or more for each")
    return Mask(left, 0 if is_causal else right)


def band_between(
    mask: Mask,
    q_start: int,
    q_step: int,
    q_rows: int,
    kv_start: int,
    kv_step: int,
    kv_rows: int,
) -> Band | None:
    """Return which of the rows with evenly spaced positions see each other, None if none do.

    k - p = (kv_start - q_start) + step * (b - a), so that bounds on k - p become bounds on b - a. A
    bound that excludes nothing is None.

    Raises:
        ConfigError: the mask cuts through rows that are not equally far apart: no band is exact.
    """
    apart = kv_start - q_start
    q_extent, kv_extent = q_step * (q_rows - 1), kv_step * (kv_rows - 1)
    left, right = mask.left, mask.right
    if right is not None and apart + kv_extent <= right:
        right = None
    elif right is not None and apart - q_extent > right:
        return None
    if left is not None and apart - q_extent >= -left:
        left = None
    elif left is not None and apart + kv_extent < -left:
        return None
    if left is None and right is None:
        return Band(None, None)
    step = kv_step if q_rows == 1 else q_step
    if step != kv_step and kv_rows > 1:
        raise ConfigError(
            f"a mask cannot be planned between queries {q_step} and keys {kv_step} positions "
            "apart; partition both in the same way"
        )
    upper = None if right is None else (right - apart) // step
    lower = None if left is None else -((left + apart) // step)
    if upper is not None and upper >= kv_rows - 1:
        upper = None
    if lower is not None and lower <= 1 - q_rows:
        lower = None
    if (
        (upper is not None and upper < 1 - q_rows)
        or (lower is not None and lower > kv_rows - 1)
        or (lower is not None and upper is not None and lower > upper)
    ):
        return None
    return Band(lower, upper)


def count_pairs(band: Band, q_rows: int, kv_rows: int) -> int:
    """Return how many pairs (a, b) of 0 <= a < q_rows, 0 <= b < kv_rows are in the band."""
    upper = q_rows * kv_rows if band.upper is None else _pairs_below(band.upper, q_rows, kv_rows)
    return upper if band.lower is None else upper - _pairs_below(band.lower - 1, q_rows, kv_rows)


def _pairs_below(bound: int, q_rows: int, kv_rows: int) -> int:
    """Return how many pairs have b - a <= bound: the sum over a of min(max(a + bound + 1, 0), m)"""

    def clamped_sum(last: int) -> int:
        if last <= 0:
            return 0
        if last <= kv_rows:
            return last * (last + 1) // 2
        return kv_rows * (kv_rows + 1) // 2 + (last - kv_rows) * kv_rows

    return clamped_sum(q_rows + bound) - clamped_sum(bound)
