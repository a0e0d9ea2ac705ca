"""Runs a grid of methods or switches times seeds, and compares them.

    python -m fedfr_jax.ablate --config=configs/ablation.py --workdir=runs/ablation

A configuration holds ``base`` (settings of a run), ``rows`` (pairs of a name and the settings
that it changes in the base, nested dictionaries), ``seeds``, ``vary`` (settings that are set to
the seed) and ``reference`` (the row that the others are compared with); ``tune``, described in
:mod:`fedfr_jax.ablation.tuning`, says how settings are chosen with ``--tune``. Every cell is a run
in a folder of its own. Finished cells are not run again, and a cell that fails does not stop the
others. Cells that start from the same pretrained backbone share it. Several processes may work on
one grid: start the same command once for each.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from fedfr_jax.ablation import comparison, tuning
from fedfr_jax.ablation.budgets import Course, course
from fedfr_jax.ablation.cells import (
    Cell,
    check_data,
    is_finished,
    make_cells,
    run_with_mates,
    summary_of,
)
from fedfr_jax.ablation.rows import Row
from fedfr_jax.ablation.sweep import gain_plot
from fedfr_jax.atomic import write_text
from fedfr_jax.config import to_dict
from fedfr_jax.engine import use_cpu_devices
from fedfr_jax.errors import ConfigError, InputError, InUseError
from fedfr_jax.reporting import result_table
from fedfr_jax.reporting.result_table import ResultTable
from fedfr_jax.runtime import workdir
from fedfr_jax.runtime.changes import changed_settings
from fedfr_jax.runtime.lock import holder_of

_POLL = 2.0  # seconds between looks at cells that other processes run


@dataclasses.dataclass(frozen=True)
class Grid:
    """What a configuration asks for; arguments as for :func:`make_cells`.

    Attributes:
      reference: the row that the others are compared with.
      search: how settings are chosen before, if at all.
    """

    base: Mapping[str, Any]
    rows: Sequence[Row]
    seeds: Sequence[int]
    vary: Sequence[str] = ("seed", "data.seed")
    reference: str = ""
    search: tuning.Tuning | None = None

    def cells(self) -> list[Cell]:
        """All runs; raises ConfigError as :func:`make_cells` does."""
        return make_cells(self.base, self.rows, self.seeds, self.vary)


def _check(names: Sequence[str], reference: str, only: str) -> None:
    """Raises ConfigError as described in :func:`run_grid`."""
    if reference not in names:
        raise ConfigError(
            f"reference is {reference!r}, which is none of the rows: {', '.join(names)}"
        )
    try:
        found = [name for name in names if re.search(only, name)]
    except re.error as error:
        raise ConfigError(f"only is {only!r}, which is no regular expression: {error}") from error
    if not found:
        raise ConfigError(f"only is {only!r}, which none of the rows matches: {', '.join(names)}")


def run_cells(
    cells: Sequence[Cell],
    root: pathlib.Path,
    report: Callable[[str], None] = print,
    after: Callable[[Cell, dict[str, str]], None] = lambda cell, failures: None,
) -> dict[str, str]:
    """Runs the cells that are not finished.

    Several processes may run the same cells in the same folder, on one machine or on several that
    share it: each takes the next one that is free, and waits at the end for those of the others.

    Args:
      after: called after every cell, with the failures so far.

    Returns:
      Cell -> error message, of those that failed here.

    Raises:
      InputError: the data cannot be read.
    """
    failures: dict[str, str] = {}
    waiting = ""

    def is_open(cell: Cell) -> bool:
        return not is_finished(cell, root / "cells" / cell.folder) and str(cell) not in failures

    check_data([cell for cell in cells if is_open(cell)])
    while still := [cell for cell in cells if is_open(cell)]:
        holders = [holder_of(root / "cells" / cell.folder) for cell in still]
        free = [cell for cell, holder in zip(still, holders, strict=True) if not holder]
        if not free:
            if waiting != str(still[0]):
                report(f"waiting for {still[0]}, which {holders[0]} is running")
            waiting = str(still[0])
            time.sleep(_POLL)
            continue
        cell = free[0]
        report(f"cell {cells.index(cell) + 1}/{len(cells)}: {cell}")
        try:
            failure = run_with_mates(cell, free, root, report)
        except InUseError:
            continue
        if failure:
            failures[str(cell)] = failure
            report(f"  failed: {failure}")
        after(cell, failures)
    return failures


def run_grid(
    cells: Sequence[Cell],
    root: str | os.PathLike,
    *,
    reference: str = "",
    only: str = "",
    title: str = "Ablation",
    report=print,
    chosen: ResultTable | None = None,
) -> comparison.Comparison:
    """Runs all unfinished cells; writes tables after every cell, the report after every seed.

    Args:
      cells: from :func:`make_cells`.
      root: the work directory: ``cells/<row>/seed<n>/``, ``pretrained/``, ``table.csv``,
        ``table.md``, ``report.html``, ``plots/``.
      reference: the row that the others are compared with; "": the first.
      only: regular expression; rows whose name does not match are not run, except the reference.
        Finished cells of the others still appear in the tables.
      report: called with a line per cell.
      chosen: how settings were chosen, for the report.

    Returns:
      The comparison of all finished cells.

    Raises:
      ConfigError: the reference is not one of the rows, or ``only`` is not a regular expression or
        matches no row.
      InputError: a cell in the work directory has other settings, or the data cannot be read.
    """
    root = pathlib.Path(root).expanduser()
    reference = reference or cells[0].row
    _check(list(dict.fromkeys(cell.row for cell in cells)), reference, only)
    for cell in cells:  # before any long work
        is_finished(cell, root / "cells" / cell.folder)
    use_cpu_devices(cells[0].config.engine.cpu_devices)  # reading the first data starts JAX
    wanted = [c for c in cells if c.row == reference or re.search(only, c.row)]

    def write(failures: dict[str, str], *, whole: bool) -> comparison.Comparison:
        found = dataclasses.replace(compare(cells, root, reference), chosen=chosen)
        comparison.write_tables(found, root)
        if whole:  # plots take seconds
            write_report(found, cells, root, failures, title)
        return found

    def after(cell: Cell, failures: dict[str, str]) -> None:
        seed = [c for c in wanted if c.seed == cell.seed]
        write(failures, whole=all(is_finished(c, root / "cells" / c.folder) for c in seed))

    failures = run_cells(wanted, root, report, after)
    return dataclasses.replace(write(failures, whole=True), failures=failures)


def tuned(
    grid: Grid, root: str | os.PathLike, only: str = "", report=print
) -> tuple[Grid, ResultTable]:
    """Chooses the settings of the rows by the grid's search, which runs in ``root / "tuning"``.

    Args:
      only: as for :func:`run_grid`; only these rows are in the grid that is returned, and those
        whose search is finished.

    Returns:
      (the grid with the chosen settings, a table of them).

    Raises:
      ConfigError: the configuration has no ``tune``, or no run of a row's search was finished.
    """
    search, reference = grid.search, grid.reference or grid.rows[0][0]
    if search is None:
        raise ConfigError("the configuration has no tune, which says what --tune searches")
    _check([name for name, _ in grid.rows], reference, only)
    folder = pathlib.Path(root).expanduser() / "tuning"
    wanted = {row for row, _ in grid.rows if row == reference or re.search(only, row)}
    wanted |= {search.like[row] for row in wanted & set(search.like)}
    cells = make_cells(grid.base, tuning.search_rows(search, grid.rows), search.seeds, grid.vary)
    use_cpu_devices(cells[0].config.engine.cpu_devices)
    names = {tuning.name_of(row, label) for row in wanted for label in search.searches.get(row, ())}
    run_cells([cell for cell in cells if cell.row in names], folder, report)
    found = tuning.choose(search, _summaries(cells, folder), wanted)
    rows = tuning.tuned_rows(grid.rows, search, found, reference, wanted)
    table = tuning.table(search, found)
    write_text(folder / "table.md", result_table.markdown(table))
    return dataclasses.replace(grid, rows=rows), table


def _summaries(cells: Sequence[Cell], root: pathlib.Path) -> dict[str, dict[int, Any]]:
    """Row -> seed -> results, of the cells that are finished."""
    found: dict[str, dict[int, Any]] = {}
    for cell in cells:
        summary = summary_of(root / "cells" / cell.folder)
        if summary is not None:
            found.setdefault(cell.row, {})[cell.seed] = summary
    return found


def compare(
    cells: Sequence[Cell], root: pathlib.Path, reference: str = ""
) -> comparison.Comparison:
    """The cells that are finished, compared; ``reference`` as for :func:`run_grid`."""
    summaries = _summaries(cells, root)
    per_client: dict[str, dict[int, Any]] = {}
    courses: dict[str, dict[int, Course]] = {}
    for cell in cells:
        folder, summary = root / "cells" / cell.folder, summaries.get(cell.row, {}).get(cell.seed)
        if summary is None:
            continue
        per_client.setdefault(cell.row, {})[cell.seed] = _per_client(folder)
        if (of_cell := _course(folder, summary)) is not None:
            courses.setdefault(cell.row, {})[cell.seed] = of_cell
    rows = list(dict.fromkeys(cell.row for cell in cells))
    return comparison.compare(
        {row: summaries[row] for row in rows if row in summaries},
        reference or rows[0],
        per_client,
        {row: courses[row] for row in rows if row in courses},
    )


def _course(folder: pathlib.Path, summary: Mapping[str, Any]) -> Course | None:
    """The course of a finished cell; None where it cannot be read."""
    try:
        return course(summary, workdir.read_metrics(folder))
    except InputError:
        return None


def _per_client(folder: pathlib.Path) -> dict[str, Any]:
    """The clients' values of a finished cell; none where they cannot be read."""
    try:
        return workdir.read_evaluation(folder)["per_client"]
    except InputError:
        return {}


