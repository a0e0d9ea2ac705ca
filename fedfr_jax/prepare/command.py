"""Prepares data once: checked, packed, divided, described. See docs/formats.md.

    python -m fedfr_jax.prepare --config=folder --config.data.root=FACES --out=DIR
    python -m fedfr_jax.prepare --source=folder --root=FACES --describe --out=DIR
    python -m fedfr_jax.prepare duplicates --source=folder --root=FACES
    python -m fedfr_jax.prepare labels --bin=lfw.bin --source=recordio --root=LFW --out=labels.npy

Each of the three has flags of its own: duplicates --help, labels --help.
"""

from __future__ import annotations

# ruff: noqa: PLC0415 (--help does not wait for JAX)
import pathlib
import sys
from typing import TYPE_CHECKING, Any

from absl import flags
from ml_collections import config_flags

import fedfr_jax
from fedfr_jax.data import SOURCES, open_source
from fedfr_jax.errors import InputError
from fedfr_jax.prepare.plan import CONTAINERS, PIXELS, UNREADABLE
from fedfr_jax.runtime.command_line import run_command
from fedfr_jax.runtime.interrupts import Stopped
from fedfr_jax.runtime.progress import track

if TYPE_CHECKING:
    from fedfr_jax.config import Config

_SHOWN = 20  # copies that are named where no folder is given


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
    from fedfr_jax.config import settings_of

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
    from fedfr_jax.prepare.finish import LEFT_OUT
    from fedfr_jax.prepare.prepare import prepare, verify_folder

    FLAGS = flags.FLAGS
    if FLAGS.verify:
        damaged = verify_folder(FLAGS.verify)
        if damaged:
            raise InputError("; ".join(damaged))
        print(f"{FLAGS.verify}: every file is as it was written")
        return
    config = _settings()
    if FLAGS.describe:
        from fedfr_jax.prepare.overview import overview

        overview(
            config,
            _opened(config),
            FLAGS.out,
            divided=FLAGS.config is not None,
            sheets=FLAGS.sheets,
        )
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
    flags.DEFINE_integer("sheets", 24, "Contact sheets of --describe, at most; spread evenly.")
    flags.DEFINE_string("verify", None, "Compare a prepared folder with its checksums, no more.")


def _define_labels_flags() -> None:
    _define_source_flags()
    flags.DEFINE_string("bin", None, "The verification set.", required=True)
    flags.DEFINE_string("out", None, "The .npy file that is written.", required=True)


def _labels() -> None:
    from fedfr_jax.data.verification import read_bin
    from fedfr_jax.prepare.labels import find_labels, save_labels
    from fedfr_jax.prepare.matching import SIDE

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


def _define_duplicates_flags() -> None:
    _define_source_flags()
    flags.DEFINE_list("bin", [], "Verification sets whose images are looked for, too.")
    flags.DEFINE_float("near", 0.98, "Least likeness of a near copy; with --model a cosine.")
    flags.DEFINE_string("model", None, "A face model that fedfr_jax.load_model opens.")
    flags.DEFINE_float("same_person", 0.7, "Cosine of people who may be one, with --model.")
    flags.DEFINE_string("out", None, "Folder of copies.csv and same_people.csv.")


def _duplicates() -> None:
    from fedfr_jax.data.verification import read_bin
    from fedfr_jax.prepare import duplicates as found
    from fedfr_jax.prepare.matching import SIDE
    from fedfr_jax.runtime.simulation import split_of

    FLAGS = flags.FLAGS
    model = _model(FLAGS.model) if FLAGS.model else None
    config = _settings(image_size=SIDE if model is None else model.image_size)
    source = _opened(config)
    split = split_of(config, source) if FLAGS.config is not None else None
    parts = found.parts_of(source, split)
    size, workers = config.data.image_size, config.data.workers
    sets = [found.part_of_pairs(read_bin(path, size, workers)) for path in FLAGS.bin]
    # Held-out images and those of the sets are looked for among those that are trained on.
    searched = [*(parts[1:] or parts), *sets]
    embed = None if model is None else model.embed
    copies = [
        copy
        for part in searched
        for copy in found.find_copies(part, parts[0], near=FLAGS.near, embed=embed)
    ]
    print(found.summary(copies))
    people = [] if embed is None else found.find_same_people(source, embed, FLAGS.same_person)
    if embed is not None:
        print(f"{len(people):,} pairs of names may be one person")
    if FLAGS.out is None:
        for copy in copies[:_SHOWN]:
            print(f"{copy.kind} {copy.likeness:.3f}: {copy.image} and {copy.other}")
        if len(copies) > _SHOWN:
            print(f"and {len(copies) - _SHOWN:,} more; --out=FOLDER writes all of them")
        for first, second, cosine in people[:_SHOWN]:
            print(f"one person? {cosine:.3f}: {first} and {second}")
        return
    folder = pathlib.Path(FLAGS.out).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    found.write_csv(folder / "copies.csv", found.HEADER, found.table_of(copies))
    if embed is not None:
        found.write_csv(folder / "same_people.csv", ("person", "other", "cosine"), people)
    print(f"written to {folder}")


def _model(path: str) -> Any:
    """A model with ``image_size`` and ``embed(images)``."""
    load_model = getattr(fedfr_jax, "load_model", None)
    if load_model is None:
        raise InputError("--model: this version of fedfr_jax cannot open models (load_model)")
    return load_model(path)


_COMMANDS = {
    "duplicates": (_define_duplicates_flags, _duplicates),
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
