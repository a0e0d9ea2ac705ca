"""Verification sets: pickles of all kinds, hostile pickles, leaving out identities."""

import io
import os
import pickle
import struct

import numpy as np
import pytest
from PIL import Image
from small import DATA

from fedfr_jax.data.recordio import open_recordio
from fedfr_jax.data.types import ImageSource
from fedfr_jax.data.verification import leave_out, original_labels, read_bin, set_names
from fedfr_jax.errors import InputError

REAL = DATA / "lfw"
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 12, 12, 3), dtype=np.uint8)
ANSWERS = [True, False, True]


def encode(image):
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


BLOBS = [encode(image) for image in PIXELS]


def write(folder, content, protocol=4):
    path = folder / "faces.bin"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return path


def check(path):
    pairs = read_bin(path, 12)
    assert pairs.name == "faces"
    np.testing.assert_array_equal(pairs.images, PIXELS)
    assert pairs.is_same.dtype == bool
    assert pairs.is_same.tolist() == ANSWERS


@pytest.mark.parametrize("protocol", range(6))
def test_lists_of_bytes_and_bools(tmp_path, protocol):
    check(write(tmp_path, (BLOBS, ANSWERS), protocol))


@pytest.mark.parametrize("protocol", range(6))
def test_numpy_bools_and_arrays(tmp_path, protocol):
    check(write(tmp_path, (BLOBS, [np.bool_(answer) for answer in ANSWERS]), protocol))
    check(write(tmp_path, (BLOBS, np.array(ANSWERS)), protocol))
    check(write(tmp_path, [tuple(BLOBS), np.array(ANSWERS, ">i4")], protocol))
    arrays = [np.frombuffer(blob, np.uint8) for blob in BLOBS]
    check(write(tmp_path, (arrays, [int(answer) for answer in ANSWERS]), protocol))


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_modules_of_both_numpy_generations(tmp_path, module):
    content = pickle.dumps((BLOBS, [np.bool_(answer) for answer in ANSWERS]), 2)
    for known in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        content = content.replace(b"c" + known + b"\n", b"c" + module + b"\n")
    assert b"c" + module + b"\n" in content
    check(write(tmp_path, content))


def test_python_2_strings(tmp_path):
    """What Python 2's cPickle writes at protocol 2: BINSTRING and SHORT_BINSTRING."""
    content = b"\x80\x02]("
    for i, blob in enumerate(BLOBS):
        short = i == 0 and len(blob) < 256
        size = struct.pack("<B", len(blob)) if short else struct.pack("<i", len(blob))
        content += (b"U" if short else b"T") + size + blob
    content += b"e](" + b"".join(b"\x88" if answer else b"\x89" for answer in ANSWERS) + b"e\x86."
    check(write(tmp_path, content))
    # Protocol 0: a quoted string, and bools as I01 and I00.
    text = b"((l"
    for blob in BLOBS:
        escaped = "".join(f"\\x{byte:02x}" for byte in blob).encode()
        text += b"S'" + escaped + b"'\na"
    text += b"(l" + b"".join(b"I01\na" if answer else b"I00\na" for answer in ANSWERS) + b"t."
    check(write(tmp_path, text))


def test_resizing(tmp_path):
    assert read_bin(write(tmp_path, (BLOBS, ANSWERS)), 20, workers=2).images.shape == (6, 20, 20, 3)


class Hostile:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def hostile_state():
    """Sets an attribute of a look-alike instead of calling something."""
    return b"\x80\x02c_codecs\nencode\n}U\x07patchedK\x01s\x86b."


