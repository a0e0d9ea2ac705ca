"""Runs a grid of methods or switches times seeds, and compares them.

    python -m fedfr_jax.ablate --config=configs/ablation.py --workdir=runs/ablation

A configuration holds ``base`` (settings of a run), ``rows`` (pairs of a name and the settings
that it changes in the base, nested dictionaries), ``seeds``, ``vary`` (settings that are set to
the seed) and ``reference`` (the row that the others are compared with). Every cell is a run in a
folder of its own. Finished cells are not run again, and a cell that fails does not stop the
others. Cells that start from the same pretrained backbone share it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import pathlib
import re
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from fedfr_jax import experiment
from fedfr_jax.ablation import comparison
from fedfr_jax.atomic import write_text
from fedfr_jax.config import Config, merged, resolve, to_dict
from fedfr_jax.data import ImageSource, open_source
from fedfr_jax.data.types import remembering
from fedfr_jax.errors import ConfigError, InputError
from fedfr_jax.experiment import Experiment, train
from fedfr_jax.reporting.figures import slug
from fedfr_jax.runtime import workdir
from fedfr_jax.runtime.autotune import seeds_at_once, settle
from fedfr_jax.runtime.changes import changed_settings
from fedfr_jax.runtime.pretrained import copy_pretrained, pretrained_key
from fedfr_jax.runtime.simulation import use_cpu_devices
from fedfr_jax.settings import DataConfig

_RESETTLED = ("engine.", "model.dtype")  # decided by measurement when the cell ran


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of the grid: ``row`` with ``seed``, its settings, and its folder's name."""

    row: str
    seed: int
    config: Config
    folder: str

    def __str__(self):
        return f"{self.row}, seed {self.seed}"


def _nested(setting: str, value: Any) -> dict[str, Any]:
    for part in reversed(setting.split(".")):
        value = {part: value}
    return value


def make_cells(
    base: Mapping[str, Any],
    rows: Sequence[tuple[str, Mapping[str, Any]]],
    seeds: Sequence[int],
    vary: Sequence[str] = ("seed", "data.seed"),
) -> list[Cell]:
    """All runs of a grid, seed by seed, so that complete tables are available early.

    Raises:
      ConfigError: a row's settings are wrong, or two rows would share a folder.
    """
    names = [slug(name) for name, _ in rows]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"rows: two of them would use the folder {name!r}; give them names "
                "that differ in their letters a to z or digits"
            )
    if not rows or not seeds:
        raise ConfigError("rows and seeds: an ablation needs at least one of each")
    cells = []
    for seed in seeds:
        for (name, changes), folder in zip(rows, names, strict=True):
            settings = merged(base, changes)
            for setting in vary:
                settings = merged(settings, _nested(setting, int(seed)))
            try:
                config = resolve(settings)
            except ConfigError as error:
                raise ConfigError(f"row {name!r}: {error}") from error
            cells.append(Cell(name, int(seed), config, f"{folder}/seed{seed}"))
    return cells


def is_finished(cell: Cell, folder: pathlib.Path) -> bool:
    """Whether the cell was run to its end.

    Raises:
      InputError: it was run or begun with other settings.
    """
    if not (folder / workdir.CONFIG).exists():
        return False
    changed = changed_settings(workdir.read_config(folder), to_dict(cell.config))
    changed = {k: v for k, v in changed.items() if not k.startswith(_RESETTLED)}
    if changed:
        what = "; ".join(f"{k}: {old!r} -> {new!r}" for k, (old, new) in changed.items())
        raise InputError(
            f"{folder} holds a run with other settings ({what}); choose "
            "another --workdir, or delete that folder to run it again"
        )
    # The report is the last file that a run writes.
    return (folder / "report.html").exists() and _summary(folder) is not None


def _summary(folder: pathlib.Path) -> dict[str, Any] | None:
    """The results of a cell; None if there are none, or (with a warning) if they are damaged.

    Such a cell is resumed, which evaluates it again.
    """
    if not (folder / workdir.SUMMARY).exists():
        return None
    try:
        return workdir.read_summary(folder)
    except InputError as error:
        logging.warning("%s; the cell counts as not finished", error)
        return None


def pretrained_folder(root: pathlib.Path, config: Config) -> pathlib.Path:
    """Where the backbone that this cell starts from is kept for the others."""
    return root / "pretrained" / pretrained_key(config)


