"""Images and labels in memory as a source, and the splits of a source."""

import numpy as np
import pytest

from fedfr_jax.data import array_source
from fedfr_jax.errors import InputError

IMAGES = np.random.default_rng(0).integers(256, size=(6, 4, 4, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def test_images_labels_and_splits():
    source = array_source(IMAGES, LABELS, {"train": 4, "test": 2}, names=["a", "b", "c"])
    assert (source.image_size, source.num_identities) == (4, 3)
    assert source.splits == {"train": range(4), "test": range(4, 6)}
    found = source.examples(np.array(source.splits["test"]))
    np.testing.assert_array_equal(found["images"], IMAGES[4:])
    assert found["labels"].tolist() == [1, 2] and found["labels"].dtype == np.int32
    assert array_source(IMAGES, LABELS).identity_names == ("0", "1", "2")
    assert not array_source(IMAGES, LABELS).splits


@pytest.mark.parametrize(
    "images, labels, splits, message",
    [
        (IMAGES / 255, LABELS, None, "uint8 is needed"),
        (IMAGES, LABELS[:5], None, r"give \(6,\) whole numbers"),
        (IMAGES, LABELS + 1, None, "from 0 without gaps"),
        (IMAGES, LABELS * 2.0, None, "whole numbers"),
        (IMAGES, LABELS, {"train": 4, "test": 1}, "are not the 6 images"),
    ],
)
def test_what_does_not_fit_is_one_error(images, labels, splits, message):
    with pytest.raises(InputError, match=message):
        array_source(images, labels, splits)
