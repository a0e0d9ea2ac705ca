"""The cohort engine: many clients' updates in one compiled program.

A library of its own, which knows nothing about faces: docs/engine.md.
"""

from fedfr_jax.engine.cohort import (
    AXIS,
    CohortResult,
    Lane,
    addressable,
    for_each_client,
    local_rows,
    loop_blocks,
    make_mesh,
    map_blocks,
    on_each_device,
    placed_shapes,
    replicate,
    spread,
)
from fedfr_jax.engine.convolutions import conv2d, default_strategy
from fedfr_jax.engine.devices import use_cpu_devices
from fedfr_jax.engine.layers import Conv, Dense, dropout, matmul, max_pool, torch_init
from fedfr_jax.engine.local import server_step, train_locally
from fedfr_jax.engine.precision import sum_type

__all__ = [
    "AXIS",
    "CohortResult",
    "Conv",
    "Dense",
    "Lane",
    "addressable",
    "conv2d",
    "default_strategy",
    "dropout",
    "for_each_client",
    "local_rows",
    "loop_blocks",
    "make_mesh",
    "map_blocks",
    "matmul",
    "max_pool",
    "on_each_device",
    "placed_shapes",
    "replicate",
    "server_step",
    "spread",
    "sum_type",
    "torch_init",
    "train_locally",
    "use_cpu_devices",
]
