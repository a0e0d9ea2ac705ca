"""Simulates federated, personalized face recognition at any number of clients, in JAX.

    import fedfr_jax
    result = fedfr_jax.run("fedavg", "quickstart", fed={"rounds": 4})
    result.summary

Names are imported on first use: importing the package does not start JAX.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

__version__ = "0.2.0"

_HOMES = {  # name -> module that defines it
    "Experiment": "fedfr_jax.experiment",
    "METHODS": "fedfr_jax.methods",
    "Recipe": "fedfr_jax.methods",
    "Result": "fedfr_jax.reporting.result",
    "compare_methods": "fedfr_jax.ablation.methods",
    "default_config": "fedfr_jax.config",
    "load_config": "fedfr_jax.config",
    "load_model": "fedfr_jax.export.model",
    "open_run": "fedfr_jax.experiment",
    "plain_rounds": "fedfr_jax.runtime.plain",
    "register_backbone": "fedfr_jax.models",
    "register_method": "fedfr_jax.methods",
    "run": "fedfr_jax.experiment",
    "use_cpu_devices": "fedfr_jax.engine.devices",
}
__all__ = list(_HOMES)


def on_first_use(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package whose names are imported when they are used.

    Args:
      package: its name.
      homes: name -> module that defines it.
    """
    names = vars(sys.modules[package])

    def getattribute(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        names[name] = getattr(importlib.import_module(homes[name]), name)
        return names[name]

    return getattribute, lambda: sorted({*names, *homes})


__getattr__, __dir__ = on_first_use(__name__, _HOMES)
