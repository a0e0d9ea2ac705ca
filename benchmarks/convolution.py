"""One local SGD step of several clients, by convolution strategy and layout.

    python -m benchmarks.convolution            # 4 clients, channels 32/64/128/256, 64x64, batch 32
    python -m benchmarks.convolution --small    # 32 clients, channels 8/16/32/32, 32x32, batch 8

Every layout trains the same weights on the same batches through the cohort engine; the
averaged backbones are compared before anything is timed. ``naive`` is what ``jax.vmap`` makes
of an ordinary convolution. Printed: median of warm rounds, ratio to naive, compile time.
"""
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from fedfr_jax import engine, fedfr
from fedfr_jax.config import FedConfig, LossConfig, ModelConfig
from fedfr_jax.initialize import initial_state
from fedfr_jax.models import build
from fedfr_jax.simulation import use_cpu_devices
from fedfr_jax.state import FederatedData

MEASURED = dict(widths=(32, 64, 128, 256), size=64, batch=32, clients=4, steps=1)
SMALL = dict(widths=(8, 16, 32, 32), size=32, batch=8, clients=32, steps=5)
CLASSES, EMBEDDING, REPEATS = 10, 128, 5


def federation(case):
    """Random images, equal clients, no public data."""
    rng = np.random.default_rng(0)
    clients, images = case["clients"], case["batch"] * case["steps"]
    shape = (clients * images, case["size"], case["size"], 3)
    return FederatedData(
        images=jnp.asarray(rng.integers(0, 256, shape, np.uint8)),
        public_labels=jnp.zeros(0, jnp.int32),
        client_rows=jnp.arange(clients * images, dtype=jnp.int32).reshape(clients, images),
        client_labels=jnp.asarray(rng.integers(0, CLASSES, (clients, images)), jnp.int32),
        client_sizes=jnp.full(clients, images, jnp.int32),
        client_identities=jnp.full(clients, CLASSES, jnp.int32),
        public_identities=0, most_identities=CLASSES)


def one_layout(case, conv, lanes, devices):
    """(averaged backbone, median seconds of warm rounds, seconds of the first)."""
    fed = FedConfig(num_clients=case["clients"], batch_size=case["batch"], local_epochs=(1,),
                    public_data="off")
    model = ModelConfig(depth=10, widths=case["widths"], embedding=EMBEDDING)
    method = fedfr.Method(build(model, case["size"], conv), fed,
                          LossConfig(contrastive_weight=0.0, binary_weight=0.0))
    layout = fedfr.Layout(engine.make_mesh(jax.devices()[:devices]), lanes, 256)
    variables, none, data, key = engine.replicate(
        (method.backbone.init(jax.random.key(0)), jnp.zeros((0, EMBEDDING)), federation(case),
         jax.random.key(1)), layout.mesh)
    server, heads = engine.replicate(
        initial_state(method, layout, variables, none, data, key), layout.mesh)
    step = jax.jit(lambda s, h, d: fedfr.run_round(method, layout, s, h, d, key)[0])
    seconds = []
    for _ in range(1 + (1 if conv == "grouped" and lanes > 1 else REPEATS)):
        started = time.perf_counter()
        result = jax.block_until_ready(step(server, heads, data))
        seconds.append(time.perf_counter() - started)
    return jax.device_get(result.backbone["params"]), float(np.median(seconds[1:])), seconds[0]


def main():
    use_cpu_devices(0)
    case = SMALL if "--small" in sys.argv[1:] else MEASURED
    devices, clients = len(jax.devices()), case["clients"]
    layouts = [("naive vmap", "grouped", clients, 1), ("patches, vmap", "patches", clients, 1),
               ("custom, vmap", "custom", clients, 1), ("custom, scan", "custom", 1, 1)]
    if devices > 1:
        layouts.append((f"custom, {devices} devices", "custom", 1, devices))
    print(f"{case}; jax {jax.__version__}, {devices} {jax.default_backend()} devices")
    print("| layout | seconds per round | naive / this | first round |\n|---|---|---|---|")
    reference = naive = None
    for name, conv, lanes, count in layouts:
        backbone, seconds, first = one_layout(case, conv, lanes, count)
        reference, naive = reference or backbone, naive or seconds
        for a, b in zip(jax.tree.leaves(backbone), jax.tree.leaves(reference), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        print(f"| {name} | {seconds:.3f} | {naive / seconds:.1f} | {first:.1f} |", flush=True)


if __name__ == "__main__":
    main()
