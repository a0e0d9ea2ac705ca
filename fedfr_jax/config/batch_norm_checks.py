"""What a network with batch norm asks of the settings."""

from __future__ import annotations

from fedfr_jax.config.whole import Config
from fedfr_jax.errors import ConfigError


def check_batch_norm(config: Config) -> None:
    """Raises ConfigError where mini-batches do not suit batch norm."""
    frozen = config.model.batch_norm == "frozen"
    if config.fed.partial_batch and config.recipe.trains and not frozen:
        raise ConfigError(
            f"fed.partial_batch is set, but {config.model.name} normalizes over the mini-batch, "
            "which must then be whole; set it to False, or model.batch_norm to 'frozen'"
        )
    for name, size, used in (
        ("fed.batch_size", config.fed.batch_size, config.recipe.trains and not frozen),
        ("pretrain.batch_size", config.pretrain.batch_size, config.pretrain.epochs),
    ):
        if used and size == 1:  # all batches are whole: there is no last one with a single image
            raise ConfigError(
                f"{name} is 1, but {config.model.name} normalizes over the "
                "mini-batch, and one image has no spread; give at least 2"
            )
    if config.engine.gradient_batch and not frozen:
        raise ConfigError(
            f"engine.gradient_batch is {config.engine.gradient_batch}, but "
            f"{config.model.name} normalizes over the mini-batch, which must then "
            "be taken as a whole; set it to 0, or model.batch_norm to 'frozen'"
        )
