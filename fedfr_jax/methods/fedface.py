"""FedFace: the server pushes the class embeddings of all clients apart.

Aggarwal, Zhou, Jain, "FedFace: Collaborative Learning of Face Recognition Model", IJCB 2021,
equation 7. After every round the server takes a few gradient steps that lower the sum of
``relu(cos_jk - margin)^2`` over pairs j != k of class embeddings. Unlike in the other methods,
clients have to send them. Memory grows with the square of the number of class embeddings in a
round. A client with one identity learns from positives only, as in FedAwS. The server cannot know
that two clients have the same person, and would push its embeddings apart, too: with
``data.split.shared_identities`` the method is refused.

With ``solver="published"`` the server does what the paper says: SGD with momentum and weight decay
on the embeddings as they are. Its sum over pairs grows with the number of clients, and its steps
shrink with the length of the embeddings. By default (``solver="directions"``) a step changes
only the directions, which is all that the losses depend on, and uses the mean over pairs for each
embedding: ``lr`` means the same for any number of clients.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from fedfr_jax.methods.recipe import Recipe, Terms


@dataclasses.dataclass(frozen=True)
class Options:
    margin: float = 0.4  # cosine above which two classes are too near
    solver: str = dataclasses.field(
        default="directions", metadata={"choices": ("directions", "published")}
    )
    lr: float = 1.0  # of plain gradient steps on unit embeddings (directions); published: 0.01
    steps: int = 10  # published: 20
    momentum: float = 0.9  # of the published solver, as is the next
    weight_decay: float = 5e-4
    positive_margin: float = 0.9  # of the local loss of clients with one identity


def _unit(rows):
    """Embeddings scaled to length 1; zeros, for classes that do not exist, stay zero."""
    return rows * jax.lax.rsqrt(jnp.maximum(jnp.sum(rows * rows, axis=1, keepdims=True), 1e-12))


def spread_out_loss(rows, exists, margin: float):
    """Mean over ordered pairs j != k of existing classes.

    Args:
      rows: (N, d) class embeddings; exists: (N,) bool.
    """
    unit = _unit(rows)
    pairs = exists[:, None] & exists & ~jnp.eye(len(rows), dtype=bool)
    too_near = jnp.where(pairs, jax.nn.relu(unit @ unit.T - margin), 0.0)
    return jnp.sum(too_near**2) / jnp.maximum(pairs.sum(), 1)


def spread_out(options: Options, rows, exists):
    """The class embeddings after the server's gradient steps."""
    solver = {"directions": _turn, "published": _published_steps}[options.solver]
    return solver(options, rows, exists)


def _published_steps(options: Options, rows, exists):
    """SGD on the sum over pairs."""
    pairs = exists.sum() * (exists.sum() - 1)
    optimizer = optax.chain(
        optax.add_decayed_weights(options.weight_decay),
        optax.sgd(options.lr, momentum=options.momentum),
    )

    def step(_, state):
        moved, optimizer_state = state
        gradient = pairs * jax.grad(spread_out_loss)(moved, exists, options.margin)
        update, optimizer_state = optimizer.update(gradient, optimizer_state, moved)
        return optax.apply_updates(moved, update), optimizer_state

    return jax.lax.fori_loop(0, options.steps, step, (rows, optimizer.init(rows)))[0]


def _turn(options: Options, rows, exists):
    """Gradient steps on the directions; lengths do not change."""
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
