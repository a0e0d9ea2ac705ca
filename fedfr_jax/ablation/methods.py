"""Several methods over several seeds in one call."""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

from fedfr_jax.ablation import grid
from fedfr_jax.ablation.comparison import Comparison
from fedfr_jax.config import Settings, nested_settings
from fedfr_jax.methods import METHODS


def compare_methods(
    methods: Sequence[str],
    config: Settings | None = None,
    folder: str | os.PathLike | None = None,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    **changes: Any,
) -> Comparison:
    """Runs methods over seeds, which change data, split and training, and compares them.

    Finished runs are kept: with the same folder, a call with one more method or seed
    runs only the new ones.

    Args:
      methods: keys of :data:`fedfr_jax.methods.METHODS`; the first is the reference.
      config: settings to start from; None: the defaults.
      folder: where everything is written; None: among the system's temporary files.
      seeds: whole numbers.
      **changes: settings of all runs, such as ``fed={"rounds": 4}``.

    Returns:
      The comparison; its ``tables()`` show themselves in a notebook, ``rows()`` are for pandas.

    Raises:
      InputError: settings or data are wrong.
      KeyError: there is no such method.
    """
    rows = [(METHODS[name].title, {"method": {"name": name}}) for name in methods]
    cells = grid.make_cells(nested_settings(config, **changes), rows, seeds)
    folder = pathlib.Path(folder or tempfile.mkdtemp(prefix="fedfr_")).expanduser()
    return grid.run_grid(cells, folder, reference=rows[0][0])
