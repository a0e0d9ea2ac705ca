"""What leaves a client: the difference it made to what it received, after named steps.

A client's message is ``trained - received`` of all that it shares: the parameters of the backbone
that are not private, the running statistics of batch norm where local training moves them, and the
public class embeddings where there are any. Its head (class embeddings, transform, binary
classifiers) is not part of it. :func:`protect` passes it through the steps of the settings:

    attack (hostile clients) -> quarantine -> top_k -> clip, noise (local) -> quantize ->
    clip (central) -> norm_clip or centered_clip -> lost on the way (late_dropout)

Every step is a pure function of a list of arrays, the *parts* of a message. What the server does
with the messages is in :mod:`fedfr_jax.algorithm.aggregate`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fedfr_jax.algorithm import hostile
from fedfr_jax.algorithm.features import Shared
from fedfr_jax.algorithm.keys import LATE, NOISE, QUANTIZE, message_key
from fedfr_jax.algorithm.pool import Client
from fedfr_jax.algorithm.spec import RoundSpec
from fedfr_jax.algorithm.state import Heads, ServerState

PyTree = Any
Parts = list[jax.Array]


def goes_out(spec: RoundSpec, backbone: PyTree) -> PyTree:
    """Pytree of bool like what is sent: the tensors that are part of a message."""
    private, statistics = spec.private(backbone), spec.backbone.batch_statistics
    return {
        "backbone": {
            "params": jax.tree.map(lambda p: not p, private["params"]),
            "batch_stats": jax.tree.map(lambda p: statistics and not p, private["batch_stats"]),
        },
        "public_embeddings": spec.uses_public,
    }


def _received(server: ServerState) -> PyTree:
    return {"backbone": dict(server.backbone), "public_embeddings": server.public_embeddings}


def difference(spec: RoundSpec, server: ServerState, sent: PyTree) -> Parts:
    """The parts of a message: what is sent less what was received."""
    leaves = map(jax.tree.leaves, (goes_out(spec, server.backbone), sent, _received(server)))
    return [s - r for goes, s, r in zip(*leaves, strict=True) if goes]


def with_difference(spec: RoundSpec, server: ServerState, sent: PyTree, parts: Parts) -> PyTree:
    """The inverse of :func:`difference`: ``sent`` with the parts of another message in it."""
    left = iter(parts)
    return jax.tree.map(
        lambda goes, s, r: (r + next(left)).astype(s.dtype) if goes else s,
        goes_out(spec, server.backbone),
        sent,
        _received(server),
    )


def message_size(spec: RoundSpec, public_identities: int) -> int:
    """P, the numbers in a message."""
    variables = jax.eval_shape(spec.backbone.init, jax.random.key(0))
    goes = goes_out(spec, variables)
    sizes = jax.tree.map(lambda g, v: g * math.prod(v.shape), goes["backbone"], dict(variables))
    public = public_identities * spec.backbone.embedding * goes["public_embeddings"]
    return sum(jax.tree.leaves(sizes)) + public


def initial_memory(spec: RoundSpec, size: int, dtype: Any) -> PyTree:
    """``ServerState.message`` before the first round; None if nothing is remembered.

    ``clip_norm``: the bound that follows a quantile. ``center``: (P,) the last aggregate, around
    which centered_clip clips. ``noised``: the last round whose noise is in the model, where rounds
    share noise.
    """
    memory = {}
    if spec.message.privacy.clip_quantile:
        memory["clip_norm"] = jnp.asarray(spec.message.privacy.clip_norm, jnp.float32)
    if spec.fed.aggregator == "centered_clip":
        memory["center"] = jnp.zeros(size, dtype)
    if spec.message.shares_noise:
        memory["noised"] = jnp.zeros((), jnp.int32)
    return memory or None


def remembered(server: ServerState) -> dict[str, jax.Array]:
    """What :func:`initial_memory` made, as it is now."""
    return dict(server.message or {})


def clip_bound(spec: RoundSpec, server: ServerState) -> jax.Array | float:
    """The L2 bound of a message in this round; 0 = none."""
    if spec.message.privacy.clip_quantile:
        return remembered(server)["clip_norm"]
    return spec.message.privacy.clip_norm


def flatten(parts: Sequence[jax.Array]) -> jax.Array:
    """(P,) all numbers of a message."""
    return jnp.concatenate([p.reshape(-1) for p in parts]) if parts else jnp.zeros(0)


def unflatten(flat: jax.Array, like: Sequence[jax.Array]) -> Parts:
    """The inverse of :func:`flatten`, with the shapes and types of ``like``."""
    ends = [0]
    for part in like:
        ends.append(ends[-1] + part.size)
    return [
        flat[a:b].reshape(part.shape).astype(part.dtype)
        for a, b, part in zip(ends[:-1], ends[1:], like, strict=True)
    ]


def norm_of(parts: Sequence[jax.Array]) -> jax.Array:
    """The L2 norm of a message."""
    return jnp.sqrt(sum((jnp.sum(p * p) for p in parts), start=jnp.zeros(())))


def clip(parts: Parts, bound) -> tuple[Parts, jax.Array]:
    """(the message, scaled down to an L2 norm of at most ``bound``, its norm before)."""
    norm = norm_of(parts)
    factor = jnp.minimum(1.0, bound / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny))
    return [p * factor.astype(p.dtype) for p in parts], norm


def add_noise(parts: Parts, std, key: jax.Array) -> Parts:
    """The message with independent normal noise."""
    return [
        p
        + jnp.asarray(std, p.dtype)
        * jax.random.normal(jax.random.fold_in(key, i), p.shape, p.dtype)
        for i, p in enumerate(parts)
    ]


def quantize(parts: Parts, bits: int, key: jax.Array) -> Parts:
    """Each tensor on ``2^bits - 1`` levels between its extremes, rounded at random, unbiased.

    Alistarh et al. (QSGD), NeurIPS 2017, with the largest magnitude as the scale.
    """
    levels = 2 ** (bits - 1) - 1

    def one(i, p):
        step = jnp.max(jnp.abs(p), initial=0) / levels
        draws = jax.random.uniform(jax.random.fold_in(key, i), p.shape, p.dtype)
        whole = jnp.floor(p / jnp.where(step > 0, step, 1) + draws)
        return jnp.clip(whole, -levels, levels) * step

    return [one(i, p) for i, p in enumerate(parts)]


def top_k(parts: Parts, unsent: jax.Array, share: float) -> tuple[Parts, jax.Array]:
    """The largest numbers of the message and of what was held back; the rest is held back.

    Error feedback of Stich et al., NeurIPS 2018.

    Args:
      unsent: (P,) held back in earlier rounds.
      share: of the numbers that are sent.

    Returns:
      (the message, zero elsewhere, (P,) held back now).
    """
    flat = flatten(parts) + unsent
    count = max(1, round(share * flat.size)) if flat.size else 0
    _, at = jax.lax.top_k(jnp.abs(flat), count)
    sent = jnp.zeros_like(flat).at[at].set(flat[at])
    return unflatten(sent, parts), flat - sent


def _is_finite(tree: PyTree) -> jax.Array:
    found = [
        jnp.isfinite(x).all()
        for x in jax.tree.leaves(tree)
        if jnp.issubdtype(jnp.asarray(x).dtype, jnp.floating)
    ]
    return jnp.stack(found).all() if found else jnp.array(True)


def is_good(spec: RoundSpec, parts: Parts, state: PyTree) -> jax.Array:
    """Whether a message may be averaged: it and the client's state are finite, and not too long."""
    good = _is_finite((parts, state))
    if spec.fed.quarantine_norm:
        good &= norm_of(parts) <= spec.fed.quarantine_norm
    return good


