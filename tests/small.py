"""A small federation of random images, for tests of the round."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from fedfr_jax import engine
from fedfr_jax.algorithm.initialize import initial_heads, initial_server
from fedfr_jax.algorithm.round import run_round
from fedfr_jax.algorithm.spec import RoundSpec
from fedfr_jax.config.settings import FedConfig, LossConfig, ModelConfig
from fedfr_jax.engine.layout import Layout
from fedfr_jax.methods.fedfr import Options
from fedfr_jax.models import build
from fedfr_jax.population.cohort_data import CohortData, PublicData

SIZE = 16
MODEL = ModelConfig(depth=4, widths=(4, 4, 8, 8), embedding=8)
FED = FedConfig(num_clients=3, batch_size=4, lr=0.02, local_epochs=(2, 3), lr_decay_epochs=(1,),
                public_data="hard", hard_threshold=0.995)


@dataclasses.dataclass(frozen=True)
class Federation:
    """Public images, and one entry per client."""

    public_images: np.ndarray
    public_labels: np.ndarray
    images: tuple
    labels: tuple
    identities: tuple

    @property
    def public(self) -> PublicData:
        return PublicData(jnp.asarray(self.public_images), jnp.asarray(self.public_labels), 4)

    def cohort(self, devices=1, clients=None, table=True) -> CohortData:
        """The given clients (default: all) in order, with empty slots at each device's end."""
        clients = list(range(len(self.images))) if clients is None else clients
        slots = -(-len(clients) // devices)
        placed = np.full((devices, slots), -1)
        for i, client in enumerate(clients):
            placed[i % devices, i // devices] = client
        most = max(len(x) for x in self.images)
        shape = (devices * slots, most)
        rows, labels = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        sizes, identities = np.zeros(shape[0], np.int32), np.zeros(shape[0], np.int32)
        lists = []
        for d in range(devices):
            found = []
            for s, client in enumerate(placed[d]):
                if client >= 0:
                    n, at = len(self.images[client]), d * slots + s
                    rows[at, :n] = len(found) + np.arange(n)
                    labels[at, :n], sizes[at] = self.labels[client], n
                    identities[at] = self.identities[client]
                    found += [(client, i) for i in range(n)]
            lists.append(found)
        capacity = max(map(len, lists)) + 2  # two that nobody uses
        used = np.array([len(found) for found in lists], np.int32)
        lists = [found + [(0, 0)] * (capacity - len(found)) for found in lists]
        flat = np.concatenate(self.images)
        first = np.concatenate([[0], np.cumsum([len(x) for x in self.images])])
        table_rows = np.array([first[c] + i for found in lists for c, i in found], np.int32)
        images = flat if table else flat[table_rows]
        return CohortData(
            images=jnp.asarray(images), table_rows=jnp.asarray(table_rows) if table else None,
            used=jnp.asarray(used), rows=jnp.asarray(rows), labels=jnp.asarray(labels),
            sizes=jnp.asarray(sizes), identities=jnp.asarray(identities),
            clients=jnp.asarray(placed.reshape(-1), jnp.int32))


def federation(sizes=(9, 5, 12), identities=(3, 2, 4), public=10, seed=0) -> Federation:
    """Random images; clients hold ``sizes`` images of ``identities`` people."""
    rng = np.random.RandomState(seed)
    images = rng.randint(0, 256, (public + sum(sizes), SIZE, SIZE, 3)).astype(np.uint8)
    own = np.split(images[public:], np.cumsum(sizes)[:-1])
    labels = tuple(np.arange(n) % k for n, k in zip(sizes, identities, strict=True))
    return Federation(images[:public], (np.arange(public) % 4).astype(np.int32), tuple(own),
                      labels, tuple(identities))


def method(fed=FED, loss=None, model=MODEL, conv="auto", options=None, **changes) -> RoundSpec:
    """FedFR on a tiny SphereNet; keyword arguments change ``FedConfig``, ``options`` FedFR's."""
    return RoundSpec(build(model, SIZE, conv), dataclasses.replace(fed, **changes),
                     loss or LossConfig(), options=Options(**options or {}))


def layout(lanes=1, devices=1, **changes) -> Layout:
    return Layout(engine.make_mesh(jax.devices()[:devices]), lanes, feature_batch=5,
                        **changes)


def states(method, layout, public, cohort, seed=0, previous="full", most=4):
    """(server, heads) from a random backbone; traceable."""
    variables = method.backbone.init(jax.random.key(seed))
    server = initial_server(method, layout, variables, None, public)
    return server, initial_heads(method, layout, variables, public, cohort,
                                 jax.random.key(seed + 1), most_identities=most,
                                 previous=previous)


def start(method, layout, public, cohort, **changes):
    """:func:`states`, on the devices."""
    return jax.jit(lambda p, c: states(method, layout, p, c, **changes))(
        engine.replicate(public, layout.mesh), place(cohort, layout))


def place(cohort: CohortData, layout) -> CohortData:
    """Divides a cohort over the devices."""
    images = cohort.images
    divide = engine.replicate if cohort.table_rows is not None else engine.spread
    return engine.spread(cohort.replace(images=None), layout.mesh).replace(
        images=divide(images, layout.mesh))


def rounds(method, layout, server, heads, public, cohort, count=1, key=None):
    """Runs ``count`` rounds in one compiled function; returns state and last metrics."""
    key = jax.random.key(7) if key is None else key
    server, public = engine.replicate((server, public), layout.mesh)
    heads, cohort = engine.spread(heads, layout.mesh), place(cohort, layout)
    step = jax.jit(lambda s, h, p, c: run_round(method, layout, s, h, p, c, key))
    metrics = None
    for _ in range(count):
        server, heads, metrics = step(server, heads, public, cohort)
    return jax.device_get((server, heads, metrics))
