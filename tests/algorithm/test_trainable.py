"""Training from a layer up: rounds on activations are rounds of the network frozen below."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from fedfr_jax.algorithm.features import to_input
from fedfr_jax.algorithm.spec import RoundSpec
from fedfr_jax.errors import ConfigError
from fedfr_jax.methods import METHODS
from fedfr_jax.models import build
from fedfr_jax.models.parts import activation_bytes, divide
from fedfr_jax.settings import LossConfig, ModelConfig

NETWORKS = {
    "mobilefacenet": ModelConfig(name="mobilefacenet", embedding=16),
    "spherenet": ModelConfig(depth=10, widths=(4, 4, 8, 8), embedding=8),
    "iresnet": ModelConfig(name="iresnet", depth=18, widths=(4, 4, 8, 8), embedding=8),
}


@pytest.mark.parametrize(
    "name, trainable, first",
    [
        pytest.param("mobilefacenet", "last_stage", "dconv_45", marks=pytest.mark.slow),
        ("mobilefacenet", "res_5.*", "res_5_block0"),
        ("spherenet", "last_stage", "stage4"),
        ("spherenet", "embedding", "fc"),
        ("iresnet", "layer3_1", "layer3_1"),
        ("iresnet", "embedding", "fc"),
    ],
)
def test_both_parts_are_the_network(name, trainable, first):
    network = build(NETWORKS[name], 32)
    parts = divide(network, trainable)
    assert network.module.layers[len(parts.frozen)] == first
    variables = jax.tree.map(lambda x: x + 0.1, small.variables(network))
    images = jax.random.uniform(jax.random.key(1), (3, 32, 32, 3), minval=-1)

    @jax.jit
    def both(variables, images):
        activations = parts.lower(variables, images)
        upper = parts.upper.apply(parts.trained(variables), activations, False)[0]
        return upper, network.apply(variables, images, False)[0]

    upper, whole = both(variables, images)
    chex.assert_trees_all_close(upper, whole, rtol=1e-5)
    chex.assert_trees_all_equal(parts.joined(variables, parts.trained(variables)), variables)
    drawn = jax.eval_shape(parts.upper.init, jax.random.key(0))
    assert jax.tree.structure(drawn) == jax.tree.structure(parts.trained(variables))


def test_where_networks_cannot_be_divided():
    network = build(NETWORKS["spherenet"], 32)
    assert divide(network, "all") is None and divide(network, "stage1") is None
    with pytest.raises(ConfigError, match=r"is no layer of spherenet.*stage1, stage2"):
        divide(network, "res_5")
    with pytest.raises(ConfigError, match="no regular expression"):
        divide(network, "stage(")
    unknown = dataclasses.replace(network, module=None)
    with pytest.raises(ConfigError, match="does not say what its layers are"):
        divide(unknown, "last_stage")


def round_of(spec, layout, server, heads, public, cohort):
    return small.rounds(spec, layout, server, heads, public, cohort, count=2)


@pytest.mark.parametrize(
    "method, trainable, mirror, lanes, devices",
    [
        pytest.param("fedfr", "output", False, 2, 1, marks=pytest.mark.slow),
        ("fedfr", "norm", True, 1, 2),
        pytest.param("ditto", "norm", True, 1, 1, marks=pytest.mark.slow),
    ],
)
def test_cached_activations_equal_a_lower_part_in_every_step(
    method, trainable, mirror, lanes, devices
):
    recipe, layout, data = METHODS[method], small.layout(lanes, devices), small.federation()
    fed = dataclasses.replace(
        small.FED, mirror=mirror, public_data="hard" if method == "fedfr" else "off"
    )
    network = small.backbone(small.TINY_NORM, small.SIZE, "auto")
    parts, variables = divide(network, trainable), small.variables(network)

    def spec(backbone):
        return RoundSpec(backbone, fed, LossConfig(), recipe, recipe.options())

    def apply(upper, images, train):
        lower = jax.lax.stop_gradient(parts.lower(variables, images))
        return parts.upper.apply(upper, lower, train)

    uncached = dataclasses.replace(parts.upper, apply=apply)
    lower = jax.jit(lambda x: parts.lower(variables, to_input(x, jnp.float32)))

    def activations(images):
        views = [images, images[:, :, ::-1]][: 1 + mirror]
        return np.stack([lower(view) for view in views], axis=1)

    public, cohort = data.public, data.cohort(devices)
    start = small.start(spec(parts.upper), layout, *with_activations(public, cohort, activations))
    on_images = round_of(spec(uncached), layout, *start, public, cohort)
    on_activations = round_of(
        spec(parts.upper), layout, *start, *with_activations(public, cohort, activations)
    )
    chex.assert_trees_all_close(on_activations, on_images, rtol=1e-5, atol=1e-5)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), on_images[0].backbone, start[0].backbone)
    assert all(x > 1e-4 for x in jax.tree.leaves(moved["params"]))


def with_activations(public, cohort, activations):
    return (
        public.replace(images=activations(np.asarray(public.images))),
        cohort.replace(images=activations(np.asarray(cohort.images))),
    )


def test_bytes_of_activations():
    upper = divide(build(NETWORKS["mobilefacenet"], 112), "res_5_block0").upper
    assert upper.input_shape == (7, 7, 128)
    assert activation_bytes(upper, mirrored=True) == 2 * 7 * 7 * 128 * 4
