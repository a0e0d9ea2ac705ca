"""Programs that run once: compiling them should not take longer than running them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

# On a CPU; LLVM's vectorizers and unrolling take most of the time, and for hundreds of small
# kernels, as in drawing initial weights, three times as long as all else.
_OPTIONS: dict[str, str | bool] = {"xla_backend_optimization_level": "1"}


def run_once(function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(*arguments)``, compiled with little effort.

    Sums may be in another order than in a program that is compiled as usual. Random numbers and
    elementwise results do not change.

    Args:
      function: traceable.
      arguments: pytrees of arrays.
    """
    options = _OPTIONS if jax.default_backend() == "cpu" else None
    return jax.jit(function).lower(*arguments).compile(compiler_options=options)(*arguments)
