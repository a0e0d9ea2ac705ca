"""A small federation of random images, for tests of the round."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from fedfr_jax import engine, fedfr
from fedfr_jax.config import FedConfig, LossConfig, ModelConfig
from fedfr_jax.initialize import initial_state
from fedfr_jax.models import build
from fedfr_jax.state import FederatedData

SIZE = 16
MODEL = ModelConfig(depth=4, widths=(4, 4, 8, 8), embedding=8)
FED = FedConfig(num_clients=3, batch_size=4, lr=0.05, local_epochs=(2, 3), lr_decay_epochs=(1,),
                hard_threshold=0.995)


def federation(sizes=(9, 5, 12), identities=(3, 2, 4), public=10, seed=0) -> FederatedData:
    """Random images; clients hold ``sizes`` images of ``identities`` people."""
    rng = np.random.RandomState(seed)
    clients, most = len(sizes), max(sizes)
    rows = np.zeros((clients, most), np.int32)
    labels = np.zeros((clients, most), np.int32)
    start = public
    for i, (n, k) in enumerate(zip(sizes, identities, strict=True)):
        rows[i, :n] = start + np.arange(n)
        labels[i, :n] = np.arange(n) % k
        start += n
    return FederatedData(
        images=jnp.asarray(rng.randint(0, 256, (start, SIZE, SIZE, 3)).astype(np.uint8)),
        public_labels=jnp.asarray(np.arange(public) % 4, jnp.int32),
        client_rows=jnp.asarray(rows), client_labels=jnp.asarray(labels),
        client_sizes=jnp.asarray(sizes, jnp.int32),
        client_identities=jnp.asarray(identities, jnp.int32),
        public_identities=4, most_identities=max(identities))


def method(fed=FED, loss=None, model=MODEL, conv="auto", **changes) -> fedfr.Method:
    """FedFR on a tiny SphereNet; keyword arguments change ``FedConfig``."""
    return fedfr.Method(build(model, SIZE, conv), dataclasses.replace(fed, **changes),
                        loss or LossConfig())


def layout(lanes=1, devices=1) -> fedfr.Layout:
    return fedfr.Layout(engine.make_mesh(jax.devices()[:devices]), lanes, feature_batch=5)


def start(method, data, seed=0):
    """(server, heads) from a random backbone."""
    return initial_state(method, layout(), method.backbone.init(jax.random.key(seed)), None, data,
                         jax.random.key(seed + 1))


def rounds(method, layout, server, heads, data, count=1, key=None):
    """Runs ``count`` rounds in one compiled function; returns state and last metrics."""
    key = jax.random.key(7) if key is None else key
    server, heads, data = engine.replicate((server, heads, data), layout.mesh)
    step = jax.jit(lambda s, h: fedfr.run_round(method, layout, s, h, data, key))
    metrics = None
    for _ in range(count):
        server, heads, metrics = step(server, heads)
    return jax.device_get((server, heads, metrics))
