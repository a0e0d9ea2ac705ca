"""Damaged and hostile files for every reader: a result or InputError, in bounded time and memory.

``FEDFR_FUZZ`` is the number of files of a kind; ``make fuzz`` makes many.
"""

from __future__ import annotations

import io
import json
import os
import pathlib
import pickle
import shutil
import struct
import zipfile

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fedfr_jax.config import resolve
from fedfr_jax.data.arrays import load_array, load_arrays
from fedfr_jax.data.decode import decode_images
from fedfr_jax.data.folder import open_folder
from fedfr_jax.data.pickled import PickleError, loads
from fedfr_jax.data.recordio import open_recordio
from fedfr_jax.data.recordio_format import write_recordio
from fedfr_jax.data.safetensors_file import load_safetensors, save_safetensors
from fedfr_jax.data.split import make_split
from fedfr_jax.data.split_file import load_split, save_split
from fedfr_jax.data.verification import read_bin
from fedfr_jax.errors import InputError
from fedfr_jax.evaluation import ijb
from fedfr_jax.models import build, load_weights, to_torch
from fedfr_jax.models.preprocessing import Preprocessing
from fedfr_jax.models.weight_file import Structure, WeightFile, read_weight_file, write_weight_file
from fedfr_jax.population import journal, sampling
from fedfr_jax.runtime import autotune, fingerprints, workdir
from fedfr_jax.runtime.process_memory import peak_bytes
from fedfr_jax.settings import ModelConfig

fuzz = settings(
    max_examples=int(os.environ.get("FEDFR_FUZZ", "40")),
    deadline=5000,
    derandomize="FEDFR_FUZZ" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 12, 12, 3), dtype=np.uint8)


