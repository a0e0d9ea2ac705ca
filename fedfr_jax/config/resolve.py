"""From nested dictionaries to checked settings, and back."""

from __future__ import annotations

import dataclasses
import difflib
import os
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from fedfr_jax.config.checks import check
from fedfr_jax.config.moved import MOVED
from fedfr_jax.config.whole import Config, method_config
from fedfr_jax.errors import ConfigError


def to_dict(config: Config) -> dict[str, Any]:
    """The settings as nested plain dictionaries, for ``config.json``."""
    return dataclasses.asdict(config)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries with some values changed."""
    result = dict(base)
    for key, value in changes.items():
        inner = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if inner else value
    return result


def nested(name: str, value: Any) -> dict[str, Any]:
    """A setting such as ``fed.lr`` and its value as nested dictionaries."""
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


def setting_names(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Names such as ``fed.lr`` of all settings in nested dictionaries, and of their groups."""
    for key, value in settings.items():
        yield prefix + key
        if isinstance(value, Mapping | ConfigDict):
            yield from setting_names(value, f"{prefix}{key}.")


def unknown(name: str, known: Iterable[str]) -> str:
    """The error message for a setting that does not exist.

    Args:
      name: as given, such as ``fed.round``.
      known: names that exist, of the same group or of all.
    """
    if name in MOVED:
        return f"{name} is now {MOVED[name]}"
    known = list(known)
    near = difflib.get_close_matches(name, known, 1)
    if near:
        return f"{name} is not a setting; did you mean {near[0]}?"
    group = name.rpartition(".")[0]
    inside = [k for k in known if k.rpartition(".")[0] == group] or known
    return f"{name} is not a setting; there are {', '.join(inside)}"


def resolve(settings: Mapping[str, Any]) -> Config:
    """Checked, frozen settings from a ``ConfigDict`` or nested dictionaries.

    Args:
      settings: may leave settings out; those keep their defaults.

    Raises:
      ConfigError: a setting is unknown, of the wrong type, out of range, or
        contradicts another one; the message begins with its name.
    """
    config = _build(Config, settings, "")
    check(config)
    return _as_method_says(_expanded(config))


def _expanded(config: Config) -> Config:
    """The settings with ``~`` in paths replaced by the home directory."""

    def paths(group, *names):
        return dataclasses.replace(
            group, **{name: os.path.expanduser(getattr(group, name)) for name in names}
        )

    return dataclasses.replace(
        config,
        data=dataclasses.replace(
            paths(config.data, "root"), split=paths(config.data.split, "skew_features")
        ),
        model=paths(config.model, "weights"),
        population=paths(config.population, "schedule", "availability"),
        simulated_time=paths(config.simulated_time, "speeds", "bandwidths"),
    )


def _as_method_says(config: Config) -> Config:
    """The settings with those that the method decides filled in."""
    recipe, fed = config.recipe, config.fed
    if fed.public_data == "auto":
        fed = dataclasses.replace(fed, public_data=recipe.public_data)
    if not recipe.trains:
        fed = dataclasses.replace(fed, rounds=0)
    return dataclasses.replace(config, fed=fed)


def _build(kind: type, settings: Mapping[str, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(kind)
    if kind is Config:
        hints["method"] = type(method_config())
    for name in sorted(set(settings) - set(hints)):
        raise ConfigError(unknown(prefix + name, [prefix + known for known in hints]))
    values = {}
    for name, value in settings.items():
        hint, where = hints[name], prefix + name
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            if not isinstance(value, Mapping | ConfigDict):
                raise ConfigError(f"{where} is a group of settings, not {value!r}")
            values[name] = _build(hint, value, where + ".")
        else:
            values[name] = _convert(value, hint, where)
    return kind(**values)


def _convert(value: Any, hint: Any, where: str) -> Any:
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, tuple | list):
            raise ConfigError(f"{where} takes several values, such as (1, 2), not {value!r}")
        element = typing.get_args(hint)[0]
        return tuple(_convert(v, element, where) for v in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{where} is {value!r}, but takes a value of type {hint.__name__}")
    return value
