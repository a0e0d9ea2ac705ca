"""Checks that the processes of one run agree, and lets them decide together."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from fedfr_jax.errors import DamagedError, InputError

T = TypeVar("T")
_PIECE = 1 << 22  # bytes of each process that are exchanged at once; bounds memory of the devices


def worst(code: int) -> int:
    """The largest code of all processes; all of them must call this."""
    if jax.process_count() == 1:
        return code
    return int(multihost_utils.process_allgather(np.int32(code)).max())


def together(
    work: Callable[[], T],
    failed: str = "another process of this run has failed; its own message says why",
) -> T:
    """Runs ``work`` and waits until all processes have; all of them must call this.

    Args:
      work: what this process does.
      failed: the message where another process failed.

    Raises:
      DamagedError, InputError: ``work`` raised one here or in another process.
    """
    if jax.process_count() == 1:
        return work()
    error: InputError | OSError | None = None
    try:
        found = work()
    except (InputError, OSError) as caught:
        error = caught
    code = worst(0 if error is None else 1 if isinstance(error, DamagedError) else 2)
    if error is not None:
        raise error
    if code:
        raise (DamagedError if code == 1 else InputError)(failed)
    return found


def gather_bytes(mine: bytes) -> list[bytes]:
    """What every process gives, in their order; all of them must call this."""
    gather = multihost_utils.process_allgather
    # As bytes: JAX would cut 64-bit numbers down to 32.
    sizes = gather(np.frombuffer(np.int64(len(mine)).tobytes(), np.uint8)).view(np.int64).ravel()
    # Few different sizes, because each is a program of its own.
    piece = min(_PIECE, 1 << max(10, int(sizes.max() - 1).bit_length()))
    parts = []
    for start in range(0, int(sizes.max()), piece):
        some = np.frombuffer(mine[start : start + piece], np.uint8)
        parts.append(gather(np.pad(some, (0, piece - len(some)))))
    return [
        b"".join(part[process].tobytes() for part in parts)[:size]
        for process, size in enumerate(sizes)
    ]


def digests(values: Mapping[str, Any]) -> np.ndarray:
    """(n, 2) uint32, one row per value, in the order of their names."""
    found = [
        hashlib.sha256(json.dumps([name, values[name]]).encode()).digest()[:8]
        for name in sorted(values)
    ]
    return np.frombuffer(b"".join(found), np.uint32).reshape(-1, 2)


def check_equal(values: Mapping[str, Any], *, gather=multihost_utils.process_allgather) -> None:
    """Refuses processes that would run different experiments; all of them must call this.

    Args:
      values: settings and digests of the data by name, ready for JSON.
      gather: stacks one array of every process, (processes, ...).

    Raises:
      InputError: in every process, if any two differ; it names what differs.
    """
    mine = digests(values)
    counts = gather(np.int32(len(mine))).reshape(-1)
    if (counts != counts[0]).any():
        raise InputError(
            "the processes run different versions of the program: they have "
            f"{', '.join(map(str, counts))} settings; install one version everywhere"
        )
    every = gather(mine).reshape(len(counts), *mine.shape)
    differ = (every != every[0]).any(axis=(0, 2))
    names = [name for name, bad in zip(sorted(values), differ, strict=True) if bad]
    if names:
        different = ", ".join(f"{name} (here {values[name]!r})" for name in names)
        raise InputError(
            f"the processes of this run differ in {different}; start all of them "
            "with the same settings and data"
        )


def wait(arrays: Any) -> None:
    """Waits until a pytree of arrays is computed; signals are handled meanwhile."""
    seconds, leaves = 1e-4, jax.tree.leaves(arrays)
    while not all(x.is_ready() for x in leaves):
        time.sleep(seconds)
        seconds = min(2 * seconds, 0.02)
