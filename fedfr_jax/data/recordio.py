"""RecordIO data sets in the insightface layout (``train.rec`` + ``train.idx``), without MXNet.

A record is ``magic, cflag << 29 | length, payload``, padded to 4 bytes. A payload that contains
the magic word at a multiple of 4 is cut there into chunks (cflag 1, 2, ..., 3) and the word is
dropped. The payload of an image record is ``flag, label, id, id2``, then ``flag`` float32 labels
if ``flag > 0``, then the encoded image. Record 0 of an insightface data set is a header whose two
labels are the key of the first identity record and the key after the last one.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib

import numpy as np
from absl import logging

from fedfr_jax.data.decode import MAX_MEGAPIXELS, stored_source
from fedfr_jax.data.recordio_format import HEADER, IR_HEADER, MAGIC, MAGIC_BYTES
from fedfr_jax.data.types import ImageSource
from fedfr_jax.errors import InputError
from fedfr_jax.settings import DataConfig

_SCAN_BLOCK = 1 << 16  # records per block: bounds the memory of the scan
_FIXED_WORDS = (HEADER.size + IR_HEADER.size) // 4  # words before extra labels or the image
_JPEG, _PNG = 0xFFD8FF, 0x474E5089  # first 3 and 4 bytes as a little-endian number


@dataclasses.dataclass(frozen=True)
class Records:
    """Records of one file; arrays have one entry per record.

    Attributes:
      path: the ``.rec`` file.
      data: (bytes,) uint8, the file, memory-mapped.
      keys: int64 keys of the index.
      offsets: int64 bytes from the start of the file to the record.
      lengths: int64 bytes of the payload (of its first chunk where ``chunked``).
      chunked: bool, whether the payload is cut into chunks.
      flags: int64, number of labels behind the image header.
      labels: float32, first label.
      image_bytes: int64, length of the payload without header and labels.
      first_words: uint32, first four bytes of the encoded image.
    """

    path: pathlib.Path
    data: np.ndarray
    keys: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    chunked: np.ndarray
    flags: np.ndarray
    labels: np.ndarray
    image_bytes: np.ndarray
    first_words: np.ndarray

    def take(self, which: np.ndarray) -> Records:
        """Returns the records that ``which`` (bool mask or int positions) selects."""
        columns = {
            field.name: getattr(self, field.name)[which]
            for field in dataclasses.fields(self)
            if field.name not in ("path", "data")
        }
        return dataclasses.replace(self, **columns)

    def image(self, position: int) -> bytes:
        """Returns the encoded image of the record at ``position``."""
        offset = int(self.offsets[position])
        skip = IR_HEADER.size + 4 * int(self.flags[position])
        if self.chunked[position]:
            return _join_chunks(self.path, self.data, offset, self.keys[position])[skip:]
        start = offset + HEADER.size
        return self.data[start + skip : start + int(self.lengths[position])].tobytes()


def open_source(config: DataConfig) -> ImageSource:
    """Opens the data set in ``data.root``; see :func:`open_recordio`."""
    if not config.root:
        raise InputError("data.root: empty; name the folder of train.rec or the .rec file")
    return open_recordio(
        config.root, config.image_size, workers=config.workers, max_megapixels=config.max_megapixels
    )


def open_recordio(
    root: str | os.PathLike,
    image_size: int,
    *,
    workers: int = 0,
    check_images: bool = True,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> ImageSource:
    """Opens an insightface RecordIO data set; labels are read without decoding images.

    Identities are numbered in the order of their labels; ``identity_names`` are the original
    labels. Gaps in the labels are closed, with one warning.

    Args:
      root: a folder with ``train.rec`` and ``train.idx``, or a ``.rec`` file beside its ``.idx``.
      image_size: side S of the images in pixels; others are resized.
      workers: decoding threads; 0 = one per core.
      check_images: leave out records whose image is neither a JPEG nor a PNG by its first bytes,
        with one warning that gives their number. False: they fail when they are read.
      max_megapixels: larger images are refused before they are decoded.

    Returns:
      The source; ``read`` raises InputError with file and key if an image is damaged.

    Raises:
      InputError: a file is missing, damaged or cut off, or a label is not a whole number >= 0.
    """
    records = _image_records(scan(_locate(root)))
    if check_images:
        records = _drop_undecodable(records)
    _check_labels(records)
    originals, labels = np.unique(records.labels.astype(np.int64), return_inverse=True)
    missing = int(originals[-1]) + 1 - len(originals)
    if missing:
        logging.warning(
            "%s: %d of the labels 0 to %d have no image; the other %d are renumbered without gaps",
            records.path,
            missing,
            originals[-1],
            len(originals),
        )

    return stored_source(
        f"recordio {records.path}",
        labels.astype(np.int64),
        tuple(map(str, originals.tolist())),
        image_size,
        fetch=records.image,
        name_of=lambda i: f"{records.path}: record key {records.keys[i]}",
        workers=workers,
        max_megapixels=max_megapixels,
    )


def scan(path: pathlib.Path) -> Records:
    """Reads the headers of all records and checks them against the size of the file.

    Args:
      path: the ``.rec`` file; the ``.idx`` file must lie beside it.

    Returns:
      All records, sorted by key, header and identity records included.

    Raises:
      InputError: a file is missing or empty, or the index and the records do not fit together.
    """
    keys, offsets = _read_index(path.with_suffix(".idx"))
    size = path.stat().st_size
    if size == 0:
        raise InputError(f"{path}: empty; copy the data set again")
    fits = (offsets >= 0) & (offsets <= size - HEADER.size - IR_HEADER.size)
    _require(fits, path, keys, f"points outside the file of {size} bytes, which seems cut off")
    _require(offsets % 4 == 0, path, keys, "has an offset that is no multiple of 4")
    data = np.memmap(path, np.uint8, mode="r")
    columns = _gather(data, offsets)
    magic, lrec, flags = (columns.pop(name) for name in ("magic", "lrec", "flags"))
    cflag, lengths = lrec >> 29, (lrec & ((1 << 29) - 1)).astype(np.int64)
    _require(magic == MAGIC, path, keys, "does not start with the RecordIO magic number")
    _require(cflag <= 1, path, keys, "starts in the middle of a record")
    complete = offsets + HEADER.size + lengths <= size
    _require(complete, path, keys, f"ends behind the file of {size} bytes, which seems cut off")
    image_bytes = lengths - IR_HEADER.size - 4 * flags
    chunked = cflag == 1
    starts, uses = np.unique(offsets, return_counts=True)
    shared = uses[np.searchsorted(starts, offsets)] > 1
    _require(~(chunked & shared), path, keys, "has the same position as another record")
    for i in np.flatnonzero(chunked):
        # No further than the next record, so that no chain is followed twice.
        following = np.searchsorted(starts, offsets[i], side="right")
        end = int(starts[following]) if following < len(starts) else size
        payload = _join_chunks(path, data[:end], int(offsets[i]), keys[i])
        if len(payload) >= IR_HEADER.size:
            flags[i], columns["labels"][i], *_ = IR_HEADER.unpack_from(payload)
        image_bytes[i] = len(payload) - IR_HEADER.size - 4 * flags[i]
        if image_bytes[i] >= 0:
            start = len(payload) - int(image_bytes[i])
            if flags[i]:
                columns["labels"][i] = np.frombuffer(payload, "<f4", 1, IR_HEADER.size)[0]
            first = payload[start : start + 4]
            columns["first_words"][i] = int.from_bytes(first, "little")
    _require(image_bytes >= 0, path, keys, "is shorter than its header says")
    return Records(
        path=path,
        data=data,
        keys=keys,
        offsets=offsets,
        lengths=lengths,
        chunked=chunked,
        flags=flags,
        image_bytes=image_bytes,
        **columns,
    )


def _locate(root: str | os.PathLike) -> pathlib.Path:
    root = pathlib.Path(root)
    path = root / "train.rec" if root.is_dir() else root
    if path.suffix != ".rec":
        raise InputError(f"data.root: {root} is neither a folder with train.rec nor a .rec file")
    for file in (path, path.with_suffix(".idx")):
        if not file.is_file():
            raise InputError(f"{file}: no such file; a RecordIO data set is a .rec and an .idx")
    return path


def _read_index(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns the (N,) int64 keys, ascending, and offsets of a text file ``key<TAB>offset``."""
    text = path.read_bytes()
    if not text.strip():
        raise InputError(f"{path}: empty; write the index again or copy the data set again")
    try:
        # From a list: much faster than from a file, and it accepts all kinds of line ends.
        lines = [line for line in text.decode("ascii").splitlines() if line.strip()]
        table = np.loadtxt(lines or ["-"], np.int64, comments=None, ndmin=2)
    except ValueError as error:
        raise InputError(f"{path}: malformed index, expected 'key<TAB>offset': {error}") from error
    if table.shape[1] != 2:
        raise InputError(
            f"{path}: malformed index, expected 'key<TAB>offset', found {table.shape[1]} columns"
        )
    table = table[np.argsort(table[:, 0], kind="stable")]
    keys, offsets = np.ascontiguousarray(table[:, 0]), np.ascontiguousarray(table[:, 1])
    repeated = np.flatnonzero(np.diff(keys) == 0)
    if len(repeated):
        raise InputError(f"{path}: key {keys[repeated[0]]} occurs more than once")
    return keys, offsets


