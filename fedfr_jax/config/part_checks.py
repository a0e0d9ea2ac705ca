"""What cannot be computed where a round runs in parts (``engine.part``)."""

from __future__ import annotations

from fedfr_jax.config.whole import Config
from fedfr_jax.errors import ConfigError
from fedfr_jax.settings import STACKED_AGGREGATORS, STACKED_ATTACKS


def check_parts(config: Config) -> None:
    """Raises ConfigError if the settings need more than a part of a round's clients at once."""
    if config.engine.part and (why := needs_all_clients(config)):
        raise ConfigError(
            f"engine.part is {config.engine.part}, so that a round's clients are on the devices "
            f"part after part, but {why}; set engine.part=0"
        )


def needs_all_clients(config: Config) -> str:
    """Why these settings do not allow ``engine.part``; "" if they do."""
    fed, hostile = config.fed, config.hostile
    public = config.recipe.public_data if fed.public_data == "auto" else fed.public_data
    if public == "all":
        return "with fed.public_data='all' every client needs all public images there"
    if config.recipe.server_embeddings is not None:
        return f"with method.name={config.method.name!r} the server needs all class embeddings"
    setting = (
        f"fed.aggregator={fed.aggregator!r}"
        if fed.aggregator in STACKED_AGGREGATORS
        else f"fed.bucketing={fed.bucketing}"
        if fed.bucketing > 1
        else "privacy.secure_aggregation"
        if config.privacy.secure_aggregation
        else f"hostile.attack={hostile.attack!r}"
        if hostile.is_active and hostile.attack in STACKED_ATTACKS
        else ""
    )
    if setting:
        return f"{setting} needs the messages of all of them at once"
    if config.simulated_time.first:
        return (
            f"simulated_time.first={config.simulated_time.first} compares how long all of them take"
        )
    return ""
