"""TinyFace's protocol from its folder, and the table of .bin sets."""

from __future__ import annotations

import io
import json
import pickle
import subprocess

import numpy as np
import pytest
from PIL import Image
from released import SIZE, Projection, people, picture, write_tinyface
from scipy import io as matlab

from fedfr_jax.data.alignment import TEMPLATE
from fedfr_jax.data.landmarks import read_landmarks
from fedfr_jax.data.verification import read_bin
from fedfr_jax.errors import InputError
from fedfr_jax.evaluation.retrieval import average_precision, evaluate_retrieval
from fedfr_jax.evaluation.verification import evaluate_pairs
from fedfr_jax.protocols import mat_list, model_arguments, tinyface
from fedfr_jax.protocols.__main__ import command


@pytest.fixture
def in_this_process(monkeypatch):
    """Lists are read without a process of their own, which takes a second."""
    monkeypatch.setattr(
        tinyface, "_read_apart", lambda path, prefix: mat_list.main(str(path), prefix)
    )


def published_average_precision(good, index):
    """The loop of the published code."""
    old_recall, old_precision, found, total = 0.0, 1.0, 0, 0.0
    for n, entry in enumerate(index):
        found += entry in good
        recall, precision = found / len(good), found / (n + 1)
        total += (recall - old_recall) * (old_precision + precision) / 2
        old_recall, old_precision = recall, precision
    return total


def test_average_precision_is_the_published_one():
    rng = np.random.default_rng(0)
    for _ in range(50):
        good = rng.choice(30, 1 + rng.integers(5), replace=False)
        index = rng.permutation(30)
        places = np.flatnonzero(np.isin(index, good)) + 1
        expected = published_average_precision(set(good.tolist()), index)
        assert average_precision(places) == pytest.approx(expected)
    assert average_precision([1, 2]) == 1 and average_precision([4]) == pytest.approx(0.125)


def test_retrieval_against_loops():
    rng = np.random.default_rng(1)
    ids = np.array([0, 1, 2, 2, 3, -1, -1, -1, 0, -1])
    gallery, probes = rng.standard_normal((10, 5)), rng.standard_normal((9, 5))
    gallery[5] = gallery[4]  # exact ties: the earlier one is first
    probe_ids = np.arange(9) % 4
    got = evaluate_retrieval(probes, probe_ids, gallery, ids, ranks=(1, 3), block=4)
    unit = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
    order = [np.argsort(-np.round(unit @ p / np.linalg.norm(p), 6), kind="stable") for p in probes]
    for rank, rate in zip((1, 3), got.rank_rates, strict=True):
        assert rate == np.mean([k in ids[o[:rank]] for k, o in zip(probe_ids, order, strict=True)])
    expected = [
        published_average_precision(set(np.flatnonzero(ids == k).tolist()), o.tolist())
        for k, o in zip(probe_ids, order, strict=True)
    ]
    assert got.mean_average_precision == pytest.approx(np.mean(expected))
    with pytest.raises(InputError, match="identity 7"):
        evaluate_retrieval(probes, probe_ids * 0 + 7, gallery, ids)
    with pytest.raises(InputError, match="as many identities"):
        evaluate_retrieval(probes, probe_ids[1:], gallery, ids)


def test_the_command_reads_the_released_folder(tmp_path, monkeypatch, capsys, in_this_process):
    probe_ids, gallery_ids = write_tinyface(tmp_path / "tinyface", np.random.default_rng(2))
    monkeypatch.setattr(model_arguments, "open_model", lambda given: Projection())
    arguments = ["tinyface", f"--folder={tmp_path / 'tinyface'}", "--model=net"]
    command([*arguments, f"--workdir={tmp_path / 'out'}"])
    found = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (found["probes"], found["gallery"], found["distractors"]) == (16, 24, 20)
    data = tinyface.read_tinyface(tmp_path / "tinyface" / "Testing_Set")
    assert data.identities.tolist() == [*probe_ids, *gallery_ids, *[-1] * 20]
    seen = []
    for file in data.files:
        with Image.open(data.folder / file) as image:
            seen.append(np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)))
    features = Projection().embed(np.stack(seen))
    scores = features[:16] @ features[16:].T
    ids = data.identities[16:]
    order = np.argsort(-scores, axis=1)
    expected = [np.mean((ids[order[:, :r]] == probe_ids[:, None]).any(1)) for r in (1, 5, 20)]
    np.testing.assert_allclose(found["rank_rate"], expected)
    precision = [
        published_average_precision(set(np.flatnonzero(ids == k).tolist()), o.tolist())
        for k, o in zip(probe_ids, order, strict=True)
    ]
    assert found["mean_average_precision"] == pytest.approx(np.mean(precision))
    assert "rank 20" in capsys.readouterr().out
    points = tmp_path / "points.txt"
    numbers = " ".join(f"{v:.3f}" for v in np.ravel(TEMPLATE * 24 / 112))
    points.write_text(f"{data.files[0]} {numbers}\n{data.files[3].split('/')[1]} {numbers}\n")
    command([*arguments, f"--workdir={tmp_path / 'out'}", f"--landmarks={points}"])
    assert "2 images aligned" in capsys.readouterr().out
    listed, aligned = tinyface.images_of(data, SIZE, read_landmarks(points))
    assert aligned == 2 and listed.read(np.array([0, 1])).shape == (2, SIZE, SIZE, 3)