def hostile_slots():
    return b"\x80\x02c_codecs\nencode\nN}U\x07patchedK\x01s\x86b."


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("place", ["image", "answer", "beside"])
def test_hostile_pickles_do_not_run(tmp_path, protocol, place):
    target = tmp_path / "touched"
    bomb = Hostile(os.mkdir, str(target))
    content = {
        "image": ([*BLOBS[:-1], bomb], ANSWERS),
        "answer": (BLOBS, [*ANSWERS[:-1], bomb]),
        "beside": (BLOBS, ANSWERS, bomb),
    }[place]
    path = write(tmp_path, content, protocol)
    with pytest.raises(InputError, match=r"faces\.bin.*mkdir.*hostile"):
        read_bin(path, 12)
    assert not target.exists()
    pickle.loads(path.read_bytes())  # the bomb is real: the ordinary way does run it
    assert target.exists()


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(Hostile(eval, "1 + 1")),
        pickle.dumps(Hostile(np.load, "x.npy")),
        pickle.dumps(Hostile(getattr, np.zeros(2), "dump")),
        pickle.dumps((BLOBS, np.array([object, None]))),
        pickle.dumps((BLOBS, np.zeros(3, [("a", "i4")]))),
        pickle.dumps((BLOBS, [complex(1)])),
        b"\x80\x02c_codecs\nencode\nX\x02\x00\x00\x00abX\x04\x00\x00\x00zlib\x86R.",
        b"\x80\x02cnumpy\nndarray\nM\x00\xff\x85R.",
        hostile_state(),
        hostile_slots(),
    ],
)
def test_other_names_and_kinds_are_refused(tmp_path, content):
    with pytest.raises(InputError, match=r"faces\.bin"):
        read_bin(write(tmp_path, content), 12)
    check(write(tmp_path, (BLOBS, ANSWERS), 2))  # and nothing of it stays behind


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ((BLOBS[:5], ANSWERS), "5 images for 3 pairs"),
        ((BLOBS, ANSWERS[:2]), "6 images for 2 pairs"),
        (([], []), "0 images for 0 pairs"),
        (BLOBS, "pair"),
        ((BLOBS, 3), "list"),
        ((BLOBS, [True, False, 2]), "pair 2"),
        ((BLOBS, [True, "yes", False]), "pair 1"),
        ((BLOBS, np.ones((3, 2), bool)), "pair 0"),
        (([*BLOBS[:5], "text"], ANSWERS), "image 5"),
        (([*BLOBS[:5], np.ones(4)], ANSWERS), "image 5"),
        (([*BLOBS[:5], b"no image"], ANSWERS), "image 5 of pair 2"),
        (([*BLOBS[:3], BLOBS[3][:100], *BLOBS[4:]], ANSWERS), "image 3 of pair 1"),
        (b"", "cannot|read"),
        (b"no pickle", "cannot|read"),
    ],
)
def test_malformed_sets(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        read_bin(write(tmp_path, content), 12)


@pytest.mark.parametrize("share", [0.2, 0.6, 0.999])
def test_truncated(tmp_path, share):
    whole = pickle.dumps((BLOBS, ANSWERS), 2)
    with pytest.raises(InputError, match=r"faces\.bin"):
        read_bin(write(tmp_path, whole[: int(len(whole) * share)]), 12)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_bin(tmp_path / "absent.bin", 12)


def test_equal_stems_are_told_apart():
    assert set_names(["a/lfw.bin", "b/lfw.bin", "cfp.bin"]) == ("a/lfw", "b/lfw", "cfp")
    for twice in (["lfw.bin", "lfw.bin"], ["a/lfw.bin", "a/lfw.pkl"]):
        with pytest.raises(InputError, match="list each file once"):
            set_names(twice)


def test_leave_out(tmp_path):
    pairs = read_bin(write(tmp_path, (BLOBS, ANSWERS)), 12)
    labels = tmp_path / "labels.npy"
    np.save(labels, np.array([[4, 4], [4, 9], [7, 7]]))
    kept = leave_out(pairs, labels, [9])
    np.testing.assert_array_equal(kept.images, PIXELS[[0, 1, 4, 5]])
    assert kept.is_same.tolist() == [True, True]
    assert kept.name == "faces"
    np.testing.assert_array_equal(leave_out(pairs, labels, np.array([4])).images, PIXELS[4:])
    assert len(leave_out(pairs, labels, []).is_same) == 3
    with pytest.raises(InputError, match="all 3 pairs"):
        leave_out(pairs, labels, [4, 7])


def test_leave_out_with_a_bad_file(tmp_path):
    pairs = read_bin(write(tmp_path, (BLOBS, ANSWERS)), 12)
    labels = tmp_path / "labels.npy"
    with pytest.raises(InputError, match="verification_labels"):
        leave_out(pairs, labels, [])
    for bad in (np.zeros((2, 2), int), np.zeros(6, int), np.zeros((3, 2))):
        np.save(labels, bad)
        with pytest.raises(InputError, match=r"labels\.npy: expected"):
            leave_out(pairs, labels, [])
    np.save(labels, np.array([[1, Hostile(os.getpid)]], object))
    with pytest.raises(InputError, match="verification_labels"):
        leave_out(pairs, labels, [])
    np.savez(tmp_path / "more.npz", a=np.zeros((3, 2), int))
    with pytest.raises(InputError, match="archive"):
        leave_out(pairs, tmp_path / "more.npz", [])


def test_original_labels():
    source = ImageSource("x", np.arange(3), 8, lambda images: images, ("3", "10", "11"))
    assert original_labels(source, [2, 0]).tolist() == [11, 3]
    named = ImageSource("x", np.arange(1), 8, lambda images: images, ("Ann",))
    with pytest.raises(InputError, match="no numbers"):
        original_labels(named, [0])


@pytest.mark.real
@pytest.mark.skipif(not (REAL / "lfw.bin").exists(), reason="needs the real faces")
def test_real_pairs():
    pairs = read_bin(REAL / "lfw.bin", 28)
    assert pairs.images.shape == (12000, 28, 28, 3)
    assert pairs.is_same.sum() == 3000
    assert pairs.is_same.reshape(10, 600)[:, :300].all()
    labels = np.load(REAL / "lfw_bin_labels.npy")
    np.testing.assert_array_equal(labels[:, 0] == labels[:, 1], pairs.is_same)
    source = open_recordio(REAL, 28)
    trained = original_labels(source, range(1000))
    kept = leave_out(pairs, REAL / "lfw_bin_labels.npy", trained)
    assert len(kept.is_same) == (labels >= 1000).all(axis=1).sum()
