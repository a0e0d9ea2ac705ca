"""The command ``python -m fedfr_jax.protocols`` (``fedfr-protocols``)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from fedfr_jax.protocols import model_arguments
from fedfr_jax.runtime.command_line import run_parsed


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
    one.add_argument("--far", type=float, nargs="+", help="false-accept rates (1e-3)")
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


def command(arguments: Sequence[str] | None = None) -> None:
    """The command; arguments are those of the process by default."""
    run_parsed(make_parser(), "fedfr_jax.protocols.run", arguments)


if __name__ == "__main__":
    command()
