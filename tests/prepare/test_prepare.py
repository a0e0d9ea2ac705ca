"""Data prepared once: what comes out is what went in, whatever happens in between."""

import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from small import ROOT

from fedfr_jax.config import resolve
from fedfr_jax.data import open_source
from fedfr_jax.data.folder import open_folder
from fedfr_jax.data.prepared import MANIFEST, open_prepared
from fedfr_jax.data.recordio import open_recordio
from fedfr_jax.data.recordio_format import write_recordio
from fedfr_jax.data.split_file import load_split, split_arrays
from fedfr_jax.data.types import ImageSource
from fedfr_jax.errors import DamagedError, InputError
from fedfr_jax.prepare import shards
from fedfr_jax.prepare.finish import LEFT_OUT, record_labels
from fedfr_jax.prepare.images import stored_image
from fedfr_jax.prepare.plan import PROGRESS
from fedfr_jax.prepare.prepare import prepare, verify_folder
from fedfr_jax.runtime.simulation import split_of
from fedfr_jax.settings import DataConfig

SIZE = 16
KINDS = ("jpg", "png", "webp", "bmp")


@pytest.fixture(name="faces", scope="module")
def fixture_faces(tmp_path_factory):
    """Twelve people, 3 to 6 images of each, of all formats and several sizes."""
    root, rng = tmp_path_factory.mktemp("prepare") / "faces", np.random.default_rng(0)
    for person in range(12):
        folder = root / f"person {person:02d} ä"
        folder.mkdir(parents=True)
        for k in range(3 + person % 4):
            image = rng.integers(0, 256, (SIZE + k, SIZE + 2 * k, 3), dtype=np.uint8)
            Image.fromarray(image).save(folder / f"{k}.{KINDS[k % 4]}")
    return root


@pytest.fixture(name="tree")
def fixture_tree(faces, tmp_path):
    return shutil.copytree(faces, tmp_path / "faces")


def settings(**data):
    split = {
        "client_fraction": 0.5,
        "identities_per_client": (2, 2),
        "verification_images": 1,
        "held_out_identities": 3,
        "held_out_pairs": 10,
    }
    return resolve(
        {
            "data": {"image_size": SIZE, "split": split, **data},
            "fed": {"num_clients": 2, "batch_size": 2},
        }
    )


def same_images(before: ImageSource, after: ImageSource, numbers=None):
    """``after`` holds the images ``numbers`` of ``before``, person after person."""
    labels = np.asarray(before.labels)
    numbers = np.argsort(labels, kind="stable") if numbers is None else numbers
    np.testing.assert_array_equal(after.read(np.arange(len(after.labels))), before.read(numbers))
    names = [before.identity_names[label] for label in labels[numbers]]
    assert [after.identity_names[label] for label in after.labels] == names


@pytest.mark.parametrize("pixels", ["original", "resized"])
def test_a_folder_is_the_same_when_prepared(faces, tmp_path, pixels):
    source = open_folder(faces, SIZE)
    manifest = prepare(source, tmp_path / "out", shard_images=10, pixels=pixels)
    assert len(manifest["shards"]) == -(-len(source.labels) // 10)
    found = open_source(DataConfig(source="prepared", root=str(tmp_path / "out"), image_size=SIZE))
    same_images(source, found)
    assert found.identity_names == source.identity_names
    for i in (0, 7, len(source.labels) - 1):
        assert source.name_of(i) in found.name_of(i)
        if pixels == "original":  # byte for byte
            assert found.fetch(i) == source.fetch(i)
    some = np.array([30, 2, 2, 17])
    np.testing.assert_array_equal(found.read(some), source.read(some))
    if pixels == "original":  # other sizes are read from what was stored
        np.testing.assert_array_equal(
            open_prepared(tmp_path / "out", 9).read(some), open_folder(faces, 9).read(some)
        )
    found.check(np.arange(len(source.labels)))
    assert verify_folder(tmp_path / "out") == []


def test_recordio_of_unsorted_images(faces, tmp_path):
    source = open_folder(faces, SIZE)
    prepare(source, tmp_path / "out", container="recordio", shard_images=10)
    found = open_recordio(tmp_path / "out", SIZE)
    np.testing.assert_array_equal(found.labels, source.labels)
    numbers = np.arange(len(source.labels))
    np.testing.assert_array_equal(found.read(numbers), source.read(numbers))
    assert not (tmp_path / "out" / PROGRESS).exists()
    assert verify_folder(tmp_path / "out") == []
    with pytest.raises(InputError, match=r"data\.source=recordio"):
        open_prepared(tmp_path / "out", SIZE)


def test_labels_of_recordio_stay_if_they_are_numbers(tmp_path):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (6, SIZE, SIZE, 3), dtype=np.uint8)
    write_recordio(tmp_path / "in", images, np.array([3, 3, 10, 10, 700, 700]))
    for container in ("recordio", "array_record"):
        source = open_recordio(tmp_path / "in", SIZE)
        out = tmp_path / container
        prepare(source, out, container=container)
        found = open_recordio(out, SIZE) if container == "recordio" else open_prepared(out, SIZE)
        assert found.identity_names == ("3", "10", "700")
        same_images(source, found)
    for names in (("1", "01"), ("b", "a"), ("2", "1"), ("1", "99999999")):
        assert record_labels(names).tolist() == [0, 1]


