"""One step of a client on a few images: the message that it sends, and what an attacker simulates.

All of it is the project's own round: the state at the start, the loss, the step, the pipeline.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedfr_jax.algorithm import directions, local_state
from fedfr_jax.algorithm.aggregate import noise_on_sum
from fedfr_jax.algorithm.features import Shared, to_input, type_of
from fedfr_jax.algorithm.messages import add_noise, clip_bound, difference, goes_out, protect
from fedfr_jax.algorithm.pool import Batch, Client
from fedfr_jax.algorithm.round import local_loss, local_step
from fedfr_jax.algorithm.spec import MessageSpec, RoundSpec
from fedfr_jax.algorithm.state import Heads, ServerState
from fedfr_jax.models.parts import Parts, divide, trained_part
from fedfr_jax.runtime.simulation import Simulation, spec_of

PyTree = Any
CLEAR, SENT, RELEASED = "nothing done to it", "as it reaches the server", "in the released sum"


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a step needs, but for its client.

    Attributes:
      spec: of the run, its network computed with plain convolutions in float32, which can be
        differentiated twice; without hostile and late clients.
      parts: where the network is divided; ``frozen``: the whole network's variables, then.
      server: what the client received, and the attacker knows.
    """

    spec: RoundSpec
    parts: Parts | None
    frozen: PyTree
    server: ServerState

    def inputs(self, images: jax.Array) -> jax.Array:
        """What the trained part of the network takes, of (B, S, S, 3) floats in [-1, 1]."""
        return images if self.parts is None else self.parts.lower(self.frozen, images)


def setting_of(sim: Simulation, server: ServerState) -> Setting:
    """The setting of a run's next round."""
    model = sim.config.model
    if model.dtype != "float64":
        model = dataclasses.replace(model, dtype="float32")
    # Imported here: models imports nothing of the runtime, but is heavy.
    from fedfr_jax.models import build  # noqa: PLC0415

    network = build(model, sim.config.data.image_size, "grouped")
    spec = spec_of(sim.config, trained_part(network, sim.config.fed.trainable))
    message = dataclasses.replace(spec.message, hostile_clients=(), late_dropout=0.0)
    parts = divide(network, sim.config.fed.trainable)
    return Setting(
        dataclasses.replace(spec, message=message), parts, sim.frozen, jax.device_put(server)
    )


def _is_own(head: Heads) -> jax.Array:
    """(K,) bool: the class embeddings that exist."""
    return jnp.linalg.norm(head.class_embeddings, axis=-1) > 0


def _batch(setting: Setting, head: Heads, images: jax.Array, labels: jax.Array) -> Batch:
    inputs = setting.inputs(images)
    direction = None
    if setting.spec.uses_contrastive:
        direction = directions.direction(setting.spec, setting.server, head, inputs)
    return Batch(inputs, labels, direction)


def client_step(setting: Setting, head: Heads, images: jax.Array, labels: jax.Array):
    """A client after one step of local training on (B, S, S, 3) images in [-1, 1].

    Returns:
      ``LocalState``; labels are local, (B,).
    """
    state = local_state.initial_state(setting.spec, setting.server, head)
    batch = _batch(setting, head, images, labels)
    penalty = local_state.against_received(
        setting.spec, setting.server, setting.spec.recipe.penalty
    )
    return local_step(
        setting.spec, state, batch, setting.spec.fed.lr, _is_own(head), head.has_trained, 0, penalty
    )


def observed(
    setting: Setting, head: Heads, images: jax.Array, labels: jax.Array, key: jax.Array, who: str
) -> tuple[jax.Array, jax.Array]:
    """What an observer sees of a client's step.

    Args:
      setting, head, images, labels: as for :func:`client_step`.
      key: of the client's and the server's noise.
      who: CLEAR, SENT or RELEASED: in the last the server's noise is on it, and the messages of
        all others are known, which is the attacker that differential privacy assumes.

    Returns:
      ((P,) update of the backbone's parameters that are sent, (K, d) update of the class rows,
      which only some methods send).
    """
    spec, server = setting.spec, setting.server
    if who == CLEAR:
        spec = dataclasses.replace(
            spec,
            message=MessageSpec(),
            fed=dataclasses.replace(
                spec.fed, aggregator="mean", on_bad_update="stop", quarantine_norm=0.0, bucketing=0
            ),
        )
    state = client_step(setting, head, images, labels)
    client = Client(
        number=jnp.int32(0),
        rows=jnp.zeros(0, jnp.int32),
        labels=labels,
        size=jnp.int32(len(labels)),
        identities=_is_own(head).sum(),
        kept_public=jnp.zeros(0, bool),
    )
    result = local_state.hand_back(spec, server, client, head, state, None, jnp.int32(1), 1)
    shared = Shared(server, None, None, key)  # type: ignore[arg-type]
    sent = protect(spec, shared, client, head, *result)[0]
    parts = difference(spec, server, sent)
    if who == RELEASED:
        std = noise_on_sum(spec.message) * clip_bound(spec, server)
        parts = add_noise(parts, std, jax.random.fold_in(key, 1))
    return parameters_of(setting, parts), state.trained["class_embeddings"] - head.class_embeddings


