"""How fast clients train and send: read from files, or drawn once for each client."""

from __future__ import annotations

import dataclasses
import os
import pathlib

import numpy as np

from fedfr_jax.data.arrays import load_array
from fedfr_jax.errors import InputError
from fedfr_jax.population.cohort_data import Pace
from fedfr_jax.settings import SimulatedTimeConfig

_STREAMS = {"speeds": 0x59_EE_D0, "bandwidths": 0xBA_2D_00}
_MOST_BYTES = 64  # of a number in a text file, with what separates it from the next


@dataclasses.dataclass(frozen=True)
class ClientPace:
    """The pace of all clients of a population.

    Attributes:
      image: (population,) float32 seconds that training takes per image.
      upload: (population,) float32 seconds that it takes to send a message.
    """

    image: np.ndarray
    upload: np.ndarray

    def of(self, assigned: np.ndarray) -> Pace:
        """The pace of the clients in (C,) slots; zero where a slot is empty (-1)."""
        there = assigned >= 0
        return Pace(
            np.where(there, self.image[assigned], np.float32(0)),
            np.where(there, self.upload[assigned], np.float32(0)),
        )


def client_pace(
    settings: SimulatedTimeConfig, population: int, message_bytes: float
) -> ClientPace | None:
    """The pace of all clients; None where time is not simulated.

    Args:
      settings: files, or medians and spreads.
      population: number of clients.
      message_bytes: of the message of a client.

    Raises:
      InputError: a file cannot be used, or a duration is beyond what float32 holds.
    """
    if not settings.is_active:
        return None
    speeds = _of_clients(settings, "speeds", population)
    with np.errstate(divide="ignore", over="ignore"):
        image = (1 / speeds).astype(np.float32)
        upload = np.zeros(population, np.float32)
        if settings.bandwidth or settings.bandwidths:
            bits_per_second = 1e6 * _of_clients(settings, "bandwidths", population)
            upload = (8 * message_bytes / bits_per_second).astype(np.float32)
    if not np.isfinite(image).all() or not np.isfinite(upload).all():
        raise InputError(
            "simulated_time: a client takes longer than any number says; raise the lowest of the "
            "speeds and bandwidths, or lower their sigma"
        )
    return ClientPace(image, upload)


def _of_clients(settings: SimulatedTimeConfig, name: str, population: int) -> np.ndarray:
    """(population,) numbers > 0; those of the first clients do not depend on how many follow."""
    if path := getattr(settings, name):
        return read_numbers(path, population, f"simulated_time.{name}")
    one = name.removesuffix("s")
    median, sigma = getattr(settings, one), getattr(settings, f"{one}_sigma")
    seed = np.random.SeedSequence(settings.seed, spawn_key=(_STREAMS[name],))
    normal = np.random.default_rng(seed).standard_normal(population)
    with np.errstate(over="ignore"):
        return median * np.exp(sigma * normal)


def read_numbers(path: str | os.PathLike, population: int, what: str) -> np.ndarray:
    """Reads one number > 0 for each client.

    Args:
      path: ``.npy``, (population,) of any numeric type; or text with numbers separated by blanks,
        commas or new lines.
      population: number of clients.
      what: the setting, for messages.

    Returns:
      (population,) float64.

    Raises:
      InputError: the file cannot be read, or has other than that many numbers above 0.
    """
    numbers = load_array(path) if str(path).endswith(".npy") else _read_text(path, population, what)
    if numbers.dtype.kind not in "iuf" or numbers.ndim != 1 or len(numbers) != population:
        raise InputError(
            f"{path}: {what}: {numbers.dtype}{list(numbers.shape)}; give one number for each of "
            f"the {population} clients"
        )
    numbers = numbers.astype(np.float64)
    wrong = np.flatnonzero(~(np.isfinite(numbers) & (numbers > 0)))
    if len(wrong):
        raise InputError(
            f"{path}: {what}: client {wrong[0]} has {numbers[wrong[0]]:g}; give finite numbers "
            "above 0"
        )
    return numbers


def _read_text(path: str | os.PathLike, population: int, what: str) -> np.ndarray:
    most = _MOST_BYTES * (population + 1)
    try:
        with pathlib.Path(path).open("rb") as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise ValueError(f"it is longer than {most} bytes, too long for {population} numbers")
        words = content.decode("utf-8-sig").replace(",", " ").split()
        return np.array([float(word) for word in words], np.float64)
    except (OSError, ValueError) as error:  # UnicodeDecodeError is a ValueError
        raise InputError(
            f"{path}: {what}: cannot be read as numbers, one for each client: {error}"
        ) from error
