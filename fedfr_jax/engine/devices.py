"""One XLA device per core of a CPU: there, clients run in parallel on devices."""

from __future__ import annotations

import functools
import os

import jax
from absl import logging

_LONGEST_WAIT = 30 * 24 * 3600  # seconds


def use_cpu_devices(count: int = 0) -> None:
    """Makes ``count`` XLA devices of this machine's CPU (0: one per core).

    On a CPU, clients run in parallel on devices, not in vmap lanes. Has no effect after
    JAX was first used, or if a GPU or TPU is found.
    """
    _let_devices_wait()
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return  # the user has chosen
    count = count or len(os.sched_getaffinity(0))
    if jax.config.jax_num_cpu_devices == count:  # type: ignore[attr-defined]
        return  # jax 0.7 refuses even this once it is in use
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        if jax.default_backend() == "cpu":
            _warn_once(
                f"JAX is in use already: it keeps {len(jax.devices())} CPU device(s), not "
                f"{count}; call fedfr_jax.use_cpu_devices(0) before anything else of JAX"
            )


@functools.cache  # otherwise every run of a process would repeat it
def _warn_once(text: str) -> None:
    logging.warning("%s", text)


def _let_devices_wait() -> None:
    """Lets a CPU device wait for the others as long as their clients take.

    XLA would abort the program after 40 seconds, assuming a deadlock. Must be called before JAX is
    used.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    # jax 0.7 has no such flags, and aborts if it is given them.
    if jax.__version_info__ < (0, 8) or "xla_cpu_collective_call_terminate" in flags:
        return
    os.environ["XLA_FLAGS"] = " ".join(
        [
            flags,
            *(
                f"--xla_cpu_collective_call_{name}_timeout_seconds={_LONGEST_WAIT}"
                for name in ("warn_stuck", "terminate")
            ),
        ]
    ).strip()