def is_lost(spec: RoundSpec, key: jax.Array, round_index, client) -> jax.Array:
    """Whether the message of a client is lost on its way (``population.late_dropout``)."""
    draw = jax.random.uniform(message_key(key, LATE, round_index, client))
    return draw < spec.message.late_dropout


def _or_zero(keep: jax.Array, parts: Parts) -> Parts:
    # Not a product: 0 times NaN is NaN.
    return [jnp.where(keep, p, jnp.zeros_like(p)) for p in parts]


def protect(
    spec: RoundSpec,
    shared: Shared,
    client: Client,
    head: Heads,
    sent: PyTree,
    weight: jax.Array,
    kept: Heads,
    metrics: dict[str, jax.Array],
) -> tuple[PyTree, jax.Array, Heads, dict[str, jax.Array]]:
    """A client's results after the steps of the settings; unchanged if there are none.

    Args:
      spec: the steps.
      shared: what the server sent, and the run's key.
      client, head: before training.
      sent, weight, kept, metrics: from :func:`fedfr_jax.algorithm.local_state.hand_back`.

    Returns:
      The last four: a message that does not arrive has weight 0 and is all zeros; a client whose
      message is quarantined keeps its old head. Added metrics are ``update_norm``, the L2 norm
      before clipping, and the flags ``clipped``, ``quarantined``, ``late`` (lost), ``missed`` (too
      slow, where messages can be); and, where the aggregation needs it, the (P,) ``message``.
    """
    if not spec.looks_at_messages:
        return sent, weight, kept, metrics
    server = shared.server

    def key(purpose: int) -> jax.Array:
        return message_key(shared.key, purpose, server.round, client.number)

    parts = hostile.attacked(spec, difference(spec, server, sent), client.number, key)
    good = is_good(spec, parts, (kept, metrics["loss"]))
    parts = _or_zero(good, parts)
    whole = parts
    parts, unsent, norm, clipped = _steps(spec, server, head, parts, key)
    late = jnp.array(False)
    if spec.message.late_dropout:
        late = good & is_lost(spec, shared.key, server.round, client.number)
        parts = _or_zero(~late, parts)
    arrives = good & ~late
    if client.in_time is not None:
        arrives &= client.in_time
        parts = _or_zero(client.in_time, parts)
        metrics = metrics | {"missed": good & ~late & ~client.in_time}
    if unsent is not None:  # what did not arrive is held back, too
        lost = flatten(whole) + head.unsent
        kept = kept.replace(unsent=jnp.where(good & ~arrives, lost, unsent))
    if spec.fed.on_bad_update == "quarantine":
        kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), kept, head)
    metrics = metrics | {
        "update_norm": norm,
        "clipped": clipped & arrives,
        "quarantined": ~good,
        "late": late,
    }
    if spec.stacks_messages:
        metrics["message"] = flatten(parts)
    sent = with_difference(spec, server, sent, parts)
    return sent, jnp.where(arrives, weight, 0), kept, metrics


