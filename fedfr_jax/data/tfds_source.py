"""Data sets of the TensorFlow Datasets catalog, read without TensorFlow."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from fedfr_jax.data.decode import MAX_MEGAPIXELS, stored_source
from fedfr_jax.data.types import ImageSource
from fedfr_jax.errors import InputError
from fedfr_jax.settings import DataConfig

# Parts of a feature's path that suggest the identity, the clearest first.
_IDENTITY_WORDS = (
    "identity",
    "identity_no",
    "person",
    "person_id",
    "subject",
    "subject_id",
    "label",
    "name",
)


def open_source(config: DataConfig) -> ImageSource:
    """Opens the catalog's data set ``data.name``; see :func:`open_tfds`."""
    return open_tfds(
        config.name,
        config.image_size,
        data_dir=config.root,
        label=config.label,
        workers=config.workers,
        max_megapixels=config.max_megapixels,
    )


def open_tfds(
    name: str,
    image_size: int,
    *,
    data_dir: str = "",
    label: str = "",
    workers: int = 0,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> ImageSource:
    """Opens a prepared data set, all its splits one after another.

    Labels are read without decoding images. Both text and numeric labels are sorted and numbered
    from 0 without gaps.

    Args:
      name: name in the catalog, also ``name/config:version``.
      image_size: side S of the images in pixels; others are resized.
      data_dir: where the data set was prepared; "" = TFDS_DATA_DIR or ~/tensorflow_datasets.
      label: path of the identity feature, for instance ``identity/Identity_No``; "" = found.
      workers: decoding threads; 0 = one per core.
      max_megapixels: larger encoded images are refused before they are decoded.

    Returns:
      The source, with the image numbers of its splits; ``read`` raises InputError with split and
      number if an image is damaged.

    Raises:
      InputError: the data set is unknown or not prepared, or its features do not fit.
    """
    splits, features = _open_splits(name, data_dir)
    get_image = _getter(*_find_image(name, features), encoded=True)
    label_path, label_feature = _find_label(name, features, label)
    get_label = _getter(label_path, label_feature)
    values = [get_label(source, i) for source in splits.values() for i in range(len(source))]
    labels, identity_names = _number(name, label_path, label_feature, values)
    split_names, sources = list(splits), list(splits.values())
    ends = np.cumsum([len(source) for source in sources])

    def place(image: int) -> tuple[int, int]:
        split = int(np.searchsorted(ends, image, side="right"))
        return split, image - int(ends[split - 1] if split else 0)

    def fetch(image: int) -> Any:
        split, within = place(image)
        return get_image(sources[split], within)

    def name_of(image: int) -> str:
        split, within = place(image)
        return f"tfds {name}: {split_names[split]} example {within}"

    return stored_source(
        f"tfds {name}",
        labels,
        identity_names,
        image_size,
        fetch=fetch,
        name_of=name_of,
        workers=workers,
        max_megapixels=max_megapixels,
        splits={
            split: range(int(end) - len(splits[split]), int(end))
            for split, end in zip(split_names, ends, strict=True)
        },
    )


def _open_splits(name: str, data_dir: str) -> tuple[dict[str, Sequence[Any]], Any]:
    """Returns the non-empty splits as random-access sequences, and the features."""
    import tensorflow_datasets as tfds  # noqa: PLC0415 (takes seconds, other sources do without)

    import fedfr_jax.data.tfds_builders  # noqa: F401, PLC0415 (registers our own)

    try:
        builder = tfds.builder(name, data_dir=data_dir or None)
    except ValueError as error:
        raise InputError(
            f"data.name: tensorflow_datasets does not know {name!r}, and it is not prepared in "
            f"{data_dir or 'the default folder'} (data.root): {str(error).splitlines()[0]}"
        ) from error
    try:
        splits = {
            split: builder.as_data_source(split=split)
            for split in list(builder.info.splits) or ["train"]
        }
    except (NotImplementedError, LookupError, ValueError, OSError) as error:
        raise InputError(
            f"tfds {name}: not prepared for random access in {builder.data_dir}; run "
            f"{_advice(name, data_dir)} (if the data set's own code needs TensorFlow for that, on "
            "a machine that has it, then copy the folder), or set data.root to another folder"
        ) from error
    filled = {split: source for split, source in splits.items() if len(source)}
    if not filled:
        raise InputError(f"tfds {name}: all splits in {builder.data_dir} are empty")
    return filled, builder.info.features


def _advice(name: str, data_dir: str) -> str:
    """A command that prepares a data set; 'tfds build' itself cannot do without TensorFlow."""
    own = ", fedfr_jax.data.tfds_builders" if name.startswith("fedfr_") else ""
    where = f", data_dir={json.dumps(data_dir)}" if data_dir else ""
    code = (
        f"import tensorflow_datasets as tfds{own}; tfds.builder({json.dumps(name)}{where}, "
        'file_format="array_record").download_and_prepare()'
    )
    return f"python -c {shlex.quote(code)}"


def _leaves(features: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (path, feature) of all features that are not dictionaries."""
    for name, feature in features.items():
        if hasattr(feature, "items"):
            yield from _leaves(feature, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", feature


def _getter(path: str, feature: Any, *, encoded: bool = False) -> Callable[[Any, int], Any]:
    """Returns a function (source, i) -> value of one feature of example ``i``.

    Only that feature is parsed, which for celeb_a is ten times as fast as the whole example.

    Args:
      path: names on the way to the feature, joined by slashes.
      feature: the feature.
      encoded: return an image as its stored bytes.
    """
    from tensorflow_datasets import decode, features  # noqa: PLC0415 (slow, see above)

    parts = path.split("/")
    wanted, decoders = feature, decode.SkipDecoding() if encoded else None
    for part in reversed(parts):
        wanted, decoders = {part: wanted}, decoders and {part: decoders}
    parser = features.FeaturesDict(wanted)

    def get(source: Any, i: int) -> Any:
        record = source.data_source[i]
        if isinstance(record, (bytes, memoryview)):
            value = parser.deserialize_example_np(record, decoders=decoders)
        else:  # a source that holds whole examples rather than serialized records
            value = source[i]
        for part in parts:
            value = value[part]
        return value

    return get


def _find_image(name: str, features: Any) -> tuple[str, Any]:
    from tensorflow_datasets import features as kinds  # noqa: PLC0415 (slow, see above)

    found = {path: f for path, f in _leaves(features) if isinstance(f, kinds.Image)}
    if len(found) > 1 and "image" in found:
        found = {"image": found["image"]}
    if len(found) != 1:
        raise InputError(
            f"tfds {name} (data.name): one image feature is needed, found {', '.join(found) or 0}"
        )
    return next(iter(found.items()))


def _find_label(name: str, features: Any, wanted: str) -> tuple[str, Any]:
    """Returns path and feature of the identity, given or found by type and name."""
    usable = {path: feature for path, feature in _leaves(features) if _can_be_label(feature)}
    listed = ", ".join(usable) or "none"
    if wanted:
        fits = [path for path in usable if path == wanted or path.startswith(wanted + "/")]
        if len(fits) != 1:
            raise InputError(
                f"data.label: {wanted!r} is not one whole-number or text feature of tfds {name}; "
                f"there are: {listed}"
            )
        return fits[0], usable[fits[0]]
    for word in _IDENTITY_WORDS:
        fits = [path for path in usable if word in path.lower().split("/")]
        if len(fits) == 1:
            return fits[0], usable[fits[0]]
    raise InputError(
        f"data.label: which feature of tfds {name} is the identity? Choose one of: {listed}"
    )


def _can_be_label(feature: Any) -> bool:
    from tensorflow_datasets import features as kinds  # noqa: PLC0415 (slow, see above)

    if isinstance(feature, (kinds.ClassLabel, kinds.Text)):
        return True
    return feature.shape == () and np.issubdtype(feature.np_dtype, np.integer)


def _number(
    name: str, path: str, feature: Any, values: list[Any]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns (N,) int64 labels without gaps and the names of the identities."""
    texts = isinstance(values[0], (str, bytes))
    if texts:
        values = [value.decode() if isinstance(value, bytes) else value for value in values]
    originals, labels = np.unique(np.array(values), return_inverse=True)
    if not texts and originals[0] < 0:
        raise InputError(
            f"tfds {name}: feature {path} has the label {originals[0]}; a data set without "
            "identities in one of its splits cannot be used (data.name)"
        )
    to_name = str if texts or not getattr(feature, "names", None) else feature.int2str
    return labels.astype(np.int64), tuple(to_name(value) for value in originals.tolist())
