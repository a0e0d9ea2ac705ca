"""The projection head: part of the network, the identity at first, and trained with the rest."""

import jax
import numpy as np
import pytest
from networks import draw, images, small

from fedfr_jax.models.parts import divide


@pytest.mark.parametrize("name", ["spherenet", "iresnet"])
def test_it_starts_as_the_identity_and_is_the_last_layer(name):
    plain, projected = small(name), small(name, projection=True)
    variables = draw(plain)
    head = projected.init(jax.random.key(0))["params"]["projection"]
    whole = {**variables, "params": variables["params"] | {"projection": head}}
    assert jax.tree.structure(whole) == jax.tree.structure(projected.init(jax.random.key(1)))
    x = images(3, 16)
    features, _ = plain.apply(variables, x, False)
    np.testing.assert_allclose(projected.apply(whole, x, False)[0], features, atol=1e-5)
    assert projected.output_layers == (*plain.output_layers, "projection")
    assert projected.base.published is not None and projected.published is None


def test_it_is_two_linear_layers_with_a_rectifier_between():
    projected = small("spherenet", projection=True)
    variables = draw(projected)
    x = images(3, 16)
    f = np.asarray(projected.base.apply(_without_head(variables), x, False)[0])
    head = jax.tree.map(np.asarray, variables["params"]["projection"])
    hidden = np.maximum(f @ head["hidden"]["kernel"] + head["hidden"]["bias"], 0)
    expected = hidden @ head["output"]["kernel"] + head["output"]["bias"]
    assert head["hidden"]["kernel"].shape == (12, 24)
    np.testing.assert_allclose(projected.apply(variables, x, False)[0], expected, atol=1e-5)


@pytest.mark.parametrize("trainable", ["last_stage", "projection"])
def test_a_network_with_it_can_be_divided(trainable):
    projected = small("spherenet", projection=True)
    variables, x = draw(projected), images(3, 16)
    parts = divide(projected, trainable)
    upper = parts.upper.apply(parts.trained(variables), parts.lower(variables, x), False)[0]
    np.testing.assert_allclose(upper, projected.apply(variables, x, False)[0], atol=1e-5)


def _without_head(variables):
    params = {k: v for k, v in variables["params"].items() if k != "projection"}
    return {**variables, "params": params}