@functools.lru_cache(maxsize=1)  # cells come seed after seed
def _source(config: DataConfig) -> ImageSource:
    """The data of a seed's cells, read only once if they may stay in memory."""
    source = open_source(config)
    size = len(source.labels) * source.image_size**2 * 3
    return remembering(source) if size <= config.resident_gib * 2**30 else source


@contextlib.contextmanager
def _cell_folder(cell: Cell, root: pathlib.Path):
    """The cell's folder; shares its pretrained backbone with the cells that use the same one."""
    folder, shared = root / "cells" / cell.folder, pretrained_folder(root, cell.config)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "error.txt").unlink(missing_ok=True)
    copy_pretrained(shared, folder / "pretrained")
    try:
        yield folder
    finally:
        copy_pretrained(folder / "pretrained", shared)


@contextlib.contextmanager
def _output(folder: pathlib.Path):
    with (
        open(folder / "output.txt", "a", encoding="utf-8") as output,
        contextlib.redirect_stdout(output),
    ):
        yield


def run_cell(cell: Cell, root: pathlib.Path) -> str | None:
    """Runs or resumes one cell that is not finished; returns an error message, or None.

    The run's output is in ``output.txt`` of its folder, an error in ``error.txt``.
    """
    try:
        with _cell_folder(cell, root) as folder, _output(folder):
            train(cell.config, folder, resume=True, source=_source(cell.config.data))
    except Exception as error:
        return f"{type(error).__name__}: {error}{_keep_error(root / 'cells' / cell.folder)}"
    finally:
        jax.clear_caches()  # otherwise a long grid would keep every cell's programs
    return None


def _keep_error(folder: pathlib.Path) -> str:
    """Writes the current traceback into a cell's folder; returns "" or why it could not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "error.txt", traceback.format_exc())
    except OSError as error:  # the grid continues: other cells may be elsewhere, or fit
        return f" (and {folder / 'error.txt'} cannot be written: {error})"
    return ""


def run_side_by_side(cells: Sequence[Cell], root: pathlib.Path) -> None:
    """Runs cells that differ only in ``seed`` in one program.

    Raises:
      Exception: any error of one of the runs; finished work is kept.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(jax.clear_caches)
        experiments = []
        for cell in cells:
            folder = stack.enter_context(_cell_folder(cell, root))
            with _output(folder):
                experiments.append(
                    stack.enter_context(
                        Experiment(
                            cell.config, folder, resume=True, source=_source(cell.config.data)
                        )
                    )
                )
        experiment.run_side_by_side(experiments)
        for one in experiments:
            with _output(one.folder):
                one.evaluate(show=True)


def mates(cell: Cell, cells: Sequence[Cell]) -> list[Cell]:
    """The cells that can share one program with this one, itself first.

    As many as fit into the lanes that one cohort leaves empty; the best number of lanes is
    measured unless ``engine.lanes`` is set. On a CPU lanes do not help and nothing is measured.
    """
    others = [
        c
        for c in cells
        if c.row == cell.row
        and c.seed != cell.seed
        and c.config == dataclasses.replace(cell.config, seed=c.config.seed)
    ]
    unmeasured = not cell.config.engine.lanes and jax.default_backend() == "cpu"
    fed, population = cell.config.fed, cell.config.population
    # Seeds draw different cohorts, unless all clients take part.
    drawn = 0 < population.cohort < fed.num_clients and population.sampling != "schedule"
    if not others or not cell.config.rounds or unmeasured or drawn:
        return [cell]
    settled = settle(cell.config, seeds=1 + len(others), report=lambda line: None)
    return [cell, *others][: seeds_at_once(settled)]


def run_with_mates(
    cell: Cell, cells: Sequence[Cell], root: pathlib.Path, report=print
) -> str | None:
    """Runs a cell, in parallel with others that fit; returns its error message, or None.

    Args:
      cells: those that are not finished, ``cell`` among them.
    """
    try:
        together = mates(cell, cells)
        if len(together) > 1:
            report(f"  side by side with seeds {', '.join(str(c.seed) for c in together[1:])}")
            run_side_by_side(together, root)
            return None
    except Exception as error:
        report(f"  failed: {type(error).__name__}: {error}; now one after the other")
    return run_cell(cell, root)


