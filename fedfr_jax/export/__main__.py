"""Exports models of a run, or published weights.

    python -m fedfr_jax.export --workdir=runs/x --out=models/global
    python -m fedfr_jax.export --workdir=runs/x --client=3 --format=folder,jax,onnx --out=models/3
    python -m fedfr_jax.export --workdir=runs/x --clients=all --out=models
    python -m fedfr_jax.export --weights=backbone.pth --format=onnx --out=models/published

The run may still be training: its newest complete round is taken. See docs/export.md.
"""

from __future__ import annotations

# ruff: noqa: PLC0415 (--help does not wait for JAX)
import pathlib
from typing import TYPE_CHECKING

from absl import flags

from fedfr_jax.errors import InputError
from fedfr_jax.evaluation.names import OF_CLIENTS, SHARED
from fedfr_jax.export.options import FORMATS, INPUTS
from fedfr_jax.runtime.command_line import run_command
from fedfr_jax.runtime.progress import track

if TYPE_CHECKING:
    from fedfr_jax.export.saved import SavedRun

_MODELS = "Which clients' models, as 0,3 or all (also: global); each gets a folder below --out."


def main() -> None:
    """Exports what the flags ask for."""
    from fedfr_jax.export.write import check_formats

    given = flags.FLAGS
    if bool(given.workdir) == bool(given.weights):
        raise InputError("give one of --workdir (of a run) and --weights (a file)")
    formats = list(dict.fromkeys(given.format))
    check_formats(formats)
    out = pathlib.Path(given.out).expanduser()
    if given.weights:
        _published(pathlib.Path(given.weights).expanduser(), formats, out)
    else:
        _of_run(given.workdir, formats, out)


def _published(path: pathlib.Path, formats: list[str], out: pathlib.Path) -> None:
    from fedfr_jax.export.published import open_published
    from fedfr_jax.export.write import write_model

    given = flags.FLAGS
    if given.client is not None or given.clients or given.variant:
        raise InputError("--client, --clients and --variant choose models of a run, not of a file")
    model = open_published(path)
    print("\n".join(model.said), flush=True)
    written = write_model(
        model, model.weights, out, formats=formats, license=given.license, images=given.input
    )
    print(f"{', '.join(formats)} of {path}: " + (f"wrote {out}" if written else "had been written"))


def _of_run(workdir: str, formats: list[str], out: pathlib.Path) -> None:
    from fedfr_jax.export.saved import open_saved
    from fedfr_jax.export.write import check_folder, write_model

    given = flags.FLAGS
    with open_saved(workdir) as run:
        wanted = _wanted(run, out)
        for client, variant, folder in wanted:
            run.check(client, variant)
            check_folder(folder)
        written = 0
        with track("exporting", len(wanted), "model") as bar:
            for client, variant, folder in wanted:
                written += write_model(
                    run,
                    run.weights(client, variant),
                    folder,
                    formats=formats,
                    license=given.license,
                    images=given.input,
                )
                bar.update()
    kept = len(wanted) - written
    print(
        f"{', '.join(formats)} of round {run.round}: wrote {written} of {len(wanted)} to {out}"
        + (f"; {kept} had been written before" if kept else "")
    )


def _wanted(run: SavedRun, out: pathlib.Path) -> list[tuple[int | None, str | None, pathlib.Path]]:
    """(client or None, variant or None, folder) of each model that the flags ask for."""
    one, several, variant = flags.FLAGS.client, flags.FLAGS.clients, flags.FLAGS.variant
    if not several:
        return [(one, variant, out)]
    if one is not None:
        raise InputError("--client and --clients are both given; use one of them")
    if several == ["all"]:
        return [(client, variant, out / f"client-{client}") for client in range(run.clients)]
    found: list[tuple[int | None, str | None, pathlib.Path]] = []
    for name in dict.fromkeys(several):
        if name == "global":
            found.append((None, None, out / name))
        elif name.isascii() and name.isdigit() and len(name) < 10:
            found.append((int(name), variant, out / f"client-{int(name)}"))
        else:
            raise InputError(f"--clients={name!r}: give numbers as 0,3, or all, or global")
    return found


def command() -> None:
    """The command ``fedfr-export``."""
    flags.DEFINE_string("workdir", None, "Work directory of the run.")
    flags.DEFINE_string("weights", None, "Or a file of weights: .npz, .safetensors, .pth.")
    flags.DEFINE_string("out", None, "Folder to write into.", required=True)
    flags.DEFINE_integer("client", None, "Whose personalized model; without it the global one.")
    flags.DEFINE_list("clients", [], _MODELS)
    flags.DEFINE_enum(
        "variant", None, [*SHARED, *OF_CLIENTS], "Another of the models of the run or the client."
    )
    flags.DEFINE_list("format", ["folder"], f"Some of {','.join(FORMATS)}.")
    flags.DEFINE_enum("input", "uint8", INPUTS, "Type of the images that jax and onnx take.")
    flags.DEFINE_string("license", "", "Text for the field 'license' of the card.")
    run_command(main)


if __name__ == "__main__":
    command()
