"""Evaluation protocols against plain float64 loops, and their edge cases."""

from __future__ import annotations

import numpy as np
import protocols
import pytest
from protocols import FARS

from fedfr_jax.errors import InputError
from fedfr_jax.evaluation import personalized, streaming, verification


def _corners(rng, n):
    """Unit vectors whose cosines are exactly -1, -0.5, 0, 0.5 or 1: ties everywhere."""
    return rng.choice([-0.5, 0.5], size=(n, 4)).astype(np.float32)


def _brute_verification(features, labels, own, fars):
    unit = protocols.unit(features)
    positive, negative = [], []
    for i in range(len(unit)):
        for j in range(i + 1, len(unit)):
            if own[i] or own[j]:
                (positive if labels[i] == labels[j] else negative).append(float(unit[i] @ unit[j]))
    tar = [np.mean(np.array(positive) > protocols.threshold(negative, f)) for f in fars]
    return np.array(tar), len(positive), len(negative)


# --- the threshold rule and streaming ------------------------------------------------------


def test_threshold_is_the_entry_of_rank_floor_f_n():
    negatives = np.arange(10.0)[::-1].copy()
    assert streaming.thresholds_at_far(negatives, [0.05, 0.1, 0.5, 0.99]).tolist() == [9, 8, 4, 0]
    scores = np.array([8.0, 8.5, 9.0, 9.5])
    np.testing.assert_array_equal(streaming.accept_rates(scores, [8.0, 9.0]), [0.75, 0.25])


def test_rates_without_scores_are_nan():
    assert np.isnan(streaming.thresholds_at_far(np.zeros(0), [0.1])).all()
    assert np.isnan(streaming.accept_rates(np.ones(3), [np.nan])).all()
    assert np.isnan(streaming.accept_rates(np.zeros(0), [0.5])).all()


def test_resolvable_rates():
    np.testing.assert_array_equal(
        streaming.far_is_resolvable([1e-3, 1e-2, 0.1], 100), [False, True, True]
    )


@pytest.mark.parametrize("rates", [[], [0.0], [1.0], [-0.1], [np.nan], [[0.1]]])
def test_rates_outside_zero_to_one(rates):
    with pytest.raises(InputError, match="between 0 and 1"):
        streaming.check_rates(rates)


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize(("block", "cache_bytes"), [(4096, 0), (16, 0), (16, 3000), (13, 1 << 30)])
def test_streamed_thresholds_equal_a_full_sort(on_device, block, cache_bytes):
    rng = np.random.default_rng(1)
    features, labels = protocols.faces(rng, [3, 1, 4, 2, 5, 9, 30])
    order = np.argsort(labels > 4, kind="stable")
    unit, labels = streaming.unit_rows(features[order]), labels[order]
    own = int((labels <= 4).sum())
    fars = np.geomspace(1e-4, 0.999, 30)
    got = streaming.stream_pairs(
        unit, labels, own, fars, block=block, on_device=on_device, cache_bytes=cache_bytes
    )
    scores = unit.astype(np.float64) @ unit.T
    i, j = np.triu_indices(len(unit), 1)
    different = (labels[i] != labels[j]) & (i < own)
    same = (labels[i] == labels[j]) & (i < own)
    negatives = scores[i, j][different]
    assert got.num_negatives == negatives.size
    np.testing.assert_allclose(
        got.thresholds, streaming.thresholds_at_far(negatives, fars), rtol=0, atol=1e-6
    )
    np.testing.assert_allclose(np.sort(got.positives), np.sort(scores[i, j][same]), atol=1e-6)


