"""A small model and small copies of released folders."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
from PIL import Image
from scipy import io

from fedfr_jax.data.alignment import TEMPLATE

SIZE = 16


@dataclasses.dataclass(frozen=True)
class Projection:
    """A model without a network: features are random sums of pixels."""

    image_size: int = SIZE
    embedding: int = 12
    seed: int = 0
    card: dict = dataclasses.field(default_factory=dict)
    calls: list = dataclasses.field(default_factory=list)

    def features(self, images):
        self.calls.append(len(images))
        pixels = np.asarray(images, np.float64).reshape(len(images), -1) - 127
        weights = np.random.default_rng(self.seed).standard_normal(
            (pixels.shape[1], self.embedding)
        )
        return (pixels @ weights).astype(np.float32)

    def embed(self, images, *, batch_size=64, mirror=True):
        sums = self.features(images) + (self.features(images[:, :, ::-1]) if mirror else 0)
        return sums / np.linalg.norm(sums, axis=1, keepdims=True)


def people(rng, number, size=24):
    """(number, size, size, 3) faces: coarse random squares."""
    return np.kron(rng.integers(0, 256, (number, 6, 6, 3)), np.ones((1, size // 6, size // 6, 1)))


def picture(rng, face, noise=20.0):
    """Another picture of a person."""
    return np.clip(face + noise * rng.standard_normal(face.shape), 0, 255).astype(np.uint8)


def save(path: pathlib.Path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_ijb(folder: pathlib.Path, rng, target="ijbc", subjects=14, noise=60.0):
    """A release with random templates, media, pairs, galleries and probes.

    Returns:
      (names, points, scores, templates, media, pairs (P, 3), galleries, probes), the lists of 1:N
      as arrays of (template, subject).
    """
    faces, rows, owner = people(rng, subjects), [], {}
    template = 100
    for subject in range(subjects):
        for _ in range(3):  # gallery, probe, another
            template += int(rng.integers(1, 4))
            owner[template] = subject
            for _ in range(1 + rng.integers(2)):
                medium = int(rng.integers(1000))
                for _ in range(1 + rng.integers(2)):
                    rows.append((template, medium))
    rows = [rows[i] for i in rng.permutation(len(rows))]
    names = [f"{k + 1}.png" for k in range(len(rows))]
    points = TEMPLATE * 24 / 112 + rng.uniform(-1.5, 1.5, (len(rows), 5, 2))
    scores = rng.uniform(0.3, 1, len(rows))
    for name, (number, _) in zip(names, rows, strict=True):
        save(folder / "loose_crop" / name, picture(rng, faces[owner[number]], noise))
    templates, media = np.array(rows).T
    order = np.array(sorted(owner)).reshape(subjects, 3)
    left, right = np.triu_indices(3 * subjects, 1)
    flat = order.ravel()
    same = np.array([owner[a] == owner[b] for a, b in zip(flat[left], flat[right], strict=True)])
    pairs = np.stack([flat[left], flat[right], same], 1)
    half = subjects // 2
    who = 7 * np.arange(subjects) + 3  # subjects' own numbers
    galleries = [
        np.stack([order[part, 0], who[part]], 1) for part in (slice(half), slice(half, None))
    ]
    probes = np.concatenate([np.stack([order[:, k], who], 1) for k in (1, 2)])
    meta = folder / "meta"
    meta.mkdir(parents=True)
    first, second = ("G1", "G2") if target == "ijbc" else ("S1", "S2")

    def write(name, lines):
        (meta / f"{target}_{name}").write_text("\n".join(lines) + "\n")

    write("face_tid_mid.txt", [f"{n} {t} {m}" for n, (t, m) in zip(names, rows, strict=True)])
    write(
        "name_5pts_score.txt",
        [
            " ".join([n, *(f"{v:.6f}" for v in p.ravel()), f"{s:.6f}"])
            for n, p, s in zip(names, points, scores, strict=True)
        ],
    )
    write("template_pair_label.txt", [" ".join(map(str, row)) for row in pairs])
    lists = ((f"1N_gallery_{first}.csv", galleries[0]), (f"1N_gallery_{second}.csv", galleries[1]))
    for name, found in (*lists, ("1N_probe_mixed.csv", probes)):
        write(name, ["TEMPLATE_ID,SUBJECT_ID,FILENAME", *(f"{t},{s},x.jpg" for t, s in found)])
    points, scores = points.round(6), scores.round(6)
    return names, points, scores, templates, media, pairs, galleries, probes


def write_tinyface(folder: pathlib.Path, rng, identities=8, distractors=20, noise=60.0):
    """A testing set; returns (probe ids, gallery ids) in the order of the lists."""
    faces, root = people(rng, identities), folder / "Testing_Set"
    ids = {}
    for part, prefix, each in (("Probe", "probe", 2), ("Gallery_Match", "gallery", 3)):
        who = rng.permutation(np.repeat(np.arange(identities), each))
        names = [f"{who[k] + 5}_{part[0]}{k}.png" for k in range(len(who))]
        for name, person in zip(names, who, strict=True):
            save(root / part / name, picture(rng, faces[person], noise))
        cells = np.empty((len(names), 1), object)
        cells[:, 0] = names
        io.savemat(
            root / f"{part.lower()}_img_ID_pairs.mat",
            {f"{prefix}_set": cells, f"{prefix}_ids": (who[:, None] + 5).astype(np.uint16)},
        )
        ids[part] = who + 5
    for k, face in enumerate(people(rng, distractors)):
        save(root / "Gallery_Distractor" / f"{k}.png", picture(rng, face))
    return ids["Probe"], ids["Gallery_Match"]
