"""What tests share: a federation of random images for the round, settings of small runs."""

import dataclasses
import functools
import importlib.util
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from PIL import Image

from fedfr_jax import engine
from fedfr_jax.algorithm.initialize import initial_heads, initial_server, server_shapes
from fedfr_jax.algorithm.plain import place
from fedfr_jax.algorithm.round import run_round
from fedfr_jax.algorithm.spec import RoundSpec
from fedfr_jax.config import resolve
from fedfr_jax.data.faces import generated
from fedfr_jax.engine.convolutions import conv2d
from fedfr_jax.engine.layout import Layout
from fedfr_jax.methods.fedfr import Options
from fedfr_jax.models import build, register_backbone
from fedfr_jax.population.cohort_data import CohortData, PublicData
from fedfr_jax.population.packing import pack_clients
from fedfr_jax.settings import FedConfig, LossConfig, ModelConfig

ROOT = pathlib.Path(__file__).parents[1]
# Real faces and all outputs of the authors' code, where they are at hand.
DATA = pathlib.Path(os.environ.get("FEDFR_DATA_DIR", ROOT.parent / "shared" / "data"))
FULL_GOLDEN = pathlib.Path(os.environ.get("FEDFR_GOLDEN_DIR", ROOT.parent / "shared" / "golden"))
GOLDEN = FULL_GOLDEN if FULL_GOLDEN.exists() else ROOT / "tests" / "golden"  # a part of it


def golden_inputs():
    """The module that makes the inputs of the reference outputs."""
    spec = importlib.util.spec_from_file_location("golden_inputs", GOLDEN / "inputs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def in_double():
    """A context in which JAX computes in float64."""
    return jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64()


SIZE = 16
MODEL = ModelConfig(name="tiny", embedding=8)
TINY_NORM = ModelConfig(name="tiny_norm", embedding=8)
SPHERENET = ModelConfig(depth=4, widths=(4, 4, 8, 8), embedding=8)
FED = FedConfig(
    num_clients=3,
    batch_size=4,
    lr=0.02,
    local_epochs=(2, 3),
    lr_decay_epochs=(1,),
    public_data="hard",
    hard_threshold=0.5,
)


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
        """The given clients (default: all), and two images on each device that nobody uses."""
        cohort = pack_clients(list(zip(self.images, self.labels, strict=True)), devices, clients)
        rows = np.pad(cohort.table_rows.reshape(devices, -1), ((0, 0), (0, 2))).reshape(-1)
        images = (
            {"table_rows": rows} if table else {"images": cohort.images[rows], "table_rows": None}
        )
        return jax.tree.map(jnp.asarray, cohort.replace(**images))


def federation(sizes=(9, 5, 12), identities=(3, 2, 3), public=10, seed=0) -> Federation:
    """Random images; clients hold ``sizes`` images of ``identities`` people."""
    rng = np.random.RandomState(seed)
    images = rng.randint(0, 256, (public + sum(sizes), SIZE, SIZE, 3)).astype(np.uint8)
    own = np.split(images[public:], np.cumsum(sizes)[:-1])
    labels = tuple(np.arange(n) % k for n, k in zip(sizes, identities, strict=True))
    return Federation(
        images[:public],
        (np.arange(public) % 4).astype(np.int32),
        tuple(own),
        labels,
        tuple(identities),
    )


class TinyNetwork(nn.Module):
    """The smallest network of the kind: a convolution, perhaps batch norm, the output layer."""

    embedding: int
    conv: str
    batch_norm: bool = False
    last_stage = "output"
    output_layers = ("output",)

    @property
    def layers(self):
        return ("kernel", "norm", "output") if self.batch_norm else ("kernel", "output")

    @nn.compact
    def __call__(self, x, train, part=slice(None)):
        for name in self.layers[part]:
            if name == "kernel":
                kernel = self.param(name, nn.initializers.he_normal(), (3, 3, 3, 6))
                x = conv2d(x, kernel, stride=4, strategy=self.conv)
            elif name == "norm":
                x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name=name)(x)
            else:
                x = nn.Dense(self.embedding, name=name)(jnp.tanh(x).reshape(x.shape[0], -1))
        return x


for name, batch_norm in (("tiny", False), ("tiny_norm", True)):
    register_backbone(
        name,
        lambda config, size, conv, batch_norm=batch_norm: (
            TinyNetwork(config.embedding, conv, batch_norm),
            None,
        ),
    )
backbone = functools.cache(build)  # the same network is the same program


