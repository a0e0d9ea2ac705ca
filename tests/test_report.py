"""The report, its plots and its tables, on made-up results."""
from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from fedfr_jax.config import Config
from fedfr_jax.errors import InputError
from fedfr_jax.reporting import plots
from fedfr_jax.reporting.html import ReportData, load_report_data, write_report
from fedfr_jax.runtime import workdir

HOSTILE = '<script>alert("x")</script>&$a_b$'
MODELS = {"pretrained": 0.0, "global": 0.06, "personalized": 0.1}


def spread(values: np.ndarray) -> dict:
    values = values[np.isfinite(values)]
    worst = np.sort(values)[: max(1, len(values) // 10)].mean()
    return {"mean": values.mean(), "std": values.std(), "worst10": worst,
            "min": values.min(), "max": values.max()}


def make_faces(rng, *shape: int, size: int = 48) -> np.ndarray:
    """Smooth blobs: (…, size, size, 3) uint8."""
    y, x = np.mgrid[-1:1:size * 1j, -1:1:size * 1j]
    center = rng.uniform(-0.3, 0.3, (*shape, 2, 1, 1))
    blob = np.exp(-2 * ((x - center[..., 0, :, :]) ** 2 + (y - center[..., 1, :, :]) ** 2))
    color = rng.uniform(60, 255, (*shape, 1, 1, 3))
    return (blob[..., None] * color).astype(np.uint8)


def make_metrics(rng, rounds: int) -> list[dict]:
    rows = [{"kind": "pretrain", "epoch": i // 60, "step": i, "lr": 0.1,
             "loss": 18 * np.exp(-i / 300) + 2 + rng.normal(0, 0.4),
             "accuracy": 1 - np.exp(-i / 400), "images_per_second": 310.0} for i in range(1200)]
    for r in range(rounds + 1):
        for model, lift in MODELS.items():
            if model == "pretrained" and r > 0:
                continue
            share = 1 - np.exp(-r / 4)
            row = {"kind": "evaluation", "round": r, "model": model,
                   "personal/verification_tar@0.001": 0.78 + lift * share,
                   "personal/verification_tar@0.01": 0.88 + lift * share,
                   "personal/rank1": 0.9 + lift * share / 2}
            if model != "personalized":
                row["generic/held_out/accuracy"] = 0.93 + 0.3 * lift * share
            rows.append(row)
        if r:
            rows.append({"kind": "round", "round": r, "loss": 9 * np.exp(-r / 6) + 2,
                         "identification": 5 * np.exp(-r / 6) + 1, "contrastive": 0.6 + 0.1 / r,
                         "binary": 0.3 / r, "hard_negatives_mean": 900 / r + 40,
                         "hard_negatives_min": 500 / r, "hard_negatives_max": 1500 / r + 60,
                         "public_images": 6000, "images": 12000, "seconds": 33.0,
                         "images_per_second": 363.0, "lr": 1e-3, "epochs": 10})
    return rows


def make_summary(per_client: dict) -> dict:
    models = {}
    for model, lift in MODELS.items():
        by_metric = {key: values[model] for key, values in per_client.items()}
        models[model] = {"personalized": {
            "verification_tar": {far: spread(np.clip(
                by_metric["verification_tar@0.001"] + shift, 0, 1))
                for far, shift in (("0.0001", -0.08), ("0.001", 0.0), ("0.01", 0.05))},
            "identification_pair": {"0.01": spread(by_metric["rank1"] - 0.2)},
            "identification_openset": {"0.01": spread(by_metric["rank1"] - 0.1)},
            "rank1": spread(by_metric["rank1"]),
            "unresolvable": {"verification_tar": ["0.0001"]}}}
        if model != "personalized":
            models[model]["generic"] = {"held_out": {
                "accuracy": 0.931 + 0.3 * lift, "accuracy_std": 0.012,
                "tar": {"0.001": 0.71 + lift, "0.0001": float("nan")},
                "unresolvable": ["0.0001"]}}
    return {"models": models, "split": {"identities": 600, "public_identities": 280},
            "run": {"name": "fedfr on generated faces", "seed": 0, "clients": 40, "rounds": 20,
                    "device": "2 CPU cores", "images_per_second": 363.4,
                    "seconds": {"data": 12.0, "pretraining": 340.0, "rounds": 660.0,
                                "evaluation": 41.0}}}


def make_data(rounds: int = 20, clients: int = 40, title: str = "fedfr on generated faces"):
    rng = np.random.default_rng(0)
    base = np.clip(rng.normal(0.78, 0.08, clients), 0, 1)
    per_client = {
        "verification_tar@0.001": {m: np.clip(base + lift + rng.normal(0, 0.03, clients), 0, 1)
                                   for m, lift in MODELS.items()},
        "rank1": {m: np.clip(base + 0.1 + lift / 2 + rng.normal(0, 0.01, clients), 0, 1)
                  for m, lift in MODELS.items()}}
    if clients > 1:
        per_client["rank1"]["personalized"][0] = np.nan
    far = np.geomspace(1e-5, 1, 60)
    rocs = {name: {m: (far, 1 - (0.3 - lift) * (1 - far ** 0.25) ** 1.5)
                   for m, lift in MODELS.items() if not (generic and m == "personalized")}
            for name, generic in (("held_out", True), ("personalized 1:1", False))}
    hard = [{"client": i, "local_image": make_faces(rng), "public_image": make_faces(rng),
             "cosine": 0.72 - 0.03 * i} for i in range(8)]
    mistakes = [{"kind": kind, "model": "personalized", "client": i, "image_a": make_faces(rng),
                 "image_b": make_faces(rng), "score": score, "threshold": 0.41}
                for kind, score in (("false accept", 0.52), ("false reject", 0.13))
                for i in range(4)]
    return ReportData(
        title=title, config=dataclasses.asdict(Config()),
        split={"identities": 600, "public_identities": 280, "training images": 23456},
        metrics=make_metrics(rng, rounds), summary=make_summary(per_client), rocs=rocs,
        per_client=per_client, faces=make_faces(rng, 6, 12), hard_negatives=hard,
        mistakes=mistakes)


class Page(HTMLParser):
    """Tags, texts and attributes of a page; fails on tags that do not close."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.attributes, self.texts, self.tags = [], [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in ("meta", "img", "br", "path", "use", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in ("path", "use", "rect"):
            return
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    path = write_report(tmp_path_factory.mktemp("run") / "report.html", make_data())
    return path, path.read_text(encoding="utf-8")


SECTIONS = ("results", "run", "training", "roc", "clients", "faces", "hard-negatives",
            "mistakes", "settings")


def test_report_has_every_section_and_its_numbers(full):
    path, text = full
    page = Page(text)
    assert [value for tag, name, value in page.attributes
            if (tag, name) == ("h2", "id")] == list(SECTIONS)
    texts = " ".join(page.texts)
    for expected in ("94.90 ± 1.20", "TAR @ FAR 1e-3", "38 of 40 clients gain", "11 min 00 s",
                     "cosine 0.720", "score 0.520", "threshold 0.410", "False rejects",
                     "fed.local_epochs", "10, 8, 6, 4", "363.4", "2 CPU cores"):
        assert expected in texts, expected
    assert path.stat().st_size < 2_000_000


def test_report_stands_alone(full):
    _, text = full
    assert "http" not in text
    assert "url(" not in re.sub(r"url\(#", "", text)
    page = Page(text)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    for tag, name, value in page.attributes:
        if name == "src" or (name == "href" and tag in ("img", "image")):
            assert value.startswith("data:image/"), (tag, value[:60])
        elif name == "href":
            assert value.startswith("#"), (tag, value)


def test_references_inside_the_page_resolve_and_ids_are_unique(full):
    page = Page(full[1])
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    wanted = {value[1:] for _, name, value in page.attributes if name == "href"}
    wanted |= set(re.findall(r"url\(#([^)]*)\)", full[1]))
    assert wanted <= set(ids)


def test_images_and_plots_have_texts_for_those_who_cannot_see_them(full):
    page = Page(full[1])
    images = page.tags.count("img")
    assert images == 1 + 2 * 8 + 2 * 8
    assert images == sum(1 for tag, name, value in page.attributes
                         if (tag, name) == ("img", "alt") and value)
    drawn = page.tags.count("svg")
    labels = [value for tag, name, value in page.attributes if (tag, name) == ("div", "role")]
    assert drawn == labels.count("img") > 8


def test_plots_follow_the_colour_scheme_of_the_reader(full):
    drawn = "".join(re.findall(r"<svg.*?</svg>", full[1], flags=re.DOTALL))
    assert "var(--ink)" in drawn and "var(--vermillion)" in drawn
    assert not re.search(r"#[0-9a-f]{6}\b", drawn.replace("#ffffff", ""))
    assert "prefers-color-scheme: dark" in full[1]


def test_plots_are_written_as_png(full):
    written = sorted(path.name for path in (full[0].parent / "plots").iterdir())
    assert len(written) == full[1].count("<svg")
    for name in ("loss.png", "pretraining.png", "roc-held-out.png",
                 "gains-verification-tar-0-001.png"):
        assert name in written
    with Image.open(full[0].parent / "plots" / "loss.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[1] > 700 and (pixels[0, 0] == 255).all()
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_names_cannot_break_the_page(tmp_path):
    data = make_data(rounds=2, clients=3)
    summary = data.summary | {"run": {"name": HOSTILE, "device": HOSTILE,
                                      "seconds": {HOSTILE: 1.0}}}
    models = dict(summary["models"])
    models[HOSTILE] = {"generic": {HOSTILE: {"accuracy": 0.5}}}
    summary["models"] = models
    row = {"kind": "evaluation", "model": HOSTILE, f"generic/{HOSTILE}/accuracy": 0.4}
    page = Page(write_report(tmp_path / "r.html", dataclasses.replace(
        data, title=HOSTILE, summary=summary, config={HOSTILE: HOSTILE}, split={HOSTILE: HOSTILE},
        metrics=[row | {"round": 0}, row | {"round": 1}], faces_caption=HOSTILE,
        rocs={HOSTILE: {HOSTILE: ([1e-3, 1.0], [0.5, 1.0])}},
        per_client={HOSTILE: {"pretrained": np.array([0.1, 0.2]),
                              "personalized": np.array([0.2, 0.3]),
                              HOSTILE: np.array([0.3, 0.4])}},
        hard_negatives=[data.hard_negatives[0] | {"client": HOSTILE}],
        mistakes=[data.mistakes[0] | {"kind": HOSTILE, "client": HOSTILE, "model": HOSTILE}],
    )).read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert sum(HOSTILE in text for text in page.texts) > 12


def test_empty_parts_are_left_out(tmp_path):
    text = write_report(tmp_path / "r.html", ReportData(title="nothing yet")).read_text()
    page = Page(text)
    assert not {"h2", "table", "figure", "svg", "img", "li"} & set(page.tags)
    assert "nothing yet" in page.texts
    text = write_report(tmp_path / "r.html", ReportData(
        title="t", faces=np.zeros((1, 2, 8, 8, 3), np.uint8))).read_text()
    assert re.findall(r'h2 id="([^"]*)"', text) == ["faces"]


def test_missing_numbers_do_not_break_the_report(tmp_path):
    nan = float("nan")
    models = {"pretrained": {"generic": {"a": {"accuracy": None, "tar": {"0.001": nan}}},
                             "personalized": {"rank1": {"mean": None}}},
              "personalized": {"personalized": {"verification_tar": {"0.001": {"mean": nan}}}}}
    data = ReportData(
        title="gaps", summary={"models": models, "run": {"seconds": {"a": None}, "device": None}},
        metrics=[{"kind": "round", "round": r, "loss": None, "identification": 1.0 / r,
                  "hard_negatives_mean": None} for r in (1, 2, 3)]
        + [{"kind": "evaluation", "round": r, "model": "global", "personal/rank1": value}
           for r, value in ((0, None), (1, 0.5), (2, 0.6))],
        rocs={"p": {"global": ([0.0, nan, 1e-2, 1.0], [0.1, 0.2, 0.5, 1.0]),
                    "empty": ([0.0], [nan])}},
        per_client={"m": {"pretrained": np.array([nan, 0.2, 0.3, nan]),
                          "personalized": np.array([0.1, 0.3, 0.2, nan])}},
        hard_negatives=[{"client": 0, "cosine": nan, "local_image": np.zeros((8, 8, 3), np.uint8),
                         "public_image": np.zeros((8, 8, 3), np.uint8)}])
    text = write_report(tmp_path / "r.html", data).read_text()
    texts = " ".join(Page(text).texts)
    assert not re.search(r"\bnan\b", text, flags=re.IGNORECASE)
    assert "1 of 2 clients gain, 1 lose" in texts and "cosine –" in texts


def test_one_client_and_one_round_are_enough(tmp_path):
    path = write_report(tmp_path / "r.html", make_data(rounds=1, clients=1))
    ids = re.findall(r'h2 id="([^"]*)"', path.read_text())
    assert ids == list(SECTIONS)
    names = {plot.stem for plot in (tmp_path / "plots").iterdir()}
    assert not any(name.startswith(("gains", "clients", "loss")) for name in names)
    assert "roc-held-out" in names


def test_report_stays_small(tmp_path):
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 256, (20, 20, 112, 112, 3), dtype=np.uint8)
    pair = {"client": 1, "local_image": noise[0, 0], "public_image": noise[0, 1], "cosine": 0.5}
    many = {m: rng.standard_cauchy(size=20_000) for m in MODELS}
    data = ReportData(title="large", faces=noise, hard_negatives=[pair] * 300,
                      per_client={"a": many, "b": many},
                      metrics=[{"kind": "pretrain", "step": i, "epoch": 0, "loss": rng.uniform()}
                               for i in range(30_000)])
    path = write_report(tmp_path / "r.html", data)
    assert path.stat().st_size < 5_000_000
    assert "The first 60 of 300 pairs" in path.read_text()


@pytest.mark.parametrize("part, value", [
    ("faces", np.zeros((2, 2, 8, 8, 3), np.float32)), ("faces", np.zeros((2, 8, 8, 3), np.uint8)),
    ("hard_negatives", [{"client": 0, "cosine": 0.5, "local_image": np.zeros((8, 8)),
                         "public_image": np.zeros((8, 8, 3), np.uint8)}])])
def test_unusable_images_are_named(tmp_path, part, value):
    with pytest.raises(InputError, match="shape"):
        write_report(tmp_path / "r.html", ReportData(title="t", **{part: value}))


def test_report_can_be_written_again_from_the_work_directory(tmp_path):
    data = make_data(rounds=3, clients=4)
    with workdir.open_run(tmp_path, data.config) as run:
        for row in data.metrics[-12:]:
            run.append(row)
        run.write_summary(data.summary)
        run.write_evaluation(rocs=data.rocs, per_client=data.per_client, faces=data.faces,
                             hard_negatives=data.hard_negatives, mistakes=data.mistakes)
    loaded = load_report_data(tmp_path)
    assert loaded.title == data.title
    assert loaded.mistakes[5]["kind"] == "false reject" and loaded.mistakes[5]["score"] == 0.13
    assert len(loaded.metrics) == 12
    short = dataclasses.replace(data, metrics=(), per_client={})
    again = dataclasses.replace(loaded, metrics=(), per_client={}, split=data.split)
    first = write_report(tmp_path / "a.html", short).read_text()
    assert first == write_report(tmp_path / "b.html", again).read_text()
    for metric, models in data.per_client.items():
        assert list(loaded.per_client[metric]) == list(models)
        for model, values in models.items():
            np.testing.assert_array_equal(loaded.per_client[metric][model], values)


def test_gains_count_clients():
    plot = plots.gains("rank1", np.array([0.5, 0.5, 0.5, np.nan]), np.array([0.6, 0.4, 0.5, 1.0]))
    assert "1 of 3 clients gain, 1 lose; median +0.00, lowest -10.00" in plot.caption
    assert plots.gains("rank1", np.array([np.nan]), np.array([0.1])) is None


def test_gains_by_personalization_are_over_the_global_model(full):
    path, text = full
    texts = " ".join(Page(text).texts)
    assert "Gain by personalization, over the global model: personalized 1:N, rank-1" in texts
    assert "Gain by the whole training, over the pretrained model" in texts
    summary = make_summary(make_data().per_client)["models"]
    new, old, first = (summary[name]["personalized"]["verification_tar"]["0.001"]["mean"]
                       for name in ("personalized", "global", "pretrained"))
    over_global, over_first = (f"{100 * (new - x):+.1f} points" for x in (old, first))
    assert texts.index(f"{over_global}  from global") < texts.index(f"{over_first}  from pretra")
    assert (path.parent / "plots" / "gains-rank1.png").exists()
    assert (path.parent / "plots" / "gains-over-pretrained-rank1.png").exists()


def test_summary_is_json_without_nan(tmp_path):
    with workdir.open_run(tmp_path, {}) as run:
        run.write_summary(make_summary(make_data(rounds=1).per_client))
    text = (tmp_path / "summary.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["models"]["global"]["generic"]["held_out"]["tar"]["0.0001"] is None
