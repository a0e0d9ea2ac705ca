"""IJB from the released folder to the table."""

from __future__ import annotations

import csv
import json
import re

import numpy as np
import protocols as loops
import pytest
from PIL import Image
from released import SIZE, Projection, write_ijb

from fedfr_jax.data.alignment import align
from fedfr_jax.protocols import ijb, model_arguments
from fedfr_jax.protocols.__main__ import command


def brute(folder, release, model, flip, norm, detector):
    """Every number in double precision, with loops."""
    names, points, scores, templates, media, pairs, galleries, probes = release
    features = []
    for name, five in zip(names, points, strict=True):
        with Image.open(folder / "loose_crop" / name) as image:
            seen = align(image, five, SIZE)[None]
        total = model.features(seen)[0].astype(np.float64)
        if flip:
            total = total + model.features(seen[:, :, ::-1])[0]
        features.append(total if norm else loops.unit(total))
    weights = scores if detector else np.ones(len(scores))
    pooled = {}
    for t in np.unique(templates):
        total = 0
        for m in np.unique(media[templates == t]):
            chosen = np.flatnonzero((templates == t) & (media == m))
            total = total + np.mean([features[i] * weights[i] for i in chosen], 0)
        pooled[t] = loops.unit(total)
    values = np.array([pooled[a] @ pooled[b] for a, b, _ in pairs])
    same = pairs[:, 2] == 1
    tar = [np.mean(values[same] > loops.threshold(values[~same], f)) for f in ijb.FARS]
    searched = []
    for gallery in (*galleries, np.concatenate(galleries)):
        table = np.array([[pooled[p] @ pooled[g] for g in gallery[:, 0]] for p in probes[:, 0]])
        hits = gallery[:, 1] == probes[:, 1:]
        mated = hits.any(1)
        place = [
            1 + (row > row[hit]).sum() for row, hit in zip(table[mated], hits[mated], strict=True)
        ]
        ranks = [np.mean(np.array(place) <= r) for r in ijb.RANKS]
        tpir = [np.nan] * 2
        if not mated.all():
            tops = table[~mated].max(1)
            cuts = [loops.threshold(tops, f) for f in ijb.FPIRS]
            own = table[mated].max(1)
            tpir = [np.mean((np.array(place) == 1) & (own > cut)) for cut in cuts]
        searched.append((ranks, tpir))
    return tar, searched


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ijb") / "IJBC"
    return folder, write_ijb(folder, np.random.default_rng(0))


@pytest.mark.parametrize("options", [(), ("flip",), ("norm",), ("detector-score", "norm", "flip")])
def test_the_command_gives_what_loops_give(release, tmp_path, monkeypatch, capsys, options):
    folder, content = release
    model = Projection()
    monkeypatch.setattr(model_arguments, "open_model", lambda given: model)
    off = [f"--no-{name}" for name in options]
    command(["ijb", f"--folder={folder}", "--model=net", f"--workdir={tmp_path / 'out'}", *off])
    on = [name not in options for name in ("flip", "norm", "detector-score")]
    tar, searched = brute(folder, content, Projection(), *on)
    found = json.loads((tmp_path / "out" / "summary.json").read_text())
    one, genuine = found["verification"], int(content[5][:, 2].sum())
    loops.close(one["tar"], np.array(tar), genuine)
    assert 0.2 < tar[-2] < 0.99 and not one["resolvable"][0] and one["resolvable"][-1]
    for name, (ranks, tpir) in zip(("first", "second", "both"), searched, strict=True):
        got = found["identification"][name]
        loops.close(got["rank_rate"], np.array(ranks), got["mated"])
        if name == "both":
            assert got["tpir"] == [None, None] and got["non_mated"] == 0
        else:
            loops.close(got["tpir"], np.array(tpir), got["mated"])
    shown = capsys.readouterr().out
    assert "IJB-C 1:1" in shown and "gallery G1" in shown and "FAR 1e-6" in shown
    rows = list(csv.DictReader((tmp_path / "out" / "table.csv").open()))
    assert rows[0]["column"] == "FAR 1e-6" and rows[0]["resolved"] == "no"
    assert "| both galleries |" in (tmp_path / "out" / "table.md").read_text()
    assert (tmp_path / "out" / "roc.csv").read_text().startswith("far,tar\n0.0,")


def test_ijbb_and_a_release_without_1_to_n(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "IJBB"
    write_ijb(folder, np.random.default_rng(1), target="ijbb", subjects=6)
    monkeypatch.setattr(model_arguments, "open_model", lambda given: Projection())
    arguments = ["ijb", f"--folder={folder}", "--model=net", f"--workdir={tmp_path / 'out'}"]
    command(arguments)
    assert "gallery S2" in capsys.readouterr().out
    for path in (folder / "meta").glob("*1N*"):
        path.unlink()
    command(arguments)
    assert "1:N" not in capsys.readouterr().out


def same_point(folder):
    path = folder / "meta" / "ijbc_name_5pts_score.txt"
    lines = path.read_text().splitlines()
    lines[1] = " ".join(["2.png", *["7.5"] * 10, "0.9"])
    path.write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "loose_crop" / "3.png").unlink(), "lacks 1 of .* images .first: 3.png"),
        (lambda f: (f / "meta").rename(f / "mata"), "loose_crop/ and meta/"),
        (lambda f: (f / "meta/ijbc_face_tid_mid.txt").unlink(), "holds neither"),
        (lambda f: (f / "loose_crop" / "3.png").write_bytes(b"x"), "3.png: cannot be read"),
        (same_point, "landmarks of 1 images are the same point .* .first: 2.png"),
    ],
)
def test_an_incomplete_release_ends_in_one_line(tmp_path, monkeypatch, capsys, damage, message):
    folder = tmp_path / "IJBC"
    write_ijb(folder, np.random.default_rng(1), subjects=4)
    damage(folder)
    monkeypatch.setattr(model_arguments, "open_model", lambda given: Projection())
    with pytest.raises(SystemExit) as ending:
        command(["ijb", f"--folder={folder}", "--model=net", f"--workdir={tmp_path / 'out'}"])
    assert ending.value.code == 2
    [error] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert re.search(message, error), error
