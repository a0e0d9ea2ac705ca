"""The command line of ``python -m fedfr_jax.prepare``."""

from __future__ import annotations

import pathlib
import sys
from typing import Any

from absl import flags
from ml_collections import config_flags

from fedfr_jax.config import Config, settings_of
from fedfr_jax.data import SOURCES, open_source
from fedfr_jax.errors import InputError
from fedfr_jax.prepare.plan import CONTAINERS, PIXELS, UNREADABLE
from fedfr_jax.runtime.command_line import run_command
from fedfr_jax.runtime.interrupts import Stopped
from fedfr_jax.runtime.progress import track


def _define_source_flags() -> None:
    config_flags.DEFINE_config_file(
        "config", None, "Settings, such as folder or lfw; --config.a.b=x changes one."
    )
    flags.DEFINE_string("source", None, f"data.source: {', '.join(SOURCES)}.")
    flags.DEFINE_string("root", None, "data.root: the folder of the images.")
    flags.DEFINE_string("name", None, "data.name: the data set, for --source=tfds.")
    flags.DEFINE_integer("image_size", None, "data.image_size: side of the images in pixels.")
    flags.DEFINE_integer("workers", None, "data.workers: threads; 0 = one per core.")


def _settings(**changes: Any) -> Config:
    """The configuration, with what the other flags say, and ``changes`` of ``data``."""
    names = ("source", "root", "name", "image_size", "workers")
    given: dict[str, Any] = {name: getattr(flags.FLAGS, name) for name in names}
    given = {name: value for name, value in given.items() if value is not None} | changes
    if flags.FLAGS.config is None and "source" not in given:
        raise InputError("say which data: --config=FILE, or --source=folder --root=FOLDER")
    return settings_of(flags.FLAGS.config, data=given)


def _opened(config: Config):
    with track("opening the data", None, "", keep=False):
        return open_source(config.data)


def _prepare() -> None:
    from fedfr_jax.prepare.finish import LEFT_OUT  # noqa: PLC0415
    from fedfr_jax.prepare.prepare import prepare, verify_folder  # noqa: PLC0415

    FLAGS = flags.FLAGS
    if FLAGS.verify:
        damaged = verify_folder(FLAGS.verify)
        if damaged:
            raise InputError("; ".join(damaged))
        print(f"{FLAGS.verify}: every file is as it was written")
        return
    config = _settings()
    if FLAGS.describe:
        from fedfr_jax.prepare.overview import overview  # noqa: PLC0415

        overview(config, _opened(config), FLAGS.out, divided=FLAGS.config is not None)
        return
    if FLAGS.out is None:
        raise InputError("--out is missing: the folder that receives the prepared data")
    try:
        manifest = prepare(
            _opened(config),
            FLAGS.out,
            config if FLAGS.config is not None else None,
            container=FLAGS.format,
            pixels=FLAGS.pixels,
            unreadable=FLAGS.unreadable,
            shard_images=FLAGS.shard_images,
            workers=config.data.workers,
            max_megapixels=config.data.max_megapixels,
        )
    except Stopped:
        print(f"the same command continues in {FLAGS.out}", file=sys.stderr)
        raise
    print(f"{FLAGS.out}: {manifest['images']:,} images of {manifest['identities']:,} people")
    if manifest["left_out"]:
        print(
            f"{manifest['left_out']:,} images could not be read and are left out; they are named "
            f"in {FLAGS.out}/{LEFT_OUT}"
        )
    kind = "recordio" if manifest["container"] == "recordio" else "prepared"
    print(f"read it with data.source={kind} and data.root={FLAGS.out}")


def _define_prepare_flags() -> None:
    _define_source_flags()
    flags.DEFINE_string("out", None, "The folder that is written; with --describe, of its plots.")
    flags.DEFINE_enum("format", "array_record", CONTAINERS, "What is written.")
    flags.DEFINE_enum(
        "pixels",
        "original",
        PIXELS,
        "Files as they are, or all as PNG of data.image_size pixels.",
    )
    flags.DEFINE_enum("unreadable", "leave_out", UNREADABLE, "What becomes of damaged images.")
    flags.DEFINE_integer("shard_images", 8192, "Images per shard.")
    flags.DEFINE_bool("describe", False, "Show what the data hold; prepare nothing.")
    flags.DEFINE_string("verify", None, "Compare a prepared folder with its checksums, no more.")


def _define_labels_flags() -> None:
    _define_source_flags()
    flags.DEFINE_string("bin", None, "The verification set.", required=True)
    flags.DEFINE_string("out", None, "The .npy file that is written.", required=True)


def _labels() -> None:
    from fedfr_jax.data.verification import read_bin  # noqa: PLC0415
    from fedfr_jax.prepare.labels import find_labels, save_labels  # noqa: PLC0415
    from fedfr_jax.prepare.matching import SIDE  # noqa: PLC0415

    FLAGS = flags.FLAGS
    if FLAGS.image_size not in (None, SIDE):
        raise InputError(f"--image_size: labels are found on {SIDE} pixels; leave it out")
    if not pathlib.Path(FLAGS.out).absolute().parent.is_dir():
        raise InputError(f"--out: the folder of {FLAGS.out} does not exist")
    config = _settings(image_size=SIDE)
    pairs = read_bin(
        FLAGS.bin, SIDE, config.data.workers, max_megapixels=config.data.max_megapixels
    )
    found = find_labels(pairs, _opened(config))
    save_labels(FLAGS.out, found.labels)
    print(f"{found.report()}\nwritten to {FLAGS.out}, for data.verification_labels")


_COMMANDS = {
    "": (_define_prepare_flags, _prepare),
    "labels": (_define_labels_flags, _labels),
}


def command() -> None:
    """The command ``fedfr-prepare``, with its subcommands."""
    first = sys.argv[1] if len(sys.argv) > 1 else ""
    name = sys.argv.pop(1) if first in _COMMANDS and first else ""
    define, run = _COMMANDS[name]
    define()
    run_command(run)
