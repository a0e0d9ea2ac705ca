"""Tables of results, and how they look in a terminal and in Markdown."""

from __future__ import annotations

import dataclasses
import io
import re

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

MARK, NONE = "†", "–"  # for a rate that is not resolved; for a missing number


@dataclasses.dataclass(frozen=True)
class Cell:
    """One entry: its text, whether it is the best of its column, whether it is resolved."""

    text: str
    best: bool = False
    unresolvable: bool = False


@dataclasses.dataclass(frozen=True)
class ResultTable:
    """A table: ``columns`` headers, and per row a name and one cell per column.

    ``corner`` is the header of the names.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    notes: tuple[str, ...] = ()
    corner: str = "model"

    def __str__(self) -> str:
        text = io.StringIO()
        render([self], Console(file=text, force_jupyter=False))
        return text.getvalue()

    def _repr_markdown_(self) -> str:
        """For notebooks."""
        return f"**{self.title}**\n\n{markdown(self)}"


def _text(cell: Cell) -> str:
    return cell.text + (MARK if cell.unresolvable else "")


def render(tables: list[ResultTable], console: Console | None = None) -> None:
    """Prints tables to a terminal (stdout by default), the best of each column in bold.

    If stdout is not a terminal, nothing is cut off to fit its width.
    """
    # In Jupyter, printed tables are plain text, too, and can be redirected; to show a formatted
    # table there, display the table itself.
    console = Console(force_jupyter=False) if console is None else console
    for table in tables:
        if not console.is_terminal:
            console.width = max(
                console.width,
                40
                + sum(
                    4 + max(len(header), *(len(_text(cells[i])) for _, cells in table.rows))
                    for i, header in enumerate(table.columns)
                ),
            )
        drawn = RichTable()
        drawn.add_column(Text(table.corner), no_wrap=True)
        for header in table.columns:
            drawn.add_column(Text(header), justify="right")
        for name, cells in table.rows:
            drawn.add_row(
                Text(name),
                *(Text(_text(cell), style="bold green" if cell.best else "") for cell in cells),
            )
        console.print(Text(table.title, style="bold"))
        console.print(drawn)
        for note in table.notes:
            console.print(Text(note, style="dim"), soft_wrap=not console.is_terminal)
        console.print()


def markdown(table: ResultTable) -> str:
    """A table in Markdown (without its title): best in bold, notes below."""

    def safe(text):
        return re.sub(r"([\\|*_`<>\[\]])", r"\\\1", text.replace("\n", " "))

    lines = [
        f"| {safe(table.corner)} | " + " | ".join(safe(header) for header in table.columns) + " |",
        "|---|" + "---:|" * len(table.columns),
    ]
    for name, cells in table.rows:
        texts = [f"**{safe(_text(cell))}**" if cell.best else safe(_text(cell)) for cell in cells]
        lines.append(f"| {safe(name)} | " + " | ".join(texts) + " |")
    return "\n".join(lines + [""] + [safe(note) + "  " for note in table.notes]) + "\n"
