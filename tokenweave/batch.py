"""The sequences of one forward pass, and what attention over some of their tokens reads. Pure."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from tokenfabric.errors import ConfigError


class Batch:
    """The sequences of one forward pass, one after the other: new tokens, and cached ones before.

    Immutable; two with the same sequences are equal.
    """

    def __init__(self, lengths: Sequence[int], past: Sequence[int] | int = 0) -> None:
        """Take the new tokens of each sequence, and the length of its cache (or of all of them).

        Raises:
            ConfigError: a length is below 1, a cache's below 0, or the two do not match.
        """
        self.lengths = tuple(lengths)
        self.past = (past,) * len(self.lengths) if isinstance(past, int) else tuple(past)
        if len(self.past) != len(self.lengths):
            raise ConfigError(
                f"{len(self.lengths)} sequences have {len(self.past)} cache lengths: one each"
            )
        if min(self.lengths, default=1) < 1 or min(self.past, default=0) < 0:
            raise ConfigError(
                f"sequences of {min(self.lengths)} new and {min(self.past)} cached tokens: at "
                "least 1 and 0 are needed"
            )
        self.starts = (0, *accumulate(self.lengths))
        """First token of each sequence in the flattened batch, and the end."""
        self.num_tokens = self.starts[-1]
        self._hash = hash((self.lengths, self.past))
        self._sums: dict[int | None, tuple[list[int], list[int], list[int]]] = {}

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Batch)
            and self._hash == other._hash
            and (self.lengths, self.past) == (other.lengths, other.past)
        )

    def __hash__(self) -> int:
        return self._hash

    def at(self, token: int) -> tuple[int, int, int]:
        """Return the range of flattened tokens of a token's sequence, and what is cached of it."""
        index = bisect_right(self.starts, token) - 1
        return self.starts[index], self.starts[index + 1], self.past[index]

    def is_start(self, token: int) -> bool:
        """Return whether a flattened token is the first of its sequence."""
        return self.at(token)[0] == token

    def attention(self, start: int, stop: int, window: int | None) -> "AttentionWork":
        """Return what the queries of flattened tokens [start, stop) see, themselves included."""
        if start >= stop:
            return AttentionWork(pairs=0, keys=0, longest=0)
        starts, past = self.starts, self.past
        first, last = bisect_right(starts, start) - 1, bisect_right(starts, stop - 1) - 1
        offset = past[first] - starts[first]
        if first == last:
            return _attention(start + offset, stop + offset, window)
        head = _attention(start + offset, starts[first + 1] + offset, window)
        tail = _attention(past[last], stop - starts[last] + past[last], window)
        pairs, keys, longest = self._whole(window)
        return AttentionWork(
            pairs=head.pairs + tail.pairs + pairs[last] - pairs[first + 1],
            keys=head.keys + tail.keys + keys[last] - keys[first + 1],
            longest=max(head.longest, tail.longest, *longest[first + 1 : last]),
        )

    def _whole(self, window: int | None) -> tuple[list[int], list[int], list[int]]:
        """Return sums over the sequences before each, of pairs and keys, and each one's longest."""
        found = self._sums.get(window)
        if found is None:
            ends = zip(self.past, self.lengths, strict=True)
            each = [_attention(past, past + length, window) for past, length in ends]
            found = self._sums[window] = (
                [0, *accumulate(it.pairs for it in each)],
                [0, *accumulate(it.keys for it in each)],
                [it.longest for it in each],
            )
        return found


class AttentionWork(NamedTuple):
    """What attention over a range of tokens reads."""

    pairs: int
    """Of a query and a key that it sees."""
    keys: int
    """Distinct keys, of all sequences."""
    longest: int
    """Keys that the last query sees, of the sequence where it is most."""


def _attention(first: int, end: int, window: int | None) -> AttentionWork:
    """Return what positions [first, end) of one sequence see."""
    if window is None:
        return AttentionWork((end * (end + 1) - first * (first + 1)) // 2, end, end)
    return AttentionWork(
        pairs=_seen(end, window) - _seen(first, window),
        keys=min(end, window + end - first),
        longest=min(end, window),
    )


def _seen(tokens: int, window: int) -> int:
    """Return the pairs of the first `tokens` tokens of a sequence."""
    if tokens <= window:
        return tokens * (tokens + 1) // 2
    return window * (window + 1) // 2 + (tokens - window) * window
