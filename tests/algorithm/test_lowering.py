"""The round program lowers for accelerators that this machine does not have."""

import jax
import jax.numpy as jnp
import pytest
import small
from jax import export

from fedfr_jax.algorithm.round import run_round
from fedfr_jax.algorithm.spec import RoundSpec
from fedfr_jax.models import build
from fedfr_jax.settings import LossConfig, ModelConfig

MODELS = {
    "spherenet": ModelConfig(depth=20, widths=(4, 4, 8, 8), embedding=8),
    "mobilefacenet": ModelConfig(name="mobilefacenet", embedding=128),
    "iresnet": ModelConfig(name="iresnet", depth=18, widths=(4, 4, 8, 8), embedding=8),
}


LAYOUTS = [
    pytest.param(name, conv, lanes, dtype, marks=pytest.mark.slow)
    for name, conv, lanes, dtype in (
        ("spherenet", "custom", 2, "float32"),
        ("spherenet", "custom", 2, "bfloat16"),
        ("spherenet", "patches", 2, "float32"),
        ("spherenet", "grouped", 1, "float32"),
        ("spherenet", "layered", 2, "float32"),
        ("mobilefacenet", "layered", 2, "bfloat16"),
        ("mobilefacenet", "patches", 2, "bfloat16"),
        ("mobilefacenet", "grouped", 1, "float32"),
        ("iresnet", "patches", 2, "float32"),
        ("iresnet", "grouped", 1, "bfloat16"),
    )
]


@pytest.mark.parametrize("name, conv, lanes, dtype", LAYOUTS)
def test_a_round_lowers_for_tpu_and_cuda(name, conv, lanes, dtype):
    config = ModelConfig(**{**MODELS[name].__dict__, "dtype": dtype})
    method = RoundSpec(build(config, 32, conv), small.FED, LossConfig())
    layout, data = small.layout(lanes), small.federation()
    cohort, array = data.cohort(), jax.ShapeDtypeStruct
    cohort = cohort.replace(images=array((cohort.images.shape[0], 32, 32, 3), jnp.uint8))
    public = data.public.replace(images=array((10, 32, 32, 3), jnp.uint8))
    server, heads = jax.eval_shape(
        lambda p, c: small.states(method, layout, p, c, method.backbone.init(jax.random.key(0))),
        public,
        cohort,
    )
    exported = export.export(
        jax.jit(lambda *args: run_round(method, layout, *args)), platforms=["tpu", "cuda"]
    )(server, heads, public, cohort, jax.random.key(0))
    assert set(exported.platforms) == {"tpu", "cuda"}
    assert "stablehlo.while" in exported.mlir_module()