def _wanted(cells: Sequence[Cell], reference: str, only: str) -> list[Cell]:
    """The cells to run; raises ConfigError as described in :func:`run_grid`."""
    names = list(dict.fromkeys(cell.row for cell in cells))
    if reference not in names:
        raise ConfigError(
            f"reference is {reference!r}, which is none of the rows: {', '.join(names)}"
        )
    try:
        wanted = [c for c in cells if c.row == reference or re.search(only, c.row)]
    except re.error as error:
        raise ConfigError(f"only is {only!r}, which is no regular expression: {error}") from error
    if only and not any(re.search(only, name) for name in names):
        raise ConfigError(f"only is {only!r}, which none of the rows matches: {', '.join(names)}")
    return wanted


def run_grid(
    cells: Sequence[Cell],
    root: str | os.PathLike,
    *,
    reference: str = "",
    only: str = "",
    title: str = "Ablation",
    report=print,
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

    Returns:
      The comparison of all finished cells.

    Raises:
      ConfigError: the reference is not one of the rows, or ``only`` is not a regular expression or
        matches no row.
      InputError: a cell in the work directory has other settings.
    """
    root = pathlib.Path(root).expanduser()
    reference = reference or cells[0].row
    wanted = _wanted(cells, reference, only)

    def finished(cell):
        return is_finished(cell, root / "cells" / cell.folder)

    for cell in cells:  # before any long work
        finished(cell)
    use_cpu_devices(cells[0].config.engine.cpu_devices)  # reading the first data starts JAX
    failures: dict[str, str] = {}
    for number, cell in enumerate(wanted, start=1):
        report(f"cell {number}/{len(wanted)}: {cell}" + (" (finished)" if finished(cell) else ""))
        if finished(cell):
            continue
        open_cells = [c for c in wanted if not finished(c) and str(c) not in failures]
        failure = run_with_mates(cell, open_cells, root, report)
        if failure:
            failures[str(cell)] = failure
            report(f"  failed: {failure}")
        found = compare(cells, root, reference)
        comparison.write_tables(found, root)
        if number < len(wanted) and wanted[number].seed != cell.seed:  # plots take seconds
            write_report(found, cells, root, failures, title)
    found = compare(cells, root, reference)
    comparison.write_tables(found, root)
    write_report(found, cells, root, failures, title)
    return dataclasses.replace(found, failures=failures)


def compare(
    cells: Sequence[Cell], root: pathlib.Path, reference: str = ""
) -> comparison.Comparison:
    """The cells that are finished, compared; ``reference`` as for :func:`run_grid`."""
    summaries: dict[str, dict[int, Any]] = {}
    per_client: dict[str, dict[int, Any]] = {}
    for cell in cells:
        folder = root / "cells" / cell.folder
        summary = _summary(folder)
        if summary is not None:
            summaries.setdefault(cell.row, {})[cell.seed] = summary
            per_client.setdefault(cell.row, {})[cell.seed] = _per_client(folder)
    rows = list(dict.fromkeys(cell.row for cell in cells))
    return comparison.compare(
        {row: summaries[row] for row in rows if row in summaries}, reference or rows[0], per_client
    )


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
    comparison.write_report(found, root, title, _changes(cells, found.reference), failures)


def _changes(cells: Sequence[Cell], reference: str) -> dict[str, str]:
    """Per row, the settings in which it differs from the reference."""
    first = {cell.row: to_dict(cell.config) for cell in reversed(cells)}
    base = first.get(reference, {})
    return {
        row: ", ".join(f"{k} = {new}" for k, (_, new) in changed_settings(base, settings).items())
        or "–"
        for row, settings in reversed(first.items())
    }


def grid_of(config: ConfigDict) -> tuple[list[Cell], str]:
    """(cells, reference) of a configuration file.

    Args:
      config: as the module's docstring says.

    Raises:
      ConfigError: a part is missing or wrong.
    """
    missing = [name for name in ("base", "rows", "seeds") if name not in config]
    if missing:
        raise ConfigError(f"{missing[0]} is missing; an ablation has base, rows and seeds")
    return make_cells(
        config.base.to_dict(), config.rows, config.seeds, config.get("vary", ("seed", "data.seed"))
    ), config.get("reference", "")
