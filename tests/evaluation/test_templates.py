"""Template protocols and the files of IJB."""

from __future__ import annotations

import numpy as np
import protocols
import pytest
from protocols import FARS

from fedfr_jax.errors import InputError
from fedfr_jax.evaluation import ijb, templates


def _images(rng, subjects=12):
    """Templates of 1 to 3 media of 1 to 3 images; two templates per subject, shuffled."""
    template, media, subject = [], [], []
    for number in range(2 * subjects):
        for medium in range(1 + rng.integers(3)):
            for _ in range(1 + rng.integers(3)):
                template.append(3 * number + 5)
                media.append(medium)  # the same numbers in every template
                subject.append(number // 2)
    order = rng.permutation(len(template))
    template, media, subject = (np.array(x)[order] for x in (template, media, subject))
    features = rng.standard_normal((subjects, 8))[subject] * rng.uniform(1, 9, (len(order), 1))
    features = features + 2.0 * rng.standard_normal(features.shape)
    scores = rng.uniform(0.3, 1, len(order))
    return features.astype(np.float32), scores.astype(np.float32), template, media


def _brute_pool(features, scores, template, media):
    out = []
    for t in np.unique(template):
        total = np.zeros(features.shape[1])
        for m in np.unique(media[template == t]):
            chosen = (template == t) & (media == m)
            total += (features[chosen].astype(np.float64) * scores[chosen, None]).mean(0)
        out.append(protocols.unit(total))
    return np.unique(template), np.stack(out)


def test_template_pooling_and_verification():
    rng = np.random.default_rng(6)
    images = _images(rng)
    ids, pooled = templates.pool_templates(*images)
    expected_ids, expected = _brute_pool(*images)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(pooled, expected, atol=1e-6)
    i, j = np.triu_indices(len(ids), 1)
    same = ids[i] // 6 == ids[j] // 6  # ids 5, 8 | 11, 14 | ...: two per subject
    got = templates.template_verification(ids, pooled, ids[i], ids[j], same, fars=FARS)
    scores = (expected[i] * expected[j]).sum(1)
    np.testing.assert_allclose(got.scores, scores, atol=1e-6)
    tar = [np.mean(scores[same] > protocols.threshold(scores[~same], f)) for f in FARS]
    protocols.close(got.tar, tar, same.sum())
    with pytest.raises(InputError, match="template 6 has no images"):
        templates.template_verification(ids, pooled, [5, 6], [8, 8], [1, 0], fars=FARS)
    with pytest.raises(InputError, match="per image"):
        templates.pool_templates(images[0], images[1][1:], *images[2:])


def test_pair_scores_in_blocks(monkeypatch):
    monkeypatch.setattr(templates, "_PAIR_BLOCK", 8)
    rng = np.random.default_rng(7)
    features = rng.standard_normal((5, 3)).astype(np.float32)
    left, right = rng.integers(0, 5, (2, 21))
    np.testing.assert_allclose(
        templates.pair_scores(features, left, right),
        (features[left] * features[right]).sum(1),
        rtol=1e-5,
        atol=1e-6,
    )


def test_template_identification_against_loops():
    rng = np.random.default_rng(9)
    probes, subjects = protocols.faces(rng, [4] * 15, noise=1.2)
    gallery, gallery_subjects = protocols.faces(rng, [1] * 12)
    got = templates.template_identification(
        probes, subjects, gallery, gallery_subjects, fpirs=FARS, block=16
    )
    scores = protocols.unit(probes) @ protocols.unit(gallery).T
    order = np.argsort(-scores, axis=1, kind="stable")
    known = np.isin(subjects, gallery_subjects)
    for rank, rate in zip(got.ranks, got.rank_rates, strict=True):
        hit = (gallery_subjects[order[:, :rank]] == subjects[:, None]).any(1)
        protocols.close(rate, hit[known].mean(), known.sum())
    pair, open_set, _ = protocols.brute_identification(
        probes, subjects, gallery, gallery_subjects, gallery_subjects, fpirs=FARS
    )
    protocols.close(got.pair_tpir, pair, known.sum())
    protocols.close(got.open_set_tpir, open_set, known.sum())
    assert (got.num_mated, got.num_non_mated) == (known.sum(), (~known).sum())


@pytest.fixture
def meta_folder(tmp_path):
    """Meta files of 6 images: templates 10, 11 (subject 1), 20, 21 (subject 2)."""
    rows = [
        ("a.jpg", 10, 1),
        ("b.jpg", 10, 2),
        ("c.jpg", 11, 3),
        ("d.jpg", 20, 4),
        ("e.jpg", 20, 4),
        ("f.jpg", 21, 5),
    ]
    points = " ".join(str(10.5 + k) for k in range(10))
    files = {
        "ijbc_face_tid_mid.txt": [f"{name} {t} {m}" for name, t, m in rows],
        "ijbc_name_5pts_score.txt": [f"{row[0]} {points} 0.9{k}" for k, row in enumerate(rows)],
        "ijbc_template_pair_label.txt": ["10 11 1", "20 21 1", "10 20 0", "11 21 0", "10 21 0"],
        "ijbc_1N_gallery_G1.csv": ["TEMPLATE_ID,SUBJECT_ID,FILENAME", "10,1,a.jpg", "10,1,b.jpg"],
        "ijbc_1N_gallery_G2.csv": ["TEMPLATE_ID,SUBJECT_ID,FILENAME", "20,2,d.jpg"],
        "ijbc_1N_probe_mixed.csv": ["TEMPLATE_ID,SUBJECT_ID,FILENAME", "11,1,c", "21,2,f"],
    }
    for name, lines in files.items():
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    return tmp_path


def test_ijb_files(meta_folder):
    meta = ijb.read_ijb(meta_folder)
    assert meta.image_names == tuple("abcdef"[k] + ".jpg" for k in range(6))
    assert meta.landmarks.shape == (6, 5, 2) and meta.landmarks[0, 0].tolist() == [10.5, 11.5]
    np.testing.assert_allclose(meta.detector_scores[:2], [0.90, 0.91])
    assert meta.template_ids.tolist() == [10, 10, 11, 20, 20, 21]
    assert meta.media_ids.tolist() == [1, 2, 3, 4, 4, 5]
    assert meta.is_same.tolist() == [True, True, False, False, False]
    assert meta.galleries[0].templates.tolist() == [10]
    assert meta.probes.subjects.tolist() == [1, 2]


def test_ijb_evaluation(meta_folder):
    meta = ijb.read_ijb(meta_folder)
    one, two = np.eye(2)
    features = np.stack([one, 2 * one, one + 0.1 * two, two, two, 3 * two - 0.2 * one])
    got = ijb.evaluate_ijb(meta, features, [0.1, 0.5])
    np.testing.assert_array_equal(got.verification.tar, [1, 1])
    np.testing.assert_array_equal(got.identification.rank_rates, [1, 1, 1])
    np.testing.assert_array_equal(got.identification.pair_tpir, [1, 1])
    assert np.isnan(got.identification.open_set_tpir).all()
    np.testing.assert_array_equal(got.open_set_tpir, [1, 1])
    swapped = ijb.evaluate_ijb(meta, features[[0, 1, 5, 3, 4, 2]], [0.1])
    np.testing.assert_array_equal(swapped.identification.rank_rates, [0, 1, 1])
    np.testing.assert_array_equal(swapped.open_set_tpir, [0, 0])
    features[5] = -one  # found in the first gallery's search only
    half = ijb.evaluate_ijb(meta, features, [0.1])
    np.testing.assert_array_equal(half.open_set_tpir, [0.5, 0.5])
    for path in meta_folder.glob("*1N*"):
        path.unlink()
    pairs_only = ijb.evaluate_ijb(ijb.read_ijb(meta_folder), features, [0.1])
    assert pairs_only.identification is None and pairs_only.open_set_tpir is None


def test_ijb_csv_without_a_header_keeps_its_first_row(tmp_path):
    path = tmp_path / "gallery.csv"
    for header in ("", "TEMPLATE_ID,SUBJECT_ID\n"):
        path.write_text(header + "10,1,a.jpg\n 11 , 2,b.jpg\n")
        found = ijb.read_subject_templates(path)
        assert found.templates.tolist() == [10, 11] and found.subjects.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("face_tid_mid.txt", "a.jpg 10\n", "entry 1 has 2 fields, expected 3"),
        ("face_tid_mid.txt", "a.jpg ten 1\n", "not a number"),
        ("face_tid_mid.txt", "z.jpg 10 1\n", "different images"),
        ("face_tid_mid.txt", "", "is empty"),
        ("face_tid_mid.txt", None, "cannot read"),
        ("name_5pts_score.txt", "a.jpg 1 2 3 0.5\n", "expected 12"),
        ("template_pair_label.txt", "10 11\n", "two templates and a label"),
        ("template_pair_label.txt", "10 11 x\n", "three integers"),
        ("template_pair_label.txt", "10 11 7\n", "label 0 or 1"),
        ("template_pair_label.txt", "\n\n", "label 0 or 1"),
        ("template_pair_label.txt", None, "missing or empty"),
        ("1N_gallery_G1.csv", "T,S\n", "no entries"),
        ("1N_gallery_G1.csv", "T,S\n10\n", "fewer than two"),
        ("1N_gallery_G1.csv", "T,S\n10,1\n10,2\n", "two subjects"),
        ("1N_probe_mixed.csv", None, "cannot read"),
    ],
)
def test_bad_ijb_files_are_named(meta_folder, name, text, message):
    path = meta_folder / f"ijbc_{name}"
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        ijb.read_ijb(meta_folder)
    assert name in str(error.value)


def test_unknown_ijb_target(tmp_path):
    with pytest.raises(InputError, match="target"):
        ijb.read_ijb(tmp_path, "ijba")
