"""The command ``fedfr-convert``."""

from __future__ import annotations

# ruff: noqa: PLC0415 (--help does not wait for JAX)
import argparse
import pathlib
from collections.abc import Sequence

from fedfr_jax.errors import InputError
from fedfr_jax.runtime.command_line import run_parsed
from fedfr_jax.settings import DataConfig

_ABOUT = """Converts weights of face recognition networks: PyTorch's .pth, .safetensors, .npz, and
the models of a run's work directory. Architecture, depth, widths and size of the embedding are
found from the names and shapes of the arrays. See docs/weights.md."""


def command(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line and converts, checks, or both."""
    run_parsed(_parser(), run, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("fedfr-convert", description=_ABOUT)
    parser.add_argument("source", metavar="IN", help="file, or work directory of a run")
    parser.add_argument("target", metavar="OUT", nargs="?", help=".safetensors, .npz or .pth")
    parser.add_argument("--model", default="", help="the architecture, if it is not found")
    parser.add_argument("--channels", metavar="RGB|BGR", help="order that the network expects")
    parser.add_argument(
        "--scale", help="factor per grey level that the network expects, such as 1/127.5"
    )
    parser.add_argument("--eps", type=float, help="what the network's batch norm adds to variances")
    parser.add_argument("--source", dest="origin", help="where the weights come from, to record")
    parser.add_argument("--client", type=int, help="of a run: this client's own model")
    parser.add_argument(
        "--head", action="store_true", help="a client's transform and classifiers (bce_module)"
    )
    parser.add_argument(
        "--check", metavar="LFW.BIN", help="accuracy on a verification set, in RGB and in BGR"
    )
    return parser


def run(options: argparse.Namespace) -> None:
    """Converts, checks, or both.

    Raises:
      InputError: a file or an option cannot be used.
    """
    from fedfr_jax.convert import files
    from fedfr_jax.convert.check import check, verdict

    if options.target is None and not options.check:
        raise InputError("nothing to do: give OUT, or --check=lfw.bin")
    if options.target is not None:
        files.check_target(options.target)
    if options.head:
        _convert_head(options)
        return
    given = files.Given(
        options.model, options.channels, _number(options.scale), options.origin, options.eps
    )
    weights = (
        files.read_weights(options.source, given)
        if options.client is None
        else files.read_client(options.source, options.client, given)
    )
    print("\n".join(weights.said))
    if options.target is not None:
        files.write_weights(options.target, weights.file)
        print(f"written: {options.target}")
        if pathlib.Path(options.target).suffix.lower() in (".safetensors", ".npz"):
            size = weights.preprocessing.image_size
            other = "" if size == DataConfig().image_size else f" --config.data.image_size={size}"
            flags = f"--config.model.weights={options.target} {weights.structure.flags()}{other}"
            print(f"use it with {flags}")
    if options.check:
        results = check(weights, options.check)
        print("\n".join(verdict(results, weights.preprocessing.channels)))


def _convert_head(options: argparse.Namespace) -> None:
    from fedfr_jax.convert import files
    from fedfr_jax.convert.head import head_from_torch
    from fedfr_jax.models.weight_file import WeightFile

    if options.target is None or options.check:
        raise InputError("--head converts only: give OUT, and no --check")
    arrays = files.read_head_arrays(options.source, options.client)
    head = head_from_torch(arrays, options.source)
    people, d = head.binary_weight.shape
    print(f"found: a {head.kind} transform of {d} values and {people} binary classifiers")
    files.write_weights(options.target, WeightFile(arrays))
    print(f"written: {options.target}")


def _number(text: str | None) -> float | None:
    """A number, or a fraction such as 1/127.5."""
    if text is None:
        return None
    above, _, below = text.partition("/")
    try:
        return float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError) as error:
        raise InputError(f"--scale is {text!r}; give a number such as 1/127.5") from error
