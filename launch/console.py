"""A `Reporter` for a terminal: answers and tables on stdout, everything else on stderr."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Table as RichTable
from rich.text import Text

from launch.progress import Progress, Tell
from launch.report import Table

# Columns of a table that goes into a file or a pipe.
_FILE_WIDTH = 110


class ConsoleReporter:
    """Writes to this process's stdout and stderr.

    The answer is written as it is, without colour, wrapping or markup, so that a pipe receives
    exactly the model's text.
    """

    def __init__(self) -> None:
        self._out = Console(width=None if sys.stdout.isatty() else _FILE_WIDTH)
        self._err = _Terminal(stderr=True)

    def note(self, text: str) -> None:
        """Write one dim line to stderr."""
        self._err.print(Text(text, style="dim"), soft_wrap=True)

    def text(self, piece: str) -> None:
        """Write `piece` to stdout at once."""
        sys.stdout.write(piece)
        sys.stdout.flush()

    def table(self, table: Table) -> None:
        """Write a table to stdout."""
        drawn = RichTable(title=table.title, title_justify="left", title_style="bold")
        for idx, column in enumerate(table.columns):
            drawn.add_column(column, justify="left" if idx < table.num_text_columns else "right")
        for row in table.rows:
            drawn.add_row(*(Text(cell) for cell in row))
        self._out.print(drawn)
        for note in table.notes:
            self._out.print(Text(note, style="dim"))

    @contextmanager
    def live_progress(self) -> Iterator[Tell]:
        """Show a bar at the end of stderr, and notes above it; lines where stderr is no terminal.

        It is drawn when there is news and at no other time: no thread draws beside a computation.
        """
        if not self._err.is_terminal:
            yield lambda progress: self.note(progress.line())
            return
        with RichProgress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(),
            TextColumn("{task.description}"),
            console=self._err,
            auto_refresh=False,
        ) as bar:
            task = bar.add_task("", visible=False, total=None)

            def tell(progress: Progress) -> None:
                bar.update(
                    task,
                    completed=progress.done,
                    total=progress.total,
                    description=", ".join((*progress.facts, progress.remaining)),
                    visible=True,
                    refresh=True,
                )

            yield tell


class _Terminal(Console):
    """A console that leaves the cursor alone: a rank that is killed could not show it again."""

    def show_cursor(self, show: bool = True) -> bool:
        """Do nothing."""
        return False