def observers(spec: RoundSpec) -> list[str]:
    """Those whose view of a message differs: see :func:`observed`."""
    privacy = spec.message.privacy
    found = [CLEAR]
    changes = (
        privacy.top_k or privacy.quantize_bits or privacy.local_noise or privacy.clip_norm
    ) and not privacy.secure_aggregation
    if changes:
        found.append(SENT)
    if privacy.noise_multiplier:
        found.append(RELEASED)
    return found


def parameters_of(setting: Setting, parts: list[jax.Array]) -> jax.Array:
    """(P,) the parameters of the backbone in a message, without running statistics and rows."""
    goes = goes_out(setting.spec, setting.server.backbone)
    flags = jax.tree_util.tree_leaves_with_path(goes)
    kept = [_keys(path)[:2] == ("backbone", "params") for path, leaf in flags if leaf]
    chosen = [part.reshape(-1) for part, keep in zip(parts, kept, strict=True) if keep]
    return jnp.concatenate(chosen) if chosen else jnp.zeros(0)


def _keys(path: Any) -> tuple[str, ...]:
    return tuple(getattr(entry, "key", "") for entry in path)


def _flat(setting: Setting, params: PyTree) -> jax.Array:
    """(P,) those of the backbone's parameters that are sent."""
    goes = goes_out(setting.spec, setting.server.backbone)["backbone"]["params"]
    leaves = zip(jax.tree.leaves(params), jax.tree.leaves(goes), strict=True)
    return jnp.concatenate([p.reshape(-1) for p, g in leaves if g])


def simulate_privately(setting: Setting) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """``images, v -> (P,)``: the update of a client whose head nobody knows, up to its length."""
    spec, variables = setting.spec, setting.server.backbone
    decay = spec.fed.weight_decay

    def simulate(images: jax.Array, v: jax.Array) -> jax.Array:
        def run(params):
            inputs = to_input(setting.inputs(images), type_of(variables))
            return spec.trained_features({**variables, "params": params}, inputs)[0]

        _, pull = jax.vjp(run, variables["params"])
        [gradient] = pull(v)
        return -(_flat(setting, gradient) + decay * _flat(setting, variables["params"]))

    return simulate


def simulate_knowing(
    setting: Setting, head: Heads, labels: jax.Array
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """``images, v -> (P,)``: the update of a client whose head is known; v is not used."""
    spec = setting.spec
    state = local_state.initial_state(spec, setting.server, head)
    decay, is_own = spec.fed.weight_decay, _is_own(head)

    def simulate(images: jax.Array, v: jax.Array) -> jax.Array:
        del v
        batch = _batch(setting, head, images, labels)

        def loss(params):
            trained = dict(state.trained, backbone=params)
            return local_loss(spec, trained, state.batch_stats, batch, is_own, head.has_trained)[0]

        gradient = jax.grad(loss)(state.trained["backbone"])
        return -(_flat(setting, gradient) + decay * _flat(setting, state.trained["backbone"]))

    return simulate


def feature_gradients(
    setting: Setting, update: jax.Array, images: int, key: jax.Array
) -> jax.Array:
    """(images, d) a start for the gradients at the features.

    The gradient of the bias of a last linear layer is their sum: with one image it is known. Where
    there is none, or with several images, they are random.
    """
    spec = setting.spec
    shape = (images, spec.backbone.embedding)
    drawn = jax.random.normal(key, shape)
    place = _bias_of_output(setting)
    if place is None:
        return drawn / jnp.linalg.norm(drawn)
    first, bias = place
    size = spec.backbone.embedding
    gradient = -update[first : first + size] / spec.fed.lr - spec.fed.weight_decay * bias
    spread = drawn * jnp.linalg.norm(gradient) / jnp.linalg.norm(drawn)
    return jnp.broadcast_to(gradient / images, shape) + (spread if images > 1 else 0.0)


def _bias_of_output(setting: Setting):
    """(position in the update, value) of the output layer's bias; None if there is none."""
    goes = goes_out(setting.spec, setting.server.backbone)["backbone"]["params"]
    first = 0
    leaves = jax.tree_util.tree_leaves_with_path(setting.server.backbone["params"])
    layer = setting.spec.backbone.output_layers[-1:]
    for (path, leaf), sent in zip(leaves, jax.tree.leaves(goes), strict=True):
        if not sent:
            continue
        names = _keys(path)
        if names == (*layer, "bias") and leaf.shape == (setting.spec.backbone.embedding,):
            return first, leaf
        first += int(np.prod(leaf.shape))
    return None
