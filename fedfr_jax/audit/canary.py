"""A lower bound of epsilon by experiment: canaries in the run's own aggregation.

Canaries are clients whose difference is a random direction, known to the auditor. They pass the
run's own path (:func:`protect`: clip, quantize; :func:`combine`: sum, noise), for as many rounds
and with as much sampling as the run had. Then the released sums are projected on their directions,
and on directions of canaries that never took part. How well the two can be told apart is a lower
bound of epsilon (Andrew et al., "One-shot empirical privacy estimation for federated learning",
ICLR 2024; with counted errors as in Jagielski et al., NeurIPS 2020).

Real clients are left out. Their sum is known to the attacker of differential privacy, who subtracts
it; here it would only blur the directions. Few canaries run at once, so that they do not disturb
each other, and the mechanism is repeated until there are enough.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedfr_jax import engine
from fedfr_jax.algorithm.aggregate import combine
from fedfr_jax.algorithm.features import Shared
from fedfr_jax.algorithm.initialize import head_shapes, server_shapes
from fedfr_jax.algorithm.messages import (
    clip_bound,
    difference,
    flatten,
    message_size,
    protect,
    unflatten,
    with_difference,
)
from fedfr_jax.algorithm.pool import Client
from fedfr_jax.algorithm.spec import RoundSpec
from fedfr_jax.algorithm.state import ServerState
from fedfr_jax.audit import epsilon
from fedfr_jax.audit.opened import TrainedRun
from fedfr_jax.audit.plan import Plan
from fedfr_jax.population.cohort_data import CohortData
from fedfr_jax.runtime import accounting
from fedfr_jax.runtime.progress import track
from fedfr_jax.runtime.simulation import Simulation

PyTree = Any
_AT_ONCE = 32  # canaries of one repetition, at most
_DRAWS = 3e9  # random numbers that an automatic audit draws, about a minute's
_MOST = 1000  # canaries that an automatic audit has
_UNUSED = ("images", "table_rows", "used", "rows", "labels", "sizes", "identities")
_OVERLAP = 0.02  # share of the noise's variance that other canaries may add


@dataclasses.dataclass(frozen=True)
class Path:
    """The aggregation that is audited.

    Attributes:
      spec: of the run, without hostile and late clients and without the masks of secure
        aggregation, which cancel.
      size: numbers in a message.
      rounds: releases.
      rate: chance with which a canary takes part in each.
      at_once: canaries of one repetition.
      public: public class embeddings.
    """

    spec: RoundSpec
    size: int
    rounds: int
    rate: float
    at_once: int
    public: int


def path_of(sim: Simulation, done: int) -> Path:
    """The aggregation of a run after so many rounds."""
    spec = sim.spec
    privacy = dataclasses.replace(spec.message.privacy, secure_aggregation=False)
    message = dataclasses.replace(
        spec.message, privacy=privacy, hostile_clients=(), late_dropout=0.0
    )
    spec = dataclasses.replace(spec, message=message)
    size = message_size(spec, sim.public.identities)
    mechanism = accounting.mechanism_of(sim.config)
    if mechanism.kind == "participation":
        rounds, rate = accounting.most_rounds(sim.schedule, done), 1.0
    else:
        rounds, rate = done, mechanism.rate
    noise = max(privacy.noise_multiplier, 0.1)
    at_once = int(np.clip(_OVERLAP * noise**2 * size, 1, _AT_ONCE))
    return Path(spec, size, rounds, rate, at_once, sim.public.identities)


def canary_scores(path: Path, canaries: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Runs the aggregation with canaries.

    Args:
      path: the aggregation.
      canaries: how many take part, at least; it is filled up to whole repetitions.
      seed: of directions, noise and sampling.

    Returns:
      ((n,) scores of canaries that took part, (n,) of as many that did not): sums over the rounds
      of the released sum's component along the canary, in bounds.
    """
    repetitions = -(-canaries // path.at_once)
    rng = np.random.default_rng([seed, 8])
    run = _compiled(path)
    within, without = [], []
    with track("canaries", repetitions, "repetition") as bar:
        for repetition in range(repetitions):
            taken = rng.random((path.rounds, path.at_once)) < path.rate
            key = jax.random.fold_in(jax.random.key(seed), repetition)
            scores = np.asarray(run(taken, key), np.float64)
            within.append(scores[: path.at_once])
            without.append(scores[path.at_once :])
            bar.update(1)
    return np.concatenate(within), np.concatenate(without)


def _direction(key: jax.Array, number: jax.Array, size: int) -> jax.Array:
    """(P,) a canary's unit direction."""
    drawn = jax.random.normal(jax.random.fold_in(key, number), (size,))
    return drawn / jnp.linalg.norm(drawn)


def _empty_server(path: Path) -> ServerState:
    """A server on which small differences are exact, and no running variance is near zero."""
    shapes = server_shapes(path.spec, path.public)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    ones = jax.tree.map(jnp.ones_like, zeros.backbone["batch_stats"])
    message = zeros.message
    if message and "clip_norm" in message:
        message = message | {"clip_norm": jnp.float32(path.spec.message.privacy.clip_norm)}
    return zeros.replace(backbone=dict(zeros.backbone, batch_stats=ones), message=message)


def _compiled(path: Path):
    """``(taken (R, k) bool, key) -> (2k,) scores``, first of those that take part."""
    count = path.at_once
    mesh = engine.make_mesh(jax.devices()[:1])
    head = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype), head_shapes(path.spec, 1, "off", path.public)
    )

    @jax.jit
    def run(taken, key):
        of_directions, of_rounds = jax.random.split(key)
        heads = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), head)

        def one_round(carry, present):
            server, heads, scores = carry
            # In units of the bound, or of the canary's length without one.
            bound = clip_bound(path.spec, server) if path.spec.message.privacy.clip_norm else 1.0
            server, heads, total = _release(
                path, mesh, server, heads, present, of_directions, of_rounds
            )

            def project(number):
                return total @ _direction(of_directions, number, path.size) / bound

            scores += jax.lax.map(project, jnp.arange(2 * count))
            return (server, heads, scores), None

        start = (_empty_server(path), heads, jnp.zeros(2 * count))
        return jax.lax.scan(one_round, start, taken)[0][2]

    return run


