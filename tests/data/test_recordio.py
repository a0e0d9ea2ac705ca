"""RecordIO: format, labels, damaged files, the writer, and a real data set."""

import struct

import numpy as np
import pytest
from absl import logging
from small import DATA

from fedfr_jax.data import SOURCES, decode, open_source
from fedfr_jax.data.recordio import open_recordio, scan
from fedfr_jax.data.recordio_format import (
    MAGIC,
    MAGIC_BYTES,
    RecordWriter,
    encode_image,
    write_recordio,
)
from fedfr_jax.errors import InputError
from fedfr_jax.settings import DataConfig

REAL = DATA / "lfw"


def pictures(count, size=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def png(seed=0, size=16):
    return encode_image(pictures(1, size, seed)[0], "PNG")


def frame(payload, cflag=0):
    """One chunk, written independently of the module under test."""
    head = struct.pack("<II", MAGIC, cflag << 29 | len(payload))
    return head + payload + b"\0" * (-len(payload) % 4)


def image_payload(image, label, key, extra=None):
    if extra is None:
        return struct.pack("<IfQQ", 0, label, key, 0) + image
    more = struct.pack(f"<{len(extra)}f", *extra)
    return struct.pack("<IfQQ", len(extra), label, key, 0) + more + image


def write_plain(folder, payloads, keys=None):
    """Writes records without header (all records are images); returns their offsets."""
    offsets, data = [], b""
    for payload in payloads:
        offsets.append(len(data))
        data += frame(payload)
    keys = range(len(payloads)) if keys is None else keys
    (folder / "train.rec").write_bytes(data)
    lines = [f"{key}\t{offset}\n" for key, offset in zip(keys, offsets, strict=True)]
    (folder / "train.idx").write_text("".join(lines))
    return offsets


@pytest.fixture(name="warnings")
def fixture_warnings(monkeypatch):
    caught = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: caught.append(text % args))
    return caught


def test_round_trip_keeps_pixels_and_labels(tmp_path):
    images, labels = pictures(7), np.array([2, 0, 1, 0, 2, 2, 1])
    write_recordio(tmp_path, images, labels, image_format="PNG")
    source = open_source(DataConfig(source="recordio", root=str(tmp_path), image_size=16))
    order = np.argsort(labels, kind="stable")
    assert source.labels.tolist() == labels[order].tolist()
    assert source.labels.dtype == np.int64
    assert source.identity_names == ("0", "1", "2")
    np.testing.assert_array_equal(source.read(np.arange(7)), images[order])
    np.testing.assert_array_equal(source.read(np.array([5, 1, 5])), images[order][[5, 1, 5]])
    assert source.read(np.zeros(0, np.int64)).shape == (0, 16, 16, 3)
    assert (tmp_path / "property").read_text() == "3,16,16"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["property", "train.idx", "train.rec"]


def test_writer_follows_the_insightface_layout(tmp_path):
    write_recordio(tmp_path, pictures(5), np.array([0, 0, 0, 1, 1]), image_format="PNG")
    data = (tmp_path / "train.rec").read_bytes()
    rows = [line.split("\t") for line in (tmp_path / "train.idx").read_text().splitlines()]
    index = {int(key): int(offset) for key, offset in rows}
    assert sorted(index) == list(range(8))  # header, five images, two identities

    def labels_of(key):
        magic, lrec, flag, _, number, _ = struct.unpack_from("<IIIfQQ", data, index[key])
        assert (magic, flag, number) == (MAGIC, 2, 0)
        assert lrec == 24 + 8
        return struct.unpack_from("<2f", data, index[key] + 32)

    assert [labels_of(key) for key in (0, 6, 7)] == [(6, 8), (1, 4), (4, 6)]


def test_jpeg_and_path_of_the_rec_file(tmp_path):
    smooth = np.full((2, 24, 24, 3), 100, np.uint8)
    write_recordio(tmp_path, smooth, np.array([0, 1]))
    source = open_recordio(tmp_path / "train.rec", 24)
    assert np.abs(source.read(np.arange(2)).astype(int) - smooth).max() <= 2


def test_other_sizes_are_resized(tmp_path):
    write_recordio(tmp_path, np.full((3, 40, 40, 3), 77, np.uint8), np.arange(3))
    for size in (10, 40, 64):
        read = open_recordio(tmp_path, size).read(np.arange(3))
        assert read.shape == (3, size, size, 3)
        assert np.abs(read.astype(int) - 77).max() <= 2


