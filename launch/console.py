"""A `Reporter` for a terminal: answers and tables on stdout, everything else on stderr."""

import sys

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

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
        self._err = Console(stderr=True)

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
