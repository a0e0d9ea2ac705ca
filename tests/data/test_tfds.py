"""TensorFlow Datasets: mocked catalog entries, and a data set written and read for real."""

import importlib.util
import io
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from fedfr_jax.data import open_source
from fedfr_jax.errors import InputError
from fedfr_jax.settings import DataConfig

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 12, 12, 3), dtype=np.uint8)


def encode(image):
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


class FacesOnDisk(tfds.core.GeneratorBasedBuilder):
    """Nine faces of people with numbers, in two splits."""

    VERSION = tfds.core.Version("1.0.0")
    damaged = False

    def _info(self):
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                "identity": {"Identity_No": np.int64},
                "age": np.int32,
                "smile": np.bool_,
                "kind": tfds.features.ClassLabel(names=["indoor", "outdoor", "other"]),
                "place": tfds.features.Text(),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        del dl_manager
        return {"train": self._generate_examples(0, 6), "test": self._generate_examples(6, 9)}

    def _generate_examples(self, start, end):
        for i in range(start, end):
            image = encode(PIXELS[i])
            yield (
                i,
                {
                    "image": image[:60] if self.damaged and i == 7 else image,
                    "identity": {"Identity_No": [40, 7, 300][i % 3]},
                    "age": i,
                    "smile": True,
                    "kind": i % 2,
                    "place": ["Rome", "Oslo"][i % 2],
                },
            )


@pytest.fixture(name="folder", scope="module")
def fixture_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    builder = FacesOnDisk(data_dir=folder)
    builder.download_and_prepare(file_format="array_record")
    return str(folder)


def open_faces(folder, **changes):
    config = DataConfig(source="tfds", name="faces_on_disk", root=folder, image_size=12, **changes)
    return open_source(config)


def numbers_of(source):
    """Recovers which example each image is, since the builder shuffles them."""
    images = source.read(np.arange(len(source.labels)))
    return [int(np.flatnonzero((image == PIXELS).all(axis=(1, 2, 3)))[0]) for image in images]


def test_written_and_read_for_real(folder):
    source = open_faces(folder)
    assert source.name == "tfds faces_on_disk"
    assert source.identity_names == ("7", "40", "300")
    numbers = numbers_of(source)
    assert sorted(numbers[:6]) == list(range(6))
    assert sorted(numbers[6:]) == [6, 7, 8]
    assert source.splits == {"train": range(6), "test": range(6, 9)}
    assert source.labels.dtype == np.int64
    assert source.labels.tolist() == [[1, 0, 2][number % 3] for number in numbers]
    some = np.array([8, 0, 7, 0])
    np.testing.assert_array_equal(source.read(some), PIXELS[[numbers[i] for i in some]])


def test_other_labels(folder):
    source = open_faces(folder, label="place")
    assert source.identity_names == ("Oslo", "Rome")
    assert source.labels.tolist() == [1 - number % 2 for number in numbers_of(source)]
    source = open_faces(folder, label="kind")
    assert source.identity_names == ("indoor", "outdoor")
    assert open_faces(folder, label="identity").identity_names == ("7", "40", "300")
    for wrong in ("smile", "nobody", "image"):
        with pytest.raises(InputError, match=rf"data\.label: '{wrong}'.*identity/Identity_No"):
            open_faces(folder, label=wrong)


def test_resized(folder):
    source = open_source(
        DataConfig(source="tfds", name="faces_on_disk", root=folder, image_size=30, workers=2)
    )
    assert source.read(np.arange(9)).shape == (9, 30, 30, 3)


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is installed"
)
def test_without_code_and_without_tensorflow(folder):
    """A fresh process that knows neither the builder nor TensorFlow."""
    program = f"""
import sys
import numpy as np
from fedfr_jax.settings import DataConfig
from fedfr_jax.data import open_source
source = open_source(DataConfig(source="tfds", name="faces_on_disk", root={folder!r}))
assert source.read(np.arange(9)).shape == (9, 112, 112, 3)
print(source.identity_names)
import tensorflow_datasets as tfds
with tfds.testing.mock_data(num_examples=3):
    for name in ("lfw", "celeb_a"):
        source = open_source(DataConfig(source="tfds", name=name))
        assert source.read(np.arange(3)).shape == (3, 112, 112, 3)
assert "tensorflow" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "('7', '40', '300')" in done.stdout


def test_mocked_lfw_has_texts_as_labels():
    with tfds.testing.mock_data(num_examples=5):
        source = open_source(DataConfig(source="tfds", name="lfw", image_size=24))
        assert list(source.identity_names) == sorted(source.identity_names)
        assert all(isinstance(name, str) for name in source.identity_names)
        assert sorted(source.labels.tolist()) == list(range(5))
        images = source.read(np.array([3, 1]))
    assert images.shape == (2, 24, 24, 3)
    assert images.std() > 1


def test_mocked_celeb_a_has_numbers_as_labels():
    with tfds.testing.mock_data(num_examples=5):
        source = open_source(DataConfig(source="tfds", name="celeb_a", image_size=24))
        values = [int(name) for name in source.identity_names]
        assert values == sorted(values)
        assert source.read(np.arange(5)).shape == (5, 24, 24, 3)
        with pytest.raises(InputError, match=r"data\.label: 'landmarks'.*identity/Identity_No"):
            open_source(DataConfig(source="tfds", name="celeb_a", label="landmarks"))


def test_not_prepared_and_unknown(tmp_path):
    root = str(tmp_path)
    advice = rf'tfds\.builder\("lfw", data_dir="{root}", file_format="array_record"\)'
    with pytest.raises(InputError, match=advice):
        open_source(DataConfig(source="tfds", name="lfw", root=root))
    with pytest.raises(InputError, match=r"data\.name.*no_such_faces"):
        open_source(DataConfig(source="tfds", name="no_such_faces", root=root))


def test_damaged_image_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(FacesOnDisk, "damaged", True)
    FacesOnDisk(data_dir=tmp_path).download_and_prepare(file_format="array_record")
    source = open_faces(str(tmp_path))
    with pytest.raises(InputError, match="faces_on_disk: test example"):
        source.read(np.arange(9))


def test_unprepared_where_the_code_is_known(tmp_path):
    with pytest.raises(InputError, match="not prepared for random access"):
        open_faces(str(tmp_path))
