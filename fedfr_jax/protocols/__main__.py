"""The command ``python -m fedfr_jax.protocols`` (``fedfr-protocols``)."""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence

from fedfr_jax.data.landmarks import read_landmarks
from fedfr_jax.protocols import bins, ijb, model_arguments, tinyface
from fedfr_jax.protocols.output import publish
from fedfr_jax.runtime.command_line import run_parsed
from fedfr_jax.runtime.interrupts import Stopped
from fedfr_jax.runtime.lock import WorkdirLock
from fedfr_jax.runtime.workdir import make_folder


def make_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="fedfr-protocols",
        description="Evaluates a model by a public protocol. See docs/identify.md.",
    )
    kinds = parser.add_subparsers(dest="protocol", required=True, metavar="PROTOCOL")
    one = kinds.add_parser("ijb", help="IJB-B or IJB-C, from the released folder (1:1 and 1:N)")
    one.add_argument("--folder", required=True, help="IJBB or IJBC: loose_crop/ and meta/")
    one.add_argument("--workdir", required=True, help="where features and results are written")
    for name, what in (
        ("flip", "add the features of the mirror image"),
        ("norm", "keep the length of an image's feature"),
        ("detector-score", "weight images with the detector's score"),
    ):
        one.add_argument(
            f"--{name}", action=argparse.BooleanOptionalAction, default=True, help=what
        )
    one = kinds.add_parser("bin", help="verification sets in .bin files, in one table")
    one.add_argument("--sets", required=True, nargs="+", metavar="FILE", help="lfw.bin, ...")
    one.add_argument("--workdir", help="where results are written; without it they are printed")
    one.add_argument(
        "--far", type=float, nargs="+", default=list(bins.FARS), help="false-accept rates (1e-3)"
    )
    _add_mirror(one)
    one = kinds.add_parser("tinyface", help="TinyFace, from the released folder (1:N)")
    one.add_argument("--folder", required=True, help="the folder of Testing_Set/")
    one.add_argument("--workdir", required=True, help="where features and results are written")
    one.add_argument("--landmarks", help="five points per image, to align those that it lists")
    _add_mirror(one)
    for one in kinds.choices.values():
        model_arguments.add_model_arguments(one)
    return parser


def _add_mirror(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mirror",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="add the features of the mirror image",
    )


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
        fars=given.far,
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


def command(arguments: Sequence[str] | None = None) -> None:
    """The command; arguments are those of the process by default."""
    run_parsed(make_parser(), main, arguments)


if __name__ == "__main__":
    command()