@pytest.mark.parametrize("places", [(0,), (4, 8), (3, 12), (0, 4, 20), (16, 36)])
def test_magic_word_in_the_payload_is_cut_and_restored(tmp_path, places):
    body = bytearray(range(40))
    for place in places:
        body[place : place + 4] = MAGIC_BYTES
    blob = b"\xff\xd8\xff\xe0" + bytes(body) + b"xyz"  # the magic check sees a JPEG
    with RecordWriter(tmp_path, 8) as writer:
        writer.add(blob, 0)
        writer.add(b"\xff\xd8\xff\xe0" + b"after", 1)
    records = scan(tmp_path / "train.rec")
    assert records.image(1) == blob
    assert records.image(2) == b"\xff\xd8\xff\xe0after"
    # 24 bytes of header come before, so a place is aligned exactly if it is a multiple of 4.
    assert records.chunked[1] == any(place % 4 == 0 for place in places)
    data = (tmp_path / "train.rec").read_bytes()
    starts = [i for i in range(0, len(data), 4) if data[i : i + 4] == MAGIC_BYTES]
    cflags = [struct.unpack_from("<I", data, i + 4)[0] >> 29 for i in starts]
    aligned = sum(place % 4 == 0 for place in places)
    expected = [1, *[2] * (aligned - 1), 3] if aligned else [0]
    assert cflags == [0, *expected, 0, 0, 0]  # header, record, record, two identities


def test_hand_made_chunks_decode(tmp_path):
    blob = png(3)
    payload = image_payload(blob, 5.0, 0)
    cut = 44  # pretend that a magic word stood here
    whole = payload[:cut] + MAGIC_BYTES + payload[cut:]
    (tmp_path / "train.rec").write_bytes(frame(payload[:cut], 1) + frame(payload[cut:], 3))
    (tmp_path / "train.idx").write_text("0\t0\n")
    records = scan(tmp_path / "train.rec")
    assert records.image(0) == whole[24:]
    assert records.labels[0] == 5.0


def test_chunk_boundary_inside_the_labels(tmp_path):
    odd = struct.unpack("<f", MAGIC_BYTES)[0]  # a second label whose bits are the magic word
    image = png(1)
    payload = image_payload(image, 0.0, 0, extra=(3.0, odd))
    cut = payload.index(MAGIC_BYTES)
    (tmp_path / "train.rec").write_bytes(frame(payload[:cut], 1) + frame(payload[cut + 4 :], 3))
    (tmp_path / "train.idx").write_text("0\t0\n")
    source = open_recordio(tmp_path, 16)
    assert source.identity_names == ("3",)
    np.testing.assert_array_equal(source.read(np.arange(1)), pictures(1, seed=1))


def test_extra_labels_and_no_header(tmp_path):
    images = [png(i) for i in range(4)]
    write_plain(
        tmp_path,
        [
            image_payload(images[0], 9.0, 0, extra=(1.0, 7.5, 3.0)),
            image_payload(images[1], 0.0, 1),
            image_payload(images[2], 9.0, 2, extra=(1.0,)),
            image_payload(images[3], 2.0, 3),
        ],
    )
    source = open_recordio(tmp_path, 16)
    assert source.labels.tolist() == [1, 0, 1, 2]
    np.testing.assert_array_equal(
        source.read(np.arange(4)), np.concatenate([pictures(1, seed=i) for i in range(4)])
    )


def test_index_in_any_order(tmp_path):
    images = pictures(3)
    write_recordio(tmp_path, images, np.arange(3), image_format="PNG")
    lines = (tmp_path / "train.idx").read_text().splitlines()
    (tmp_path / "train.idx").write_text("\r\n".join(reversed(lines)) + "\r\n")
    np.testing.assert_array_equal(open_recordio(tmp_path, 16).read(np.arange(3)), images)


def test_label_gaps_are_closed_with_one_warning(tmp_path, warnings):
    write_plain(tmp_path, [image_payload(png(i), label, i) for i, label in enumerate([7, 2, 7])])
    source = open_recordio(tmp_path, 16)
    assert source.labels.tolist() == [1, 0, 1]
    assert source.identity_names == ("2", "7")
    assert len(warnings) == 1
    assert "6 of the labels 0 to 7" in warnings[0]


def test_no_warning_without_cause(tmp_path, warnings):
    write_recordio(tmp_path, pictures(4), np.array([0, 0, 1, 1]))
    open_recordio(tmp_path, 16)
    assert warnings == []