def cells(names):
    out = np.empty((len(names), 1), object)
    out[:, 0] = names
    return out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "not there"),
        (b"nonsense", "cannot be read as a MATLAB file"),
        ({"probe_set": cells(["a"])}, "no variable probe_ids"),
        ({"probe_set": cells(["a"]), "probe_ids": [[1], [2]]}, "do not fit"),
        ({"probe_set": cells(["a"]), "probe_ids": [[1.5]]}, "whole numbers"),
        ({"probe_set": np.ones((2, 2)), "probe_ids": [[1]]}, "no text"),
        ({"probe_set": cells(["a", "a"]), "probe_ids": [[1], [2]]}, "twice"),
    ],
)
def test_bad_lists_are_named(tmp_path, content, message, in_this_process):
    path = tmp_path / "probe_img_ID_pairs.mat"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        matlab.savemat(path, content)
    with pytest.raises(InputError, match=message) as error:
        tinyface.read_id_list(path, "probe")
    assert path.name in str(error.value)


def test_lists_are_read_in_a_process_of_their_own(tmp_path, monkeypatch):
    """SciPy's reader ends the process on some damaged files."""
    path = tmp_path / "probe_img_ID_pairs.mat"
    matlab.savemat(path, {"probe_set": cells(["a.jpg", "b.jpg"]), "probe_ids": [[1], [2]]})
    names, ids = tinyface.read_id_list(path, "probe")
    assert names == ["a.jpg", "b.jpg"] and ids.tolist() == [1, 2]
    run, crash = subprocess.run, "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    monkeypatch.setattr(
        subprocess, "run", lambda command, **how: run([command[0], "-c", crash], **how)
    )
    with pytest.raises(InputError, match=r"probe_img_ID_pairs.mat: .*it is damaged"):
        tinyface.read_id_list(path, "probe")


def test_images_that_are_missing_are_named(tmp_path, in_this_process):
    write_tinyface(tmp_path, np.random.default_rng(3), identities=2, distractors=1)
    victim = next((tmp_path / "Testing_Set" / "Probe").iterdir())
    victim.unlink()
    with pytest.raises(InputError, match=f"lacks 1 of the 4 .*{victim.name}"):
        tinyface.read_tinyface(tmp_path)
    with pytest.raises(InputError, match="cannot read the folder"):
        tinyface.read_tinyface(tmp_path / "elsewhere")


def write_bin(path, rng, pairs=60):
    faces, blobs, answers = people(rng, pairs), [], []
    for k in range(pairs):
        other = k if k % 2 else (k + 1) % pairs
        for who in (k, other):
            file = io.BytesIO()
            Image.fromarray(picture(rng, faces[who], 90)).save(file, "PNG")
            blobs.append(file.getvalue())
        answers.append(other == k)
    path.write_bytes(pickle.dumps((blobs, answers)))


def test_bin_sets_in_one_table(tmp_path, monkeypatch, capsys):
    rng, model = np.random.default_rng(4), Projection()
    files = [tmp_path / "one.bin", tmp_path / "two.bin"]
    for path in files:
        write_bin(path, rng)
    monkeypatch.setattr(model_arguments, "open_model", lambda given: model)
    command(["bin", "--sets", *map(str, files), "--model=net", f"--workdir={tmp_path / 'out'}"])
    found = json.loads((tmp_path / "out" / "summary.json").read_text())["sets"]
    for path in files:
        pairs = read_bin(path, SIZE)
        expected = evaluate_pairs(model.embed(pairs.images), pairs.is_same, [1e-3])
        assert found[path.stem]["accuracy"] == pytest.approx(expected.accuracy)
        assert found[path.stem]["tar"] == pytest.approx(expected.tar_at_far.tolist())
        assert found[path.stem]["resolvable"] == [False] and expected.accuracy > 0.6
    shown = capsys.readouterr().out
    assert "mean of the sets" in shown and "TAR, FAR 1e-3" in shown and "†" in shown
    with pytest.raises(SystemExit):
        command(["bin", "--sets", str(files[0]), str(tmp_path / "no.bin"), "--model=net"])
    assert "no such file" in capsys.readouterr().err