@pytest.mark.parametrize("on_device", [False, True])
def test_streamed_thresholds_are_exact_under_ties(on_device):
    rng = np.random.default_rng(2)
    unit, labels = _corners(rng, 60), np.repeat(np.arange(12), 5)
    fars = np.linspace(0.01, 0.99, 50)
    got = streaming.stream_pairs(unit, labels, 60, fars, block=32, on_device=on_device)
    i, j = np.triu_indices(60, 1)
    negatives = (unit @ unit.T)[i, j][labels[i] != labels[j]]
    np.testing.assert_array_equal(got.thresholds, streaming.thresholds_at_far(negatives, fars))
    assert set(got.thresholds) == {-1.0, -0.5, 0.0, 0.5, 1.0}


def test_pending_counts_are_flushed(monkeypatch):
    monkeypatch.setattr(streaming, "_PENDING", 5)
    monkeypatch.setattr(streaming, "_INT32_MAX", 300)
    unit, labels = _corners(np.random.default_rng(3), 40), np.repeat(np.arange(8), 5)
    host, device = (
        streaming.stream_pairs(unit, labels, 40, FARS, block=16, on_device=flag)
        for flag in (False, True)
    )
    i, j = np.triu_indices(40, 1)
    negatives = (unit @ unit.T)[i, j][labels[i] != labels[j]]
    expected = streaming.thresholds_at_far(negatives, FARS)
    np.testing.assert_array_equal(host.thresholds, expected)
    np.testing.assert_array_equal(device.thresholds, expected)


def test_non_finite_features_are_refused():
    with pytest.raises(InputError, match="not finite"):
        streaming.unit_rows([[1.0, np.nan]])
    np.testing.assert_array_equal(streaming.unit_rows(np.zeros((1, 3))), np.zeros((1, 3)))


# --- verification sets ---------------------------------------------------------------------


def _brute_folds(embeddings, is_same, folds):
    unit = protocols.unit(embeddings)
    distance = ((unit[::2] - unit[1::2]) ** 2).sum(1)
    accuracies, chosen = [], []
    for test in np.array_split(np.arange(len(is_same)), folds):
        train = np.setdiff1d(np.arange(len(is_same)), test)
        best, best_threshold = -1.0, None
        for threshold in np.arange(0, 4, 0.01):
            accuracy = np.mean((distance[train] < threshold) == is_same[train])
            if accuracy > best:
                best, best_threshold = accuracy, threshold
        accuracies.append(np.mean((distance[test] < best_threshold) == is_same[test]))
        chosen.append(best_threshold)
    return np.mean(accuracies), np.std(accuracies), np.mean(chosen)


def _pairs(rng, count):
    is_same = np.arange(count) % 2 == 0
    left = rng.standard_normal((count, 8))
    right = np.where(is_same[:, None], left, rng.standard_normal((count, 8)))
    pairs = np.stack([left, right + 0.8 * rng.standard_normal((count, 8))], axis=1)
    return pairs.reshape(-1, 8).astype(np.float32), is_same


@pytest.mark.parametrize(("count", "folds"), [(60, 10), (67, 10), (23, 3)])
def test_pairs_against_loops(count, folds):
    embeddings, is_same = _pairs(np.random.default_rng(count), count)
    got = verification.evaluate_pairs(embeddings, is_same, FARS, folds=folds)
    accuracy, std, threshold = _brute_folds(embeddings, is_same, folds)
    np.testing.assert_allclose(
        [got.accuracy, got.accuracy_std, got.threshold], [accuracy, std, threshold], atol=1e-12
    )
    unit = protocols.unit(embeddings)
    scores = (unit[::2] * unit[1::2]).sum(1)
    np.testing.assert_allclose(got.scores, scores, atol=1e-6)
    expected = [np.mean(scores[is_same] > protocols.threshold(scores[~is_same], f)) for f in FARS]
    protocols.close(got.tar_at_far, expected, is_same.sum())
    far, tar = got.roc
    assert far[0] == 0 and far[-1] == tar[-1] == 1 and len(far) <= 201
    assert np.all(np.diff(far) >= 0) and np.all(np.diff(tar) >= 0)


