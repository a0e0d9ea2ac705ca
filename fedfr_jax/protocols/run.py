"""Runs the protocol that the command's arguments ask for."""

from __future__ import annotations

import argparse
import pathlib
import sys

from fedfr_jax.data.landmarks import read_landmarks
from fedfr_jax.protocols import bins, ijb, model_arguments, tinyface
from fedfr_jax.protocols.output import publish
from fedfr_jax.runtime.interrupts import Stopped
from fedfr_jax.runtime.lock import WorkdirLock
from fedfr_jax.runtime.workdir import make_folder


def main(given: argparse.Namespace) -> None:
    """Runs the protocol that the arguments ask for."""
    model_arguments.check_model_arguments(given)
    if given.protocol == "bin":
        _bin(given)
        return
    folder = make_folder(given.workdir)
    with WorkdirLock(folder):
        try:
            (_ijb if given.protocol == "ijb" else _tinyface)(given, folder)
        except Stopped:
            print(
                f"Finished features are kept in {folder}; the same command continues.",
                file=sys.stderr,
            )
            raise


def _name(path: str) -> str:
    return pathlib.Path(path).expanduser().resolve().name


def _bin(given: argparse.Namespace) -> None:
    folder = make_folder(given.workdir) if given.workdir else None
    found = bins.run_bins(
        model_arguments.open_model(given),
        given.sets,
        mirror=given.mirror,
        fars=given.far or bins.FARS,
        batch_size=given.batch_size,
        workers=given.workers,
    )
    table = bins.table_of(found, _name(given.model), given.mirror)
    summary = {"model": given.model, **bins.summary_of(found, given.mirror)}
    publish([table], folder, summary)


def _ijb(given: argparse.Namespace, folder: pathlib.Path) -> None:
    options = ijb.Options(given.flip, given.norm, given.detector_score)
    meta, result = ijb.run_ijb(
        model_arguments.open_model(given),
        given.folder,
        folder,
        options=options,
        batch_size=given.batch_size,
        workers=given.workers,
    )
    tables = ijb.tables_of(meta, result, _name(given.model), options)
    ijb.write_roc(folder / "roc.csv", result)
    publish(tables, folder, {"model": given.model, **ijb.summary_of(meta, result, options)})


def _tinyface(given: argparse.Namespace, folder: pathlib.Path) -> None:
    landmarks = read_landmarks(given.landmarks) if given.landmarks else None
    data = tinyface.read_tinyface(given.folder)
    found, aligned = tinyface.run_tinyface(
        model_arguments.open_model(given),
        data,
        folder,
        landmarks=landmarks,
        mirror=given.mirror,
        batch_size=given.batch_size,
        workers=given.workers,
    )
    table = tinyface.table_of(data, found, aligned, _name(given.model), given.mirror)
    summary = tinyface.summary_of(data, found, aligned, given.mirror)
    publish([table], folder, {"model": given.model, **summary})
