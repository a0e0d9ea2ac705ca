"""A step of several clients as independent copies in one program, instead of under vmap."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

PyTree = Any


def unrolled(fn: Callable[..., PyTree], axis: str, *example: PyTree) -> Callable[..., PyTree]:
    """``fn`` that vmap runs once per lane, each lane with unbatched operands.

    The copies depend on nothing of each other, so a compiler may run their kernels at the same
    time. A function that communicates over ``axis``, such as an outer loop, stays under vmap.

    Args:
      fn: function of pytrees of arrays; what it closes over may differ between lanes.
      axis: name of the axis of vmap.
      example: arguments, for their shapes and types.
    """
    traced, shapes = jax.make_jaxpr(fn, return_shape=True)(*example)
    structure = jax.tree.structure(shapes)

    @jax.jit  # traced and lowered once for all lanes
    def one(closed_over, leaves):
        return jaxpr_as_fun(ClosedJaxpr(traced.jaxpr, closed_over))(*leaves)

    run: Callable[..., list] = one
    if axis not in set(_axes(traced.jaxpr)):
        run = custom_vmap(one)

        @run.def_vmap
        def rule(size, batched, *operands):
            def lane(k):
                return jax.tree.map(lambda v, own: v[k] if own else v, list(operands), batched)

            results = zip(*(one(*lane(k)) for k in range(size)), strict=True)
            stacked = [jnp.stack(copies) for copies in results]
            return stacked, [True] * len(stacked)

    def call(*arguments):
        return jax.tree.unflatten(structure, run(traced.consts, jax.tree.leaves(arguments)))

    return call


def _axes(jaxpr) -> Iterator[str]:
    """Names of the axes over which a program communicates."""
    for equation in jaxpr.eqns:
        yield from (a for a in equation.params.get("axes", ()) if isinstance(a, str))
        for value in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _axes(inner)
