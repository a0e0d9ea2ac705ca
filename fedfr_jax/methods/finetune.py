"""FedAvg, then local fine-tuning of the final global model.

Wang et al., "Federated Evaluation of On-device Personalization", arXiv 1910.10252. One more round
after all ``fed.rounds`` is the fine-tuning: its clients train from the final global model, and
the server does not average them. With ``population.cohort`` only the clients of that round are
fine-tuned.
"""

import dataclasses

import jax.numpy as jnp

from fedfr_jax.methods.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class Options:
    epochs: int = 5  # of fine-tuning


RECIPE = Recipe(
    title="FedAvg + fine-tuning",
    source="Wang et al., 2019, section 3",
    options=Options,
    extra_rounds=1,
    epochs=lambda o, round_, rounds, epochs: jnp.where(round_ + 1 < rounds, epochs, o.epochs),
    averages=lambda o, round_, rounds: round_ + 1 < rounds,
)