def test_roc_points_lie_on_the_curve():
    rng = np.random.default_rng(5)
    positives, negatives = rng.normal(1, 1, 500), rng.normal(0, 1, 3000)
    far, tar = verification.roc_curve(positives, negatives)
    for f, t in list(zip(far, tar, strict=True))[:-1:20]:
        cut = np.sort(negatives)[::-1][round(f * 3000)]
        assert t == np.mean(positives > cut)
    assert 100 < len(far) <= 201


def test_pair_errors():
    embeddings, is_same = _pairs(np.random.default_rng(0), 40)
    with pytest.raises(InputError, match="two embeddings per pair"):
        verification.evaluate_pairs(embeddings[:-1], is_same, FARS)
    with pytest.raises(InputError, match="too few"):
        verification.evaluate_pairs(embeddings[:30], is_same[:15], FARS)
    with pytest.raises(InputError, match="not finite"):
        verification.evaluate_pairs(np.full_like(embeddings, np.inf), is_same, FARS)
    with pytest.raises(InputError, match="folds"):
        verification.evaluate_pairs(embeddings, is_same, FARS, folds=1)


@pytest.mark.parametrize("count", [1, 4, 11])
def test_embedding_with_mirror(count):
    rng = np.random.default_rng(count)
    images = rng.integers(0, 256, (count, 6, 6, 3), np.uint8)
    weights = rng.standard_normal((6 * 6 * 3, 5))
    shapes = set()

    def embed(batch):
        shapes.add(batch.shape)
        return batch.reshape(len(batch), -1) @ weights

    raw = verification.embed_with_mirror(embed, images, 4, normalize=False)
    expected = (images + images[:, :, ::-1].astype(np.float64)).reshape(count, -1) @ weights
    np.testing.assert_allclose(raw, expected, rtol=1e-5, atol=1e-2)
    assert shapes == {(4, 6, 6, 3)}
    unit = verification.embed_with_mirror(embed, images, 4)
    np.testing.assert_allclose(unit, protocols.unit(expected), atol=1e-5)
    with pytest.raises(InputError, match="images must be"):
        verification.embed_with_mirror(embed, images[:0], 4)


# --- personalized --------------------------------------------------------------------------

CLIENTS = [np.array([0, 1, 2, 3]), np.array([4]), np.array([5, 6, 7, 8, 9, 10]), np.array([11, 12])]
COUNTS = [3, 7, 1, 4, 6, 2, 5, 9, 8, 3, 4, 10, 6]


@pytest.mark.parametrize("client", range(4))
def test_personal_verification_against_loops(client):
    features, labels = protocols.faces(np.random.default_rng(client), COUNTS)
    own = np.isin(labels, CLIENTS[client])
    got = personalized.personal_verification(features, labels, own, FARS, block=16)
    tar, positives, negatives = _brute_verification(features, labels, own, FARS)
    assert (got.num_positives, got.num_negatives) == (positives, negatives)
    protocols.close(got.tar, tar, positives)
    np.testing.assert_array_equal(got.resolvable, FARS * negatives >= 1)
    assert np.isnan(got.roc_tar[0]) and got.roc_tar[-1] > 0.5


def test_personal_verification_under_ties():
    rng = np.random.default_rng(8)
    features, labels = _corners(rng, 50), np.repeat(np.arange(10), 5)
    own = labels < 4
    got = personalized.personal_verification(features, labels, own, FARS)
    tar, _, _ = _brute_verification(features, labels, own, FARS)
    np.testing.assert_array_equal(got.tar, tar)


def test_personal_verification_where_undefined():
    features, labels = protocols.faces(np.random.default_rng(0), [1, 1, 1, 1])
    alone = personalized.personal_verification(features, labels, labels == 0, FARS)
    assert np.isnan(alone.tar).all() and alone.num_positives == 0 and alone.num_negatives == 3
    assert not alone.resolvable.any()
    features, labels = protocols.faces(np.random.default_rng(0), [5])
    single = personalized.personal_verification(features, labels, labels == 0, FARS)
    assert np.isnan(single.tar).all() and single.num_positives == 10 and single.num_negatives == 0
    with pytest.raises(InputError, match="no verification image"):
        personalized.personal_verification(features, labels, labels == 1, FARS)
    with pytest.raises(InputError, match="both in and outside"):
        personalized.personal_verification(features, labels, np.arange(5) < 2, FARS)
    with pytest.raises(InputError, match="own flags"):
        personalized.personal_verification(features, labels[:3], labels == 0, FARS)