def _release(path: Path, mesh, server, heads, present, of_directions, key):
    """(the next server, heads, (P,) the released sum) of a round with the present canaries."""
    spec, count = path.spec, path.at_once
    shared = Shared(server, None, None, key)  # type: ignore[arg-type]
    received = {
        "backbone": dict(server.backbone),
        "public_embeddings": server.public_embeddings,
    }
    like = jax.eval_shape(lambda: difference(spec, server, received))
    bound = clip_bound(spec, server)
    length = 10 * bound if spec.message.privacy.clip_norm else 1.0  # it is clipped on its way
    if spec.fed.quarantine_norm:
        length = jnp.minimum(length, 0.99 * spec.fed.quarantine_norm)

    def update(lane, shared, device, number, head):
        del lane, device
        parts = unflatten(length * _direction(of_directions, number, path.size), like)
        sent = with_difference(spec, server, received, parts)
        client = Client(number, None, None, None, None, None)  # type: ignore[arg-type]
        metrics = {"loss": jnp.zeros(())}
        return protect(spec, shared, client, head, sent, jnp.ones(()), head, metrics)

    average, weight, heads, metrics = engine.for_each_client(
        functools.partial(update),
        shared,
        (),
        jnp.arange(count),
        heads,
        taken=present,
        mesh=mesh,
    )
    unused = dict.fromkeys(_UNUSED)
    cohort = CohortData(clients=jnp.where(present, jnp.arange(count), -1), **unused)
    server, average, weight, _ = combine(spec, shared, cohort, average, weight, metrics)
    total = flatten(difference(spec, server, average))
    # With noise the sum was divided by the expected clients, else by those that came.
    total *= spec.message.cohort if spec.message.privacy.noise_multiplier else weight
    return server.replace(round=server.round + 1), heads, total


def canaries_of(path: Path, wanted: int) -> int:
    """How many canaries take part: as asked, or what takes about a minute."""
    if wanted:
        return wanted
    # Each canary's direction is drawn in every round: once to be sent, twice to be looked for.
    each = path.rounds * path.size * (3 + 1 / path.at_once)
    return int(np.clip(_DRAWS / max(each, 1), 16, _MOST))


def audit_canary(run: TrainedRun, plan: Plan) -> dict[str, Any]:
    """The part ``canary`` of ``audit.json``."""
    config = run.sim.config
    recipe = config.recipe
    if recipe.union or not recipe.trains or recipe.isolated:
        return {"nothing": f"{recipe.title} has no messages"}
    if config.privacy.local_noise:
        return {"nothing": "privacy.local_noise is not audited: canaries test the server's sum"}
    path = path_of(run.sim, run.round)
    proved = accounting.describe(config, run.sim.schedule, run.round)
    if not path.rounds or not path.size:
        return {"nothing": "no round was done, so nothing was released"}
    wanted = canaries_of(path, plan.canaries)
    within, without = canary_scores(path, wanted, plan.seed)
    delta, confidence = config.privacy.delta, plan.confidence
    kind = accounting.mechanism_of(config).kind
    noisy = config.privacy.noise_multiplier > 0
    found = {
        "canaries": len(within),
        "at_once": path.at_once,
        "rounds": path.rounds,
        "rate": path.rate,
        "delta": delta,
        "confidence": confidence,
        "noise_multiplier": config.privacy.noise_multiplier,
        "epsilon": proved.get("epsilon") if noisy else None,
        "assumption": proved.get("assumption"),
        "production_cohort": config.privacy.production_cohort,
        "counted": epsilon.counted_epsilon(within, without, delta, confidence),
        "most_countable": epsilon.most_countable(len(within), delta, confidence),
        "estimate": _finite(epsilon.estimate(within, without, delta)),
        "within": [float(within.mean()), float(within.std(ddof=1))],
        "without": [float(without.mean()), float(without.std(ddof=1))],
    }
    if kind == "participation" and noisy:
        found["gaussian"] = _finite(epsilon.gaussian_bound(within, without, delta, confidence))
    return found


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
