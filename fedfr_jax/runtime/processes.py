"""Checks that the processes of one run agree, and lets them decide together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from fedfr_jax.errors import InputError


def worst(code: int) -> int:
    """The largest code of all processes; all of them must call this."""
    if jax.process_count() == 1:
        return code
    return int(multihost_utils.process_allgather(np.int32(code)).max())


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