def test_a_source_that_is_not_sorted_and_has_no_files(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (700, 4, 4, 3), dtype=np.uint8)
    labels = np.arange(700) % 3
    source = ImageSource("drawn", labels, 4, lambda n: pixels[n], ("c", "a", "b"))
    prepare(source, tmp_path / "out", shard_images=300)
    found = open_prepared(tmp_path / "out", 4)
    same_images(source, found)
    assert "image 3 of drawn" in found.name_of(1)


def test_generated_faces(tmp_path):
    config = settings(generated={"identities": 8, "images_per_identity": (2, 3)})
    source = open_source(config.data)
    prepare(source, tmp_path / "out")
    same_images(source, open_prepared(tmp_path / "out", SIZE))


def test_the_split_is_the_one_of_training(faces, tmp_path):
    config = settings(source="folder", root=str(faces))
    source = open_source(config.data)
    out = tmp_path / "out"
    manifest = prepare(source, out, config)
    prepared = settings(source="prepared", root=str(out))
    for split in (split_of(config, source), split_of(prepared, open_source(prepared.data))):
        saved = split_arrays(load_split(out / "split.npz"))
        assert saved.keys() == split_arrays(split).keys()
        for name, array in split_arrays(split).items():
            np.testing.assert_array_equal(saved[name], array)
    assert manifest["split"]["seed"] == 0 and manifest["split"]["counts"]["clients"] == 2
    again = prepare(source, out, settings(source="folder", root=str(faces), seed=5))
    assert again["split"]["seed"] == 5
    assert json.loads((out / MANIFEST).read_text())["split"]["seed"] == 5
    assert verify_folder(out) == []
    assert prepare(source, out)["split"]["seed"] == 5
    with pytest.raises(InputError, match="too few client identities"):
        many = {"num_clients": 90, "batch_size": 2}
        prepare(source, tmp_path / "more", resolve({"fed": many}))
    assert not (tmp_path / "more").exists()


def test_unreadable_images_are_counted_and_named(tree, tmp_path):
    people = sorted(tree.iterdir())
    (people[2] / "0.jpg").write_bytes(b"no image")
    for file in people[5].iterdir():
        file.write_bytes(b"")  # nothing of this person is left
    source, out = open_folder(tree, SIZE), tmp_path / "out"
    with pytest.raises(InputError, match=r"02 ä/0\.jpg.*--unreadable=leave_out"):
        prepare(source, tmp_path / "refused", unreadable="refuse")
    lost = 1 + len(list(people[5].iterdir()))
    manifest = prepare(source, out, shard_images=7)
    assert manifest["left_out"] == lost
    lines = (out / LEFT_OUT).read_text().splitlines()
    assert len(lines) == lost and "02 ä/0.jpg" in lines[0] and "it is empty" in lines[-1]
    found = open_prepared(out, SIZE)
    assert found.num_identities == 11 and people[5].name not in found.identity_names
    same_images(source, found, np.load(out / "origins.npy"))


def test_nothing_readable(tmp_path):
    (tmp_path / "faces" / "p").mkdir(parents=True)
    (tmp_path / "faces" / "p" / "x.png").write_bytes(b"no")
    with pytest.raises(InputError, match=r"none of 1 images can be read.*x\.png"):
        prepare(open_folder(tmp_path / "faces", SIZE), tmp_path / "out")


def test_a_folder_of_something_else_is_refused(faces, tmp_path):
    source, out = open_folder(faces, SIZE), tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"thesis\.tex"):
        prepare(source, out)
    (out / "thesis.tex").unlink()
    prepare(source, out, shard_images=10)
    for changes in ({"shard_images": 9}, {"pixels": "resized"}, {"container": "recordio"}):
        with pytest.raises(InputError, match="other data or with other settings"):
            prepare(source, out, **{"shard_images": 10, **changes})
    for wrong in ({"pixels": "x"}, {"container": "zip"}, {"shard_images": 0}):
        with pytest.raises(InputError, match="--"):
            prepare(source, tmp_path / "new", **wrong)


SLOW = """
import sys, time
from fedfr_jax.prepare import images, shards
once = images.stored_image
def slowly(*args, **options):
    time.sleep(0.02)
    return once(*args, **options)
shards.stored_image = slowly
from fedfr_jax.prepare.command import command
command()
"""


