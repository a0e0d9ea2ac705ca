"""How fast clients are: draws and files."""

import dataclasses

import numpy as np
import pytest

from fedfr_jax.errors import InputError
from fedfr_jax.population.pace import client_pace, read_numbers
from fedfr_jax.settings import SimulatedTimeConfig

DRAWN = SimulatedTimeConfig(speed=20.0, speed_sigma=0.5, bandwidth=4.0, bandwidth_sigma=1.0)


def test_draws_have_the_median_and_spread_that_were_asked_for():
    pace = client_pace(DRAWN, 20_000, message_bytes=1e6)
    speed = 1 / pace.image.astype(float)
    assert np.median(speed) == pytest.approx(20, rel=0.02)
    assert np.log(speed).std() == pytest.approx(0.5, rel=0.02)
    megabits = 8.0 / pace.upload.astype(float)
    assert np.median(megabits) == pytest.approx(4, rel=0.03)
    assert np.log(megabits).std() == pytest.approx(1, rel=0.02)
    assert abs(np.corrcoef(speed, megabits)[0, 1]) < 0.03


def test_a_client_stays_as_fast_when_others_join():
    few, many = client_pace(DRAWN, 10, 1e6), client_pace(DRAWN, 1000, 1e6)
    np.testing.assert_array_equal(few.image, many.image[:10])
    np.testing.assert_array_equal(few.upload, many.upload[:10])
    other = client_pace(dataclasses.replace(DRAWN, seed=1), 10, 1e6)
    assert (other.image != few.image).all()


def test_empty_slots_take_no_time():
    pace = client_pace(DRAWN, 4, 1e6)
    found = pace.of(np.array([2, -1, 0]))
    np.testing.assert_array_equal(found.image, [pace.image[2], 0, pace.image[0]])
    np.testing.assert_array_equal(found.upload, [pace.upload[2], 0, pace.upload[0]])


def test_without_settings_no_time_passes_and_without_bandwidth_sending_takes_none():
    assert client_pace(SimulatedTimeConfig(), 4, 1e6) is None
    pace = client_pace(SimulatedTimeConfig(speed=2.0, speed_sigma=0), 3, 1e6)
    np.testing.assert_array_equal(pace.image, [0.5] * 3)
    np.testing.assert_array_equal(pace.upload, [0] * 3)


def test_numbers_come_from_arrays_and_text(tmp_path):
    np.save(tmp_path / "speeds.npy", np.array([4, 2, 1]))
    (tmp_path / "rates.csv").write_text("8, 16\n32\n")
    settings = SimulatedTimeConfig(
        speeds=str(tmp_path / "speeds.npy"), bandwidths=str(tmp_path / "rates.csv")
    )
    pace = client_pace(settings, 3, message_bytes=1e6)
    np.testing.assert_array_equal(pace.image, [0.25, 0.5, 1])
    np.testing.assert_array_equal(pace.upload, [1, 0.5, 0.25])


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("1 2", r"\[2\]; give one number for each of the 3 clients"),
        ("1 2 0", "client 2 has 0; give finite numbers"),
        ("1 nan 2", "client 1 has nan"),
        ("1 2 fast", "cannot be read as numbers"),
        ("1 " * 1000, "too long for 3 numbers"),
        (b"\xff\xfe1", "cannot be read as numbers"),
    ],
)
def test_other_files_are_refused_with_one_line(text, match, tmp_path):
    path = tmp_path / "speeds.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=match) as error:
        read_numbers(path, 3, "simulated_time.speeds")
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_missing_files_and_other_arrays_are_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_numbers(tmp_path / "none.csv", 3, "simulated_time.speeds")
    np.save(tmp_path / "two.npy", np.ones((3, 2)))
    with pytest.raises(InputError, match="one number for each of the 3 clients"):
        read_numbers(tmp_path / "two.npy", 3, "simulated_time.speeds")
    np.save(tmp_path / "tiny.npy", np.full(3, 1e-300))
    settings = SimulatedTimeConfig(speeds=str(tmp_path / "tiny.npy"))
    with pytest.raises(InputError, match="longer than any number"):
        client_pace(settings, 3, 1e6)
