"""The layouts that a round could have, the most promising ones first."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax

from fedfr_jax import engine
from fedfr_jax.config import Config
from fedfr_jax.runtime import costs

# On a CPU, steps in float32 of more work than this are always fastest one client at a time with the
# custom convolutions, as measured; smaller ones may gain from lanes.
_CLEAR_ON_CPU = 4e7  # floating-point operations of a client's step
# Below these, one client leaves most of an accelerator idle: docs/performance.md.
_SMALL_IMAGE, _SMALL_WIDTH = 64, 128
_SURE_LANES = 8
_MOST_COPIES = 8  # lanes that are tried where each is a copy


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to lay a round out.

    Attributes:
      lanes: clients side by side on a device.
      conv: convolution strategy.
      gradient_batch: images per gradient pass; 0 = the whole mini-batch.
      dtype: compute type.
    """

    lanes: int
    conv: str
    gradient_batch: int
    dtype: str

    def __str__(self):
        part = f", {self.gradient_batch} images per gradient pass" if self.gradient_batch else ""
        return f"{self.lanes} lane{'s' * (self.lanes > 1)}, {self.conv}, {self.dtype}{part}"


def cohort_size(config: Config) -> int:
    """Clients per round, at most."""
    if config.recipe.union:
        return 1
    return config.population.cohort or config.fed.num_clients


def most_lanes(config: Config, devices: int) -> int:
    """Clients that a device can get in a round, or in a part of one."""
    clients = -(-cohort_size(config) // devices)
    return max(1, min(clients, config.engine.part or clients))


def candidates(
    config: Config, devices: int, backend: str, seeds: int = 1
) -> Iterator[list[Candidate]]:
    """Groups of candidates that differ in lanes, fewest first; the most promising group first.

    bfloat16 is never tried on a CPU, where it is slower. On accelerators a candidate with one lane
    comes first, so that more lanes are chosen only where they were measured to be faster; and
    grouped convolutions have one lane, where ``layered`` is the same: with more they were the
    slowest form on an H100 (docs/performance.md). On a CPU nothing but one lane with custom
    convolutions is tried where the network is not tiny.
    """
    settings, limit = config.engine, most_lanes(config, devices) * seeds
    on_cpu = backend == "cpu"
    lanes = [1, 4] if on_cpu else [1, 2, 4, 8, 16, 32, 64, 128]
    if settings.unroll_lanes:  # compiling takes as many times longer
        lanes = [n for n in lanes if n <= _MOST_COPIES]
    lanes = [n for n in lanes if n <= limit] if not settings.lanes else [min(settings.lanes, limit)]
    dtypes = [config.model.dtype]
    if config.model.dtype == "auto":
        dtypes = ["float32"] if on_cpu else ["bfloat16", "float32"]
    convs = [settings.conv]
    if settings.conv == "auto":
        convs = ["patches", "layered"] if _is_small(config) else ["layered", "patches"]
        convs = ["custom", "patches"] if on_cpu else convs
        if on_cpu and dtypes == ["float32"] and _step_flops(config) > _CLEAR_ON_CPU:
            convs = ["custom"]
    for dtype in dtypes:
        for conv in convs:
            # Under vmap the custom convolutions take turns: lanes do not help.
            fewer = [n for n in lanes if conv != "custom" or n == lanes[0]]
            yield [
                Candidate(n, _plain(conv, n, settings.conv), settings.gradient_batch, dtype)
                for n in fewer
            ]


def _plain(conv: str, lanes: int, wanted: str) -> str:
    """With one lane, ``layered`` is the ordinary convolution: called by its name, unless set."""
    return "grouped" if conv == "layered" and lanes == 1 and wanted == "auto" else conv


def _step_flops(config: Config) -> float:
    """Floating-point operations of a client's step: forward, and twice as many backward."""
    return 3.0 * config.fed.batch_size * costs.forward_flops(config)


def _is_small(config: Config) -> bool:
    """Whether one client's layers leave most of an accelerator idle, so that lanes pay there."""
    return config.data.image_size <= _SMALL_IMAGE and max(config.model.widths) <= _SMALL_WIDTH


def by_rule(
    config: Config, seeds: int = 1, *, devices: int = 0, backend: str = ""
) -> tuple[Candidate, str]:
    """The most promising candidate, without measuring: with lanes only where they surely pay.

    Args:
      config, seeds: as for :func:`candidates`.
      devices, backend: of a machine that is only planned for; by default, of this one.
    """
    devices = devices or engine.make_mesh(jax.local_devices()[: cohort_size(config)]).size
    backend = backend or jax.default_backend()
    first = next(candidates(config, devices, backend, seeds))
    pays = backend != "cpu" and _is_small(config)
    few = [c for c in first if c.lanes <= (_SURE_LANES if pays else 1)] or first[:1]
    return few[-1], "by rule; engine.plan_seconds allows to measure"
