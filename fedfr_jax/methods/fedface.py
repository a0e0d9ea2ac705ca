"""FedFace: the server pushes the class embeddings of all clients apart.

Aggarwal, Zhou, Jain, "FedFace: Collaborative Learning of Face Recognition Model", IJCB 2021,
equation 7. After every round a few gradient steps on the server lower the mean of
``relu(cos_jk - margin)^2`` over pairs j != k of class embeddings. They have to be sent for
that, unlike in the other methods. Its memory grows with the square of the rows of a round.
A client of one identity learns from positives alone, as in FedAwS.

The paper's sum over pairs grows with the clients, and its step shrinks with the length of the rows.
Here a step is on the rows' directions, which is all that the losses see, and of each row's mean
over the others, so that ``lr`` means the same at any number of clients.
"""

import dataclasses

import jax
import jax.numpy as jnp

from fedfr_jax.methods.recipe import Recipe, Terms


@dataclasses.dataclass(frozen=True)
class Options:
    margin: float = 0.4  # cosine above which two classes are too near
    lr: float = 1.0  # of plain gradient steps on unit rows
    steps: int = 10
    positive_margin: float = 0.9  # of the local loss of clients of one identity


def _unit(rows):
    """Rows of length 1; a row of zeros, of a class that does not exist, stays zero."""
    return rows * jax.lax.rsqrt(jnp.maximum(jnp.sum(rows * rows, axis=1, keepdims=True), 1e-12))


def spread_out_loss(rows, exists, margin: float):
    """Mean over ordered pairs j != k of existing rows.

    Args:
      rows: (N, d) class embeddings; exists: (N,) bool.
    """
    unit = _unit(rows)
    pairs = exists[:, None] & exists & ~jnp.eye(len(rows), dtype=bool)
    too_near = jnp.where(pairs, jax.nn.relu(unit @ unit.T - margin), 0.0)
    return jnp.sum(too_near**2) / jnp.maximum(pairs.sum(), 1)


def spread_out(options: Options, rows, exists):
    """The rows after the server's gradient steps; their lengths stay."""
    lr = options.lr * exists.sum()

    def step(_, unit):
        return _unit(unit - lr * jax.grad(spread_out_loss)(unit, exists, options.margin))

    unit = jax.lax.fori_loop(0, options.steps, step, _unit(rows))
    return unit * jnp.linalg.norm(rows, axis=1, keepdims=True)


RECIPE = Recipe(
    title="FedFace",
    source="Aggarwal et al., IJCB 2021, equation 7",
    options=Options,
    terms=lambda o: Terms(positive_margin=o.positive_margin),
    server_embeddings=spread_out,
)
