"""Working memory of training steps, as the compiler lays them out; nothing is run or allocated."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedfr_jax import engine
from fedfr_jax.algorithm.features import features
from fedfr_jax.algorithm.initialize import head_shapes, server_shapes
from fedfr_jax.algorithm.local_state import initial_state
from fedfr_jax.algorithm.pool import Batch
from fedfr_jax.algorithm.pretraining import pretraining_step
from fedfr_jax.algorithm.round import local_step
from fedfr_jax.algorithm.spec import RoundSpec
from fedfr_jax.config import Config
from fedfr_jax.models import build
from fedfr_jax.models.parts import is_divided
from fedfr_jax.runtime.progress import track

PyTree = Any


@dataclasses.dataclass(frozen=True)
class StepMemory:
    """Bytes of activations, gradients and other temporary arrays.

    Attributes:
      step: one client's training step, with ``engine.gradient_batch`` as it is set.
      forward: a forward pass of ``engine.feature_batch`` images.
      pretraining: a step of pretraining on one device; 0 without pretraining.
      compiler: of which backend.
    """

    step: float
    forward: float
    pretraining: float
    compiler: str


def step_memory(
    config: Config, spec: RoundSpec, public: tuple[int, int], most_identities: int, *, devices: int
) -> StepMemory | None:
    """Asks XLA for the working memory of the run's steps; compiles up to three small programs.

    Args:
      config: with a settled layout.
      spec: of the round.
      public: (images N_0, identities K_0).
      most_identities: K, of a client.
      devices: over which a mini-batch of pretraining is spread.

    Returns:
      None where the backend does not say.
    """
    with track("asking the compiler for the memory of a step", None, "", keep=False):
        step = temporary_bytes(*_local_step(config, spec, public[1], most_identities))
        forward = temporary_bytes(*_forward(config, spec))
        pretraining: float | None = 0.0
        if config.pretrain.epochs and public[0]:
            pretraining = temporary_bytes(*_pretraining(config, public, devices))
    if step is None or forward is None or pretraining is None:
        return None
    return StepMemory(step, forward, pretraining, jax.default_backend())


def temporary_bytes(function: Callable[..., Any], *arguments: PyTree) -> float | None:
    """Bytes that a compiled function needs beside its arguments and results.

    Args:
      function: jitted.
      arguments: arrays or their shapes.
    """
    found = function.lower(*arguments).compile().memory_analysis()  # type: ignore[attr-defined]
    size = getattr(found, "temp_size_in_bytes", None)
    return None if size is None else float(size)


def _local_step(config: Config, spec: RoundSpec, public_identities: int, most: int):
    """(one client's step, shapes of its arguments)."""
    batch, inputs = config.fed.batch_size, _inputs(config, spec)
    server = server_shapes(spec, public_identities)
    head = head_shapes(spec, most, config.population.previous, public_identities)
    state = jax.eval_shape(lambda s, h: initial_state(spec, s, h), server, head)
    dtype = head.class_embeddings.dtype
    array: Any = jax.ShapeDtypeStruct
    arrays = Batch(
        array((batch, *inputs.shape), inputs.dtype),
        array((batch,), jnp.int32),
        array((batch, spec.backbone.embedding), dtype) if spec.uses_contrastive else None,
        array((batch,), dtype) if spec.loss.balanced or spec.fed.partial_batch else None,
        array((batch,), dtype) if spec.fed.partial_batch else None,
    )

    def step(state, arrays, rate, is_own, has_previous):
        return local_step(
            spec, state, arrays, rate, is_own, has_previous, config.engine.gradient_batch
        )

    scalars = array((), dtype), array((most,), jnp.bool_), array((), jnp.bool_)
    return jax.jit(step, donate_argnums=0), state, arrays, *scalars


def _inputs(config: Config, spec: RoundSpec) -> jax.ShapeDtypeStruct:
    """One image, or its activations below the first trained layer, in a mini-batch."""
    if not is_divided(config.model, config.data.image_size, config.fed.trainable):
        return jax.ShapeDtypeStruct(spec.backbone.input_shape, jnp.uint8)
    variables = jax.eval_shape(spec.backbone.init, jax.random.key(0))
    return jax.ShapeDtypeStruct(spec.backbone.input_shape, engine.sum_type(variables))


def _forward(config: Config, spec: RoundSpec):
    inputs = _inputs(config, spec)
    variables = jax.eval_shape(spec.backbone.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((config.engine.feature_batch, *inputs.shape), inputs.dtype)
    return jax.jit(lambda v, x: features(spec.backbone, v, x)), variables, images


def _pretraining(config: Config, public: tuple[int, int], devices: int):
    # The weights are shared there, so convolutions are the ordinary ones.
    strategy = "custom" if config.engine.conv == "custom" else "grouped"
    network = build(config.model, config.data.image_size, strategy)
    batch = max(1, min(config.pretrain.batch_size, public[0]) // devices)
    return pretraining_step(network, config.pretrain, public, batch, augment=config.fed.mirror)