def _gather(data: np.ndarray, offsets: np.ndarray) -> dict[str, np.ndarray]:
    """Reads the fixed words of all records, in file order for sequential disk access."""
    words = data[: len(data) // 4 * 4].view("<u4")
    last, count = len(words) - 1, len(offsets)
    magic, lrec, first_words = (np.empty(count, np.uint32) for _ in range(3))
    flags, labels = np.empty(count, np.int64), np.empty(count, np.float32)
    by_offset = np.argsort(offsets, kind="stable")
    for start in range(0, count, _SCAN_BLOCK):
        rows = by_offset[start : start + _SCAN_BLOCK]
        where = offsets[rows] // 4
        block = words[np.minimum(where[:, None] + np.arange(_FIXED_WORDS + 1), last)]
        magic[rows], lrec[rows], flags[rows] = block[:, 0], block[:, 1], block[:, 2]
        label_words = np.where(block[:, 2] == 0, block[:, 3], block[:, _FIXED_WORDS])
        labels[rows] = label_words.view("<f4")
        image = np.minimum(where + _FIXED_WORDS + flags[rows], last)
        first_words[rows] = words[image]
    return {
        "magic": magic,
        "lrec": lrec,
        "flags": flags,
        "labels": labels,
        "first_words": first_words,
    }


def _require(good: np.ndarray, path: pathlib.Path, keys: np.ndarray, problem: str) -> None:
    """Raises InputError with the first key at fault unless all records are ``good``."""
    bad = np.flatnonzero(~good)
    if len(bad):
        more = f" ({len(bad)} such records)" if len(bad) > 1 else ""
        raise InputError(
            f"{path}: record key {keys[bad[0]]} {problem}{more}; "
            f"copy {path.name} and {path.stem}.idx again"
        )


def _join_chunks(path: pathlib.Path, data: np.ndarray, offset: int, key: int) -> bytes:
    """Returns the payload of a record in chunks, with the magic words between them restored."""
    parts: list[bytes] = []
    while True:
        head = data[offset : offset + HEADER.size].tobytes()
        magic, lrec = HEADER.unpack(head) if len(head) == HEADER.size else (0, 0)
        cflag, length = lrec >> 29, lrec & ((1 << 29) - 1)
        start = offset + HEADER.size
        wanted = (2, 3) if parts else (1,)
        if magic != MAGIC or cflag not in wanted or start + length > len(data):
            raise InputError(
                f"{path}: record key {key} has a damaged chunk {len(parts)}; copy the file again"
            )
        parts.append(data[start : start + length].tobytes())
        if cflag == 3:
            return MAGIC_BYTES.join(parts)
        offset = start + (length + 3) // 4 * 4


def _image_records(records: Records) -> Records:
    """Leaves out the header and the identity records of an insightface data set."""
    # An image record may have several labels too; only a header has no data after them.
    headed = records.keys[0] == 0 and records.flags[0] >= 2 and records.image_bytes[0] == 0
    if not headed:
        return records
    end = float(records.labels[0])
    if not (np.isfinite(end) and end >= 2 and end == int(end)):
        raise InputError(
            f"{records.path}: record key 0 is a header, but says that identity records start "
            f"at key {end}; the file is damaged or holds no image"
        )
    images = records.take((records.keys >= 1) & (records.keys < end))
    if len(images.keys) != int(end) - 1:
        gaps = np.flatnonzero(images.keys != np.arange(1, len(images.keys) + 1))
        absent = int(gaps[0]) + 1 if len(gaps) else len(images.keys) + 1
        raise InputError(
            f"{records.path.with_suffix('.idx')}: image key {absent} is missing; the header "
            f"announces image keys 1 to {int(end) - 1}, the index has {len(images.keys)} of them"
        )
    return images


def _drop_undecodable(records: Records) -> Records:
    jpeg = (records.first_words & 0xFFFFFF) == _JPEG
    good = (jpeg | (records.first_words == _PNG)) & (records.image_bytes >= 4)
    if good.all():
        return records
    bad = np.flatnonzero(~good)
    if len(bad) == len(good):
        raise InputError(f"{records.path}: none of the {len(good)} records holds a JPEG or PNG")
    logging.warning(
        "%s: %d of %d image records hold no JPEG or PNG and are left out (first: key %d)",
        records.path,
        len(bad),
        len(good),
        records.keys[bad[0]],
    )
    return records.take(good)


def _check_labels(records: Records) -> None:
    labels = records.labels
    # The upper end keeps the conversion to an integer defined; NaN fails every comparison.
    good = (labels >= 0) & (labels < 2.0**31)
    good &= np.floor(labels) == labels
    bad = np.flatnonzero(~good)
    if len(bad):
        raise InputError(
            f"{records.path}: record key {records.keys[bad[0]]} has the label {labels[bad[0]]} "
            f"({len(bad)} such records); identities must be whole numbers >= 0"
        )
