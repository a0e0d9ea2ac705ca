"""Every setting of the simulator, and the checks on them.

:func:`default_config` turns the dataclasses of :mod:`fedfr_jax.settings` into the
``ConfigDict`` that files in ``configs/`` change and that ``--config.fed.rounds=3`` overrides;
:func:`resolve` turns the outcome back into a checked :class:`Config`.
"""

from fedfr_jax.config.files import config_path, load_config
from fedfr_jax.config.given import Settings, nested_settings, settings_of
from fedfr_jax.config.resolve import merged, nested, resolve, setting_names, to_dict, unknown
from fedfr_jax.config.whole import Config, default_config, method_config

__all__ = [
    "Config",
    "Settings",
    "config_path",
    "default_config",
    "load_config",
    "merged",
    "method_config",
    "nested",
    "nested_settings",
    "resolve",
    "setting_names",
    "settings_of",
    "to_dict",
    "unknown",
]
