"""The paper's settings fit together at their real shapes, without the data or the memory."""
import dataclasses
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import pytest

from fedfr_jax import fedfr, simulation
from fedfr_jax.config import resolve
from fedfr_jax.initialize import state_shapes
from fedfr_jax.state import FederatedData

IMAGES_PER_CLIENT, PUBLIC_IMAGES = 6500, 420_671


def paper_config():
    path = pathlib.Path(__file__).parents[1] / "configs" / "ms1m_fedfr.py"
    spec = importlib.util.spec_from_file_location("ms1m_fedfr", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    settings = module.get_config()
    settings.data.root = "elsewhere"
    return resolve(settings)


def shapes(config):
    clients, side = config.fed.num_clients, config.data.image_size
    identities = config.data.split.identities_per_client[1]
    array = jax.ShapeDtypeStruct
    return FederatedData(
        images=array((PUBLIC_IMAGES + clients * IMAGES_PER_CLIENT, side, side, 3), jnp.uint8),
        public_labels=array((PUBLIC_IMAGES,), jnp.int32),
        client_rows=array((clients, IMAGES_PER_CLIENT), jnp.int32),
        client_labels=array((clients, IMAGES_PER_CLIENT), jnp.int32),
        client_sizes=array((clients,), jnp.int32),
        client_identities=array((clients,), jnp.int32),
        public_identities=config.data.split.public_identities, most_identities=identities)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_round_at_the_papers_shapes(dtype):
    config = paper_config()
    config = resolve({**dataclasses.asdict(config),
                      "model": {**dataclasses.asdict(config.model),
                                "dtype": dtype}})
    layout = simulation.make_layout(config)
    _, method = simulation.make_method(config, layout)
    data = shapes(config)
    server, heads = state_shapes(method, layout, data)
    parameters = sum(x.size for x in jax.tree.leaves(server.backbone["params"]))
    assert round(parameters / 1e6, 1) == 49.7
    assert server.public_embeddings.shape == (6000, 512)
    assert heads.class_embeddings.shape == (40, 100, 512)
    new_server, new_heads, metrics = jax.eval_shape(
        lambda *state: fedfr.run_round(method, layout, *state),
        server, heads, data, jax.random.key(0))
    for new, old in zip(jax.tree.leaves((new_server, new_heads)),
                        jax.tree.leaves((server, heads)), strict=True):
        assert (new.shape, new.dtype) == (old.shape, old.dtype)
    assert metrics["loss"].shape == (40,)
    assert config.fed.rounds == 20 and config.fed.local_epochs == (10, 8, 6, 4)


def test_the_papers_schedule():
    fed = paper_config().fed
    schedule = [tuple(int(v) for v in fedfr.epochs_of_round(fed, r)) for r in range(5)]
    assert schedule == [(10, 8), (8, 6), (6, 4), (4, 3), (4, 3)]
