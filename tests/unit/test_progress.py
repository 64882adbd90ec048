"""Progress: a bar on a terminal, lines elsewhere, notes for a reporter that shows neither."""

import contextlib
import os
import sys

import pytest

from launch.console import ConsoleReporter
from launch.progress import Progress, progress_of
from launch.report import Table

STEPS = [
    Progress(done=done, total=3, facts=(f"loss {4 - done}.5", "7 tokens/s"), remaining_s=left)
    for done, left in ((1, 3725.4), (2, 62.0), (3, 0.0))
]
LINES = [
    "step 1/3: loss 3.5, 7 tokens/s, 1:02:05 left",
    "step 2/3: loss 2.5, 7 tokens/s, 1:02 left",
    "step 3/3: loss 1.5, 7 tokens/s, 0:00 left",
]


class Notes:
    """A Reporter that keeps what it is told, as Ray's do."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)

    def text(self, piece: str) -> None:
        raise AssertionError(piece)

    def table(self, table: Table) -> None:
        raise AssertionError(table)


def read_all(descriptor: int) -> str:
    """Return what was written to a terminal whose other end is closed."""
    shown = b""
    with contextlib.suppress(OSError):  # Linux's way to say that it was all
        while piece := os.read(descriptor, 1 << 16):
            shown += piece
    os.close(descriptor)
    return shown.decode()


def test_a_reporter_of_notes_gets_lines() -> None:
    notes = Notes()
    with progress_of(notes) as tell:
        for step in STEPS:
            tell(step)
    assert notes.told == LINES


def test_a_pipe_gets_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_of(ConsoleReporter()) as tell:
        for step in STEPS:
            tell(step)
    assert capsys.readouterr().err.splitlines() == LINES


def test_a_terminal_gets_a_bar_and_keeps_its_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn again at each step, below what is noted meanwhile."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        reporter = ConsoleReporter()
        with progress_of(reporter) as tell:
            for step in STEPS:
                tell(step)
            reporter.note("wrote a checkpoint")
    shown = read_all(ours)
    for step in STEPS:
        assert f"step {step.done}/3" in shown
        assert ", ".join((*step.facts, step.remaining)) in shown
    assert shown.index("wrote a checkpoint") < shown.rindex("step 3/3")
    assert "\u2501" in shown
    assert "\x1b[?25l" not in shown  # the sequence that hides a cursor
