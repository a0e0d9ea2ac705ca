"""Changes of settings: which ones are allowed when a run is resumed."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedfr_jax.config import Config, to_dict
from fedfr_jax.errors import InputError
from fedfr_jax.runtime.json_file import plain

# What a resumed run may change: learning rates, duration, evaluation, and how it is executed.
MAY_CHANGE = (
    "fed.rounds",
    "fed.lr",
    "fed.lr_decay",
    "fed.lr_decay_epochs",
    "fed.momentum",
    "fed.weight_decay",
    "fed.server_lr",
    "fed.server_momentum",
    "fed.server_beta2",
    "fed.server_epsilon",
    "fed.on_bad_update",
    "fed.quarantine_norm",
    "eval.",
    "engine.",
    "checkpoint.",
    "data.workers",
    "data.max_megapixels",
    "data.images",
    "data.resident_gib",
    "data.root",
    "data.verification_sets",
    "data.verification_labels",
    "data.split.skew_features",  # may have moved; another one would give another split
    "population.schedule",
    "population.availability",
    "simulated_time.speeds",
    "simulated_time.bandwidths",
    "simulated_time.levels",
)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def changes_of_run(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple]:
    """As :func:`changed_settings`, between a run's ``config.json`` and new settings.

    A setting that the version that wrote the file did not have yet counts as its default: new
    settings leave everything as it was unless they are set.
    """
    known, defaults = dict(_flat(plain(old))), dict(_flat(plain(to_dict(Config()))))
    return {
        key: (before, after)
        for key, (before, after) in changed_settings(old, new).items()
        if key in known or after != defaults.get(key)
    }


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple]:
    """Settings that differ between two nested dicts: dotted name -> (old, new).

    A setting that one of them lacks counts as ``None`` there.
    """
    before, after = dict(_flat(plain(old))), dict(_flat(plain(new)))
    return {
        key: (before.get(key), after.get(key))
        for key in sorted(before | after)
        if before.get(key) != after.get(key)
    }


def check_changes(
    workdir: pathlib.Path,
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    may_change: Sequence[str] = MAY_CHANGE,
) -> dict[str, tuple]:
    """The differences between a run's settings and new ones, if all of them are allowed.

    Args:
      workdir: of the run, for the message.
      old, new: nested dicts.
      may_change: as for :func:`fedfr_jax.runtime.workdir.open_run`.

    Returns:
      As :func:`changes_of_run`.

    Raises:
      InputError: a setting differs that may not change.
    """
    changed = changes_of_run(old, new)
    fixed = [
        f"{key}: {before!r} -> {after!r}"
        for key, (before, after) in changed.items()
        if not any(
            name in ("", key) or (name.endswith(".") and key.startswith(name))
            for name in may_change
        )
    ]
    if fixed:
        raise InputError(
            f"the run in {workdir} had other settings ({'; '.join(fixed)}); continue "
            "with those in its config.json, or choose another --workdir"
        )
    return changed