def write_report(
    found: comparison.Comparison,
    cells: Sequence[Cell],
    root: pathlib.Path,
    failures: Mapping[str, str],
    title: str,
) -> None:
    """``report.html`` and ``plots/`` of a comparison."""
    gain = gain_plot(found)
    comparison.write_report(
        found,
        root,
        title,
        _changes(cells, found.reference),
        failures,
        [] if gain is None else [gain],
    )


def _changes(cells: Sequence[Cell], reference: str) -> dict[str, str]:
    """Per row, the settings in which it differs from the reference."""
    first = {cell.row: to_dict(cell.config) for cell in reversed(cells)}
    base = first.get(reference, {})
    return {
        row: ", ".join(f"{k} = {new}" for k, (_, new) in changed_settings(base, settings).items())
        or "–"
        for row, settings in reversed(first.items())
    }


def grid_of(config: ConfigDict) -> Grid:
    """The grid of a configuration file.

    Args:
      config: as the module's docstring says.

    Raises:
      ConfigError: a part is missing or wrong.
    """
    missing = [name for name in ("base", "rows", "seeds") if name not in config]
    if missing:
        raise ConfigError(f"{missing[0]} is missing; an ablation has base, rows and seeds")
    search = tuning.tuning_of(config.tune.to_dict(), config.rows) if "tune" in config else None
    grid = Grid(
        config.base.to_dict(),
        config.rows,
        config.seeds,
        config.get("vary", Grid.vary),
        config.get("reference", ""),
        search,
    )
    grid.cells()
    return grid