@pytest.mark.parametrize("client", range(4))
@pytest.mark.parametrize("block", [7, 4096])
def test_personal_identification_against_loops(client, block):
    rng = np.random.default_rng(20 + client)
    features, labels = protocols.faces(rng, [2 * n for n in COUNTS], noise=1.0)
    probe = rng.permutation(len(labels)) % 2 == 0
    probe[[np.flatnonzero(labels == k)[0] for k in range(13)]] = False
    identities = CLIENTS[client][::-1]
    probes, gallery = features[probe], features[~probe]
    got = personalized.personal_identification(
        probes, labels[probe], gallery, labels[~probe], identities, fpirs=FARS, block=block
    )
    pair, open_set, rank1 = protocols.brute_identification(
        probes, labels[probe], gallery, labels[~probe], identities, fpirs=FARS
    )
    protocols.close(got.pair_tpir, pair, got.num_mated)
    protocols.close(got.open_set_tpir, open_set, got.num_mated)
    protocols.close(got.rank1, rank1, got.num_mated)
    assert got.num_mated + got.num_non_mated == probe.sum()


def test_personal_identification_under_ties():
    rng = np.random.default_rng(30)
    probes, labels = _corners(rng, 60), np.arange(60) % 6
    gallery, identities = _corners(rng, 3), np.array([2, 0, 4])
    got = personalized.personal_identification(
        probes, labels, gallery, identities, identities, fpirs=FARS
    )
    pair, open_set, rank1 = protocols.brute_identification(
        probes, labels, gallery, identities, identities, fpirs=FARS
    )
    np.testing.assert_array_equal(got.pair_tpir, pair)
    np.testing.assert_array_equal(got.open_set_tpir, open_set)
    assert got.rank1 == rank1


def test_personal_identification_where_undefined():
    features, labels = protocols.faces(np.random.default_rng(0), [4, 4])
    got = personalized.personal_identification(
        features, labels, features, labels, [0, 1], fpirs=FARS
    )
    assert np.isnan(got.open_set_tpir).all() and not np.isnan(got.pair_tpir).any()
    own = labels == 0
    got = personalized.personal_identification(
        features[own], labels[own], features, labels, [0], fpirs=FARS
    )
    assert np.isnan(got.pair_tpir).all() and got.rank1 == 1.0
    got = personalized.personal_identification(
        features[~own], labels[~own], features, labels, [0], fpirs=FARS
    )
    assert np.isnan(got.pair_tpir).all() and np.isnan(got.rank1)
    with pytest.raises(InputError, match="identity 2 has no gallery image"):
        personalized.personal_identification(features, labels, features, labels, [0, 2], fpirs=FARS)
    with pytest.raises(InputError, match="occurs 2 times"):
        personalized.personal_identification(features, labels, features, labels, [1, 1], fpirs=FARS)


def test_client_summary():
    values = np.stack([np.arange(20.0), np.full(20, np.nan)], axis=1)
    got = personalized.summarize_clients(values)
    assert (got.mean[0], got.min[0], got.worst10[0], got.max[0]) == (9.5, 0, 0.5, 19)
    assert got.std[0] == np.std(np.arange(20.0))
    assert np.isnan(got.mean[1]) and got.defined.tolist() == [20, 0]
    one = personalized.summarize_clients([0.25, np.nan, 0.75])
    assert (float(one.mean), float(one.worst10), int(one.defined)) == (0.5, 0.25, 2)
    with pytest.raises(InputError, match="no clients"):
        personalized.summarize_clients([])
