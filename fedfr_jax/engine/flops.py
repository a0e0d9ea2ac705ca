"""Multiply-adds of the convolutions and matrix products in a JAX function."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax


def multiply_adds(function: Callable[..., Any], *arguments: Any) -> int:
    """Counts them in the traced program; loops count once, elementwise work is not counted."""
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr) -> int:
    return sum(_equation(e) for e in jaxpr.eqns)


def _equation(equation) -> int:
    out = math.prod(equation.outvars[0].aval.shape)
    if equation.primitive.name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        features = equation.params["dimension_numbers"].rhs_spec[0]
        return out * math.prod(kernel) // kernel[features]
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return out * math.prod(equation.invars[0].aval.shape[k] for k in contracted)
    inner = [
        p for v in equation.params.values() for p in (v if isinstance(v, (tuple, list)) else [v])
    ]
    return sum(
        _count(getattr(p, "jaxpr", p))
        for p in inner
        if hasattr(p, "eqns") or hasattr(getattr(p, "jaxpr", None), "eqns")
    )
