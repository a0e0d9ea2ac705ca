"""Data sets for tensorflow-datasets that need no TensorFlow; importing this registers them.

    import fedfr_jax.data.tfds_builders, tensorflow_datasets as tfds
    tfds.data_source("fedfr_faces/identities=20,images=8,image_size=64", split="train")
    tfds.data_source("fedfr_prepared", split="train", builder_kwargs={"root": "DIR"})

``fedfr_faces`` are the generated faces; ``fedfr_prepared`` is a folder that
``python -m fedfr_jax.prepare`` wrote. Both are stored as array_record, with the features ``image``
and ``identity`` (a class label) in one split ``train``, in the order of the source.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from fedfr_jax.data.decode import decode_image
from fedfr_jax.data.faces import generated
from fedfr_jax.data.prepared import MANIFEST, digest, open_prepared, read_manifest
from fedfr_jax.data.recordio_format import encode_image
from fedfr_jax.data.types import ImageSource
from fedfr_jax.settings import DataConfig, GeneratedConfig

_BLOCK = 256  # images that are drawn at a time
_ORIENTATION = 0x0112  # EXIF tag


class _OwnBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """What both have in common: ``_source`` gives the images."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, name: str, description: str, **options: Any):
        options.setdefault("file_format", "array_record")  # others need TensorFlow
        # Of another name than the class knows, so that each of them has a folder of its own.
        config = tfds.core.BuilderConfig(name=name, description=description)
        super().__init__(**{**options, "config": config})

    def _source(self) -> ImageSource:
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        names = [" ".join(name.split()) or "?" for name in self._source().identity_names]
        if len(set(names)) < len(names):  # names that differ in their spaces only
            names = [f"{name} {i}" for i, name in enumerate(names)]
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "identity": tfds.features.ClassLabel(names=names),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        del dl_manager  # nothing is downloaded
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        source = self._source()
        for start in range(0, len(source.labels), _BLOCK):
            numbers = np.arange(start, min(start + _BLOCK, len(source.labels)))
            drawn = None if source.fetch else source.read(numbers)
            for i, number in enumerate(numbers.tolist()):
                if drawn is not None:
                    blob = encode_image(drawn[i], "PNG")
                else:
                    assert source.fetch is not None
                    blob = _plain(source.fetch(number))
                label = int(source.labels[number])
                yield number, {"image": io.BytesIO(blob), "identity": label}


def _plain(image: Any) -> bytes:
    """A file that every program decodes to the same (H, W, 3) pixels: it itself, or a PNG."""
    with Image.open(io.BytesIO(image)) as opened:
        known = opened.format in ("JPEG", "PNG") and opened.mode == "RGB"
        plain = known and not opened.has_transparency_data
        if plain and opened.getexif().get(_ORIENTATION, 1) == 1:
            return image
    return encode_image(decode_image(image, None, np.inf), "PNG")


class FedfrFaces(_OwnBuilder):
    """Procedural faces, drawn by JAX.

    Args:
      identities: people.
      images: photographs of each.
      image_size: side in pixels.
      seed: which population.
      difficulty: see :class:`fedfr_jax.settings.GeneratedConfig`.
    """

    def __init__(
        self,
        *,
        identities: int = 100,
        images: int = 20,
        image_size: int = 112,
        seed: int = 0,
        difficulty: float = 1.0,
        **options: Any,
    ):
        made = GeneratedConfig(identities, (images, images), float(difficulty))
        self._data = DataConfig(image_size=image_size, seed=seed, generated=made)
        super().__init__(
            name=f"{identities}x{images}_{image_size}px_seed{seed}_difficulty{difficulty:g}",
            description="Generated faces of fedfr_jax.",
            **options,
        )

    def _source(self) -> ImageSource:
        return generated.open_source(self._data)


class FedfrPrepared(_OwnBuilder):
    """A folder that ``python -m fedfr_jax.prepare`` wrote as array_record.

    Args:
      root: the folder.
    """

    def __init__(self, *, root: str, **options: Any):
        read_manifest(root)
        self._root = root
        super().__init__(
            name=f"prepared_{digest(f'{root}/{MANIFEST}')[:16]}",
            description="A data set prepared by fedfr_jax.",
            **options,
        )

    def _source(self) -> ImageSource:
        return open_prepared(self._root, 112, max_megapixels=np.inf)
