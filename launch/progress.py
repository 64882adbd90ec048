"""How far a long job is: a bar that moves where there is a terminal, lines elsewhere."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from launch.report import Reporter


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where a job is after one of its steps."""

    done: int
    """Steps done, those of earlier starts included."""
    total: int
    facts: tuple[str, ...]
    """What the step came to, each in a few words."""
    remaining_s: float
    """Until the last step is done, if the others take as long."""

    def line(self) -> str:
        """Return it as a line of a log."""
        return f"step {self.done}/{self.total}: {', '.join((*self.facts, self.remaining))}"

    @property
    def remaining(self) -> str:
        """The time that is left, in words: "1:02:05 left"."""
        minutes, seconds = divmod(round(self.remaining_s), 60)
        hours, minutes = divmod(minutes, 60)
        clock = f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
        return f"{clock} left"


Tell = Callable[[Progress], None]


@runtime_checkable
class LiveReporter(Protocol):
    """A Reporter that can show a moving bar."""

    def live_progress(self) -> AbstractContextManager[Tell]:
        """Return what shows progress until it is left."""


def progress_of(reporter: Reporter) -> AbstractContextManager[Tell]:
    """Return what shows a job's progress until it is left: the reporter's own way, or its lines."""
    if isinstance(reporter, LiveReporter):
        return reporter.live_progress()
    return nullcontext(lambda progress: reporter.note(progress.line()))
