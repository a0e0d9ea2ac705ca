"""What is fuzzed: for each reader of files a function of bytes, and files to start from.

A target reads the bytes right or raises ``InputError``; everything else is a finding. Readers of
several files take the first byte as the number of the file that is spoilt. Checksums are made again
where a reader compares one, so that what lies behind it is reached: an attacker can compute them.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import pickle
import shutil
from unittest import mock

import numpy as np
from fuzz_files import (
    Target,
    archive,
    edited,
    in_folder,
    of_file,
    picked,
    saved,
    seeds_of,
    with_check,
)
from PIL import Image

from fedfr_jax.config import resolve, to_dict
from fedfr_jax.config.whole import Config
from fedfr_jax.data import prepared
from fedfr_jax.data.arrays import load_array, load_arrays
from fedfr_jax.data.decode import decode_images
from fedfr_jax.data.landmarks import read_landmarks
from fedfr_jax.data.recordio import open_recordio
from fedfr_jax.data.recordio_format import write_recordio
from fedfr_jax.data.safetensors_file import load_safetensors
from fedfr_jax.data.split_file import load_split
from fedfr_jax.data.verification import read_bin
from fedfr_jax.evaluation import ijb
from fedfr_jax.export import card
from fedfr_jax.models.preprocessing import Preprocessing
from fedfr_jax.models.weight_file import Structure, WeightFile, read_weight_file, write_weight_file
from fedfr_jax.population import journal, sampling
from fedfr_jax.population.pace import read_numbers
from fedfr_jax.population.store import RowStore
from fedfr_jax.runtime import checkpoints, fingerprints, workdir
from fedfr_jax.settings import ModelConfig

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 9, 9, 3), dtype=np.uint8)


def encoded(kind: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(PIXELS[0]).save(out, kind)
    return out.getvalue()


# --- images and data sets ------------------------------------------------------------------


@functools.cache
def recordio() -> dict[str, bytes]:
    return in_folder(
        lambda folder: write_recordio(folder, PIXELS, np.array([0, 0, 1, 1]), image_format="PNG")
    )


def read_recordio(folder):
    source = open_recordio(folder, 9)
    source.read(np.arange(len(source.labels)))


def spoilt(name):
    def read(data, folder):
        for other, content in recordio().items():
            (folder / other).write_bytes(data if other == name else content)
        read_recordio(folder)

    return Target(read, lambda: [recordio()[name]])


@functools.cache
def prepared_folder() -> dict[str, bytes]:
    from fedfr_jax.data.folder import open_folder  # noqa: PLC0415 (only here)
    from fedfr_jax.prepare.prepare import prepare  # noqa: PLC0415

    def make(folder):
        for person in range(2):
            (folder / "in" / str(person)).mkdir(parents=True)
            for k in range(2):
                image = Image.fromarray(PIXELS[2 * person + k])
                image.save(folder / "in" / str(person) / f"{k}.png")
        prepare(open_folder(folder / "in", 9), folder / "out", shard_images=4)
        shutil.rmtree(folder / "in")

    files = in_folder(make)
    return {name.removeprefix("out/"): x for name, x in files.items() if not name.endswith("lock")}


def read_prepared(folder):
    with mock.patch.object(prepared, "verify", lambda folder, file: None):
        source = prepared.open_prepared(folder, 9, workers=1)
        numbers = np.arange(min(len(source.labels), 16))
        source.check(numbers)
        source.read(numbers)
        source.name_of(0)


IJB = {
    "ijbc_face_tid_mid.txt": b"a.jpg 10 1\nb.jpg 11 2\n",
    "ijbc_name_5pts_score.txt": b"a.jpg 1 2 3 4 5 6 7 8 9 10 0.9\nb.jpg 1 2 3 4 5 6 7 8 9 10 1\n",
    "ijbc_template_pair_label.txt": b"10 11 0\n10 10 1\n",
    "ijbc_1N_gallery_G1.csv": b"T,S\n10,1\n",
    "ijbc_1N_gallery_G2.csv": b"T,S\n11,2\n",
    "ijbc_1N_probe_mixed.csv": b"T,S\n10,1\n11,2\n",
}


# --- a run's files -------------------------------------------------------------------------


def read_settings(path):
    resolve(workdir.read_config(path.parent))


def read_summary(path):
    path.write_bytes(with_check(path.read_bytes(), workdir._CHECK, workdir._digest))
    workdir.read_summary(path.parent)


def read_fingerprint(path):
    path.write_bytes(with_check(path.read_bytes(), "check", fingerprints._check))
    found = fingerprints.read_fingerprint(path.parent)
    fingerprints.compare(path.parent, found, found)


EXAMPLE = {"a": np.zeros(2, np.float32), "b": np.int32(0)}


@functools.cache
def store() -> dict[str, bytes]:
    def make(folder):
        with RowStore(EXAMPLE, 5, folder / "heads.rows") as rows:
            for done in (1, 2):
                clients = np.array([0, done + 1])
                values = {"a": np.full((2, 2), done, np.float32), "b": np.arange(2, dtype=np.int32)}
                rows.write(clients, values, done)
                rows.commit(done)
                rows.retain([done])

    return in_folder(make)


def sealed_store(name, content):
    return with_check(content, "check", journal._check) if name.endswith(".json") else content


def read_store(folder):
    with RowStore(EXAMPLE, 5, folder / "heads.rows") as rows:
        for done in rows.rounds[:4]:
            rows.check(done)
        if rows.rounds:
            rows.rewind(rows.rounds[-1])
        rows.read(np.arange(5))
        rows.touched()


TREE = {"a": np.arange(3, dtype=np.float32), "b": np.zeros((2, 2), np.float32)}


@functools.cache
def checkpoint() -> dict[str, bytes]:
    return in_folder(lambda folder: checkpoints.save_pytree(folder / "saved", TREE))


def read_checkpoint(folder):
    checkpoints.load_pytree(folder / "saved", TREE)


def read_card(path):
    path.write_bytes(with_check(path.read_bytes(), card._CHECK, card._digest))
    card.architecture_of(card.read_card(path.parent), path)


def a_card() -> bytes:
    model = ModelConfig(name="spherenet", depth=4, widths=(2, 2, 2, 2), embedding=2)
    architecture = dataclasses.asdict(card.Architecture.of(model, 16))
    files = {card.WEIGHTS: {"bytes": 3, "sha256": "0" * 64}}
    groups = {"model": {"variant": "global", "client": None}, "training": {}, "metrics": {}}
    whole = {
        "format": card.FORMAT,
        "version": card.VERSION,
        "architecture": architecture,
        "preprocessing": card.preprocessing(16),
        "license": "",
        "files": files,
    }
    return json.dumps(whole | groups).encode()


# --- weights -------------------------------------------------------------------------------


@functools.cache
def weights() -> dict[str, bytes]:
    arrays = {"conv.weight": np.ones((2, 1, 3, 3), np.float32), "n": np.int64(1)}
    file = WeightFile(arrays, Preprocessing(), Structure("spherenet", 4, (2, 2, 2, 2), 2, 1e-5))

    def make(folder):
        for name in ("x.safetensors", "x.npz"):
            write_weight_file(folder / name, file)

    return in_folder(make)


def read_weights(folder):
    read_weight_file(folder / "x.npz")
    load_safetensors(folder / "x.safetensors")
    read_weight_file(folder / "x.safetensors")


def a_set() -> list[bytes]:
    blobs = [encoded("PNG")] * 2 + [encoded("JPEG")] * 2
    return [pickle.dumps((blobs, [True, False]), protocol) for protocol in (0, 2, 4)]


def a_split() -> bytes:
    from fedfr_jax.data.split import make_split  # noqa: PLC0415 (only here)
    from fedfr_jax.data.split_file import save_split  # noqa: PLC0415
    from fedfr_jax.settings import SplitConfig  # noqa: PLC0415

    settings = SplitConfig(
        identities_per_client=(1, 1), client_images=(1, 9), verification_images=1
    )
    labels = np.repeat(np.arange(4), 3)
    files = in_folder(lambda f: save_split(f / "x.npz", make_split(labels, 2, settings, 0)))
    return files["x.npz"]


def an_evaluation() -> bytes:
    curve = {"a": {"b": (np.arange(3.0), np.arange(3.0))}}
    files = in_folder(
        lambda f: workdir.write_evaluation(
            f, rocs=curve, per_client={"m": {"b": np.arange(2.0)}}, faces=PIXELS[None, :2]
        )
    )
    return files[workdir.EVALUATION]


def a_line() -> bytes:
    from fedfr_jax.runtime.metrics_file import line_of  # noqa: PLC0415 (only here)

    return (line_of({"kind": "round", "round": 1, "loss": 0.5}) * 2).encode()


def a_config() -> bytes:
    # The settings of a run, without most of the groups: short files are better to change.
    found = to_dict(Config())
    return json.dumps({k: found[k] for k in ("seed", "fed", "simulated_time")}).encode()


TARGETS = {
    "image": Target(
        lambda data, folder: decode_images([data], 9),
        lambda: [encoded(kind) for kind in ("PNG", "JPEG", "BMP", "WEBP")],
    ),
    "recordio": spoilt("train.rec"),
    "idx": spoilt("train.idx"),
    "bin": Target(of_file("x.bin", functools.partial(read_bin, image_size=9)), a_set),
    "ijb": Target(picked(lambda: IJB, ijb.read_ijb), seeds_of(lambda: IJB)),
    "landmarks": Target(
        of_file("x.txt", read_landmarks),
        lambda: [b"a.jpg" + b" 1.5" * 10 + b"\n", b"a 38 52 74 52 56 72 42 92 71 92 1\n"],
    ),
    "prepared": Target(picked(prepared_folder, read_prepared), seeds_of(prepared_folder)),
    "npy": Target(
        of_file("x.npy", load_array), lambda: [saved(np.arange(4)), saved(np.array(["a", "bc"]))]
    ),
    "npz": Target(of_file("x.npz", load_arrays), lambda: [archive(a=np.zeros(3))]),
    "split": Target(of_file("split.npz", load_split), lambda: [a_split()]),
    "evaluation": Target(
        of_file(workdir.EVALUATION, lambda path: workdir.read_evaluation(path.parent)),
        lambda: [an_evaluation()],
    ),
    "config": Target(of_file(workdir.CONFIG, read_settings), lambda: [a_config(), b"{}"]),
    "metrics": Target(
        of_file(workdir.METRICS, lambda path: workdir.read_metrics(path.parent)),
        lambda: [a_line()],
    ),
    "summary": Target(
        of_file(workdir.SUMMARY, read_summary), lambda: [b'{"run": {"rounds": 1}, "models": {}}']
    ),
    "fingerprint": Target(
        of_file(fingerprints.NAME, read_fingerprint), lambda: [b'{"identities": 3, "split": "a"}']
    ),
    "store": Target(picked(store, read_store, sealed_store), seeds_of(store)),
    "checkpoint": Target(edited(checkpoint, read_checkpoint), lambda: [b"", b"\0"]),
    "card": Target(of_file(card.CARD, read_card), lambda: [a_card()]),
    "weights": Target(picked(weights, read_weights), seeds_of(weights)),
    "schedule": Target(
        of_file("x.txt", functools.partial(sampling.read_schedule, population=3)),
        lambda: [b"0 1 2\n1 2\n[]\n", b"[[0, 1], [2], []]"],
    ),
    "speeds": Target(
        of_file("x.csv", functools.partial(read_numbers, population=3, what="simulated_time")),
        lambda: [b"1, 2.5\n3e0\n"],
    ),
}
