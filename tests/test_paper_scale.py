"""The paper's settings fit together at their real shapes, without the data or the memory."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import pytest
from small import ROOT

from fedfr_jax import engine
from fedfr_jax.algorithm.initialize import initial_heads, server_shapes
from fedfr_jax.algorithm.round import run_round
from fedfr_jax.algorithm.spec import RoundSpec, epochs_of_round
from fedfr_jax.config import resolve
from fedfr_jax.engine.layout import Layout
from fedfr_jax.population.cohort_data import CohortData, PublicData
from fedfr_jax.runtime import simulation

IMAGES_PER_CLIENT, PUBLIC_IMAGES = 6500, 420_671


def paper_config():
    path = ROOT / "configs" / "ms1m_fedfr.py"
    spec = importlib.util.spec_from_file_location("ms1m_fedfr", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    settings = module.get_config()
    settings.data.root = "elsewhere"
    return resolve(settings)


def shapes(config):
    clients, side = config.fed.num_clients, config.data.image_size
    array = jax.ShapeDtypeStruct
    public = PublicData(
        array((PUBLIC_IMAGES, side, side, 3), jnp.uint8),
        array((PUBLIC_IMAGES,), jnp.int32),
        config.data.split.public_identities,
    )
    total = clients * IMAGES_PER_CLIENT
    per_client = array((clients,), jnp.int32)
    return public, CohortData(
        images=array((total, side, side, 3), jnp.uint8),
        table_rows=array((total,), jnp.int32),
        used=array((1,), jnp.int32),
        rows=array((clients, IMAGES_PER_CLIENT), jnp.int32),
        labels=array((clients, IMAGES_PER_CLIENT), jnp.int32),
        sizes=per_client,
        identities=per_client,
        clients=per_client,
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_round_at_the_papers_shapes(dtype):
    config = paper_config()
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=dtype))
    layout = Layout(engine.make_mesh(jax.devices()[:1]), 1, 256)
    method = simulation.make_spec(config)
    public, cohort = shapes(config)
    server = server_shapes(method, public.identities)
    parameters = sum(x.size for x in jax.tree.leaves(server.backbone["params"]))
    assert round(parameters / 1e6, 1) == 49.7
    assert server.public_embeddings.shape == (6000, 512)
    heads = jax.eval_shape(
        lambda v, p, c: initial_heads(
            method, layout, v, p, c, jax.random.key(0), most_identities=100
        ),
        server.backbone,
        public,
        cohort,
    )
    assert heads.class_embeddings.shape == (40, 100, 512)
    new_server, new_heads, metrics = jax.eval_shape(
        lambda *state: run_round(method, layout, *state),
        server,
        heads,
        public,
        cohort,
        jax.random.key(0),
    )
    for new, old in zip(
        jax.tree.leaves((new_server, new_heads)), jax.tree.leaves((server, heads)), strict=True
    ):
        assert (new.shape, new.dtype) == (old.shape, old.dtype)
    assert metrics["loss"].shape == (40,)
    assert config.fed.rounds == 20 and config.fed.local_epochs == (10, 8, 6, 4)


def test_the_papers_schedule():
    method = RoundSpec(None, paper_config().fed, None)
    schedule = [tuple(int(v) for v in epochs_of_round(method, r)) for r in range(5)]
    assert schedule == [(10, 8), (8, 6), (6, 4), (4, 3), (4, 3)]
