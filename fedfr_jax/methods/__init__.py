"""The federated methods: one file each, and one line here."""
from fedfr_jax.methods import (
    centralized,
    ditto,
    fedavg,
    fedbn,
    fedface,
    fedfr,
    fedper,
    fedprox,
    fedrep,
    finetune,
    lg_fedavg,
    local,
    moon,
    pretrained,
)
from fedfr_jax.methods.recipe import Recipe, Terms

__all__ = ["METHODS", "Recipe", "Terms"]

METHODS: dict[str, Recipe] = {
    "fedfr": fedfr.RECIPE,
    "pretrained": pretrained.RECIPE,
    "local": local.RECIPE,
    "centralized": centralized.RECIPE,
    "fedavg": fedavg.RECIPE,
    "fedprox": fedprox.RECIPE,
    "moon": moon.RECIPE,
    "fedface": fedface.RECIPE,
    "fedper": fedper.RECIPE,
    "fedrep": fedrep.RECIPE,
    "lg_fedavg": lg_fedavg.RECIPE,
    "fedbn": fedbn.RECIPE,
    "ditto": ditto.RECIPE,
    "finetune": finetune.RECIPE,
}
