"""The machine that a run is planned for: this one, or one with given memory and devices."""

from __future__ import annotations

import dataclasses
import math

import jax

from fedfr_jax.config import Config
from fedfr_jax.errors import InputError
from fedfr_jax.runtime import memory
from fedfr_jax.runtime.layouts import cohort_size
from fedfr_jax.runtime.process_memory import resident_bytes

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Machine:
    """Where a run would take place.

    Attributes:
      kind: in words.
      backend: cpu | gpu | tpu.
      devices: of all hosts; ``hosts``.
      device_bytes: memory of each device; ``host_bytes``: of each host. Infinite if unknown.
      shared: the devices are those of a CPU, and have their memory in the host's.
      is_here: it is this machine, so that speed can be measured.
      baseline: bytes that this process has already: Python, JAX and what it has compiled.
    """

    kind: str
    backend: str
    devices: int
    hosts: int
    device_bytes: float
    host_bytes: float
    shared: bool
    is_here: bool
    baseline: float


def find_machine(
    config: Config,
    *,
    device_gib: float | None = None,
    host_gib: float | None = None,
    devices: int | None = None,
    hosts: int = 1,
    platform: str = "gpu",
) -> Machine:
    """This machine, or the one that is described; not given: as here.

    Args:
      config: no more devices are used than a round has clients.
      device_gib: memory of an accelerator, per device.
      host_gib: memory of each host.
      devices: of all hosts together; ``hosts``.
      platform: of that accelerator, gpu or tpu.

    Raises:
      InputError: a number is not above 0, or devices and hosts do not go together.
    """
    for name, value in (("device_gib", device_gib), ("host_gib", host_gib), ("devices", devices)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise InputError(f"--{name} is {value}; it must be above 0")
    if hosts < 1 or (devices or hosts) % hosts:
        raise InputError(f"--devices={devices} cannot be shared out among --hosts={hosts}")
    here = jax.devices()[0]
    other_kind = device_gib is not None and here.platform == "cpu"
    limit = (here.memory_stats() or {}).get("bytes_limit", math.inf)
    found = devices or (hosts if other_kind or hosts > 1 else len(jax.devices()))
    baseline = resident_bytes()
    return Machine(
        kind=platform.upper() if other_kind else here.device_kind,
        backend=platform if other_kind else here.platform,
        devices=found if hosts > 1 else min(found, cohort_size(config)),
        hosts=hosts,
        device_bytes=device_gib * _GIB if device_gib else limit,
        host_bytes=host_gib * _GIB if host_gib else memory.available() + baseline,
        shared=here.platform == "cpu" and not other_kind,
        is_here=not other_kind and found == len(jax.devices()) and hosts == 1,
        baseline=baseline,
    )
