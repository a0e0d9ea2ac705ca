"""Settings as people give them: a file, its name, dictionaries, and changes of these."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeAlias

from ml_collections import ConfigDict

from fedfr_jax.config.files import load_config
from fedfr_jax.config.resolve import merged, resolve, to_dict
from fedfr_jax.config.whole import Config

Settings: TypeAlias = Config | ConfigDict | Mapping[str, Any] | str | os.PathLike


def settings_of(
    config: Settings | None = None, method: str | Mapping[str, Any] | None = None, **changes: Any
) -> Config:
    """Checked settings.

    Args:
      config: settings to start from. None: the defaults, those of the paper. A path, or
        a name such as "quickstart": the settings that ``get_config()`` of that file returns, as
        on the command line.
      method: name of the method, or the whole group of settings.
      **changes: settings or groups of them, such as ``fed={"rounds": 4}``.

    Raises:
      InputError: a setting is wrong, or there is no such file.
    """
    settings = nested_settings(config, **changes)
    if method is not None:
        group = {"name": method} if isinstance(method, str) else method
        settings = merged(settings, {"method": group})
    return resolve(settings)


def nested_settings(config: Settings | None = None, **changes: Any) -> dict[str, Any]:
    """Settings as nested dictionaries, unchecked; arguments as for :func:`settings_of`."""
    given: Any = load_config(config) if isinstance(config, (str, os.PathLike)) else config
    if isinstance(given, Config):
        given = to_dict(given)
    elif isinstance(given, ConfigDict):
        given = given.to_dict()
    return merged(given or {}, changes)
