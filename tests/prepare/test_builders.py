"""Our own data sets of tensorflow-datasets, made and read without TensorFlow."""

import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from small import ROOT

import fedfr_jax.data.tfds_builders  # noqa: F401 - registers them
from fedfr_jax.data import open_source
from fedfr_jax.data.folder import open_folder
from fedfr_jax.data.prepared import open_prepared
from fedfr_jax.errors import InputError
from fedfr_jax.prepare.prepare import prepare
from fedfr_jax.settings import DataConfig, GeneratedConfig

NAME = "fedfr_faces/identities=5,images=2,image_size=16,seed=3"
WITHOUT_TENSORFLOW = """
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, *rest):
        hidden = name.split(".")[0] == "tensorflow"
        return None if hidden else self.finder.find_spec(name, *rest)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""


def generated():
    made = GeneratedConfig(identities=5, images_per_identity=(2, 2))
    return open_source(DataConfig(image_size=16, seed=3, generated=made))


def from_tfds(root, name):
    return open_source(DataConfig(source="tfds", name=name, root=str(root), image_size=16))


def the_same(found, source):
    everything = np.arange(len(source.labels))
    np.testing.assert_array_equal(found.read(everything), source.read(everything))
    np.testing.assert_array_equal(found.labels, source.labels)
    assert list(found.identity_names) == list(source.identity_names)


def test_the_advice_runs_where_tensorflow_cannot_be_imported(tmp_path):
    root = tmp_path / "my $data"
    with pytest.raises(InputError, match="not prepared for random access") as caught:
        from_tfds(root, NAME)
    command = re.search(r"run (python -c .*) \(if the data set", str(caught.value))[1]
    python, flag, code = shlex.split(command)
    assert (python, flag) == ("python", "-c")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW + code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    the_same(from_tfds(root, NAME), generated())


def test_generated_faces_by_name(tmp_path):
    faces = tfds.data_source(NAME, data_dir=tmp_path, split="train")
    source = generated()
    assert len(faces) == 10
    np.testing.assert_array_equal(faces[7]["image"], source.read(np.array([7]))[0])
    assert faces[7]["identity"] == source.labels[7]
    other = tfds.data_source(NAME.replace("=3", "=4"), data_dir=tmp_path, split="train")
    assert (other[7]["image"] != faces[7]["image"]).any()


def test_a_prepared_folder(tmp_path):
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    for person in ("zoe", "Ann B.", "30"):
        (tmp_path / "faces" / person).mkdir(parents=True)
        for kind, mode, options in (
            ("jpg", "RGB", {}),
            ("turned.jpg", "RGB", {"exif": exif}),
            ("webp", "RGB", {}),
            ("gray.jpg", "L", {}),
            ("alpha.png", "RGBA", {}),
        ):
            image = Image.fromarray(rng.integers(0, 256, (16, 20, 4), dtype=np.uint8))
            image.convert(mode).save(tmp_path / "faces" / person / f"x.{kind}", **options)
    prepare(open_folder(tmp_path / "faces", 16), tmp_path / "out")
    options = {"root": str(tmp_path / "out")}
    faces = tfds.data_source("fedfr_prepared", data_dir=tmp_path / "tfds", builder_kwargs=options)
    assert all(example["image"].shape[2] == 3 for example in faces["train"])
    [name] = [path.name for path in (tmp_path / "tfds" / "fedfr_prepared").iterdir()]
    the_same(
        from_tfds(tmp_path / "tfds", f"fedfr_prepared/{name}"),
        open_prepared(tmp_path / "out", 16),
    )
    with pytest.raises(InputError, match=r"manifest\.json"):
        tfds.builder("fedfr_prepared", root=str(tmp_path))
