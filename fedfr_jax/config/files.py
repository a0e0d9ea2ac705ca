"""Configuration files: found by path or by name."""

from __future__ import annotations

import os
import pathlib
import runpy
from typing import Any

from ml_collections import ConfigDict

from fedfr_jax.errors import InputError


def config_path(name: str | os.PathLike) -> pathlib.Path:
    """The file of a configuration.

    Args:
      name: a path, or the name of one that comes with the package, such as ``quickstart``.

    Raises:
      InputError: there is no such file.
    """
    path = pathlib.Path(name).expanduser()
    if path.is_file():
        return path
    package = pathlib.Path(__file__).parents[1]
    # If installed, the configurations are in the package; in a checkout, beside it.
    folders = [f for f in (package / "configs", package.parent / "configs") if f.is_dir()]
    if path.parent == pathlib.Path("."):
        for folder in folders:
            found = folder / f"{path.stem if path.suffix == '.py' else path.name}.py"
            if found.is_file():
                return found
    known = sorted({f.stem for folder in folders for f in folder.glob("[!_]*.py")})
    raise InputError(
        f"{name} is not there; give a file such as configs/quickstart.py, or one of "
        f"the names {', '.join(known)}"
    )


def load_config(name: str | os.PathLike, *arguments: Any) -> ConfigDict:
    """What ``get_config(*arguments)`` of a configuration file returns.

    Args:
      name: as for :func:`config_path`.

    Raises:
      InputError: there is no such file, or it has no ``get_config``.
    """
    path = config_path(name)
    found = runpy.run_path(os.fspath(path)).get("get_config")
    if found is None:
        raise InputError(f"{path} has no function get_config(), which returns the settings")
    return found(*arguments)
