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
    JAX was first used, or if a GPU or TPU is found. Also adds flags to ``XLA_FLAGS`` that matter on
    a CPU only: no limit to the time for which devices wait for each other, and no unrolling of
    loops, so that programs compile faster.
    """
    _set_flags()
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


def _set_flags() -> None:
    """Flags of XLA for a CPU, but for those that the user has set. Must precede any use of JAX."""
    flags = os.environ.get("XLA_FLAGS", "")
    more = []
    # A device waits for the others as long as their clients take. XLA would abort the program
    # after 40 seconds, assuming a deadlock. jax 0.7 has no such flags, and aborts if given them.
    if jax.__version_info__ >= (0, 8) and "xla_cpu_collective_call_terminate" not in flags:
        more = [
            f"--xla_cpu_collective_call_{name}_timeout_seconds={_LONGEST_WAIT}"
            for name in ("warn_stuck", "terminate")
        ]
    # Unrolled loops take a third of the time of compiling, and are no faster: what takes time are
    # products, from libraries.
    if "xla_backend_extra_options" not in flags:
        more.append("--xla_backend_extra_options=xla_cpu_disable_loop_unrolling")
    os.environ["XLA_FLAGS"] = " ".join([flags, *more]).strip()
