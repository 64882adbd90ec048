"""What becomes of worlds in a forked child: they are its parent's, and every use of them says so.

A child that went on with its parent's signals would answer for a rank that answers itself. The
native objects are kept in the child for good: their destructors would wait for threads that a fork
does not copy.
"""

import ctypes
import os
from collections.abc import Callable, Iterable
from functools import cache
from typing import Protocol


class LeftByFork(Protocol):
    """What must be told that it is in a child now."""

    def leave_to_parent(self) -> object:
        """Give up everything, destroy nothing; return what must never be destroyed here."""
        ...


@cache
def watch_forks(worlds: Callable[[], Iterable[LeftByFork]]) -> None:
    """From now on tell all that `worlds()` returns then, in every forked child.

    The same function is registered once, however often it is passed.
    """

    def leave_all() -> None:
        for world in tuple(worlds()):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(world.leave_to_parent()))

    os.register_at_fork(after_in_child=leave_all)
