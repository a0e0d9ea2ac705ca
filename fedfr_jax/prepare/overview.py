"""What a data set holds, in tables and pictures: ``python -m fedfr_jax.prepare --describe``."""

from __future__ import annotations

import collections
import os
import pathlib
from collections.abc import Callable

import numpy as np
from matplotlib.ticker import FuncFormatter
from PIL import Image

from fedfr_jax.atomic import write_file
from fedfr_jax.config import Config
from fedfr_jax.data.decode import inspect_image
from fedfr_jax.data.types import FederatedSplit, ImageSource
from fedfr_jax.errors import InputError
from fedfr_jax.prepare.alignment import Alignment, check_alignment
from fedfr_jax.reporting.description import describe
from fedfr_jax.reporting.figures import BLUE, VERMILLION, Plot, new_figure, png, styled
from fedfr_jax.reporting.pictures import contact_sheet
from fedfr_jax.reporting.result_table import Cell, ResultTable, render
from fedfr_jax.runtime.progress import track
from fedfr_jax.runtime.simulation import split_of

SAMPLE = 600  # images that sizes and alignment are looked up in
ROWS, COLUMNS = 8, 10  # people and images of a contact sheet
_THUMB = 112  # pixels; larger images are shrunk for a contact sheet


def overview(
    config: Config,
    source: ImageSource,
    out: str | os.PathLike | None = None,
    *,
    divided: bool = True,
    sheets: int = 24,
) -> Alignment:
    """Prints tables of a data set; with a folder also plots, contact sheets and the mean face.

    Args:
      config: whose ``data`` the source is.
      source: the images.
      out: receives PNG files; None: tables only.
      divided: also show the split that the settings make, client by client.
      sheets: contact sheets of so many clients, evenly spread over all (or of people, undivided).

    Raises:
      InputError: the data cannot be split as asked, or an image cannot be read.
    """
    split = split_of(config, source) if divided else None
    sample = np.unique(np.linspace(0, len(source.labels) - 1, SAMPLE).astype(np.int64))
    sizes, formats = _sizes(source, sample)
    tables = [_images_table(source, sizes, formats, len(sample))]
    if split is not None:
        tables += [*describe(config, source), _overlap_table(split)]
    render(tables)
    with track("reading a sample", None, "", keep=False):
        alignment = check_alignment(source.read(sample))
    print(f"alignment of {len(sample)} images: {alignment.text}")
    if out is not None:
        folder = pathlib.Path(out).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        plots = [_per_identity(source), _sizes_plot(sizes)]
        plots += [_clients_plot(split)] if split is not None else []
        for plot in plots:
            if plot is not None:
                png(plot, folder)
        _save(folder / "mean.png", _marked_mean(alignment))
        written = _write_sheets(folder, source, split, sheets)
        print(f"plots and {written} contact sheets are in {folder}")
    return alignment


def _sizes(source: ImageSource, sample: np.ndarray) -> tuple[np.ndarray, dict[str, int]]:
    """((n, 2) width and height as stored, images by format); a look at headers only."""
    if source.fetch is None:
        return np.full((len(sample), 2), source.image_size), {"drawn": len(sample)}
    sizes, formats = [], collections.Counter[str]()
    for number in sample.tolist():
        image = source.fetch(number)
        try:
            kind, *size = (
                ("array", image.shape[1], image.shape[0])
                if isinstance(image, np.ndarray)
                else inspect_image(image)
            )
        except Exception as error:  # Pillow's readers raise anything on damaged files
            raise InputError(
                f"{source.called(number)}: cannot be read as an image ({error}); replace or remove "
                "it"
            ) from error
        formats[str(kind)] += 1
        sizes.append(size)
    return np.array(sizes), dict(formats.most_common())


def _images_table(
    source: ImageSource, sizes: np.ndarray, formats: dict[str, int], looked_at: int
) -> ResultTable:
    counts = np.bincount(source.labels)
    rows = {
        "images per person": counts,
        f"width of {looked_at} images": sizes[:, 0],
        f"height of {looked_at} images": sizes[:, 1],
    }
    parts = (0.0, 0.1, 0.5, 0.9, 1.0)
    listed = ", ".join(f"{name} {100 * n / looked_at:.0f} %" for name, n in formats.items())
    return ResultTable(
        f"{source.name}: {len(source.labels):,} images of {source.num_identities:,} people",
        ("lowest", "10 %", "median", "90 %", "highest"),
        tuple(
            (name, tuple(Cell(f"{v:,.0f}") for v in np.quantile(values, parts)))
            for name, values in rows.items()
        ),
        (
            f"Formats: {listed}. They are read as {source.image_size} x {source.image_size}.",
            f"People with 2 images or more: {(counts >= 2).sum():,}; "
            f"5: {(counts >= 5).sum():,}; 10: {(counts >= 10).sum():,}; "
            f"20: {(counts >= 20).sum():,}.",
        ),
    )


