"""The federated methods: one file each, and one line here."""

import re

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

__all__ = ["METHODS", "Recipe", "Terms", "register_method"]

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


def register_method(name: str, recipe: Recipe) -> None:
    """Adds a method. ``method.name`` then selects it; its settings are ``method.<name>``.

    May be called at any time, also repeatedly, as in a notebook: the last registration of a
    name counts.

    Args:
      name: lower-case letters, digits and underscores, such as ``fedperprox``.
      recipe: what the method does differently from federated averaging.

    Raises:
      ValueError: the name cannot be a setting, or the options are not a frozen dataclass.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name == "name":
        raise ValueError(
            f"{name!r} cannot name a method; use lower-case letters, digits and _, "
            "and not 'name', which is a setting"
        )
    options = recipe.options
    parameters = getattr(options, "__dataclass_params__", None)
    if parameters is None or not parameters.frozen:
        raise ValueError(
            f"the options of method {name!r} must be a frozen dataclass, "
            f"@dataclasses.dataclass(frozen=True), not {options!r}"
        )
    METHODS[name] = recipe
