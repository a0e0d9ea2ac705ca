"""The cells of a grid: a row with a seed, its run in a folder of its own, what cells share."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import logging

from fedfr_jax import experiment
from fedfr_jax.atomic import write_text
from fedfr_jax.config import Config, merged, nested, resolve, to_dict
from fedfr_jax.data import ImageSource, open_source
from fedfr_jax.data.types import remembering
from fedfr_jax.errors import ConfigError, InputError, InUseError
from fedfr_jax.experiment import Experiment, train
from fedfr_jax.reporting.figures import slug
from fedfr_jax.runtime import workdir
from fedfr_jax.runtime.autotune import seeds_at_once, settle
from fedfr_jax.runtime.changes import changes_of_run
from fedfr_jax.runtime.pretrained import copy_pretrained, pretrained_key
from fedfr_jax.settings import DataConfig

# Decided by measurement when the cell ran, or without effect on its results.
_RESETTLED = ("engine.", "model.dtype", "data.workers")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of the grid: ``row`` with ``seed``, its settings, and its folder's name."""

    row: str
    seed: int
    config: Config
    folder: str

    def __str__(self):
        return f"{self.row}, seed {self.seed}"


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
                settings = merged(settings, nested(setting, int(seed)))
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
    changed = changes_of_run(workdir.read_config(folder), to_dict(cell.config))
    changed = {k: v for k, v in changed.items() if not k.startswith(_RESETTLED)}
    if changed:
        what = "; ".join(f"{k}: {old!r} -> {new!r}" for k, (old, new) in changed.items())
        raise InputError(
            f"{folder} holds a run with other settings ({what}); choose "
            "another --workdir, or delete that folder to run it again"
        )
    # The report is the last file that a run writes.
    return (folder / "report.html").exists() and summary_of(folder) is not None


def summary_of(folder: pathlib.Path) -> dict[str, Any] | None:
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


def check_data(cells: Sequence[Cell]) -> None:
    """Opens the data of the first cell, so that a wrong path is one error and not one per cell.

    Raises:
      InputError: they cannot be read.
    """
    for cell in cells[:1]:
        _source(cell.config.data)


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

    Raises:
      InUseError: another process began it at the same time.
    """
    try:
        with _cell_folder(cell, root) as folder, _output(folder):
            train(cell.config, folder, resume=True, source=_source(cell.config.data))
    except InUseError:
        raise
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
    except InUseError:
        raise
    except Exception as error:
        report(f"  failed: {type(error).__name__}: {error}; now one after the other")
    return run_cell(cell, root)