def _steps(spec: RoundSpec, server: ServerState, head: Heads, parts: Parts, key):
    """(message, what is held back or None, its norm before clipping, whether it was clipped)."""
    privacy, unsent, bound = spec.message.privacy, None, clip_bound(spec, server)
    norm, clipped, local = norm_of(parts), jnp.array(False), privacy.local_noise > 0
    if privacy.top_k:
        parts, unsent = top_k(parts, head.unsent, privacy.top_k)
    if local:
        parts, norm = clip(parts, bound)
        parts = add_noise(parts, privacy.local_noise * bound, key(NOISE))
        clipped = norm > bound
    if privacy.quantize_bits:
        parts = quantize(parts, privacy.quantize_bits, key(QUANTIZE))
    if privacy.clip_norm and not local:
        # By the server: the bound then holds for what it averages, however it was sent.
        parts, norm = clip(parts, bound)
        clipped = norm > bound
    if not spec.stacks_messages:
        parts = streamed_rule(spec, server, parts)
    return parts, unsent, norm, clipped


def streamed_rule(spec: RoundSpec, server: ServerState, parts: Parts) -> Parts:
    """norm_clip and centered_clip: a message's share of the aggregate, by itself."""
    if spec.fed.aggregator == "norm_clip":
        return clip(parts, spec.fed.clip_radius)[0]
    if spec.fed.aggregator == "centered_clip":
        center = unflatten(remembered(server)["center"], parts)
        apart = [p - c for p, c in zip(parts, center, strict=True)]
        near = clip(apart, spec.fed.clip_radius)[0]
        return [c + n for c, n in zip(center, near, strict=True)]
    return parts
