"""Where a recipe's output goes, as seen by the recipe.

The implementation for a terminal is in `console.py`; every rank but rank 0 gets a `SilentReporter`.
"""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A result as rows of text, ready to show."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    num_text_columns: int = 1
    """So many columns are aligned left, the ones after them right."""

    notes: tuple[str, ...] = ()
    """Sentences below the table: what was measured, and how."""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row needs {len(self.columns)} cells, got {len(row)}: {row}")


class Reporter(Protocol):
    """What a recipe may say to its user."""

    def note(self, text: str) -> None:
        """Say what is going on, in one line."""

    def text(self, piece: str) -> None:
        """Append a piece to the answer, as it is: no line break is added."""

    def table(self, table: Table) -> None:
        """Show a result."""


class SilentReporter:
    """Says nothing: the reporter of every rank but rank 0."""

    def note(self, text: str) -> None:
        """Drop `text`."""

    def text(self, piece: str) -> None:
        """Drop `piece`."""

    def table(self, table: Table) -> None:
        """Drop `table`."""
