"""Enrolment, search, claims and thresholds."""

from __future__ import annotations

import csv
import json
import os
import re

import numpy as np
import protocols as loops
import pytest
from released import SIZE, Projection, people, picture, save
from small import ROOT

import fedfr_jax
from fedfr_jax import identify
from fedfr_jax.data.alignment import TEMPLATE
from fedfr_jax.data.landmarks import read_landmarks
from fedfr_jax.errors import InputError
from fedfr_jax.identify import report
from fedfr_jax.identify.__main__ import command
from fedfr_jax.identify.gallery import gallery_of
from fedfr_jax.identify.thresholds import of_card
from fedfr_jax.protocols import model_arguments

NAMES = ("Ada", "Bo", "Ço", "dee", "Eve <b>")


def write_people(folder, faces, names, rng, each, noise=15.0):
    for name, face in zip(names, faces, strict=True):
        for k in range(each):
            save(folder / name / f"{k}.png", picture(rng, face, noise))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Five enrolled people, probes of them and of a stranger, and impostors."""
    root, rng = tmp_path_factory.mktemp("people"), np.random.default_rng(0)
    faces = people(rng, 40)
    write_people(root / "gallery", faces[:5], NAMES, rng, 3)
    write_people(root / "probes", faces[:6], (*NAMES, "Mallory"), rng, 2)
    for k, face in enumerate(faces[6:]):
        save(root / "impostors" / f"{k}.png", picture(rng, face))
    for k in range(4):
        save(root / "flat" / f"{k}.png", picture(rng, faces[k]))
    return root


def random_gallery(rng, counts=(3, 1, 4, 2), dim=6):
    labels = np.repeat(np.arange(len(counts)), counts)
    features = rng.standard_normal((len(labels), dim)).astype(np.float32)
    return gallery_of([f"p{k}" for k in labels], features), features, labels


def test_people_are_the_mean_of_unit_features():
    gallery, features, labels = random_gallery(np.random.default_rng(1))
    expected = [loops.unit(loops.unit(features[labels == k]).mean(0)) for k in range(4)]
    np.testing.assert_allclose(gallery.features, expected, atol=1e-6)
    assert gallery.names == ("p0", "p1", "p2", "p3")
    for bad in (([], np.zeros((0, 3))), (["a"], np.zeros((2, 3)))):
        with pytest.raises(InputError, match="names for"):
            gallery_of(*bad)


def test_search_against_loops(monkeypatch):
    monkeypatch.setattr("fedfr_jax.identify.gallery._BLOCK_SCORES", 2048)  # several blocks
    rng = np.random.default_rng(2)
    gallery, _, _ = random_gallery(rng)
    probes = rng.standard_normal((600, 6)).astype(np.float32)
    scores = loops.unit(probes) @ gallery.features.T.astype(np.float64)
    got = gallery.search(probes, 3)
    order = np.argsort(-scores, axis=1)[:, :3]
    assert (got.rows == order).mean() > 0.999
    np.testing.assert_allclose(got.scores, np.sort(scores)[:, ::-1][:, :3], atol=2e-6)
    assert gallery.search(probes, 9).rows.shape == (600, 4)
    assert gallery.search(probes[:0], 2).rows.shape == (0, 2)
    twins = gallery_of(["b", "a"], np.ones((2, 3)))
    assert twins.search(np.ones((1, 3)), 2).rows.tolist() == [[0, 1]]
    with pytest.raises(InputError, match="6 dimensions"):
        twins.search(probes, 1)
    with pytest.raises(InputError, match="at least one"):
        twins.search(np.ones((1, 3)), 0)


def test_claims_are_accepted_above_the_threshold():
    rng = np.random.default_rng(3)
    gallery, _, _ = random_gallery(rng)
    probes = rng.standard_normal((4, 6)).astype(np.float32)
    names = ["p2", "p0", "p2", "p3"]
    scores = np.sum(loops.unit(probes) * gallery.features[[2, 0, 2, 3]], 1)
    cut = float(np.sort(scores)[1])
    got = identify.verify(gallery, probes, names, cut + 1e-5)
    np.testing.assert_allclose(got.scores, scores, atol=2e-6)
    assert got.accepted.tolist() == (scores > cut + 1e-5).tolist() and got.accepted.sum() == 2
    with pytest.raises(InputError, match="'nobody' is not enrolled"):
        identify.verify(gallery, probes, ["p0", "nobody", "p1", "p1"], 0)
    with pytest.raises(InputError, match="give one each"):
        identify.verify(gallery, probes, ["p0"], 0)


@pytest.mark.parametrize("far", [0.3, 0.01, 1e-4])
def test_thresholds_against_loops(monkeypatch, far):
    monkeypatch.setattr("fedfr_jax.identify.gallery._BLOCK_SCORES", 2048)
    rng = np.random.default_rng(4)
    gallery, features, labels = random_gallery(rng, counts=(300, 200, 100, 3))
    table = loops.unit(features) @ gallery.features.T.astype(np.float64)
    own = np.arange(4) == labels[:, None]
    got = identify.calibrate_on_gallery(gallery, far)
    assert got.pair.value == pytest.approx(loops.threshold(table[~own], far), abs=2e-6)
    tops = np.where(own, -2, table).max(1)
    assert got.search.value == pytest.approx(loops.threshold(tops, far), abs=2e-6)
    assert (got.pair.scores, got.search.scores) == (3 * 603, 603)
    assert got.pair.resolved == (far > 1e-3) and len(got.warnings()) == (2 if far < 1e-3 else 0)
    strangers = rng.standard_normal((700, 6))
    table = loops.unit(strangers) @ gallery.features.T.astype(np.float64)
    got = identify.calibrate(gallery, strangers, far)
    assert got.pair.value == pytest.approx(loops.threshold(table.ravel(), far), abs=2e-6)
    assert got.search.value == pytest.approx(loops.threshold(table.max(1), far), abs=2e-6)
    assert got.search.value >= got.pair.value


def test_thresholds_without_strangers_are_refused():
    alone = gallery_of(["a", "a"], np.eye(3)[:2])
    with pytest.raises(InputError, match="one person enrolled"):
        identify.calibrate_on_gallery(alone, 0.1)
    with pytest.raises(InputError, match="no scores"):
        identify.calibrate(alone, np.zeros((0, 3)), 0.1)
    with pytest.raises(InputError, match="far must be"):
        identify.calibrate(alone, np.eye(3), 1.5)
    with pytest.raises(InputError, match="it is a cosine"):
        identify.fixed(1.5)


def test_a_card_may_have_thresholds():
    assert of_card({"thresholds": {"0.001": 0.31, "x": 1, "0.01": "y"}}, 1e-3).pair.value == 0.31
    for card in ({}, {"thresholds": None}, {"thresholds": {"0.01": 0.2}}):
        assert of_card(card, 1e-3) is None


def run(folders, monkeypatch, out, *more, model=None, probes="probes"):
    monkeypatch.setattr(model_arguments, "open_model", lambda given: model or Projection())
    command(
        [
            "--model=net",
            f"--gallery={folders / 'gallery'}",
            f"--probes={folders / probes}",
            f"--out={out}",
            *map(str, more),
        ]
    )
    return json.loads((out / "summary.json").read_text())


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_command_identifies_people_in_folders(folders, tmp_path, monkeypatch, capsys):
    found = run(
        folders,
        monkeypatch,
        tmp_path / "out",
        "--far=0.02",
        "--top=3",
        f"--impostors={folders / 'impostors'}",
        "--pictures=4",
    )
    accuracy = found["accuracy"]
    assert accuracy["first"] == 1 and accuracy["identified"] == 1 and accuracy["taken"] == 0
    assert (accuracy["enrolled"], accuracy["strangers"], accuracy["false_comparisons"]) == (
        10,
        2,
        50,
    )
    assert found["thresholds"]["source"] == "34 impostor images"
    assert found["thresholds"]["search"]["scores"] == 34
    rows = read_csv(tmp_path / "out" / "identification.csv")
    assert len(rows) == 12 * 3 and rows[0]["probe"] == "Ada/0.png"
    assert all(r["person"] == r["true_person"] for r in rows if r["accepted"] == "yes")
    shown = capsys.readouterr()
    assert "1:N among 5 people" in shown.out and "Accuracy on the probes" in shown.out
    assert "note: 1:N: a rate of 0.02 needs at least 50 scores" in shown.err
    page = (tmp_path / "out" / "identify.html").read_text()
    assert "4 of 12 probes are shown" in page and page.count("data:image/jpeg") == 4 * 4
    assert "Eve &lt;b&gt;" in page and "<b>Eve" not in page


def test_claims_and_a_flat_folder(folders, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    found = run(folders, monkeypatch, out, "--threshold=0.7", "--claim=Bo", probes="flat")
    assert found["accuracy"] is None and found["claims"] == {"number": 4, "accepted": 1}
    rows = read_csv(out / "verification.csv")
    assert [r["accepted"] for r in rows] == ["no", "yes", "no", "no"]
    assert list(rows[0]) == ["probe", "claimed_person", "score", "accepted"]
    assert "1 of 4 claims accepted" in capsys.readouterr().out
    claims = tmp_path / "claims.csv"
    claims.write_text("probe,person\n2.png,Ço\n2.png,dee\n0.png,Ada\n")
    run(folders, monkeypatch, out, "--threshold=0.7", f"--claims={claims}", probes="flat")
    rows = read_csv(out / "verification.csv")
    assert [r["accepted"] for r in rows] == ["yes", "no", "yes"]
    found = run(folders, monkeypatch, out, "--far=0.1", probes="flat")
    assert found["thresholds"]["source"].startswith("the gallery's own 15 images")
    card = Projection(card={"thresholds": {"0.001": 0.66}})
    found = run(folders, monkeypatch, out, probes="flat", model=card)
    assert found["thresholds"]["pair"]["value"] == 0.66  # 15 images do not resolve the rate
    found = run(folders, monkeypatch, out, "--calibrate=gallery", probes="flat", model=card)
    assert found["thresholds"]["pair"]["value"] != 0.66


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--threshold=2"], "it is a cosine"),
        (["--threshold=0.4", "--far=0.1"], "leave out --far"),
        (["--far=1.5"], "between 0 and 1"),
        (["--claim=Nobody"], "'Nobody' is claimed, but not enrolled"),
        (["--claim=Bo", "--claims=x.csv"], "contradict"),
        (["--claims=x.csv"], "cannot read the claims x.csv"),
        (["--gallery=nowhere"], "--gallery: cannot read the folder nowhere"),
        (["--calibrate=card"], "has no threshold"),
        (["--top=0"], "--top must be at least 1"),
        (["--landmarks=x.txt"], "cannot read the landmarks x.txt"),
    ],
)
def test_mistakes_end_in_one_line(folders, tmp_path, monkeypatch, capsys, more, message):
    with pytest.raises(SystemExit) as ending:
        run(folders, monkeypatch, tmp_path / "out", *more)
    assert ending.value.code == 2
    [error] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert re.search(message, error), error


def test_bad_claims_files_are_named(folders, tmp_path, monkeypatch, capsys):
    for text, message in (
        ("0.png\n", "claim 1 is not a probe and a person"),
        ("", "claim 1 is not"),
        ("9.png,Bo\n", "1 claims name no image"),
    ):
        (tmp_path / "claims.csv").write_text(text)
        with pytest.raises(SystemExit):
            run(
                folders,
                monkeypatch,
                tmp_path / "out",
                f"--claims={tmp_path / 'claims.csv'}",
                probes="flat",
            )
        assert message in capsys.readouterr().err


def test_folders_of_the_wrong_form_are_refused(folders, tmp_path):
    with pytest.raises(InputError, match="one folder of images per person"):
        identify.list_images(folders / "flat", people=True)
    with pytest.raises(InputError, match="no images"):
        identify.list_images(tmp_path)
    save(tmp_path / "a" / "1.png", np.zeros((4, 4, 3), np.uint8))
    save(tmp_path / ".hidden" / "1.png", np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "notes.txt").write_text("no image")
    assert identify.list_images(tmp_path).people == ("a",)
    save(tmp_path / "2.png", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(InputError, match=r"in folders and images outside of them .first: 2.png"):
        identify.list_images(tmp_path)
    both = identify.list_images(tmp_path, people=False)
    assert both.files == ("2.png", "a/1.png") and both.people is None
    (tmp_path / "2.png").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"2.png: cannot be read"):
        both.read([0, 1], SIZE)


def test_pictures_are_aligned_by_landmarks(folders, tmp_path, monkeypatch):
    """People are recognized in larger pictures, where their faces are turned and elsewhere."""
    rng, faces = np.random.default_rng(5), people(np.random.default_rng(0), 40)
    lines = []
    for folder, each in (("gallery", 2), ("probes", 1)):
        for name, face in zip(NAMES[:3], faces[:3], strict=True):
            for k in range(each):
                turns, x, y = int(rng.integers(4)), *rng.integers(0, 30, 2)
                canvas = rng.integers(0, 256, (60, 60, 3)).astype(np.uint8)
                canvas[y : y + 24, x : x + 24] = picture(rng, face)
                points = TEMPLATE * 24 / 112 + [x, y]
                for _ in range(turns):
                    canvas = np.rot90(canvas)
                    points = np.stack([points[:, 1], 59 - points[:, 0]], 1)
                save(tmp_path / folder / name / f"{k}.png", canvas)
                numbers = " ".join(f"{v:.4f}" for v in points.ravel())
                lines.append(f"{folder}/{name}/{k}.png {numbers}")
    (tmp_path / "points.txt").write_text("\n".join(lines))
    aligned = run(
        tmp_path,
        monkeypatch,
        tmp_path / "out",
        "--threshold=0.5",
        f"--landmarks={tmp_path / 'points.txt'}",
    )
    assert aligned["accuracy"]["identified"] == 1
    assert run(tmp_path, monkeypatch, tmp_path / "out", "--threshold=0.5")["accuracy"]["first"] < 1
    gallery = identify.enrol(
        Projection(), tmp_path / "gallery", landmarks=read_landmarks(tmp_path / "points.txt")
    )
    assert gallery.names == NAMES[:3]


def test_names_that_are_no_text_are_shown(folders, tmp_path, monkeypatch):
    rng = np.random.default_rng(6)
    for name in (b"caf\xe9", b"b"):
        try:
            save(
                tmp_path / "gallery" / os.fsdecode(name) / "1.png", picture(rng, people(rng, 1)[0])
            )
        except OSError:
            pytest.skip("the file system allows text only")
    assert identify.list_images(tmp_path / "gallery").people == ("b", "caf\\xe9")
    monkeypatch.setattr(model_arguments, "open_model", lambda given: Projection())
    command(
        [
            "--model=net",
            f"--gallery={tmp_path / 'gallery'}",
            f"--probes={tmp_path / 'gallery'}",
            f"--out={tmp_path / 'out'}",
        ]
    )
    assert "caf\\xe9" in (tmp_path / "out" / "identification.csv").read_text()


def test_the_code_of_the_page_runs(folders, tmp_path, monkeypatch, capsys):
    text = (ROOT / "docs" / "identify.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    code = code.replace('"enrolled"', repr(str(folders / "gallery")))
    code = code.replace('"visitors"', repr(str(folders / "flat"))).replace('"alice"', '"Ada"')
    monkeypatch.setattr(fedfr_jax, "load_model", lambda path: Projection())
    exec(code, {})
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        f"{k}.png" for k in range(4)
    ]


def test_wrong_answers_are_shown_first(folders):
    gallery = gallery_of(["a", "b"], np.eye(2))
    probes = identify.FaceImages(folders, ("1", "2", "3"), ("a", "b", "stranger"))
    features = np.array([[1, 0.1], [1, 0.2], [0.1, 1]])
    found = report.Answers(
        gallery, probes, probes, gallery.search(features, 2), identify.fixed(0.5)
    )
    assert report.shown_probes(found, 9).tolist() == [1, 2, 0]
    assert report.covers(gallery).tolist() == [0, 1]
