"""Access to the core with plain arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedfr_jax.algorithm.plain import PlainRounds
from fedfr_jax.config import Settings, merged, nested_settings, resolve
from fedfr_jax.engine import use_cpu_devices
from fedfr_jax.errors import InputError
from fedfr_jax.models.parts import is_divided
from fedfr_jax.population.packing import pack_clients, pack_public
from fedfr_jax.runtime.autotune import settle
from fedfr_jax.runtime.compilation_cache import use_compilation_cache
from fedfr_jax.runtime.simulation import make_layout, make_spec


def plain_rounds(
    clients: Sequence[tuple[np.ndarray, np.ndarray]],
    public: tuple[np.ndarray, np.ndarray] | None = None,
    config: Settings | None = None,
    **settings: Any,
) -> PlainRounds:
    """Rounds on arrays of images, with the same pure functions as a whole run.

        rounds = plain_rounds(clients, public, fed={"batch_size": 8})
        server, heads = rounds.start(rounds.spec.backbone.init(key), key)
        server, heads, metrics = rounds.step(server, heads, key)

    Args:
      clients: (images (M_i, S, S, 3) uint8 RGB, labels (M_i,) whole numbers from 0) of each.
      public: images and labels of the public people; None: there are none.
      config: settings to start from; the group ``data`` is ignored, the arrays replace it.
      **settings: groups of settings to change, such as ``fed={"lr": 0.01}``.

    Raises:
      InputError: the arrays or the settings do not fit, or there is too little to train on.
    """
    if not clients:
        raise InputError("clients is empty; give (images, labels) of at least one")
    size = np.shape(clients[0][0])[1]
    if public is None:
        public = np.zeros((0, size, size, 3), np.uint8), np.zeros(0, np.int32)
        settings = merged({"fed": {"public_data": "off"}}, settings)
    chosen = nested_settings(config, **settings)
    resolved = resolve(
        merged(chosen, {"data": {"image_size": size}, "fed": {"num_clients": len(clients)}})
    )
    if is_divided(resolved.model, size, resolved.fed.trainable):
        raise InputError(
            f"fed.trainable is {resolved.fed.trainable!r}, but plain rounds train the whole "
            "network; set it to 'all'"
        )
    cohort_public = pack_public(*public)
    if resolved.fed.public_data != "off" and not cohort_public.identities:
        raise InputError(f"fed.public_data is {resolved.fed.public_data!r}, but public is empty")
    _same_size(size, [images for images, _ in clients] + [public[0]])
    few = [i for i, (im, _) in enumerate(clients) if len(im) < resolved.fed.least_images]
    if few and resolved.fed.public_data == "off":
        raise InputError(
            f"client {few[0]} has {len(clients[few[0]][0])} images, less than "
            f"fed.batch_size={resolved.fed.batch_size}; lower it"
        )
    most = max(int(np.max(labels, initial=-1)) + 1 for _, labels in clients)
    split = dataclasses.replace(resolved.data.split, identities_per_client=(1, max(1, most)))
    use_cpu_devices(resolved.engine.cpu_devices)
    use_compilation_cache(resolved.engine.compilation_cache)
    data = dataclasses.replace(resolved.data, split=split)
    resolved = settle(dataclasses.replace(resolved, data=data), report=lambda line: None)
    layout = make_layout(resolved)
    return PlainRounds(
        make_spec(resolved), layout, cohort_public, pack_clients(clients, layout.mesh.size)
    )


def _same_size(size: int, groups: Sequence[np.ndarray]) -> None:
    for images in groups:
        if np.shape(images)[1:] != (size, size, 3):
            raise InputError(
                f"images of shape {np.shape(images)} are given with others of "
                f"{size} x {size} pixels; all must be of one size"
            )