@pytest.fixture(autouse=True, scope="module")
def bounded_memory():
    """What tests before these have taken does not count: the peak is set back (proc(5))."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = peak_bytes()
    yield
    assert peak_bytes() - before < 500 * 2**20


def encoded(kind, **options):
    out = io.BytesIO()
    Image.fromarray(PIXELS[0]).save(out, kind, **options)
    return out.getvalue()


def exif():
    found = Image.Exif()
    found[0x0112] = 6
    found[0x010F] = "camera"
    return found


IMAGES = [
    encoded("JPEG", exif=exif()),
    encoded("PNG", exif=exif()),
    encoded("BMP"),
    encoded("WEBP", exif=exif()),
    encoded("JPEG", progressive=True),
]
BLOBS = [encoded("PNG")] * 3 + [encoded("JPEG")] * 3


def damaged(originals):
    """Files with bytes changed, cut, repeated and inserted."""
    numbers = st.integers(0, 2**31)
    edit = st.tuples(
        st.sampled_from(["set", "cut", "insert", "repeat"]),
        numbers,
        numbers,
        st.binary(min_size=1, max_size=9),
    )

    def apply(pair):
        data, edits = pair
        for kind, first, second, what in edits:
            a = first % (len(data) + 1)
            b = a + second % (len(data) - a + 1)
            if kind == "set":
                data = data[:a] + what + data[a + len(what) :]
            elif kind == "cut":
                data = data[:a] + data[b:] if len(what) % 2 else data[:a]
            elif kind == "insert":
                data = data[:a] + what + data[a:]
            elif len(data) < 1 << 18:
                data = data[:b] + data[a:b] + data[b:]
        return data

    return st.tuples(st.sampled_from(originals), st.lists(edit, min_size=1, max_size=4)).map(apply)


def emptied(factory):
    """One folder for all files of a worker: pytest looks at all others to name a new one."""
    folder = factory.getbasetemp() / "fuzz"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def survives(read, *arguments):
    try:
        read(*arguments)
    except InputError:
        return False
    return True


@fuzz
@given(data=damaged(IMAGES))
def test_images(data):
    survives(decode_images, [data], 12)


SETS = [
    pickle.dumps((BLOBS, answers), protocol)
    for protocol in range(6)
    for answers in ([True, False, True], np.array([True, False, True]))
]
OPERATIONS = [
    bytes([code])
    for code in b"(.0125]})telaRbcIJKMLSVTUXBCqrhgjpsuN\x80\x81\x85\x86\x87"
    b"\x88\x89\x8a\x8b\x8c\x8d\x8e\x90\x91\x92\x93\x94\x95\x96\x97\x98"
]
PIECES = st.sampled_from(
    [
        *OPERATIONS,
        b"\x01",
        b"\xff\xff\xff\x7f",
        b"\x00\x00\x00\x00",
        b"cnumpy\ndtype\n",
        b"cnumpy.core.multiarray\n_reconstruct\n",
        b"c_codecs\nencode\n",
        b"U\x02i8",
        b"X\x01\0\0\0a",
        b"h\x00",
        b"h\x01",
        b"q\x00",
        b"q\x01",
        b"\x8e" + b"\xff" * 8,
        b"\x96" + b"\0\0\0\0\1\0\0\0",
        b"r\xff\xff\xff\x7f",
        b"I9\n",
        b"L99999999999L\n",
        b"cnumpy\nndarray\n",
    ]
)


@fuzz
@given(data=damaged(SETS) | st.lists(PIECES, max_size=40).map(b"".join))
def test_verification_sets(tmp_path_factory, data):
    path = emptied(tmp_path_factory) / "x.bin"
    path.write_bytes(data)
    survives(read_bin, path, 12)
    path.unlink()


def array_files():
    files = []
    for array in (np.arange(6).reshape(3, 2), np.array(["a", "bc"]), np.zeros((0, 2), ">f4")):
        out = io.BytesIO()
        np.save(out, array)
        files.append(out.getvalue())
    return files


def npy_header(text):
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


HEADERS = st.sampled_from(
    [
        "{'descr': '<i8', 'fortran_order': False, 'shape': (1099511627776,), }",
        "(" * 5000,
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
        "[" * 200 + "]" * 200,
        "{'descr': '<i8', 'fortran_order': False, 'shape': (-1, -6), }",
        "{1: 2}",
        "1" * 9000,
        "{'descr': '<i8', 'fortran_order': False, 'shape': (True,), }",
        "-" * 9000 + "1",
        "{'descr': [('a', '<i8')], 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '|V0', 'fortran_order': False, 'shape': (), }",
    ]
).map(lambda text: npy_header(text) + b"\0" * 8)


@fuzz
@given(data=damaged(array_files()) | HEADERS)
def test_arrays(tmp_path_factory, data):
    path = emptied(tmp_path_factory) / "x.npy"
    path.write_bytes(data)
    survives(load_array, path)
    path.unlink()


@pytest.fixture(scope="module", name="folder")
def fixture_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    write_recordio(folder, PIXELS, np.array([0, 0, 1, 1, 2, 2]), image_format="PNG")
    np.savez_compressed(folder / "packed.npz", a=np.zeros(1000))
    from fedfr_jax.settings import SplitConfig  # noqa: PLC0415

    labels = np.repeat(np.arange(12), 8)
    save_split(
        folder / "split.npz",
        make_split(
            labels,
            2,
            SplitConfig(
                identities_per_client=(2, 2),
                client_images=(1, 99),
                public_images=(1, 99),
                verification_images=2,
            ),
            0,
        ),
    )
    return folder


@fuzz
@given(data=st.data())
def test_archives(folder, tmp_path_factory, data):
    path = emptied(tmp_path_factory) / "x.npz"
    path.write_bytes(
        data.draw(damaged([(folder / name).read_bytes() for name in ("split.npz", "packed.npz")]))
    )
    survives(load_arrays, path)
    survives(load_split, path)
    path.unlink()


@fuzz
@given(data=st.data())
def test_recordio(folder, tmp_path_factory, data):
    copy = emptied(tmp_path_factory)
    for name in ("train.rec", "train.idx"):
        original = (folder / name).read_bytes()
        (copy / name).write_bytes(data.draw(damaged([original]) | st.just(original)))
    try:
        source = open_recordio(copy, 12)
        source.read(np.arange(len(source.labels)))
    except InputError:
        pass


JOURNAL = {"population": 3, "row": {"a": "float32[2]"}}
COMMITS = {
    "version": journal.VERSION,
    "description": JOURNAL,
    "commits": [{"round": 1, "clients": 2, "digest": 5, "kept": True}],
}
RUN_FILES = [
    json.dumps(COMMITS | {"check": journal._check(COMMITS)}).encode(),
    b'{"kind": "round", "round": 1, "loss": NaN, "crc": 1}',
    b'{"a": 1, "check": "x"}',
    b'{"a": [1, 2.5, "x"], "b": {"c": null}}',
    b"[" * 100_000,
    b"1" * 5000,
    b'{"a":' * 9999,
]


@fuzz
@given(data=damaged(RUN_FILES) | st.sampled_from(RUN_FILES))
def test_json_of_a_run(tmp_path_factory, data):
    folder = emptied(tmp_path_factory)
    for name in (workdir.CONFIG, workdir.METRICS, workdir.SUMMARY, fingerprints.NAME):
        (folder / name).write_bytes(data)
    for read in (
        workdir.read_config,
        workdir.read_metrics,
        workdir.read_summary,
        fingerprints.read_fingerprint,
    ):
        survives(read, folder)
    survives(journal.read_journal, folder / workdir.CONFIG, JOURNAL)


@fuzz
@given(data=st.data())
def test_evaluation_of_a_run(tmp_path_factory, data):
    folder = emptied(tmp_path_factory)
    workdir.write_evaluation(
        folder,
        rocs={"a": {"b": (np.arange(3.0), np.arange(3.0))}},
        per_client={"m": {"b": np.arange(4.0)}},
        faces=PIXELS[None],
    )
    path = folder / workdir.EVALUATION
    path.write_bytes(data.draw(damaged([path.read_bytes()])))
    survives(workdir.read_evaluation, folder)


META = {
    "face_tid_mid.txt": b"a.jpg 10 1\nb.jpg 11 2\n",
    "name_5pts_score.txt": b"a.jpg 1 2 3 4 5 6 7 8 9 10 0.9\nb.jpg 1 2 3 4 5 6 7 8 9 10 0.8\n",
    "template_pair_label.txt": b"10 11 0\n10 10 1\n",
    "1N_gallery_G1.csv": b"T,S\n10,1\n",
    "1N_gallery_G2.csv": b"T,S\n11,2\n",
    "1N_probe_mixed.csv": b"T,S\n10,1\n11,2\n",
}


@fuzz
@given(data=st.data())
def test_ijb_files(tmp_path_factory, data):
    folder = emptied(tmp_path_factory)
    spoilt = data.draw(st.sampled_from(sorted(META)))
    for name, text in META.items():
        (folder / f"ijbc_{name}").write_bytes(
            data.draw(damaged([text])) if name == spoilt else text
        )
    survives(ijb.read_ijb, folder)


NETWORK = build(ModelConfig(depth=4, widths=(2, 2, 2, 2), embedding=2), 16, "grouped")


@pytest.fixture(scope="module", name="weights")
def fixture_weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "x.npz"
    np.savez(
        path,
        **to_torch(
            jax.tree.map(
                lambda x: np.ones(x.shape, x.dtype), jax.eval_shape(NETWORK.init, jax.random.key(0))
            ),
            NETWORK,
        ),
    )
    assert survives(load_weights, path, NETWORK)
    return path.read_bytes()


@fuzz
@given(data=st.data())
def test_weights(weights, tmp_path_factory, data):
    path = emptied(tmp_path_factory) / "x.npz"
    path.write_bytes(data.draw(damaged([weights])))
    survives(load_weights, path, NETWORK)
    path.unlink()


STRUCTURE = Structure("spherenet", 4, (2, 2, 2, 2), 2, 1e-5)


@pytest.fixture(scope="module", name="described")
def fixture_described(weights, tmp_path_factory):
    """The same arrays with what is recorded about them, in both kinds of file."""
    folder = tmp_path_factory.mktemp("described")
    (folder / "x.npz").write_bytes(weights)
    file = WeightFile(read_weight_file(folder / "x.npz").arrays, Preprocessing(), STRUCTURE)
    for name in ("y.npz", "y.safetensors"):
        write_weight_file(folder / name, file)
        assert survives(load_weights, folder / name, NETWORK)
    return {name: (folder / name).read_bytes() for name in ("y.npz", "y.safetensors")}


@fuzz
@given(data=st.data(), name=st.sampled_from(["y.npz", "y.safetensors"]))
def test_described_weights(described, tmp_path_factory, data, name):
    path = emptied(tmp_path_factory) / name
    path.write_bytes(data.draw(damaged([described[name]])))
    survives(load_weights, path, NETWORK)
    path.unlink()


def safetensors_file(header, values=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + values


def entry(kind="F32", shape=(2,), at=(0, 8)):
    return {"dtype": kind, "shape": shape, "data_offsets": at}


HEADERS = [
    {"a": entry(kind, shape, at), **more}
    for kind in ("F32", "BF16", "F8_E4M3", "BOOL", "U64", "F64", "C64", "no")
    for shape in ((2,), (1, 2), (), (2**40,), (0, 2**62), (-1,), (1,) * 70)
    for at in ((0, 8), (0, 4), (8, 0), (0, 2**63), (4, 8))
    for more in ({}, {"__metadata__": {"model": "{", "preprocessing": "[1]"}})
]
PLAIN = [
    safetensors_file({"a": entry()}, bytes(8)),
    safetensors_file({"a": entry("BF16", (4,)), "b": entry("I64", (), (8, 16))}, bytes(16)),
    safetensors_file({"__metadata__": {"model": "{}"}, "a": entry()}, bytes(8)),
]


@fuzz
@given(
    data=damaged(PLAIN)
    | st.sampled_from(HEADERS).map(lambda header: safetensors_file(header, bytes(8)))
    | st.binary(max_size=60)
)
def test_safetensors(tmp_path_factory, data):
    path = emptied(tmp_path_factory) / "x.safetensors"
    path.write_bytes(data)
    survives(load_safetensors, path)
    survives(read_weight_file, path)
    path.unlink()


@pytest.mark.parametrize("length", [0, 9, 2**27, 2**40, 2**63, 2**64 - 1])
def test_safetensors_that_announce_a_huge_header(tmp_path, length):
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors_file({"a": entry()}, bytes(8), length=length))
    with pytest.raises(InputError, match=f"{path}: cannot be read as a safetensors file"):
        load_safetensors(path)


def test_safetensors_come_back_as_they_were(tmp_path):
    path = tmp_path / "x.safetensors"
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "b": np.int64(3),
        "c": np.zeros((0, 2), np.float16),
        "d": np.array([True, False]),
    }
    save_safetensors(path, arrays, {"k": "v ü"})
    found, metadata = load_safetensors(path)
    assert metadata == {"k": "v ü"} and set(found) == set(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)
    whole = {"a": entry("BF16", (2,), (0, 4))}
    path.write_bytes(safetensors_file(whole, np.array([0x3F80, 0xC040], "<u2").tobytes()))
    np.testing.assert_array_equal(load_safetensors(path)[0]["a"], np.float32([1, -3]))


@fuzz
@given(
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(
            ["channels", "mean", "scale", "image_size", "source", "other"],
            st.none() | st.booleans() | st.integers() | st.floats() | st.text("RGB", max_size=3),
        ),
    )
    | st.lists(st.integers())
)
def test_what_is_recorded_about_the_input(values):
    try:
        found = Preprocessing.from_dict(values)
    except InputError:
        return
    assert Preprocessing.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert found.channels in ("RGB", "BGR") and found.scale > 0


PLANNED = resolve(  # so small that no rule is sure
    {
        "data": {"image_size": 16},
        "fed": {"num_clients": 6, "batch_size": 4},
        "model": {"depth": 4, "widths": (4, 4, 8, 8), "embedding": 8, "dtype": "auto"},
    }
)
PLAN = {"lanes": 1, "conv": "custom", "gradient_batch": 0, "dtype": "float32"}
VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text("a1 ", max_size=9)
    | (st.sampled_from(["float32", "float64", "patches", "auto", "int8", "O", [], {}, [[1]]]))
)
KEY = autotune._key(PLANNED, 1)
EVERY = autotune._candidates(PLANNED, 1)
assert len(EVERY) > 1
PLANS = st.dictionaries(st.sampled_from([*PLAN, "other"]), VALUES).map(lambda plan: PLAN | plan)


@fuzz
@given(
    data=damaged([json.dumps({KEY: PLAN}).encode(), *RUN_FILES])
    | st.dictionaries(st.just(KEY) | st.text("ab", max_size=3), PLANS | VALUES).map(
        lambda x: json.dumps(x).encode()
    )
)
def test_plans(tmp_path_factory, data):
    path = emptied(tmp_path_factory) / "plans.json"
    path.write_bytes(data)
    os.environ["FEDFR_PLANS"], before = str(path), os.environ.get("FEDFR_PLANS")
    try:
        found = autotune._kept(EVERY, autotune._read().get(KEY))
    finally:
        os.environ.pop("FEDFR_PLANS")
        os.environ.update({"FEDFR_PLANS": before} if before else {})
    assert found is None or (
        found.dtype == "float32" and found.gradient_batch == 0 and type(found.lanes) is int
    )


SCHEDULES = [b"0 1 2\n1 2\n[]\n", b"[[0, 1], [2], []]", b"[" * 100_000, b"0 " + b"9" * 5000]


@fuzz
@given(data=st.data())
def test_schedules(tmp_path_factory, data):
    folder = emptied(tmp_path_factory)
    for name, original in (("x.txt", SCHEDULES), ("x.npy", array_files())):
        (folder / name).write_bytes(data.draw(damaged(original) | st.sampled_from(original)))
        survives(sampling.read_schedule, folder / name, 3)
    survives(sampling._read_availability, folder / "x.npy", 2)


# --- those that were found, one by one -----------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04\x8e\xff\xff\xff\xff\x00\x00\x00\x00.",  # announces 4 GB
        b"\x80\x05\x96\xff\xff\xff\xff\x01\x00\x00\x00.",
        b"]r\xff\xff\xff\x7f.",  # a memo of 2^31 entries
        b"(" * 100 + b"t" * 101 + b".",
        b"I" + b"9" * 5000 + b"\n.",
        b"c_codecs\nencode\n(X\x04\0\0\0abcdtR"
        + b"0c_codecs\nencode\nX\x04\0\0\0abcd\x85R" * 9
        + b".",
        b"\x80\x02" + b"]q\x00" + b"h\x00a" * 3 + b"]\x86.",
    ],
)
def test_pickles_that_grew_are_small(data):
    try:
        found = loads(data)
    except PickleError:
        return
    assert isinstance(found, (list, tuple, bytes))


def test_nested_lists_by_memo_are_refused_at_once(tmp_path):
    nested = b"\x80\x02]q\x00" + b"".join(
        b"]q" + bytes([i + 1]) + b"(" + (b"h" + bytes([i])) * 9 + b"e" for i in range(40)
    )
    path = tmp_path / "x.bin"
    for data in (nested + b"]\x86.", b"\x80\x02(U\x01aU\x01bl](" + nested[2:] + b"e\x86."):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"x\.bin"):
            read_bin(path, 12)


def test_one_image_named_a_million_times(tmp_path):
    image, many = b"no image", 200_000
    path = tmp_path / "x.bin"
    path.write_bytes(
        b"\x80\x03](C"
        + bytes([len(image)])
        + image
        + b"q\x00"
        + b"h\x00" * (2 * many - 1)
        + b"e]("
        + b"\x88" * many
        + b"e\x86."
    )
    with pytest.raises(InputError, match="would take"):
        read_bin(path, 224)


def test_repeated_images_are_decoded_once(tmp_path):
    one, two = encoded("PNG"), encoded("JPEG")
    path = tmp_path / "x.bin"
    path.write_bytes(pickle.dumps(([one, two, two, two, one, one], [True, False, True])))
    images = read_bin(path, 12).images
    np.testing.assert_array_equal(images, decode_images([one, two, two, two, one, one], 12))


def huge_png(side):
    """Says that it has side² pixels; holds none."""
    out = io.BytesIO()
    Image.new("L", (1, 1)).save(out, "PNG")
    data = bytearray(out.getvalue())
    data[16:24] = struct.pack(">II", side, side)
    import zlib  # noqa: PLC0415

    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def test_images_above_the_limit_are_refused_in_every_reader(tmp_path):
    blob = huge_png(8000)
    message = r"8000 x 8000 pixels; data\.max_megapixels=50"
    with pytest.raises(InputError, match=message):
        decode_images([blob], 12)
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "x.png").write_bytes(blob)
    with pytest.raises(InputError, match=message):
        open_folder(tmp_path, 12).read(np.array([0]))
    write_recordio(tmp_path, [blob], np.array([0]), image_size=12)
    with pytest.raises(InputError, match=message):
        open_recordio(tmp_path, 12).read(np.array([0]))
    (tmp_path / "x.bin").write_bytes(pickle.dumps(([blob, blob], [True])))
    with pytest.raises(InputError, match=message):
        read_bin(tmp_path / "x.bin", 12)
    with pytest.raises(InputError, match=r"max_megapixels=1e-05"):
        decode_images([encoded("PNG")], 12, max_megapixels=1e-5)


def test_exif_of_a_wrong_type_is_named():
    blob = encoded("PNG", exif=exif())
    data = blob.replace(struct.pack("<HHI", 0x0112, 3, 1), struct.pack("<HHI", 0x0112, 5, 9))
    survives(decode_images, [data], 12)


@pytest.mark.parametrize("size", [1 << 27, 1 << 40])
def test_archives_that_announce_too_much(tmp_path, size):
    path = tmp_path / "x.npz"
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({size},), }}"
    archive = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED)
    with archive, archive.open("a.npy", "w") as file:
        file.write(npy_header(header))
        for _ in range(size >> 20 if size < 1 << 30 else 0):
            file.write(bytes(1 << 20))
    with pytest.raises(InputError, match=r"unpacked|do not fit"):
        load_arrays(path)


def test_many_empty_chunks_and_announced_images(tmp_path):
    from fedfr_jax.data.recordio_format import HEADER, IR_HEADER, MAGIC  # noqa: PLC0415

    chunks = HEADER.pack(MAGIC, 1 << 29 | 24) + IR_HEADER.pack(0, 1.0, 0, 0)
    chunks += HEADER.pack(MAGIC, 2 << 29) * 50_000 + HEADER.pack(MAGIC, 3 << 29)
    (tmp_path / "train.rec").write_bytes(chunks)
    (tmp_path / "train.idx").write_text("".join(f"{key}\t{0}\n" for key in range(200)))
    with pytest.raises(InputError, match="same position as another"):
        open_recordio(tmp_path, 12)
    write_recordio(tmp_path, PIXELS, np.array([0, 0, 1, 1, 2, 2]), image_format="PNG")
    data = bytearray((tmp_path / "train.rec").read_bytes())
    data[32:36] = struct.pack("<f", 1e9)
    (tmp_path / "train.rec").write_bytes(data)
    with pytest.raises(InputError, match=r"image key \d+ is missing"):
        open_recordio(tmp_path, 12)


def test_offsets_at_the_end_of_the_numbers(tmp_path):
    write_recordio(tmp_path, PIXELS, np.array([0, 0, 1, 1, 2, 2]), image_format="PNG")
    (tmp_path / "train.idx").write_text(f"0\t{2**63 - 4}\n")
    with pytest.raises(InputError, match="points outside"):
        open_recordio(tmp_path, 12)