def _overlap_table(split: FederatedSplit) -> ResultTable:
    """How many people and images two of the groups have in common, and clients among themselves."""
    clients, everyone = split.clients, np.arange(len(split.clients))
    training, probes = clients.training(everyone)[0], clients.verification(everyone)[0]
    people = {
        "clients": np.unique(clients.identities),
        "public": split.public_identities,
        "held out": split.held_out_identities,
    }
    rows: list[tuple[str, int]] = [
        (f"people: {a} and {b}", len(np.intersect1d(people[a], people[b])))
        for a, b in (("clients", "public"), ("clients", "held out"), ("public", "held out"))
    ]
    owners = np.repeat(everyone, clients.identity_counts)
    pairs = np.unique(np.stack([clients.identities, owners], axis=1), axis=0)
    shared = np.unique(pairs[:, 0], return_counts=True)[1]
    rows.append(("people of more than one client", int((shared > 1).sum())))
    rows.append(("images: training and verification", len(np.intersect1d(training, probes))))
    rows.append(
        ("images: public and clients' training", len(np.intersect1d(split.public_images, training)))
    )
    return ResultTable(
        "Overlap", ("count",), tuple((name, (Cell(f"{count:,}"),)) for name, count in rows)
    )


@styled
def _histogram(name: str, values: np.ndarray, title: str, label: str, unit: str) -> Plot | None:
    if not len(values):
        return None
    figure, (axes,) = new_figure(height=2.4)
    whole = int(values.max() - values.min()) + 1
    edges = np.linspace(values.min() - 0.5, values.max() + 0.5, min(whole, 60) + 1)
    found, _, _ = axes.hist(values, edges, color=BLUE)
    axes.set_xlabel(label)
    axes.set_ylabel(unit)
    if max(found) > 50 * min(n for n in found if n):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
    text = f"{label}: {values.min():,} to {values.max():,}, median {np.median(values):,.0f}"
    return Plot(name, figure, title, text, text)


def _per_identity(source: ImageSource) -> Plot | None:
    counts = np.bincount(source.labels)
    return _histogram("images-per-person", counts, "Images per person", "images", "people")


@styled
def _sizes_plot(sizes: np.ndarray) -> Plot:
    figure, (axes,) = new_figure(height=2.6)
    axes.scatter(sizes[:, 0], sizes[:, 1], s=8, color=BLUE, alpha=0.4, linewidths=0)
    axes.set_xlabel("width in pixels")
    axes.set_ylabel("height in pixels")
    text = f"Width and height of {len(sizes)} images, as stored"
    return Plot("image-sizes", figure, "Sizes of the images", text, text)


@styled
def _clients_plot(split: FederatedSplit) -> Plot:
    figure, (axes,) = new_figure(height=2.6)
    order = np.argsort(-split.clients.sizes, kind="stable")
    axes.step(np.arange(len(order)), split.clients.sizes[order], color=BLUE, label="images")
    axes.set_xlabel("clients, the largest first")
    axes.set_ylabel("training images", color=BLUE)
    axes.set_ylim(0)
    people = axes.twinx()
    people.step(
        np.arange(len(order)), split.clients.identity_counts[order], color=VERMILLION, lw=0.8
    )
    people.set_ylabel("people", color=VERMILLION)
    people.set_ylim(0)
    text = f"Training images and people of {len(order)} clients"
    return Plot("clients", figure, "Who has how much", text, text)


def _marked_mean(alignment: Alignment) -> np.ndarray:
    """The mean face, enlarged; red dots where its eyes are, if they were found."""
    scale = 6
    gray = np.clip(np.kron(alignment.mean, np.ones((scale, scale))), 0, 255)
    picture = np.repeat(gray[..., None], 3, axis=-1).astype(np.uint8)
    if alignment.eyes is not None:
        for x, y in (alignment.eyes * len(picture)).round().astype(int):
            picture[max(y - 3, 0) : y + 4, max(x - 3, 0) : x + 4] = (214, 39, 40)
    return picture


def _write_sheets(
    folder: pathlib.Path, source: ImageSource, split: FederatedSplit | None, sheets: int
) -> int:
    """One sheet per client, a row per person; without clients, sheets of people."""
    by_person: Callable[[int], tuple[np.ndarray, np.ndarray]]
    if split is None:
        groups = -(-source.num_identities // ROWS)
        order = np.argsort(source.labels, kind="stable")
        ends = np.searchsorted(source.labels[order], np.arange(source.num_identities + 1))

        def by_person(group):
            last = min((group + 1) * ROWS, source.num_identities)
            numbers = order[ends[group * ROWS] : ends[last]]
            return numbers, source.labels[numbers] - group * ROWS

        name = "people"
    else:
        groups, name = len(split.clients), "client"
        by_person = lambda group: split.clients.training(np.array([group]))  # noqa: E731
    chosen = np.unique(np.linspace(0, groups - 1, min(sheets, groups)).astype(int))
    with track("contact sheets", len(chosen), "sheet", keep=False) as bar:
        for group in chosen.tolist():
            sheet = _sheet(source, *by_person(group))
            _save(folder / f"{name}-{group:0{len(str(groups - 1))}d}.png", sheet)
            bar.update(1)
    return len(chosen)


def _sheet(source: ImageSource, numbers: np.ndarray, people: np.ndarray) -> np.ndarray:
    """A row for each of the first people, with the first images of each."""
    rows = [numbers[people == person][:COLUMNS] for person in np.unique(people)[:ROWS]]
    side = min(source.image_size, _THUMB)
    width = max(len(row) for row in rows)
    faces = np.full((len(rows), width, side, side, 3), 255, np.uint8)
    images = source.read(np.concatenate(rows))
    shrunk = iter(
        np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BOX))
        for image in images
    )
    for i, row in enumerate(rows):
        for k in range(len(row)):
            faces[i, k] = next(shrunk)
    return contact_sheet(faces)


def _save(path: pathlib.Path, picture: np.ndarray) -> None:
    write_file(path, lambda file: Image.fromarray(picture).save(file, "PNG"))
