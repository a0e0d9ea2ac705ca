"""Results of a protocol: printed, and written as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from fedfr_jax.atomic import write_text
from fedfr_jax.reporting.result_table import MARK, ResultTable, markdown, render
from fedfr_jax.runtime.json_file import write_json


def csv_text(rows: Sequence[Sequence[Any]]) -> str:
    """Rows as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _table_rows(tables: Sequence[ResultTable]) -> list[list[str]]:
    """One line per number, so that tables of different columns fit in one file."""
    rows = [["table", "row", "column", "value", "resolved"]]
    for table in tables:
        for name, cells in table.rows:
            for column, cell in zip(table.columns, cells, strict=True):
                rows.append(
                    [table.title, name, column, cell.text, "no" if cell.unresolvable else "yes"]
                )
    return rows


def publish(
    tables: Sequence[ResultTable], folder: pathlib.Path | None, summary: Mapping[str, Any]
) -> None:
    """Prints tables; with a folder also writes ``table.md``, ``table.csv`` and ``summary.json``."""
    render(list(tables))
    if folder is None:
        return
    text = "\n".join(f"**{table.title}**\n\n{markdown(table)}" for table in tables)
    write_text(folder / "table.md", text)
    write_text(folder / "table.csv", csv_text(_table_rows(tables)))
    write_json(folder / "summary.json", summary)
    print(f"written: {folder}/table.md, table.csv, summary.json")


def resolution_note(found: bool) -> tuple[str, ...]:
    """The note below a table with rates that the number of comparisons does not resolve."""
    if not found:
        return ()
    return (
        f"{MARK} fewer than one false accept is allowed at this rate: the threshold is the "
        "highest score of an impostor",
    )