@pytest.mark.slow
def test_a_killed_preparation_goes_on_at_the_next_shard(faces, tmp_path):
    out = tmp_path / "out"
    arguments = ["--source=folder", f"--root={faces}", f"--out={out}", "--image_size=16"]
    arguments += ["--shard_images=8", "--workers=1"]
    process = subprocess.Popen([sys.executable, "-c", SLOW, *arguments], cwd=ROOT)
    until = time.monotonic() + 60
    while not (out / PROGRESS / "00001.json").exists():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / MANIFEST).exists()
    with pytest.raises(InputError, match="to its end"):
        open_prepared(out, SIZE)
    goes_on(faces, out, out, "array_record")


def goes_on(faces, out, folder, container):
    first, second = (folder / f"images-0000{i}-of-00007.array_record" for i in range(2))
    before = first.stat().st_mtime_ns
    # Damaged by the crash, as far as the continuation can know.
    second.write_bytes(second.read_bytes()[:-9])
    source = open_folder(faces, SIZE)
    prepare(source, out, shard_images=8, container=container)
    if container == "array_record":
        assert first.stat().st_mtime_ns == before
    found = open_recordio(out, SIZE) if container == "recordio" else open_prepared(out, SIZE)
    numbers = np.arange(len(source.labels))
    np.testing.assert_array_equal(found.read(numbers), source.read(numbers))
    assert verify_folder(out) == []


@pytest.mark.parametrize("container", ["array_record", "recordio"])
def test_an_interrupted_preparation_goes_on(faces, tmp_path, container, monkeypatch):
    out, done = tmp_path / "out", []

    def stop_after_20(*arguments, **options):
        done.append(1)
        if len(done) > 20:
            raise KeyboardInterrupt
        return stored_image(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(shards, "stored_image", stop_after_20)
        with pytest.raises(KeyboardInterrupt):
            prepare(open_folder(faces, SIZE), out, shard_images=8, container=container, workers=1)
    goes_on(faces, out, out / PROGRESS if container == "recordio" else out, container)
    if container == "recordio":
        assert sorted(p.name for p in out.glob("images-*")) == []


def test_damage_is_named(faces, tmp_path):
    out = tmp_path / "out"
    prepare(open_folder(faces, SIZE), out, shard_images=10)
    shard = out / "images-00002-of-00006.array_record"
    whole = shard.read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    for damaged in (bytes(changed), whole[:-5], whole[: len(whole) // 2], b""):
        shard.write_bytes(damaged)
        source = open_prepared(out, SIZE)
        source.read(np.arange(20))  # those of other shards
        for use in (source.read, source.check):
            with pytest.raises(DamagedError, match=r"images-00002-of-00006\.array_record"):
                use(np.array([25]))
        [line] = verify_folder(out)
        assert shard.name in line
    shard.unlink()
    with pytest.raises(DamagedError, match=r"images-00002-of-00006\.array_record.*No such file"):
        open_prepared(out, SIZE).read(np.array([25]))
    shard.write_bytes(whole)
    labels = out / "labels.npy"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\1")
    with pytest.raises(DamagedError, match=r"labels\.npy: its checksum"):
        open_prepared(out, SIZE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["shards"][0].update(name="../../etc/passwd"), "unknown file"),
        (lambda m: m["files"][0].update(name="/etc/passwd"), "unknown file"),
        (lambda m: m["shards"][0].update(bytes="many"), "damaged"),
        (lambda m: m["shards"][0].update(sha256="0"), "damaged"),
        (lambda m: m["shards"].pop(), "does not fit"),
        (lambda m: m["files"].pop(0), "lists no labels"),
        (lambda m: m.update(shards=7), "damaged"),
        (lambda m: m.update(version=99), "version"),
        (lambda m: m.update(format="?"), "no manifest"),
    ],
)
def test_a_manifest_that_lies_is_refused(faces, tmp_path_factory, change, message):
    out = tmp_path_factory.mktemp("lies") / "out"
    prepare(open_folder(faces, SIZE), out, shard_images=30)
    manifest = json.loads((out / MANIFEST).read_text())
    change(manifest)
    (out / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=message):
        open_prepared(out, SIZE)
    (out / MANIFEST).write_text("[" * 100_000)
    with pytest.raises(InputError, match="JSON"):
        open_prepared(out, SIZE)


def test_image_numbers_out_of_range(faces, tmp_path):
    prepare(open_folder(faces, SIZE), tmp_path / "out")
    source = open_prepared(tmp_path / "out", SIZE)
    for number in (-1, len(source.labels)):
        with pytest.raises(InputError, match=f"no image {number}"):
            source.read(np.array([number]))


def test_the_command(faces, tmp_path):
    out = tmp_path / "out"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "fedfr_jax.prepare",
            "--source=folder",
            f"--root={faces}",
            f"--out={out}",
            "--image_size=16",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "data.source=prepared" in done.stdout and "12 people" in done.stdout
    assert verify_folder(out) == []
