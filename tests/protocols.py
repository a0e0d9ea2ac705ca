"""Evaluation protocols as plain float64 loops."""

from __future__ import annotations

import math

import numpy as np

FARS = np.array([1e-3, 1e-2, 0.1, 0.3])


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def threshold(negatives, far):
    return sorted(negatives, reverse=True)[math.floor(far * len(negatives))]


def close(got, expected, comparisons):
    assert np.all(np.abs(np.asarray(got) - expected) * comparisons <= 1 + 1e-6), (got, expected)


def faces(rng, counts, dim=12, noise=0.7):
    labels = np.repeat(np.arange(len(counts)), counts)
    centers = rng.standard_normal((len(counts), dim))
    features = centers[labels] + noise * rng.standard_normal((len(labels), dim))
    order = rng.permutation(len(labels))
    return features[order].astype(np.float32), labels[order]


def brute_identification(probes, labels, gallery, gallery_labels, identities, *, fpirs):
    probes, gallery = unit(probes), unit(gallery)
    rows = np.stack([gallery[gallery_labels == k].mean(0) for k in identities])
    mated, non_mated = [], []
    for probe, label in zip(probes, labels, strict=True):
        for row, identity in zip(rows, identities, strict=True):
            (mated if label == identity else non_mated).append(float(probe @ row))
    ordered = sorted(non_mated, reverse=True)
    pair = [np.mean(np.array(mated) > ordered[math.ceil(f * len(probes)) - 1]) for f in fpirs]
    scores = probes @ unit(rows).T
    tops, right = scores.max(1), identities[scores.argmax(1)] == labels
    known = np.isin(labels, identities)
    thresholds = [threshold(tops[~known], f) for f in fpirs]
    open_set = [np.mean(right[known] & (tops[known] > t)) for t in thresholds]
    return pair, open_set, right[known].mean()
