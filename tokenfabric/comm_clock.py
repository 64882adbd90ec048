"""How long a rank has been communicating: in calls that exchange, in which it computes nothing."""

import time


class CommClock:
    """Seconds that `with clock:` blocks took, waits for slower ranks included.

    Two readings of a monotonic clock a block. Blocks do not nest, and one thread at a time has one:
    whose communication is measured computes and communicates in turns.

    Attributes:
        seconds: since the clock was made; read it before and after what is to be measured.
    """

    __slots__ = ("_entered_s", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0
        self._entered_s: float | None = None

    def __enter__(self) -> None:
        assert self._entered_s is None, "blocks of a clock do not nest"
        self._entered_s = time.perf_counter()

    def __exit__(self, *exc_info: object) -> None:
        assert self._entered_s is not None, "entered before"
        self.seconds += time.perf_counter() - self._entered_s
        self._entered_s = None
