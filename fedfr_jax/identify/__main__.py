"""The command ``python -m fedfr_jax.identify`` (``fedfr-identify``)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from fedfr_jax.protocols import model_arguments
from fedfr_jax.runtime.command_line import run_parsed

_ABOUT = """Enrols people from folders of face images and identifies other images (1:N), or verifies
claims (1:1). Images are aligned crops, such as those of insightface's sets, or come with five
landmarks each (--landmarks) and are aligned here. Faces are not detected: use a detector first."""


def make_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="fedfr-identify", description=_ABOUT, epilog="See docs/identify.md."
    )
    add = parser.add_argument
    model_arguments.add_model_arguments(parser)
    add("--gallery", required=True, help="one folder of images per person")
    add("--probes", required=True, help="images, or one folder per person (then scored)")
    add("--out", required=True, help="where the results are written")
    add("--far", type=float, help="false-accept rate of 1:1 and 1:N (0.001)")
    add("--threshold", type=float, help="a cosine, in place of --far")
    add("--impostors", help="images of people who are not enrolled, to calibrate on")
    add("--calibrate", choices=("auto", "gallery", "card"), default="auto", help="see the docs")
    add("--landmarks", help="file of five points per image: name x1 y1 ... x5 y5")
    add("--claim", help="1:1: every probe claims to be this person")
    add("--claims", help="1:1: a CSV file of probe,person")
    add("--top", type=int, default=5, help="matches per probe (5)")
    add("--pictures", type=int, default=60, help="most probes shown in identify.html (60)")
    add("--mirror", action=argparse.BooleanOptionalAction, default=True, help="add mirror images")
    return parser


def command(arguments: Sequence[str] | None = None) -> None:
    """The command; arguments are those of the process by default."""
    run_parsed(make_parser(), "fedfr_jax.identify.run", arguments)


if __name__ == "__main__":
    command()
