"""Compiled programs are kept for the next run, in the user's cache folder."""

from __future__ import annotations

import hashlib
import os
import pathlib
import platform

import jax
from absl import logging
from jax.experimental.compilation_cache import compilation_cache

MAX_BYTES = 4 * 2**30  # then the programs that were not used for longest are deleted
_LEAST_SECONDS = 0.3  # of compilation, for a program to be kept


def cache_folder() -> pathlib.Path:
    """The program's folder in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "fedfr_jax"


def use_compilation_cache(setting: str) -> pathlib.Path | None:
    """Switches JAX's persistent compilation cache on or off for this process.

    Args:
      setting: ``engine.compilation_cache``. "auto": the folder that JAX is configured to use, such
        as by ``JAX_COMPILATION_CACHE_DIR``, or else one in the user's cache folder; "off": none;
        any other: a folder.

    Returns:
      The folder, or None if nothing is kept: switched off, or the folder cannot be made.
    """
    before = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if setting == "off":
        _change(None, before)
        return None
    if setting == "auto" and before:
        return pathlib.Path(before)
    folder = (
        pathlib.Path(setting).expanduser() if setting != "auto" else cache_folder() / "compiled"
    )
    folder = folder.absolute() / _processor()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # a read-only home is no reason not to run
        logging.warning("compiled programs are not kept: %s", error)
        return None
    _change(str(folder), before)
    jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)
    return folder


def _change(folder: str | None, before: str | None) -> None:
    if folder != before:
        jax.config.update("jax_compilation_cache_dir", folder)
        compilation_cache.reset_cache()  # JAX looks at the setting at its first compilation only


def _processor() -> str:
    """A name of this kind of processor: its programs may not run on another one.

    JAX's key of a program has the platform but not the processor's instructions, and a home folder
    may be shared by several machines.
    """
    features = platform.processor()
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        features += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:  # not Linux
        pass
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"
