"""What a run's noise proves: epsilon at ``privacy.delta`` after so many rounds, per client.

The unit is one client: what it proves holds for all of a client's images at once. Two runs are
neighbours if one client's difference is there or replaced by zero (add or remove); for sampling
without replacement, if one client is replaced by another.

* ``participation``: who takes part in which round counts as known. Nothing is gained by sampling;
  epsilon is that of as many Gaussian mechanisms as rounds in which one client takes part at most.
  All clients in every round, ``population.sampling`` = schedule, and ``population.availability``.
* ``poisson``: each client takes part independently with the same probability. Exact for
  ``population.sampling`` = poisson, an approximation for uniform.
* ``without_replacement``: exactly so many of the clients are drawn. Renyi DP of Wang, Balle,
  Kasiviswanathan (AISTATS 2019), for replacing a client, which changes the sum by up to two bounds.

* ``tree``: rounds share noise (``privacy.mechanism`` = tree). One Gaussian mechanism, whose
  sensitivity follows from the rounds in which each client takes part.

Sampled mechanisms are accounted by Google's ``dp-accounting``, an extra: ``pip install
'fedfr_jax[privacy]'``.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

from fedfr_jax.config import Config
from fedfr_jax.errors import ConfigError
from fedfr_jax.population import participation
from fedfr_jax.population.schedule import Schedule
from fedfr_jax.settings import PrivacyConfig

# Orders of Renyi DP: whole numbers, at which its formulas for sampling are finite sums.
_ORDERS = (*range(2, 33), *range(36, 65, 4), 80, 96, 128, 192, 256, 512, 1024)
ASSUMPTIONS = {
    "participation": "who takes part is known; no amplification by sampling",
    "poisson": "Poisson sampling",
    "poisson approximation": "Poisson sampling, an approximation of sampling without replacement",
    "without_replacement": "sampling without replacement, replacing a client",
    "tree": "tree aggregation over rounds; who takes part is known",
}


@dataclasses.dataclass(frozen=True)
class Mechanism:
    """The noise of a run and how clients are drawn; epsilon is a function of it.

    Attributes:
      noise_multiplier: std of the noise on the sum, in bounds.
      delta: of (epsilon, delta).
      kind: participation | poisson | without_replacement | tree.
      cohort, population: clients in a round, and in all.
      accountant: pld | rdp.
    """

    noise_multiplier: float
    delta: float
    kind: str
    cohort: int
    population: int
    accountant: str = "pld"

    @property
    def rate(self) -> float:
        """Share of the clients in a round."""
        return self.cohort / self.population

    @property
    def method(self) -> str:
        """The accountant that is used: there is no PLD of sampling without replacement."""
        return "rdp" if self.kind == "without_replacement" else self.accountant

    def epsilon(self, count: int) -> float:
        """After ``count`` rounds; by participation: with a client that took part so many times.

        Raises:
          ConfigError: the extra for privacy is not installed.
        """
        if not self.noise_multiplier:
            return math.inf
        return _epsilon(self, count) if count else 0.0


@functools.lru_cache(maxsize=4096)
def _epsilon(mechanism: Mechanism, count: int) -> float:
    if mechanism.kind == "participation" and mechanism.accountant == "pld":
        return gaussian_epsilon(mechanism.noise_multiplier / math.sqrt(count), mechanism.delta)
    if mechanism.method == "pld":
        composed = _distribution(mechanism).self_compose(count)
        return float(composed.get_epsilon_for_delta(mechanism.delta))
    library = _library()
    relation = library.NeighboringRelation
    event: Any = library.GaussianDpEvent(mechanism.noise_multiplier)
    neighbours = relation.ADD_OR_REMOVE_ONE
    if mechanism.kind == "poisson":
        event = library.PoissonSampledDpEvent(mechanism.rate, event)
    elif mechanism.kind == "without_replacement":
        # A replaced client changes the sum by two bounds.
        event = library.SampledWithoutReplacementDpEvent(
            mechanism.population,
            mechanism.cohort,
            library.GaussianDpEvent(mechanism.noise_multiplier / 2),
        )
        neighbours = relation.REPLACE_ONE
    accountant = library.rdp.RdpAccountant(_ORDERS, neighbours)
    return float(accountant.compose(event, count).get_epsilon(mechanism.delta))


@functools.lru_cache(maxsize=4)
def _distribution(mechanism: Mechanism) -> Any:
    """The privacy loss distribution of one round."""
    distribution = _library().pld.privacy_loss_distribution
    return distribution.from_gaussian_mechanism(
        mechanism.noise_multiplier,
        sampling_prob=1.0 if mechanism.kind == "participation" else mechanism.rate,
    )


def gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """The exact epsilon of one Gaussian mechanism (Balle and Wang, ICML 2018, theorem 8).

    k of them are one with a noise multiplier that is smaller by the root of k.
    """
    from scipy import optimize, special  # noqa: PLC0415 (takes a second; few runs are private)

    half, z = 0.5 / noise_multiplier, noise_multiplier

    def excess(epsilon):
        upper = special.ndtr(half - epsilon * z)
        # exp(epsilon) alone would overflow.
        lower = math.exp(min(700.0, epsilon + special.log_ndtr(-half - epsilon * z)))
        return upper - lower - delta

    if excess(0.0) <= 0:
        return 0.0
    high = 1.0
    while excess(high) > 0:
        high *= 2
    return float(optimize.brentq(excess, 0.0, high, xtol=1e-12))


def _library() -> Any:
    try:
        import dp_accounting  # noqa: PLC0415 (optional)
        import dp_accounting.pld  # noqa: PLC0415
        import dp_accounting.rdp  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            "privacy.noise_multiplier: epsilon of sampled clients needs the package "
            "dp-accounting, which is not installed: pip install 'dp-accounting>=0.6,<0.7', or "
            "pip install 'fedfr_jax[privacy]'"
        ) from error
    return dp_accounting


def mechanism_of(config: Config) -> Mechanism:
    """The mechanism of these settings."""
    population, privacy = config.population, config.privacy
    count = config.fed.num_clients
    cohort = population.cohort or count
    if privacy.mechanism == "tree":
        kind = "tree"
    elif population.sampling == "poisson":
        kind = "poisson"
    elif population.sampling == "uniform" and cohort < count and not population.availability:
        kind = privacy.sampling
    else:
        kind = "participation"
    return Mechanism(
        privacy.noise_multiplier, privacy.delta, kind, cohort, count, privacy.accountant
    )


def assumption(config: Config) -> str:
    """What epsilon assumes of how clients are drawn, a key of ``ASSUMPTIONS``."""
    kind = mechanism_of(config).kind
    approximate = kind == "poisson" and config.population.sampling != "poisson"
    return "poisson approximation" if approximate else kind


def most_rounds(schedule: Schedule, rounds: int) -> int:
    """In how many of the first rounds a client takes part, at most."""
    return participation.most_rounds(schedule.cohorts[:rounds])


def tree_epsilon(config: Config, schedule: Schedule, rounds: int) -> float:
    """Epsilon of tree aggregation after so many rounds, from who takes part in which of them.

    All noisy nodes together are one Gaussian mechanism (with adaptive rounds, too: Denisov et al.,
    NeurIPS 2022, theorem 2.1), whose sensitivity follows from the schedule.
    """
    found = schedule.tree_sensitivities
    sensitivity = float(found[min(rounds, len(found) - 1)])
    if not sensitivity:
        return 0.0
    mechanism = dataclasses.replace(mechanism_of(config), kind="participation")
    return dataclasses.replace(
        mechanism, noise_multiplier=mechanism.noise_multiplier / sensitivity
    ).epsilon(1)


def spent(config: Config, schedule: Schedule, rounds: int) -> dict[str, float]:
    """``epsilon`` and, with local noise, ``local_epsilon`` after so many rounds; {} without noise.

    A function of the settings and the rounds done: a resumed run has spent what it had. A client
    that trusts nobody has the local one: it releases its own noisy difference in every round in
    which it takes part, and two differences are up to two bounds apart.
    """
    privacy = config.privacy
    found: dict[str, float] = {}
    if privacy.noise_multiplier and privacy.mechanism == "tree":
        found["epsilon"] = tree_epsilon(config, schedule, rounds)
    elif privacy.noise_multiplier:
        mechanism = mechanism_of(config)
        by_participation = mechanism.kind == "participation"
        count = most_rounds(schedule, rounds) if by_participation else rounds
        found["epsilon"] = mechanism.epsilon(count)
    if privacy.local_noise:
        count = most_rounds(schedule, rounds)
        local = Mechanism(privacy.local_noise / 2, privacy.delta, "participation", 1, 1)
        found["local_epsilon"] = local.epsilon(count)
    return found


def settled(config: Config, schedule: Schedule, report=print) -> Config:
    """The settings with the noise multiplier that ``privacy.target_epsilon`` asks for.

    Raises:
      ConfigError: the target cannot be met, or the noise multiplier that is set does not meet it.
    """
    privacy = config.privacy
    if not privacy.target_epsilon or not config.recipe.trains:
        return config

    def after(multiplier: float) -> float:
        noisy = dataclasses.replace(privacy, noise_multiplier=multiplier)
        return spent(dataclasses.replace(config, privacy=noisy), schedule, config.rounds)["epsilon"]

    if privacy.noise_multiplier:
        if (found := after(privacy.noise_multiplier)) > privacy.target_epsilon:
            raise ConfigError(
                f"privacy.noise_multiplier is {privacy.noise_multiplier:g}, with which "
                f"{config.rounds} rounds have epsilon {found:.3g}, above "
                f"privacy.target_epsilon={privacy.target_epsilon:g}; raise the former, set it to 0 "
                "to have it found in a new run, or lower fed.rounds"
            )
        return config
    multiplier = find_noise(after, privacy)
    report(
        f"privacy: noise multiplier {multiplier:g} for epsilon {privacy.target_epsilon:g} at delta "
        f"{privacy.delta:g} after {config.rounds} rounds ({ASSUMPTIONS[assumption(config)]})"
    )
    return dataclasses.replace(
        config, privacy=dataclasses.replace(privacy, noise_multiplier=multiplier)
    )


def find_noise(after: Any, privacy: PrivacyConfig) -> float:
    """The least noise multiplier, to three digits, of which ``after`` is at most the target."""
    low, high = 0.0, 1.0
    while after(high) > privacy.target_epsilon:
        low, high = high, 2 * high
        if high > 1e5:
            raise ConfigError(
                f"privacy.target_epsilon is {privacy.target_epsilon:g}, which no reasonable noise "
                "reaches; raise it, or lower fed.rounds"
            )
    while high - low > 5e-4 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if after(middle) <= privacy.target_epsilon else (middle, high)
    # Rounded up, so that the number in config.json is the one that was found.
    digits = 10.0 ** (3 - math.floor(math.log10(high)))
    return math.ceil(high * digits) / digits


def describe(config: Config, schedule: Schedule, rounds: int) -> dict[str, Any]:
    """What a run's noise proves, for the summary; {} without noise."""
    found: dict[str, Any] = dict(spent(config, schedule, rounds))
    if not found:
        return {}
    privacy, mechanism = config.privacy, mechanism_of(config)
    found |= {"delta": privacy.delta, "unit": "client", "clip_norm": privacy.clip_norm}
    if privacy.noise_multiplier:
        found |= {
            "noise_multiplier": privacy.noise_multiplier,
            "accountant": mechanism.method,
            "assumption": ASSUMPTIONS[assumption(config)],
            "production_cohort": privacy.production_cohort,
            "cohort": mechanism.cohort,
        }
        if mechanism.kind == "tree":
            taken = schedule.cohorts[:rounds]
            found["participations"] = participation.most_rounds(taken)
            found["least_separation"] = participation.least_separation(taken)
        elif mechanism.kind != "participation" and mechanism.cohort < mechanism.population:
            other = "poisson" if mechanism.kind == "without_replacement" else "participation"
            found["otherwise"] = _otherwise(mechanism, other, schedule, rounds)
    if privacy.local_noise:
        found["local_noise"] = privacy.local_noise
    return found


def _otherwise(mechanism: Mechanism, kind: str, schedule: Schedule, rounds: int) -> dict[str, Any]:
    """Epsilon under another assumption, which a reader may prefer."""
    other = dataclasses.replace(mechanism, kind=kind)
    count = most_rounds(schedule, rounds) if kind == "participation" else rounds
    return {"assumption": ASSUMPTIONS[kind], "epsilon": other.epsilon(count)}