def method(fed=FED, loss=None, model=MODEL, conv="auto", options=None, **changes) -> RoundSpec:
    """FedFR on the tiny network; keyword arguments change ``FedConfig``, ``options`` FedFR's."""
    return RoundSpec(
        backbone(model, SIZE, conv),
        dataclasses.replace(fed, **changes),
        loss or LossConfig(),
        options=Options(**options or {}),
    )


def layout(lanes=1, devices=1, **changes) -> Layout:
    return Layout(engine.make_mesh(jax.devices()[:devices]), lanes, feature_batch=5, **changes)


def states(method, layout, public, cohort, variables, seed=0, previous="full", most=4):
    """(server, heads) from a backbone's variables; traceable."""
    server = initial_server(method, layout, variables, None, public)
    return server, initial_heads(
        method,
        layout,
        variables,
        public,
        cohort,
        jax.random.key(seed + 1),
        most_identities=most,
        previous=previous,
    )


# One program per kind of method and layout, shared by the tests of a module.
@functools.cache
def variables(backbone, seed=0):
    """Random variables, drawn once."""
    return jax.device_get(jax.jit(backbone.init)(jax.random.key(seed)))


@functools.cache
def _start(method, layout, **changes):
    return jax.jit(lambda p, c, v: states(method, layout, p, c, v, **changes))


@functools.cache
def program(method, layout):
    """The compiled round: (server, heads, public, cohort, key) -> (server, heads, metrics)."""
    return jax.jit(functools.partial(run_round, method, layout))


def start(method, layout, public, cohort, **changes):
    """:func:`states` of random variables, on the devices."""
    public, weights = engine.replicate((public, variables(method.backbone)), layout.mesh)
    return _start(method, layout, **changes)(public, place(cohort, layout), weights)


def rounds(method, layout, server, heads, public, cohort, count=1, key=None):
    """Runs ``count`` rounds in one compiled function; returns state and last metrics."""
    key = jax.random.key(7) if key is None else key
    public, key = engine.replicate((public, key), layout.mesh)
    cohort, metrics = place(cohort, layout), None
    for _ in range(count):  # placed again, as another placement would be another program
        server, heads = engine.replicate(server, layout.mesh), engine.spread(heads, layout.mesh)
        server, heads, metrics = program(method, layout)(server, heads, public, cohort, key)
    return jax.device_get((server, heads, metrics))


# Whole runs on a few generated faces, which are rendered few at a time.
generated.BLOCK_PIXELS = 32 * SIZE**2
SETTINGS = {
    "data": {
        "image_size": 16,
        "generated": {"identities": 30, "images_per_identity": (5, 7)},
        "split": {
            "held_out_identities": 10,
            "held_out_pairs": 40,
            "client_fraction": 0.5,
            "identities_per_client": (2, 3),
            "verification_images": 2,
        },
    },
    "model": {"name": "tiny", "embedding": 8},
    "pretrain": {"epochs": 2, "batch_size": 16},
    "fed": {
        "num_clients": 3,
        "rounds": 3,
        "batch_size": 4,
        "local_epochs": (2, 1),
        "lr": 0.01,
        "hard_threshold": 0.9,
    },
    "eval": {"fars": (0.01, 0.1), "batch_size": 32, "every": 0},
    "engine": {"lanes": 1, "conv": "custom"},
}


def settings(**groups):
    merged = {k: dict(v) for k, v in SETTINGS.items()}
    for name, values in groups.items():
        merged.setdefault(name, {}).update(values)
    return resolve(merged)


def save_blank(figure, target, format, **unused):
    """In place of ``Figure.savefig``."""
    if format == "svg":
        target.write('<svg viewBox="0 0 1 1"></svg>')
    else:
        Image.new("RGB", (1, 1)).save(target, format)


def write_run(experiment):
    """Writes and returns the summary of an experiment that is not evaluated."""
    summary = {"run": experiment._run()}
    experiment._writer.write_summary(summary)
    return summary


def final_state(folder, config):
    """(server, touched clients, their rows) that a run left behind."""
    # Imported here, as Orbax takes a second.
    from fedfr_jax.runtime.checkpoints import RoundCheckpoints  # noqa: PLC0415
    from fedfr_jax.runtime.client_states import open_store  # noqa: PLC0415
    from fedfr_jax.runtime.simulation import build_simulation  # noqa: PLC0415

    sim = build_simulation(config)
    with RoundCheckpoints(folder) as checkpoints, open_store(sim, folder) as store:
        server = checkpoints.restore(server_shapes(sim.spec, sim.public.identities))
        return jax.device_get(server), store.touched(), store.read(store.touched())
