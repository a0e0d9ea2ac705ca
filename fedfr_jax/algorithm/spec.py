"""The static part of a round's program: what never changes between rounds."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fedfr_jax.methods import METHODS, Recipe, Terms
from fedfr_jax.models import Backbone
from fedfr_jax.settings import (
    STACKED_AGGREGATORS,
    STACKED_ATTACKS,
    FedConfig,
    HostileConfig,
    LossConfig,
    PrivacyConfig,
)

PyTree = Any


@dataclasses.dataclass(frozen=True)
class MessageSpec:
    """What happens to a client's message on its way to the average; by default nothing.

    Attributes:
      privacy: the steps that a difference passes.
      hostile: the attack; ``hostile_clients``: the numbers of those who carry it out, ascending.
      late_dropout: share of the clients that are lost after training.
      cohort: clients that are expected in a round: the denominator of private averages.
      deadline: simulated seconds after which a message no longer counts; 0 = none.
      first: only the first so many messages count; 0 = all.
    """

    privacy: PrivacyConfig = dataclasses.field(default_factory=PrivacyConfig)
    hostile: HostileConfig = dataclasses.field(default_factory=HostileConfig)
    hostile_clients: tuple[int, ...] = ()
    late_dropout: float = 0.0
    cohort: int = 0
    deadline: float = 0.0
    first: int = 0

    @property
    def shares_noise(self) -> bool:
        """Whether the central noise is correlated between rounds."""
        return self.privacy.mechanism == "tree" and self.privacy.noise_multiplier > 0

    @property
    def may_come_late(self) -> bool:
        """Whether a message that is too slow does not count."""
        return self.deadline > 0 or self.first > 0


@dataclasses.dataclass(frozen=True)
class RoundSpec:
    """What is trained and how; static under jit.

    Attributes:
      backbone: see :class:`fedfr_jax.models.Backbone`.
      fed: rounds, local training, averaging.
      loss: identification; the other terms are the method's.
      recipe: where the method differs from federated averaging.
      options: of the recipe.
      message: what a client's message passes.
    """

    backbone: Backbone
    fed: FedConfig
    loss: LossConfig
    recipe: Recipe = METHODS["fedfr"]
    options: Any = dataclasses.field(default_factory=METHODS["fedfr"].options)
    message: MessageSpec = MessageSpec()

    @property
    def terms(self) -> Terms:
        return self.recipe.terms(self.options)

    @property
    def rounds(self) -> int:
        """Rounds of the run: ``fed.rounds`` and those that the method adds."""
        return self.fed.rounds + self.recipe.extra_rounds

    def steps(self, images):
        """Mini-batches in an epoch of so many images."""
        batch = self.fed.batch_size
        return -(-images // batch) if self.fed.partial_batch else images // batch

    @property
    def uses_public(self) -> bool:
        return self.fed.public_data != "off"

    @property
    def uses_contrastive(self) -> bool:
        return self.terms.contrastive_weight > 0

    @property
    def uses_binary(self) -> bool:
        return self.terms.binary_weight > 0

    @property
    def stacks_messages(self) -> bool:
        """Whether all differences of a round are needed at once."""
        attack = self.message.hostile.attack
        return (
            self.fed.aggregator in STACKED_AGGREGATORS
            or self.fed.bucketing > 1
            or self.message.privacy.secure_aggregation
            or (bool(self.message.hostile_clients) and attack in STACKED_ATTACKS)
        )

    @property
    def looks_at_messages(self) -> bool:
        """Whether anything is done to messages but to average them."""
        message, privacy = self.message, self.message.privacy
        return (
            self.stacks_messages
            or self.fed.aggregator != "mean"
            or self.fed.on_bad_update == "quarantine"
            or self.fed.quarantine_norm > 0
            or bool(message.hostile_clients)
            or message.late_dropout > 0
            or message.may_come_late
            or privacy.clip_norm > 0
            or privacy.top_k > 0
            or privacy.quantize_bits > 0
        )

    def takes_average(self, round_index, weight) -> jax.Array:
        """Whether the server takes the average of a round, of messages of this total weight."""
        takes = weight > 0
        if self.recipe.averages is not None:
            takes &= self.recipe.averages(self.options, round_index, self.rounds)
        return takes

    def trained_features(self, variables: PyTree, inputs: jax.Array) -> tuple[jax.Array, PyTree]:
        """(features (B, d), new running statistics) of inputs in local training."""
        return self.backbone.apply(variables, inputs, self.backbone.batch_statistics)

    def private(self, variables: PyTree) -> PyTree:
        """Pytree of bool like the backbone's variables: what a client keeps to itself."""
        if self.recipe.private is None:
            return jax.tree.map(lambda _: False, variables)
        return self.recipe.private(self.options, self.backbone, variables)


def epochs_of_round(spec: RoundSpec, round_index) -> tuple[jax.Array, jax.Array]:
    """(E, epoch from which the learning rate is decayed) of a round (FedFR, section 4.1).

    If head and body are trained in turns there is no decay: it would affect only the last turn.
    """
    fed = spec.fed
    epochs = jnp.asarray(fed.local_epochs)[jnp.minimum(round_index, len(fed.local_epochs) - 1)]
    if spec.recipe.epochs is not None:
        epochs = spec.recipe.epochs(spec.options, round_index, spec.rounds, epochs)
    if spec.recipe.heads_turn is not None:
        return epochs, epochs
    later = jnp.maximum(1, (0.75 * epochs).astype(int))
    first = jnp.asarray((*fed.lr_decay_epochs, 0))[
        jnp.minimum(round_index, len(fed.lr_decay_epochs))
    ]
    return epochs, jnp.where(round_index < len(fed.lr_decay_epochs), first, later)