@pytest.mark.parametrize("label", [-1.0, 1.5, float("nan"), float("inf")])
def test_bad_labels(tmp_path, label):
    write_plain(tmp_path, [image_payload(png(), 0.0, 0), image_payload(png(), label, 1)])
    with pytest.raises(InputError, match=r"train\.rec.*key 1 has the label"):
        open_recordio(tmp_path, 16)


def test_records_that_are_no_images_are_dropped_with_one_warning(tmp_path, warnings):
    payloads = [
        image_payload(png(0), 0, 0),
        image_payload(b"GARBAGE!", 1, 1),
        image_payload(b"", 1, 2),
        image_payload(png(3), 1, 3),
    ]
    write_plain(tmp_path, payloads)
    source = open_recordio(tmp_path, 16)
    assert source.labels.tolist() == [0, 1]
    np.testing.assert_array_equal(source.read(np.array([1])), pictures(1, seed=3))
    assert len(warnings) == 1
    assert "2 of 4" in warnings[0]
    assert "key 1" in warnings[0]
    unchecked = open_recordio(tmp_path, 16, check_images=False)
    assert len(unchecked.labels) == 4
    with pytest.raises(InputError, match="record key 1"):
        unchecked.read(np.arange(4))


def test_damaged_image_is_named_when_read(tmp_path):
    whole = png(0, size=64)
    half = whole[: len(whole) // 2]
    write_plain(tmp_path, [image_payload(png(), 0, 0), image_payload(half, 1, 9)], keys=[4, 9])
    source = open_recordio(tmp_path, 16)
    assert source.read(np.array([0])).shape == (1, 16, 16, 3)
    with pytest.raises(InputError, match=r"train\.rec: record key 9"):
        source.read(np.array([0, 1]))


def test_no_image_at_all(tmp_path):
    write_plain(tmp_path, [image_payload(b"text", 0, 0)])
    with pytest.raises(InputError, match="JPEG or PNG"):
        open_recordio(tmp_path, 16)


def break_files(folder, how):
    rec, idx = folder / "train.rec", folder / "train.idx"
    lines = idx.read_text().splitlines()
    data = bytearray(rec.read_bytes())
    offset = int(lines[2].split("\t")[1])
    replaced = {
        "no_rec": rec.unlink,
        "no_idx": idx.unlink,
        "empty_idx": lambda: idx.write_text("\n"),
        "empty_rec": lambda: rec.write_bytes(b""),
        "malformed": lambda: idx.write_text("\n".join([*lines, "9 x"])),
        "columns": lambda: idx.write_text("1\n2\n"),
        "uneven": lambda: idx.write_text("\n".join([*lines, "9"])),
        "binary": lambda: idx.write_bytes(b"\xff\xfe\x00"),
        "twice": lambda: idx.write_text("\n".join([*lines, lines[0]])),
        "beyond": lambda: idx.write_text("\n".join([*lines, f"99\t{len(data) + 400}"])),
        "negative": lambda: idx.write_text("\n".join([*lines, "99\t-4"])),
        "unaligned": lambda: idx.write_text("\n".join([*lines, "99\t2"])),
        "truncated": lambda: rec.write_bytes(data[: len(data) // 2]),
        "missing_key": lambda: idx.write_text("\n".join(lines[:2] + lines[3:])),
    }
    if how == "magic":
        data[offset] ^= 1
        rec.write_bytes(data)
    elif how == "middle":
        data[offset + 7] |= 0x40  # cflag 2
        rec.write_bytes(data)
    elif how == "length":
        data[offset + 6] = 0xFF
        rec.write_bytes(data)
    elif how == "flag":
        data[offset + 8 : offset + 12] = b"\xff\xff\xff\xff"
        rec.write_bytes(data)
    elif how == "chunk":
        data[offset + 7] |= 0x20  # cflag 1, but no chunk of its own follows
        rec.write_bytes(data)
    else:
        replaced[how]()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no_rec", "train.rec: no such file"),
        ("no_idx", "train.idx: no such file"),
        ("empty_idx", "train.idx: empty"),
        ("empty_rec", "train.rec: empty"),
        ("malformed", "train.idx: malformed"),
        ("columns", "train.idx: malformed"),
        ("uneven", "train.idx: malformed"),
        ("binary", "train.idx: malformed"),
        ("twice", "key 0 occurs more than once"),
        ("beyond", "train.rec: record key 99 points outside"),
        ("negative", "train.rec: record key 99 points outside"),
        ("unaligned", "key 99 has an offset that is no multiple of 4"),
        ("truncated", "train.rec: record key .* cut off"),
        ("missing_key", "train.idx: image key 2 is missing"),
        ("magic", "key 2 does not start with the RecordIO magic"),
        ("middle", "key 2 starts in the middle"),
        ("length", "key 2 ends behind the file"),
        ("flag", "key 2 is shorter than its header says"),
        ("chunk", "key 2 has a damaged chunk"),
    ],
)
def test_damaged_data_sets_fail_when_opened(tmp_path, how, message):
    write_recordio(tmp_path, pictures(6), np.array([0, 0, 1, 1, 2, 2]), image_format="PNG")
    open_recordio(tmp_path, 16)  # it was fine before
    break_files(tmp_path, how)
    with pytest.raises(InputError, match=message):
        open_recordio(tmp_path, 16)


def test_last_record_cut_by_a_byte(tmp_path):
    write_plain(tmp_path, [image_payload(png() + b"abc", 0, 0)])
    data = (tmp_path / "train.rec").read_bytes()
    padding = -(24 + len(png()) + 3) % 4
    (tmp_path / "train.rec").write_bytes(data[: len(data) - padding - 1])
    with pytest.raises(InputError, match="cut off"):
        open_recordio(tmp_path, 16)


def test_settings(tmp_path):
    with pytest.raises(InputError, match=r"data\.root"):
        open_source(DataConfig(source="recordio"))
    with pytest.raises(InputError, match=r"data\.root"):
        open_recordio(tmp_path / "nothing", 16)
    with pytest.raises(InputError, match=r"data\.source.*recordio, folder, tfds"):
        open_source(DataConfig(source="mxnet"))
    with pytest.raises(InputError, match=r"data\.workers"):
        decode.decode_images([png()], 16, workers=-1)
    assert set(SOURCES) == {"generated", "recordio", "folder", "tfds", "prepared"}


def test_writer_refuses_and_leaves_nothing_behind(tmp_path):
    def write(*labels):
        with RecordWriter(tmp_path, 16) as writer:
            for label in labels:
                writer.add(png(), label)

    with pytest.raises(InputError, match="follow one another"):
        write(0, 1, 0)
    with pytest.raises(InputError, match="label -1"):
        write(-1)
    with pytest.raises(InputError, match="no image"):
        write()
    with pytest.raises(InputError, match="3 images but 2 labels"):
        write_recordio(tmp_path, pictures(3), np.arange(2))
    with pytest.raises(InputError, match="image_size"):
        write_recordio(tmp_path, [png()], np.arange(1))
    assert list(tmp_path.iterdir()) == []


def test_threads_do_not_change_the_result():
    images = pictures(50, seed=4)
    blobs = [encode_image(image, "PNG") for image in images]
    for workers in (1, 2, 5):
        np.testing.assert_array_equal(decode.decode_images(blobs, 16, workers=workers), images)
    blobs[37] = b"nothing"
    with pytest.raises(InputError, match="image 37"):
        decode.decode_images(blobs, 16, workers=3)


@pytest.mark.real
@pytest.mark.skipif(not (REAL / "train.rec").exists(), reason="needs the real faces")
def test_real_faces(warnings):
    source = open_recordio(REAL, 112)
    counts = np.bincount(source.labels)
    assert len(source.labels) == 13233
    assert source.num_identities == 5749
    at_least = {n: int((counts >= n).sum()) for n in (2, 5, 8, 10, 15, 20)}
    assert at_least == {2: 1680, 5: 423, 8: 217, 10: 158, 15: 96, 20: 62}
    assert warnings == []
    some = np.array([0, 13232, 6000])
    images = source.read(some)
    assert images.shape == (3, 112, 112, 3)
    np.testing.assert_array_equal(source.read(some[::-1])[::-1], images)
    # The same faces by half the size: shrinking while decoding stays close to shrinking after it.
    small = open_recordio(REAL, 56).read(some).astype(float)
    mean = images.reshape(3, 56, 2, 56, 2, 3).mean(axis=(2, 4))
    assert np.abs(small - mean).mean() < 2


@pytest.mark.real
@pytest.mark.skipif(not (REAL / "train.rec").exists(), reason="needs the real faces")
def test_writer_reproduces_a_real_data_set(tmp_path):
    records = scan(REAL / "train.rec")
    with RecordWriter(tmp_path, 112) as writer:
        for i in range(1, 13234):
            writer.add(records.image(i), int(records.labels[i]))
    for name in ("train.rec", "train.idx"):
        assert (tmp_path / name).read_bytes() == (REAL / name).read_bytes()
