"""Landmark files, and faces cut out by them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from fedfr_jax.data.alignment import (
    TEMPLATE,
    align,
    decode_aligned,
    find_similarity,
    is_mirrored,
    is_usable,
    template,
)
from fedfr_jax.data.landmarks import read_landmarks
from fedfr_jax.errors import InputError


def moved(points, scale, angle, shift):
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return scale * np.asarray(points) @ turn.T + shift


def smooth(rng, high, wide):
    """A picture without detail finer than a few pixels."""
    noise = ndimage.gaussian_filter(rng.standard_normal((high, wide, 3)), (4, 4, 0))
    return np.clip(127 + 500 * noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("angle", [0.0, 0.4, -2.0, np.pi])
def test_a_known_transform_is_found(angle):
    target = moved(TEMPLATE, 2.5, angle, [300.0, -40.0])
    found = find_similarity(TEMPLATE, target)
    assert found.scale == pytest.approx(2.5)
    assert np.angle(found.factor) == pytest.approx(angle) or angle == np.pi
    np.testing.assert_allclose(found.apply(TEMPLATE), target, atol=1e-9)


def umeyama(source, target):
    """The published form, with a singular value decomposition."""
    x, y = source - source.mean(0), target - target.mean(0)
    u, d, vt = np.linalg.svd(y.T @ x / len(x))
    sign = np.diag([1, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    turn = u @ sign @ vt
    scale = np.trace(np.diag(d) @ sign) / x.var(0).sum()
    return scale * turn, target.mean(0) - scale * turn @ source.mean(0)


def test_noisy_points_and_points_on_a_line_are_fitted_as_published():
    rng = np.random.default_rng(0)
    for _ in range(20):
        points = moved(TEMPLATE, 3, rng.uniform(-3, 3), [50, 90]) + rng.normal(0, 9, (5, 2))
        matrix, shift = umeyama(points, TEMPLATE)
        got = find_similarity(points, TEMPLATE).apply(points)
        np.testing.assert_allclose(got, points @ matrix.T + shift, atol=1e-8)
    line = np.stack([np.arange(5.0), 7 + 2 * np.arange(5.0)], 1)
    matrix, shift = umeyama(line, TEMPLATE)
    np.testing.assert_allclose(
        find_similarity(line, TEMPLATE).apply(line), line @ matrix.T + shift, atol=1e-8
    )


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.full((5, 2), 1000.25), "the same point"),
        (np.full((5, 2), np.nan), "not finite"),
        (TEMPLATE[:4], "shape"),
        (np.zeros((5, 3)), "shape"),
    ],
)
def test_points_that_determine_nothing_are_refused(points, message):
    with pytest.raises(InputError, match=message):
        find_similarity(points, TEMPLATE)


def test_unusable_points_are_found_among_many():
    points = np.stack([TEMPLATE, np.full((5, 2), 7e3), np.full((5, 2), np.nan), 1e4 + TEMPLATE])
    points = np.append(points, [np.where(TEMPLATE > 90, np.inf, TEMPLATE)], 0)
    with np.errstate(invalid="ignore"):
        assert is_usable(points.astype(np.float32)).tolist() == [True, False, False, True, False]


def test_a_mirrored_square_has_no_best_turn():
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)
    with pytest.raises(InputError, match="do not look like a face"):
        find_similarity(square, square * [1, -1])


@pytest.mark.parametrize("size", [112, 64])
@pytest.mark.parametrize(("scale", "angle"), [(1.0, 0.3), (0.6, -0.5), (1.0, 0.0)])
def test_pixels_are_those_of_bilinear_interpolation(size, scale, angle):
    rng = np.random.default_rng(1)
    picture = smooth(rng, 220, 260)
    points = moved(template(size), scale, angle, [90.0, 70.0])
    got = align(Image.fromarray(picture), points, size)
    back = find_similarity(template(size), points)
    x, y = np.meshgrid(np.arange(size), np.arange(size))
    places = back.apply(np.stack([x, y], -1))
    expected = np.stack(
        [
            ndimage.map_coordinates(
                picture[..., c].astype(float), [places[..., 1], places[..., 0]], order=1
            )
            for c in range(3)
        ],
        -1,
    )
    assert got.shape == (size, size, 3) and got.dtype == np.uint8
    inside = (places > 0).all(-1) & (places[..., 0] < 259) & (places[..., 1] < 219)
    assert inside.mean() > 0.9
    assert np.abs(got - expected)[inside].max() <= 1.01


@pytest.mark.parametrize("factor", [1.7, 6.0, 9.5, 30.0])
def test_shrinking_keeps_the_mean_and_makes_no_patterns(factor):
    size = 32
    side = int(size * factor * 1.6)
    checks = np.indices((side, side)).sum(0) % 2  # no detail is finer
    picture = np.repeat((255 * checks[..., None]).astype(np.uint8), 3, 2)
    middle = np.array([side / 2, side / 2])
    points = moved(template(size) - size / 2, factor, 0.2, middle)
    got = align(Image.fromarray(picture), points, size).astype(float)
    assert np.abs(got[4:-4, 4:-4] - 127.5).max() < 40  # each a mean of black and white pixels
    assert abs(got[4:-4, 4:-4].mean() - 127.5) < 2
    # A smooth picture is where it should be: a shift by half a pixel would be seen.
    y, x = np.indices((side, side)) * (255 / side)
    ramps = np.stack([x, y, (x + y) / 2], -1)
    got = align(Image.fromarray(ramps.round().astype(np.uint8)), points, size)
    places = find_similarity(template(size), points).apply(
        np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1)
    )
    expected = np.stack([places[..., 0], places[..., 1], places.mean(-1)], -1) * (255 / side)
    assert np.abs(got - expected).max() < 255 / side / 2 + 1.2


def test_what_is_outside_is_black_and_far_points_need_little_memory():
    white = Image.new("RGB", (40, 40), "white")
    got = align(white, template(112) + 30, 112)
    assert got[0, 0].tolist() == [0, 0, 0] or got[0, 0].tolist() == [255, 255, 255]
    assert (got[60:] == 0).all()
    far = align(white, template(112) * 5000, 112)
    assert far.shape == (112, 112, 3)
    with pytest.raises(InputError, match="less than a pixel apart"):
        align(white, template(112) * 1e-5, 112)
    with pytest.raises(InputError, match="five landmarks"):
        align(white, TEMPLATE[:4], 112)


def test_other_modes_and_turned_pictures():
    rng = np.random.default_rng(3)
    picture = smooth(rng, 130, 150)
    points = moved(TEMPLATE, 1.0, 0.0, [10, 5])
    expected = align(Image.fromarray(picture), points, 112)
    np.testing.assert_allclose(expected, picture[5:117, 10:122], atol=1)  # Pillow rounds down
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    file = io.BytesIO()
    Image.fromarray(np.rot90(picture)).save(file, "PNG", exif=exif)
    np.testing.assert_array_equal(decode_aligned(file.getvalue(), points, 112), expected)
    gray = Image.fromarray(picture[..., 0])
    np.testing.assert_array_equal(align(gray, points, 112)[..., 1], expected[..., 0])
    with pytest.raises(ValueError, match="megapixels"):
        decode_aligned(file.getvalue(), points, 112, max_megapixels=0.01)
    file = io.BytesIO()
    Image.fromarray(picture[..., 0].astype(np.uint16) * 257).save(file, "PNG")  # 16 bits
    np.testing.assert_array_equal(
        decode_aligned(file.getvalue(), points, 112), align(gray, points, 112)
    )


def line(name, points, *more, separator=" "):
    return separator.join([name, *(f"{v:.4f}" for v in np.ravel(points)), *more])


def test_landmark_files(tmp_path):
    second = TEMPLATE * 2
    files = {
        "a.txt": [line("a/1.jpg", TEMPLATE), "", line("b/my face.jpg", second)],
        "b.csv": [
            "name," + ",".join(f"p{k}" for k in range(10)),
            line("a/1.jpg", TEMPLATE, separator=","),
            line("b/my face.jpg", second, separator=", "),
        ],
        "c.csv": [
            line("a/1.jpg", TEMPLATE, separator=","),
            line('"b/my face.jpg"', second, separator=","),
        ],
        "x_name_5pts_score.txt": [
            line("a/1.jpg", TEMPLATE, "0.99"),
            line("b/my face.jpg", second, "0.5"),
        ],
    }
    for name, lines in files.items():
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n")
        got = read_landmarks(path)
        assert got.names == ("a/1.jpg", "b/my face.jpg")
        np.testing.assert_allclose(got.points, [TEMPLATE, second], atol=1e-3)
        if "score" in name:
            np.testing.assert_allclose(got.scores, [0.99, 0.5], atol=1e-6)
        else:
            assert got.scores is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read"),
        ("", "lists no landmarks"),
        ("a.jpg 1 2 3\n", "line 1 has 4 fields"),
        (line("a.jpg", TEMPLATE) + "\n" + line("b.jpg", TEMPLATE, "0.5"), "line 2 has 12 fields"),
        (line("a.jpg", TEMPLATE) + "\n" + line("a.jpg", TEMPLATE), "two lines"),
        (line("a.jpg", TEMPLATE).replace("71.7366", "x71"), "line 1: a field is not a number"),
        (line("a.jpg", TEMPLATE).replace("71.7366", "nan"), "not finite"),
        (line("a.jpg", TEMPLATE[[1, 0, 2, 4, 3]]), "left and right are swapped"),
    ],
)
def test_bad_landmark_files_are_named(tmp_path, text, message):
    path = tmp_path / "points.txt"
    if text is not None:
        path.write_text(text + "\n")
    with pytest.raises(InputError, match=message) as error:
        read_landmarks(path)
    assert "points.txt" in str(error.value)


def test_a_csv_field_that_is_no_number_is_named(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text(line("a", TEMPLATE, separator=",").replace("71.7366", "x") + "\n")
    with pytest.raises(InputError, match="line 1: a field is not a number"):
        read_landmarks(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a text file"):
        read_landmarks(path)


def test_lines_are_found_by_the_longer_name_first(tmp_path):
    path = tmp_path / "points.txt"
    path.write_text("\n".join(line(name, TEMPLATE) for name in ("g/a/1.jpg", "a/1.jpg", "b/1.jpg")))
    got = read_landmarks(path)
    keys = [("g/a/1.jpg", "a/1.jpg"), ("p/a/1.jpg", "a/1.jpg"), ("p/b/1.jpg", "b/1.jpg")]
    assert got.rows_of(keys).tolist() == [0, 1, 2]
    with pytest.raises(InputError, match=r"1 of 1 images have no line \(first: p/c.jpg or c.jpg"):
        got.rows_of([("p/c.jpg", "c.jpg")])
    with pytest.raises(InputError, match=r"fits two images, g/b/1.jpg and p/b/1.jpg"):
        got.rows_of([("g/b/1.jpg", "b/1.jpg"), ("p/b/1.jpg", "b/1.jpg")])


def test_mirrored_faces_are_seen_at_any_angle():
    turned = np.stack([moved(TEMPLATE, 1, a, [3, 4]) for a in np.linspace(0, 6, 13)])
    assert not is_mirrored(turned).any()
    assert is_mirrored(turned * [-1, 1]).all()
