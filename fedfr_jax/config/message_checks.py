"""Checks the settings of what happens to clients' messages: privacy, attacks, robust rules."""

from __future__ import annotations

from fedfr_jax.config.whole import Config
from fedfr_jax.errors import ConfigError
from fedfr_jax.settings import AGGREGATORS, STACKED_AGGREGATORS, STACKED_ATTACKS


def check_messages(config: Config) -> None:
    """Raises ConfigError for values out of range, or that contradict each other."""
    _check_shares(config)
    _check_hostile(config)
    _check_rules(config)
    _check_privacy(config)
    _check_time(config)
    _check_method(config)


def _check_shares(config: Config) -> None:
    for name, value, low, high in (
        ("population.dropout", config.population.dropout, 0, 1),
        ("population.late_dropout", config.population.late_dropout, 0, 1),
        ("hostile.fraction", config.hostile.fraction, 0, 1),
        ("fed.assumed_hostile", config.fed.assumed_hostile, 0, 0.5),
        ("privacy.clip_quantile", config.privacy.clip_quantile, 0, 1),
        ("privacy.top_k", config.privacy.top_k, 0, 1 + 1e-9),
    ):
        if not low <= value < high:
            raise ConfigError(f"{name} is {value}; it is a share, from 0 to below {high:.3g}")
    if not 0 < config.privacy.delta < 1:
        raise ConfigError(f"privacy.delta is {config.privacy.delta}; it is between 0 and 1")
    bits = config.privacy.quantize_bits
    if bits and not 2 <= bits <= 16:
        raise ConfigError(f"privacy.quantize_bits is {bits}; give 2 to 16, or 0 for none")


def _check_hostile(config: Config) -> None:
    hostile, count = config.hostile, config.fed.num_clients
    if hostile.clients and hostile.fraction:
        raise ConfigError(
            "hostile.clients and hostile.fraction are both set; name the hostile clients, or give "
            "their share"
        )
    if wrong := [c for c in hostile.clients if c >= count]:
        raise ConfigError(
            f"hostile.clients has {wrong[0]}, but the {count} clients are numbered from 0"
        )


def _check_rules(config: Config) -> None:
    fed = config.fed
    if fed.aggregator in ("norm_clip", "centered_clip") and not fed.clip_radius:
        raise ConfigError(
            f"fed.clip_radius is 0, but fed.aggregator={fed.aggregator!r} needs it; a usual start "
            "is the median of update_norm in metrics.jsonl of a run without it"
        )
    alike = (
        f"fed.aggregator={fed.aggregator!r}"
        if fed.aggregator in STACKED_AGGREGATORS
        else f"fed.bucketing={fed.bucketing}"
        if fed.bucketing > 1
        else f"hostile.attack={config.hostile.attack!r}"
        if config.hostile.is_active and config.hostile.attack in STACKED_ATTACKS
        else "privacy.secure_aggregation"
        if config.privacy.secure_aggregation
        else "privacy.noise_multiplier"
        if config.privacy.noise_multiplier or config.privacy.target_epsilon
        else ""
    )
    if alike and fed.aggregation != "uniform":
        raise ConfigError(
            f"fed.aggregation is {fed.aggregation!r}, but {alike} counts every client alike; set "
            "it to 'uniform'"
        )


def _check_privacy(config: Config) -> None:
    fed, privacy = config.fed, config.privacy
    central = privacy.noise_multiplier > 0 or privacy.target_epsilon > 0
    for name, needs in (
        ("noise_multiplier", central),
        ("local_noise", privacy.local_noise > 0),
        ("clip_quantile", privacy.clip_quantile > 0),
        ("secure_aggregation", privacy.secure_aggregation),
    ):
        if needs and not privacy.clip_norm:
            raise ConfigError(f"privacy.clip_norm is 0, but privacy.{name} needs a bound; set it")
    plain = fed.aggregator == "mean" and fed.bucketing <= 1
    for name, needs in (("noise_multiplier", central), ("secure_aggregation", not central)):
        if needs and (central or privacy.secure_aggregation) and not plain:
            raise ConfigError(
                f"fed.aggregator is {fed.aggregator!r} with fed.bucketing={fed.bucketing}, but "
                f"privacy.{name} is about a sum; use 'mean' without buckets"
            )
    if central and config.population.sampling == "weighted":
        raise ConfigError(
            "population.sampling is 'weighted', which depends on how many images a client has, so "
            "that privacy.noise_multiplier proves nothing; use 'uniform' or 'poisson'"
        )
    if privacy.mechanism == "tree":
        _check_tree(config, central)
    if privacy.local_noise and privacy.clip_quantile:
        raise ConfigError(
            "privacy.clip_quantile and privacy.local_noise are both set, but which clients are "
            "within the bound would be told without noise; set one of them to 0"
        )
    if privacy.local_noise and privacy.secure_aggregation:
        raise ConfigError(
            "privacy.local_noise and privacy.secure_aggregation are both set, but noisy messages "
            "have no bound, which integers need; set one of them off"
        )
    _check_cohort(config)


