"""Images from an update: gradient inversion (Geiping et al., "Inverting gradients: how easy is it
to break privacy in federated learning?", NeurIPS 2020), as pure functions.

The attacker looks for images whose update points where the client's did: it minimizes one minus
the cosine of the two, plus the total variation of the images. The cosine does not see how long an
update is, so clipping alone hides nothing.

Who knows the client's head simulates its loss. Who does not know it needs no head: whatever the
loss is, the gradient of the backbone is ``J(x)^T v``, where v are the gradients at the features.
The attacker then looks for v, too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

PyTree = Any
Simulate = Callable[[jax.Array, jax.Array], jax.Array]  # images, v -> (P,) an update


@dataclasses.dataclass(frozen=True)
class Search:
    """How an attacker searches.

    Attributes:
      steps: of Adam, on the signs of the images' gradients, its rate falling to zero.
      rate: of the images, which lie in [-1, 1].
      rate_v: of the gradients at the features, relative to their length at the start.
      smoothness: weight of the total variation.
    """

    steps: int = 300
    rate: float = 0.1
    rate_v: float = 0.02
    smoothness: float = 0.05


def total_variation(images: jax.Array) -> jax.Array:
    """Mean absolute difference of neighbouring pixels of (..., H, W, 3) images."""
    down = jnp.abs(images[..., 1:, :, :] - images[..., :-1, :, :]).mean()
    right = jnp.abs(images[..., :, 1:, :] - images[..., :, :-1, :]).mean()
    return down + right


def distance(update: jax.Array, observed: jax.Array) -> jax.Array:
    """One minus the cosine of two updates (P,)."""
    tiny = jnp.finfo(update.dtype).tiny
    lengths = jnp.linalg.norm(update) * jnp.linalg.norm(observed)
    return 1 - jnp.vdot(update, observed) / jnp.maximum(lengths, tiny)


def invert(
    simulate: Simulate,
    observed: jax.Array,
    images: jax.Array,
    v: jax.Array,
    search: Search,
) -> tuple[jax.Array, jax.Array]:
    """Searches from one start; to be vmapped over starts and messages.

    Args:
      simulate: the update that images would make, up to its length.
      observed: (P,) the update that was seen.
      images: (B, S, S, 3) in [-1, 1], the start.
      v: (B, d) the gradients at the features, the start; not used by a ``simulate`` that knows
        the head.
      search: how.

    Returns:
      (images (B, S, S, 3), the distance of their update, which tells the attacker how good they
      are).
    """
    scale = jnp.maximum(jnp.linalg.norm(v), 1e-12)
    start = (images, v / scale)

    def objective(found):
        x, u = found
        return distance(simulate(x, u * scale), observed) + search.smoothness * total_variation(x)

    schedule = optax.cosine_decay_schedule(1.0, search.steps)
    optimizer = optax.chain(
        optax.scale_by_adam(),
        optax.scale_by_schedule(lambda step: -schedule(step)),
    )

    def step(_, carry):
        found, state = carry
        of_images, of_v = jax.grad(objective)(found)
        update, state = optimizer.update((jnp.sign(of_images), of_v), state)
        x = jnp.clip(found[0] + search.rate * update[0], -1, 1)
        return (x, found[1] + search.rate_v * update[1]), state

    (x, u), _ = jax.lax.fori_loop(0, search.steps, step, (start, optimizer.init(start)))
    return x, distance(simulate(x, u * scale), observed)


def labels_of_rows(
    update: jax.Array, rows: jax.Array, count: int, *, rate: float, decay: float
) -> jax.Array:
    """(count,) the classes of a mini-batch, ascending, from the update of the class rows.

    An image pulls its own row towards its feature, and pushes all others away with forces that add
    up to as much: the rows with the strongest forces are those of the images. Exact for one image;
    of a mini-batch it is a guess, and a class with two images is found once.

    Args:
      update: (K, d) of the class rows; rows that do not exist are zero.
      rows: (K, d) before the step.
      count: images of the mini-batch.
      rate, decay: of the step, which are known.
    """
    length = jnp.linalg.norm(rows, axis=-1, keepdims=True)
    # The loss depends on directions: the longer a row, the shorter its gradient.
    force = (update / rate + decay * rows) * length
    strength = jnp.linalg.norm(force, axis=-1)
    if count == 1:
        # The feature lies in the plane of every row and its force. With it, the part of the force
        # that the angle between feature and row takes away can be undone.
        unit = rows / jnp.maximum(length, 1e-12)
        aside = force / jnp.maximum(strength, 1e-12)[:, None]
        planes = unit.T @ unit + aside.T @ aside
        feature = jnp.linalg.eigh(planes)[1][:, -1]
        sine = 1 - (unit @ feature) ** 2
        strength = jnp.abs(force @ feature) / jnp.maximum(sine, 1e-6)
    _, found = jax.lax.top_k(strength, count)
    return jnp.sort(found)


def psnr(found: jax.Array, original: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio in dB of (..., S, S, 3) images in [-1, 1], per image."""
    error = jnp.mean(((found - original) / 2) ** 2, axis=(-3, -2, -1))
    return -10 * jnp.log10(jnp.maximum(error, 1e-10))
