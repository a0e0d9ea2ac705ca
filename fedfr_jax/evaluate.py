"""Evaluates a run and writes its summary and report.

    python -m fedfr_jax.evaluate --workdir=runs/x

It reads the settings and the newest checkpoint of the work directory. ``train`` ends
with the same evaluation. ``--data_root=...`` says where the data are now, if they were moved.
"""

from __future__ import annotations

# ruff: noqa: PLC0415 (--help does not wait for JAX)
from absl import flags

from fedfr_jax.runtime.command_line import run_command


def main() -> None:
    """Evaluates the run in the work directory of the flags again."""
    from fedfr_jax.reporting.reevaluation import evaluate

    root = flags.FLAGS.data_root
    evaluate(flags.FLAGS.workdir, **({"data": {"root": root}} if root else {}))


def command() -> None:
    """The command ``fedfr-evaluate``."""
    flags.DEFINE_string("workdir", None, "Work directory of the run to evaluate.", required=True)
    flags.DEFINE_string("data_root", "", "Where the data are now, if they were moved.")
    run_command(main)


if __name__ == "__main__":
    command()
