"""The cohort engine: many clients' updates in one compiled program."""

from fedfr_jax.engine.cohort import (
    AXIS,
    Lane,
    for_each_client,
    local_rows,
    loop_blocks,
    make_mesh,
    map_blocks,
    on_each_device,
    replicate,
    spread,
)
from fedfr_jax.engine.precision import sum_type

__all__ = [
    "AXIS",
    "Lane",
    "for_each_client",
    "local_rows",
    "loop_blocks",
    "make_mesh",
    "map_blocks",
    "on_each_device",
    "replicate",
    "spread",
    "sum_type",
]
