"""The figures of the benchmark: what was measured, beside what the tutorial says, as a table and as JSON."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Value = float | str | None


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
      row: which of the things that the tutorial shows.
      what: is measured.
      unit: of the three values; '' for a share.
      published: the tutorial's figure, on its machine.
      tutorial: the figure of the tutorial's code, here.
      shortlist: Shortlist's, here.
    """

    row: int
    what: str
    unit: str = ""
    published: Value = None
    tutorial: Value = None
    shortlist: Value = None

    def cells(self) -> list[str]:
        """Returns the line's texts."""
        values = (self.published, self.tutorial, self.shortlist)
        return [str(self.row), self.what, *(_shown(value, self.unit) for value in values)]


HEADER = ["", "measured", "the tutorial says", "its code, here", "Shortlist, here"]


def table_of(figures: Iterable[Figure]) -> str:
    """Returns the figures as a Markdown table."""
    return markdown([HEADER, *(each.cells() for each in figures)])


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table, aligned, whose first line is the header."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * width for width in widths]
    return "".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |\n"
        for line in [lines[0], rule, *lines[1:]]
    )


def _shown(value: Value, unit: str) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if not unit:
        return f"{value:.4f}"
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{text}{'' if unit == 'x' else ' '}{unit}"
