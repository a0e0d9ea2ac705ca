"""Features in a file: interrupted, damaged, of another model."""

from __future__ import annotations

import json

import numpy as np
import pytest
from released import SIZE, Projection

from fedfr_jax.errors import InputError
from fedfr_jax.evaluation.face_model import image_and_mirror
from fedfr_jax.protocols.stored_features import ImageList, data_key, stored_features

PIXELS = np.random.default_rng(0).integers(0, 256, (23, SIZE, SIZE, 3), np.uint8)
TRIALS = 2  # calls of a model for its made-up images


def images(stop=None, key="a", seen=None):
    def read(numbers):
        if stop is not None and numbers[-1] >= stop:
            raise InputError("image 12 is damaged")
        if seen is not None:
            seen.extend(numbers.tolist())
        return PIXELS[numbers]

    return ImageList(read, len(PIXELS), key)


def run(folder, model=None, listed=None):
    return stored_features(model or Projection(), listed or images(), folder, batch_size=4, block=5)


def test_features_of_images_and_mirrors_are_kept(tmp_path):
    got = run(tmp_path)
    expected = image_and_mirror(Projection(), PIXELS, 7)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(expected[:, 1], Projection().features(PIXELS[:, :, ::-1]))
    model = Projection()
    np.testing.assert_array_equal(run(tmp_path, model), expected)
    assert len(model.calls) == TRIALS
    assert got.dtype == np.float32 and not got.flags.writeable


def test_an_interrupted_run_goes_on(tmp_path):
    with pytest.raises(InputError, match="image 12"):
        run(tmp_path, listed=images(stop=12))
    seen = []
    got = run(tmp_path, listed=images(seen=seen))
    assert seen == list(range(10, 23))
    np.testing.assert_array_equal(got, image_and_mirror(Projection(), PIXELS, 4))


@pytest.mark.parametrize("damage", ["bytes", "short", "journal", "cut line"])
def test_damage_is_computed_again(tmp_path, damage):
    run(tmp_path)
    [data], [journal] = tmp_path.glob("*.f32"), tmp_path.glob("*.jsonl")
    lines = journal.read_text().splitlines()
    if damage == "bytes":
        blob = bytearray(data.read_bytes())
        blob[7 * 2 * 12 * 4] ^= 1
        data.write_bytes(blob)
    elif damage == "short":
        data.write_bytes(data.read_bytes()[:-10])
    elif damage == "journal":
        journal.write_text("\n".join([lines[0], "[[[", '{"block": "x"}', *lines[2:-1]]) + "\n")
    else:
        journal.write_text(journal.read_text()[:-9])
    seen = []
    got = run(tmp_path, listed=images(seen=seen))
    wanted = {"bytes": range(5, 10), "short": range(20, 23)}.get(damage, range(20, 23))
    assert seen == list(wanted)
    np.testing.assert_array_equal(got, image_and_mirror(Projection(), PIXELS, 4))
    seen.clear()
    run(tmp_path, listed=images(seen=seen))
    assert not seen


def test_other_models_and_other_images_have_files_of_their_own(tmp_path):
    run(tmp_path)
    other = Projection(seed=1)
    np.testing.assert_array_equal(run(tmp_path, other), image_and_mirror(other, PIXELS, 4))
    run(tmp_path, listed=images(key="b"))
    assert len(list(tmp_path.glob("*.f32"))) == 3
    [journal] = [p for p in tmp_path.glob("*.jsonl") if '"b"' in p.read_text()]
    head = json.loads(journal.read_text().splitlines()[0])
    journal.write_text(json.dumps({**head, "trial": "nonsense"}) + "\n")
    run(tmp_path, listed=images(key="b"))  # a damaged head is not used
    assert data_key("a", np.arange(3)) != data_key("a", np.arange(4)) != data_key("b", np.arange(4))


def test_unusable_models_are_refused(tmp_path):
    class Broken(Projection):
        def features(self, images):
            return super().features(images) * np.nan

    with pytest.raises(InputError, match="not finite"):
        run(tmp_path, Broken())

    class Wide(Projection):
        def features(self, images):
            return np.zeros((len(images), 3))

    with pytest.raises(InputError, match="shape"):
        run(tmp_path, Wide())
