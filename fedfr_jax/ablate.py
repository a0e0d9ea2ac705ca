"""Runs a grid of methods or switches times seeds, and compares them.

    python -m fedfr_jax.ablate --config=configs/ablation.py --workdir=runs/ablation

With ``--tune`` each method's learning rate and weight are chosen first, on other people. The
contents of a configuration are described in :mod:`fedfr_jax.ablation.grid`.
"""

from __future__ import annotations

import pathlib
import sys

# ruff: noqa: PLC0415 (--help does not wait for JAX)
from absl import flags
from ml_collections import config_flags

from fedfr_jax.runtime.command_line import run_command


def main() -> None:
    """Runs the grid that the flags ask for."""
    from fedfr_jax.ablation import comparison
    from fedfr_jax.ablation.cells import is_finished
    from fedfr_jax.ablation.grid import grid_of, run_grid, tuned

    grid, chosen = grid_of(flags.FLAGS.config), None
    root = pathlib.Path(flags.FLAGS.workdir).expanduser()
    if flags.FLAGS.tune:
        grid, chosen = tuned(grid, root, flags.FLAGS.only)
    cells = grid.cells()
    found = run_grid(cells, root, reference=grid.reference, only=flags.FLAGS.only, chosen=chosen)
    comparison.show(found)
    print(f"report: {root / 'report.html'}")
    failed = sum(
        (root / "cells" / cell.folder / "error.txt").exists()
        and not is_finished(cell, root / "cells" / cell.folder)
        for cell in cells
    )
    if failed:
        sys.exit(
            f"{failed} of {len(cells)} cells failed; see error.txt in their folders and "
            "run the command again to resume them"
        )


def command() -> None:
    """The command ``fedfr-ablate``."""
    config_flags.DEFINE_config_file(
        "config", None, "An ablation, such as configs/ablation.py; --config.base.a.b=x changes it."
    )
    flags.DEFINE_string("workdir", None, "Where everything is written.", required=True)
    flags.DEFINE_string("only", "", "Regular expression: run rows whose name it matches.")
    flags.DEFINE_bool("tune", False, "Choose the rows' settings first, as the configuration says.")
    flags.mark_flag_as_required("config")
    run_command(main, grid=True)


if __name__ == "__main__":
    command()