def _check_tree(config: Config, central: bool) -> None:
    """What the accountant of tree aggregation cannot account for."""
    privacy = config.privacy
    if not central:
        raise ConfigError(
            "privacy.mechanism is 'tree', but there is no noise; set privacy.noise_multiplier or "
            "privacy.target_epsilon"
        )
    if privacy.clip_quantile:
        raise ConfigError(
            "privacy.clip_quantile is set, but with privacy.mechanism='tree' rounds share noise, "
            "which then fits one bound only; set it to 0"
        )
    if privacy.sampling == "poisson":
        raise ConfigError(
            "privacy.sampling is 'poisson', but privacy.mechanism='tree' gains nothing by "
            "sampling: it counts the rounds in which each client takes part; leave it out"
        )


def _check_time(config: Config) -> None:
    time = config.simulated_time
    for one, other in (("speed", "speeds"), ("bandwidth", "bandwidths")):
        if getattr(time, one) and getattr(time, other):
            raise ConfigError(
                f"simulated_time.{one} and simulated_time.{other} are both set; give a median, or "
                "a file with a number for each client"
            )
    if not all(0 < level <= 1 for level in time.levels):
        raise ConfigError(
            f"simulated_time.levels is {time.levels}; give shares above 0, up to 1, such as 0.9"
        )
    if not time.is_active:
        for name in ("bandwidth", "bandwidths", "deadline", "first", "levels"):
            if getattr(time, name):
                raise ConfigError(
                    f"simulated_time.{name} is set, but without simulated_time.speed or "
                    "simulated_time.speeds no time passes; set one of them"
                )
        return
    if config.recipe.union:
        raise ConfigError(
            f"simulated_time is set, but method.name={config.method.name!r} has one client that "
            "holds all images; leave it out"
        )
    private = config.privacy.noise_multiplier or config.privacy.target_epsilon
    if time.first and (private or config.privacy.clip_quantile):
        raise ConfigError(
            f"simulated_time.first is {time.first}, but then a client decides by its speed whose "
            "messages count beside its own, which "
            f"privacy.{'noise_multiplier' if private else 'clip_quantile'} does not account for; "
            "use simulated_time.deadline"
        )


def _check_cohort(config: Config) -> None:
    privacy, fed = config.privacy, config.fed
    cohort = config.population.cohort or fed.num_clients
    if privacy.production_cohort and privacy.production_cohort < cohort:
        raise ConfigError(
            f"privacy.production_cohort is {privacy.production_cohort}, below the {cohort} clients "
            "of a round; it is the larger cohort that is meant to be simulated"
        )
    if privacy.clip_quantile and privacy.noise_multiplier:
        count = privacy.clip_count_noise or cohort / 20
        if 2 * count <= privacy.noise_multiplier:
            raise ConfigError(
                f"privacy.clip_count_noise is {count:g}, so little that it alone spends the budget "
                f"of privacy.noise_multiplier={privacy.noise_multiplier:g}; give more than half of "
                "the latter"
            )


def _check_method(config: Config) -> None:
    """Methods without a single message, or with another one beside it, have no pipeline."""
    fed, privacy, name = config.fed, config.privacy, config.method.name
    recipe = config.recipe
    used = {
        "privacy.clip_norm": privacy.clip_norm > 0,
        "privacy.top_k": privacy.top_k > 0,
        "privacy.quantize_bits": privacy.quantize_bits > 0,
        "fed.aggregator": fed.aggregator != AGGREGATORS[0],
        "fed.bucketing": fed.bucketing > 1,
        "population.late_dropout": config.population.late_dropout > 0,
        "simulated_time.deadline": config.simulated_time.deadline > 0,
        "simulated_time.first": config.simulated_time.first > 0,
        "hostile": config.hostile.is_active,
    }
    setting = next((what for what, is_used in used.items() if is_used), None)
    if setting is None or not recipe.trains:
        return
    why = (
        "sends class embeddings to the server, beside the message that this protects"
        if recipe.server_embeddings is not None
        else "has one client and no messages"
        if recipe.union
        else "sends nothing"
        if recipe.isolated
        else ""
    )
    if why:
        raise ConfigError(f"{setting} is set, but method.name={name!r} {why}; leave it out")
