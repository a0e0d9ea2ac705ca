"""The report, its plots and its tables, on made-up results."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser

import made_up
import numpy as np
import pytest
from PIL import Image

from fedfr_jax.errors import InputError
from fedfr_jax.reporting import client_plots, figures
from fedfr_jax.reporting.html import ReportData, load_report_data, write_report
from fedfr_jax.runtime import workdir

HOSTILE = '<script>alert("x")</script>&$a_b$'


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
    path = write_report(tmp_path_factory.mktemp("run") / "report.html", made_up.data())
    return path, path.read_text(encoding="utf-8")


SECTIONS = (
    "results",
    "run",
    "training",
    "roc",
    "clients",
    "faces",
    "hard-negatives",
    "mistakes",
    "settings",
)


def test_report_has_every_section_and_its_numbers(full):
    path, text = full
    page = Page(text)
    assert [value for tag, name, value in page.attributes if (tag, name) == ("h2", "id")] == list(
        SECTIONS
    )
    texts = " ".join(page.texts)
    for expected in (
        "94.90 ± 1.20",
        "TAR @ FAR 1e-3",
        "38 of 40 clients gain",
        "11 min 00 s",
        "cosine 0.720",
        "score 0.520",
        "threshold 0.410",
        "False rejects",
        "fed.local_epochs",
        "10, 8, 6, 4",
        "363.4",
        "2 CPU cores",
    ):
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
    assert images == sum(
        1 for tag, name, value in page.attributes if (tag, name) == ("img", "alt") and value
    )
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
    for name in (
        "loss.png",
        "pretraining.png",
        "roc-held-out.png",
        "gains-verification-tar-0-001.png",
    ):
        assert name in written
    with Image.open(full[0].parent / "plots" / "loss.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[1] > 700 and (pixels[0, 0] == 255).all()
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_names_cannot_break_the_page(tmp_path):
    data = made_up.data(rounds=2, clients=3)
    summary = data.summary | {
        "run": {"name": HOSTILE, "device": HOSTILE, "seconds": {HOSTILE: 1.0}}
    }
    models = dict(summary["models"])
    models[HOSTILE] = {"generic": {HOSTILE: {"accuracy": 0.5}}}
    summary["models"] = models
    row = {"kind": "evaluation", "model": HOSTILE, f"generic/{HOSTILE}/accuracy": 0.4}
    page = Page(
        write_report(
            tmp_path / "r.html",
            dataclasses.replace(
                data,
                title=HOSTILE,
                summary=summary,
                config={HOSTILE: HOSTILE},
                split={HOSTILE: HOSTILE},
                metrics=[row | {"round": 0}, row | {"round": 1}],
                faces_caption=HOSTILE,
                rocs={HOSTILE: {HOSTILE: ([1e-3, 1.0], [0.5, 1.0])}},
                per_client={
                    HOSTILE: {
                        "pretrained": np.array([0.1, 0.2]),
                        "personalized": np.array([0.2, 0.3]),
                        HOSTILE: np.array([0.3, 0.4]),
                    }
                },
                hard_negatives=[data.hard_negatives[0] | {"client": HOSTILE}],
                mistakes=[
                    data.mistakes[0] | {"kind": HOSTILE, "client": HOSTILE, "model": HOSTILE}
                ],
            ),
        ).read_text(encoding="utf-8")
    )
    assert "script" not in page.tags
    assert sum(HOSTILE in text for text in page.texts) > 12


def test_empty_parts_are_left_out(tmp_path):
    text = write_report(tmp_path / "r.html", ReportData(title="nothing yet")).read_text()
    page = Page(text)
    assert not {"h2", "table", "figure", "svg", "img", "li"} & set(page.tags)
    assert "nothing yet" in page.texts
    text = write_report(
        tmp_path / "r.html", ReportData(title="t", faces=np.zeros((1, 2, 8, 8, 3), np.uint8))
    ).read_text()
    assert re.findall(r'h2 id="([^"]*)"', text) == ["faces"]


def test_missing_numbers_do_not_break_the_report(tmp_path):
    nan = float("nan")
    models = {
        "pretrained": {
            "generic": {"a": {"accuracy": None, "tar": {"0.001": nan}}},
            "personalized": {"rank1": {"mean": None}},
        },
        "personalized": {"personalized": {"verification_tar": {"0.001": {"mean": nan}}}},
    }
    data = ReportData(
        title="gaps",
        summary={"models": models, "run": {"seconds": {"a": None}, "device": None}},
        metrics=[
            {
                "kind": "round",
                "round": r,
                "loss": None,
                "identification": 1.0 / r,
                "hard_negatives_mean": None,
            }
            for r in (1, 2, 3)
        ]
        + [
            {"kind": "evaluation", "round": r, "model": "global", "personal/rank1": value}
            for r, value in ((0, None), (1, 0.5), (2, 0.6))
        ],
        rocs={
            "p": {"global": ([0.0, nan, 1e-2, 1.0], [0.1, 0.2, 0.5, 1.0]), "empty": ([0.0], [nan])}
        },
        per_client={
            "m": {
                "pretrained": np.array([nan, 0.2, 0.3, nan]),
                "personalized": np.array([0.1, 0.3, 0.2, nan]),
            }
        },
        hard_negatives=[
            {
                "client": 0,
                "cosine": nan,
                "local_image": np.zeros((8, 8, 3), np.uint8),
                "public_image": np.zeros((8, 8, 3), np.uint8),
            }
        ],
    )
    text = write_report(tmp_path / "r.html", data).read_text()
    texts = " ".join(Page(text).texts)
    assert not re.search(r"\bnan\b", text, flags=re.IGNORECASE)
    assert "1 of 2 clients gain, 1 lose" in texts and "cosine –" in texts


def test_one_client_and_one_round_are_enough(tmp_path):
    path = write_report(tmp_path / "r.html", made_up.data(rounds=1, clients=1))
    ids = re.findall(r'h2 id="([^"]*)"', path.read_text())
    assert ids == list(SECTIONS)
    names = {plot.stem for plot in (tmp_path / "plots").iterdir()}
    assert not any(name.startswith(("gains", "clients", "loss")) for name in names)
    assert "roc-held-out" in names


def test_report_stays_small(tmp_path):
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 256, (20, 20, 112, 112, 3), dtype=np.uint8)
    pair = {"client": 1, "local_image": noise[0, 0], "public_image": noise[0, 1], "cosine": 0.5}
    many = {m: rng.standard_cauchy(size=20_000) for m in made_up.MODELS}
    data = ReportData(
        title="large",
        faces=noise,
        hard_negatives=[pair] * 300,
        per_client={"a": many, "b": many},
        metrics=[
            {"kind": "pretrain", "step": i, "epoch": 0, "loss": rng.uniform()}
            for i in range(30_000)
        ],
    )
    path = write_report(tmp_path / "r.html", data)
    assert path.stat().st_size < 5_000_000
    assert "The first 60 of 300 pairs" in path.read_text()


@pytest.mark.parametrize(
    "part, value",
    [
        ("faces", np.zeros((2, 2, 8, 8, 3), np.float32)),
        ("faces", np.zeros((2, 8, 8, 3), np.uint8)),
        (
            "hard_negatives",
            [
                {
                    "client": 0,
                    "cosine": 0.5,
                    "local_image": np.zeros((8, 8)),
                    "public_image": np.zeros((8, 8, 3), np.uint8),
                }
            ],
        ),
    ],
)
def test_unusable_images_are_named(tmp_path, part, value):
    with pytest.raises(InputError, match="shape"):
        write_report(tmp_path / "r.html", ReportData(title="t", **{part: value}))


def test_report_can_be_written_again_from_the_work_directory(tmp_path):
    data = made_up.data(rounds=3, clients=4)
    with workdir.open_run(tmp_path, data.config) as run:
        for row in data.metrics[-12:]:
            run.append(row)
        run.write_summary(data.summary)
        run.write_evaluation(
            rocs=data.rocs,
            per_client=data.per_client,
            faces=data.faces,
            hard_negatives=data.hard_negatives,
            mistakes=data.mistakes,
        )
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
    plot = client_plots.gains(
        "rank1", np.array([0.5, 0.5, 0.5, np.nan]), np.array([0.6, 0.4, 0.5, 1.0])
    )
    assert "1 of 3 clients gain, 1 lose; median +0.00, lowest -10.00" in plot.caption
    assert client_plots.gains("rank1", np.array([np.nan]), np.array([0.1])) is None


def test_bars_of_gains_have_the_numbers_of_the_clients():
    before, after = np.array([0.5, 0.5, np.nan, 0.5]), np.array([0.6, 0.4, 0.5, 0.5])
    plot = client_plots.gains("rank1", before, after, numbers=np.array([3, 7, 11, 20]))
    labels = [text.get_text() for text in plot.figure.axes[0].get_xticklabels()]
    assert labels == ["7", "20", "3"]
    many = client_plots.gains("rank1", np.zeros(60), np.linspace(-1, 1, 60))
    assert many.figure.axes[0].get_xlabel() == "clients, sorted by gain"


def test_gains_by_personalization_are_over_the_global_model(full):
    path, text = full
    texts = " ".join(Page(text).texts)
    assert "Gain by personalization, over the global model: personalized 1:N, rank-1" in texts
    assert "Gain by the whole training, over the pretrained model" in texts
    summary = made_up.summary(made_up.data().per_client)["models"]
    new, old, first = (
        summary[name]["personalized"]["verification_tar"]["0.001"]["mean"]
        for name in ("personalized", "global", "pretrained")
    )
    over_global, over_first = (f"{100 * (new - x):+.1f} points" for x in (old, first))
    assert texts.index(f"{over_global}  from global") < texts.index(f"{over_first}  from pretra")
    for name in ("gains-rank1", "gains-over-pretrained-rank1"):
        assert Image.open(path.parent / "plots" / f"{name}.png").width > 100


def test_summary_is_json_without_nan(tmp_path):
    with workdir.open_run(tmp_path, {}) as run:
        run.write_summary(made_up.summary(made_up.data(rounds=1).per_client))
    text = (tmp_path / "summary.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["models"]["global"]["generic"]["held_out"]["tar"]["0.0001"] is None


def test_a_long_title_is_wrapped_in_the_picture():
    figure, _ = figures.new_figure()
    title = "Gain by personalization, over the global model: personalized 1:1, TAR @ FAR 1e-3"
    figures.Plot("gains", figure, title, "", "")._repr_png_()
    figure.draw_without_rendering()  # at the figure's own resolution again
    box = figure._suptitle.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width, box
    assert figure._suptitle.get_text().split() == title.split()
