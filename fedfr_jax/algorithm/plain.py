"""Rounds on plain arrays: the pure core, without data sources, files or evaluation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from fedfr_jax import engine
from fedfr_jax.algorithm.initialize import initial_heads, initial_server
from fedfr_jax.algorithm.round import run_round
from fedfr_jax.algorithm.spec import RoundSpec
from fedfr_jax.algorithm.state import Heads, ServerState
from fedfr_jax.engine.layout import Layout
from fedfr_jax.population.cohort_data import CohortData, PublicData

PyTree = Any


def place(cohort: CohortData, layout: Layout) -> CohortData:
    """Divides a cohort over the devices; a table of images is copied to every device."""
    divide = engine.replicate if cohort.table_rows is not None else engine.spread
    return engine.spread(cohort.replace(images=None), layout.mesh).replace(
        images=divide(cohort.images, layout.mesh)
    )


def round_function(spec: RoundSpec, layout: Layout) -> tuple[Callable[..., tuple], tuple]:
    """(a round on pure arrays, the shardings of its results).

    Heads stay divided over the devices, server and metrics are on all.
    """
    everywhere = NamedSharding(layout.mesh, P())
    return functools.partial(run_round, spec, layout), (
        everywhere,
        NamedSharding(layout.mesh, P(engine.AXIS)),
        everywhere,
    )


def compile_round(spec: RoundSpec, layout: Layout) -> Callable[..., tuple]:
    """``(server, heads, public, cohort, key) -> (server, heads, metrics)``.

    Server and heads are donated.
    """
    one_round, shardings = round_function(spec, layout)
    return jax.jit(one_round, donate_argnums=(0, 1), out_shardings=shardings)


@dataclasses.dataclass(frozen=True, eq=False)
class PlainRounds:
    """Rounds of a fixed cohort. Attributes and results are pytrees of arrays.

    Attributes:
      spec: the method and the network.
      layout: the devices, and how clients are placed on them.
      public, cohort: what is trained on, from :mod:`fedfr_jax.population.packing`.
    """

    spec: RoundSpec
    layout: Layout
    public: PublicData
    cohort: CohortData

    @functools.cached_property
    def _placed(self) -> tuple[PublicData, CohortData]:
        return engine.replicate(self.public, self.layout.mesh), place(self.cohort, self.layout)

    @functools.cached_property
    def _compiled(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        spec, layout = self.spec, self.layout
        most = max(1, int(np.max(self.cohort.identities, initial=0)))

        def heads_at_start(variables, public, cohort, key, previous):
            return initial_heads(
                spec,
                layout,
                variables,
                public,
                cohort,
                key,
                most_identities=most,
                previous=previous,
            )

        by_client = NamedSharding(layout.mesh, P(engine.AXIS))
        return (
            jax.jit(heads_at_start, static_argnums=4, out_shardings=by_client),
            compile_round(spec, layout),
        )

    def start(
        self,
        variables: PyTree,
        key: jax.Array,
        *,
        public_embeddings: jax.Array | None = None,
        previous: str = "full",
    ) -> tuple[ServerState, Heads]:
        """The server and the clients' heads before the first round (FedFR, section 3.4).

        Args:
          variables: of the pretrained backbone, ``{"params", "batch_stats"}``.
          key: for random initial values.
          public_embeddings: (K_0, d); None: the mean feature of each public identity.
          previous: type of the clients' previous backbones: full | bfloat16 | off.
        """
        # Copies: a round donates what it is given.
        variables = jax.tree.map(lambda v: jnp.array(v, copy=True), variables)
        public, cohort = self._placed
        variables = engine.replicate(variables, self.layout.mesh)
        server = initial_server(self.spec, self.layout, variables, public_embeddings, public)
        heads = self._compiled[0](variables, public, cohort, key, previous)
        return engine.replicate(server, self.layout.mesh), heads

    def step(
        self, server: ServerState, heads: Heads, key: jax.Array
    ) -> tuple[ServerState, Heads, dict[str, jax.Array]]:
        """One round, see :func:`fedfr_jax.algorithm.round.run_round`.

        Server and heads are donated: use the new ones.

        Args:
          key: the run's, the same in every round.
        """
        return self._compiled[1](server, heads, *self._placed, key)

    def slots(self, clients: Sequence[int] | None = None) -> np.ndarray:
        """The slots of clients in heads and metrics.

        Args:
          clients: their numbers; None: all of the cohort, ascending.

        Raises:
          KeyError: a client is not in the cohort.
        """
        at = {int(c): i for i, c in enumerate(np.asarray(self.cohort.clients)) if c >= 0}
        return np.array([at[int(c)] for c in (sorted(at) if clients is None else clients)])
